import numpy as np
import pytest

from benchmarks import tables as pages
from benchmarks.experiment import select
from benchmarks.experiments import trackers
from benchmarks.models import table
from benchmarks.records import read_records
from benchmarks.reports import tracker_report
from tests.benchmarks.networks import Tiny


def test_all_trackers_have_the_papers_budget():
    for tracker in trackers.TRACKERS.values():
        if tracker.solver in trackers.FREE:
            assert tracker.cost() == 0
            continue
        assert tracker.cost() == pytest.approx(trackers.TRACKERS["paper"].cost(), rel=0.05)


def test_measures_every_tracker_and_goes_on(tmp_path, monkeypatch, data_dir):
    monkeypatch.setitem(table.MODELS, "tiny", Tiny)
    few = {name: trackers.TRACKERS[name] for name in ("paper", "part_13", "differences")}
    monkeypatch.setattr(trackers, "TRACKERS", few)
    monkeypatch.setattr(trackers, "LABEL_NOISE", (0.4,))
    experiment = trackers.Experiment(
        seeds=(trackers.TUNING_SEED, 0),
        epochs=6,
        first=15,
        every=15,
        num_images=100,
        num_iters=8,
        model="tiny",
        dataset="digits",
        train_size=200,
        batch_size=40,
        data_dir=data_dir,
        processes=1,
        output=tmp_path / "results.jsonl",
    )
    trackers.measure_all(experiment)
    records = read_records(experiment.output)
    assert len(records) == 2 * 2 * (1 + sum(len(tracker.decays) for tracker in few.values()))
    (exact,) = select(records, seed=0, training="sam", tracker="exact")
    assert exact["steps"] == [15, 30]
    values = np.array(exact["eigenvalues"])
    assert (np.diff(values) <= 1e-4).all()  # in descending order
    for record in select(records, seed=0, training="sam"):
        if record["tracker"] == "exact":
            continue
        first, span = np.array(record["alignment"]), np.array(record["span"])
        assert (first <= span + 1e-4).all()
        assert (span <= 1 + 1e-4).all()
        assert (np.array(record["eigenvalue"]) > 0).all()  # a linear model: nothing negative
    (paper,) = select(records, seed=0, training="sam", tracker="paper")
    assert np.mean(paper["span"]) > 0.5  # of a random vector about 0.07

    monkeypatch.setattr(trackers, "measure", pytest.fail)
    trackers.measure_all(experiment)  # nothing left to do
    assert read_records(experiment.output) == records


def made_up(trackers_of_a_cell):
    """Two measurements for each (seed, tracker, decay): (alignment, eigenvalue)."""
    shared = {"training": "sam", "label_noise": 0.0}
    for seed in (tracker_report.TUNING_SEED, 0, 1):
        eigenvalues = [[2.0, 1.0, 0.5], [4.0, 1.0, 1.0]]
        yield shared | {"seed": seed, "tracker": "exact", "steps": [5, 10], "eigenvalues": eigenvalues}
        for (name, decay), (alignment, value) in trackers_of_a_cell(seed).items():
            yield shared | {
                "seed": seed,
                "tracker": name,
                "decay": decay,
                "alignment": [alignment - 0.1, alignment + 0.1],
                "span": [0.9, 1.0],
                "eigenvalue": [value, 2 * value],
            }


def test_decay_is_chosen_by_one_seed_and_reported_for_the_others(tmp_path):
    def cell(seed):
        is_tuning = seed == tracker_report.TUNING_SEED
        return {
            ("spread_mean", 0.3): (0.8 if is_tuning else 0.5, 1.0),
            ("spread_mean", 0.5): (0.7 if is_tuning else 0.6, 2.0),
        }

    few = {"spread_mean": trackers.Tracker("mean", 128, 1, 20, decays=(0.3, 0.5))}
    records = list(made_up(cell))
    assert tracker_report.chosen(records, "spread_mean", (0.3, 0.5)) == 0.3
    found = tracker_report.tables(records, few)
    assert "| mean | 128 | 1 every 20 | 0.3 | 0.5 (0.95) | – | – | – | 50 % |" in found["trackers"]
    assert "| 0.5 | 0.60 (0.95) | – | – | – |" in found["tracker_decays"]
    assert "| SAM, right labels | 3 | 0.375 | 0.25 |" in found["tracker_gaps"]
    every = {name: trackers.TRACKERS[name] for name in tracker_report.STYLES}
    tracker_report.draw(records, every, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_page_shows_the_committed_results():
    page = (pages.DOCS / "curvature.md").read_text()
    records = read_records(trackers.RESULT_FILE)
    assert pages.filled(page, tracker_report.tables(records, trackers.TRACKERS)) == page
