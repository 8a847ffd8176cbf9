"""Every experiment in miniature: measures, fills its tables, draws its pictures."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from benchmarks import __main__
from benchmarks.claim import Claim
from benchmarks.cost.compile_time import CompileTime
from benchmarks.cost.step_cost import StepCost
from benchmarks.data import arrays
from benchmarks.experiment import is_done, measure_missing, read
from benchmarks.experiments.budgets.equal_budgets import EqualBudgets
from benchmarks.experiments.budgets.equal_budgets import Row as BudgetRow
from benchmarks.experiments.budgets.robustness import Robustness
from benchmarks.experiments.claims.alternatives import Alternatives
from benchmarks.experiments.claims.eigen_sam import PAPERS, EigenSAM
from benchmarks.experiments.claims.eigen_sam_tracked import EigenSAMTracked
from benchmarks.experiments.claims.info_sam import InfoSAM
from benchmarks.experiments.claims.info_sam_weightings import InfoSAMWeightings
from benchmarks.experiments.claims.xsam_accuracy import XSAMAccuracy
from benchmarks.experiments.claims.xsam_direction import XSAMDirection
from benchmarks.experiments.demo import Demo
from benchmarks.experiments.eigenvector_solvers import EigenvectorSolvers
from benchmarks.experiments.fine_tuning import TUNED, FineTuning
from benchmarks.experiments.radius import CANDIDATES, TUNED_ON, Radius, Setting
from benchmarks.experiments.suite.rows import Row, searched
from benchmarks.experiments.suite.settings import SUITES
from benchmarks.experiments.suite.suite import NoisyLabels, SuiteTimes
from benchmarks.experiments.theory.sde_paths import SDEPaths
from benchmarks.experiments.theory.third_order import ThirdOrder
from benchmarks.experiments.theory.xsam_plane import XSAMPlane
from benchmarks.experiments.trackers import FREE, TRACKERS, TUNING_SEED, Trackers
from tests.benchmarks.networks import RECIPES, USUAL

INCREASES = {
    "num_parameters": 10,
    "ratios": (1.0, 10.0),
    "num_gradients": 30,
    "controlled_seeds": (0, 1),
    "epochs": {25: 2},
    "warm_up": 2,
    "every": 3,
}
DIGITS = {"data": "digits", "train_size": 100, "batch_size": 25, "width": 4}
SMALL = {"dataset": "digits", "model": "tiny", "train_size": 200}
TWO = {"seeds": (0, 1), "recipes": RECIPES}
SUITE = NoisyLabels(
    seeds=(0, 1),
    name="suite",
    config=USUAL | {"train_size": 100},
    rows={
        "sgd": Row("sgd", "SGD", epochs=1),
        "sam": searched("sam", 0.5, 1, epochs=1),
        "sgd_decay": Row("sgd", "SGD, decay tuned", [{"weight_decay": 5e-4}], {"learning_rate": 0.1}, 1),
        "part_8": searched("sam", 1, label="SAM, part", fixed={"ascent_batch": 5}, group="cheap", epochs=1),
    },
    noise=(0.0, 0.4),
    sharpness=True,
)
BUDGETS = {
    "seeds": (0, 1),
    "config": USUAL,
    "rows": {
        "sgd": BudgetRow("sgd", "SGD"),
        "sam": BudgetRow("sam", "SAM", fixed={"rho": 0.1}),
        "random": BudgetRow("random_direction", "Random direction", fixed={"rho": 0.1}, draws=True),
        "sgd_averaged": BudgetRow("sgd", "SGD, averaged", {"ema": 0.8}),
        "sgd_stopped": BudgetRow("sgd", "SGD, stopped", stops=True),
    },
    "noise": (0.4,),
    "tuning_seeds": (1000,),
    "epochs": 2,
}
TINY = (
    EqualBudgets(**BUDGETS),
    Robustness(**BUDGETS, examined=("sgd", "sam"), levels=(0.4,)),
    FineTuning(
        seeds=(0, 1),
        datasets=("trec",),
        rows={
            TUNED: BudgetRow("sgd", "AdamW, tuned", {"epochs": 2}, fixed={"learning_rate": 1e-3}),
            "functional_sam": BudgetRow("sam", "Functional SAM", fixed={"rho": 0.02, "functional": True}),
        },
        labels=(20,),
        trainings=("full",),
        tuning_seeds=(1000,),
        batch_size=10,
        model_options={
            "vocabulary": 9,
            "num_positions": 6,
            "hidden_size": 4,
            "num_layers": 1,
            "num_heads": 2,
        },
        published=False,
    ),
    SUITE,
    SuiteTimes("suite_time", is_alone=True, suite=SUITE),
    next(own for own in SUITES if own.name == "suite_digits"),
    EigenSAM(rows=PAPERS, epochs=2, num_batches=2, first_iters=2, later_iters=2, **TWO),
    EigenSAMTracked(
        epochs=2,
        epochs_between=1,
        alphas_of_the_paper=(1.0,),
        alphas=(0.2, 1.0),
        num_batches=2,
        first_iters=3,
        later_iters=3,
        seeds=(0, 1),
        recipes={name: recipe | {"batch_size": 32} for name, recipe in RECIPES.items()},
    ),
    InfoSAM(**INCREASES, **TWO),
    InfoSAMWeightings(**INCREASES, **TWO),
    XSAMDirection(num_quadratics=5, epochs=2, steps_per_epoch=4, per_epoch=2, ascent_steps=2, **TWO),
    XSAMAccuracy(
        rows=(("sam", 1), ("xsam", 1)),
        radii=(0.1,),
        epochs=2,
        interval_seeds=(0, 1),
        intervals={"1 epoch": 4, "never again": 8},
        **TWO,
    ),
    Alternatives(radii=(0.1,), epochs=1, **TWO),
    SDEPaths(setting=DIGITS, radii=(0.2,), num_steps=4, every=2, seeds=(0, 1, 2), num_paths=2),
    ThirdOrder(setting=DIGITS, num_steps=4, every=2, interval=2, seeds=(0, 1)),
    XSAMPlane(setting=DIGITS, steps=(0, 2), num_batches=2),
    Radius(
        seeds=(0, 1),
        datasets=("digits",),
        candidates={name: own for name, own in CANDIDATES.items() if name != "asam"},
        settings={
            TUNED_ON: Setting("noisy", "suite", "sam", 0.4),
            "clean": Setting("clean", "suite", "sam"),
            "part": Setting("part", "suite", "part_8"),
        },
        suites={"suite": SUITE},
    ),
    Demo(
        rows={name: row._replace(search={}) for name, row in list(Demo().rows.items())[:3]},
        seeds=(0, 1),
        epochs=2,
        model="tiny",
    ),
    EigenvectorSolvers(
        seeds=(0,), network=SMALL | {"epochs": 1}, most_products=5, most_products_for_eigenvalue=4
    ),
    Trackers(
        seeds=(TUNING_SEED, 0),
        network=SMALL | {"epochs": 6, "batch_size": 40},
        trackers={name: TRACKERS[name] for name in ("paper", "lanczos", "spread", "part_32", "differences")},
        first=15,
        every=15,
        num_images=100,
        num_iters=8,
    ),
    StepCost(models=("mlp",), batch_size=8, rows=("sgd", "info_sam"), rounds=2),
    CompileTime(sizes=(4,), repeats=1),
)


def test_there_is_a_miniature_of_every_experiment():
    """But of counts on described chips, which have tests of their own, and of suites."""
    others = {name for name in __main__.EXPERIMENTS if name.startswith(("suite_cifar", "suite_fashion"))}
    assert {own.name for own in TINY} | others | {"tpu"} == set(__main__.EXPERIMENTS)


@pytest.mark.parametrize("own", TINY, ids=lambda own: own.name)
def test_measures_reports_and_draws(own, tmp_path, data_dir, monkeypatch):
    if own.name == "compile_time":
        monkeypatch.setattr("benchmarks.cost.compile_time.NUM_ARRAYS_OF_OTHERS", 2)
        monkeypatch.setattr("benchmarks.cost.compile_time.OTHERS", ("asam",))
    if own.name == "fine_tuning":
        monkeypatch.setattr("benchmarks.data.text.load", lambda *_: some_texts())
    if own.name == "radius":
        monkeypatch.setattr("benchmarks.experiments.radius.RESULTS", tmp_path)
        measure_missing(SUITE, tmp_path, data_dir, 1, lambda job: job["row"] in ("sam", "part_8"))
    measure_missing(own, tmp_path, data_dir, 1)
    records = read(own, tmp_path)
    assert all(is_done(job, records) for job in own.jobs(records))
    assert all({"seed", "commit", "versions", "machine"} <= record.keys() for record in records)
    frame = pd.DataFrame(records)
    for texts in own.tables(frame, tmp_path).values():
        assert texts
        assert not any("nan" in text for text in texts.values())
    if isinstance(own, Claim):
        verdicts = own.report(frame, tmp_path).verdicts
        assert all(verdict.outcome for verdict in verdicts)
        assert len(verdicts) == len({verdict.statement for verdict in verdicts})
    own.draw(frame, tmp_path, tmp_path)
    for picture in tmp_path.rglob("*.png"):
        assert plt.imread(picture).std() > 0
    CHECKS.get(own.name, lambda frame: None)(frame)


def some_texts():
    """Random tokens."""
    random = np.random.default_rng(0)
    split = lambda n: arrays.Split(random.integers(1, 9, (n, 6)), random.integers(0, 6, n))
    return arrays.Dataset(split(40), split(20), split(20), 6)


def check_fine_tuning(frame):
    made = frame[frame["part"] == "network"]
    assert (made["test_loss"] != np.log(6)).all()  # what a head of zeros has
    gradients = {row: set(own["gradients"]) for row, own in made.groupby("row")}
    assert gradients["functional_sam"] == {2 * price for price in gradients[TUNED]}
    assert frame[frame["part"] == "trial"]["test_accuracy"].isna().all()


def check_eigen_sam(frame):
    assert frame["alignment"].between(0, 1).all()
    assert (frame["top_eigenvalue"] > 0).all()  # of a linear model
    tracked = frame["alignment_of_the_tracked_eigenvector"]
    assert (tracked.notna() == (frame["row"] == "eigen_sam")).all()


def check_eigen_sam_tracked(frame):
    for values in frame["eigenvalues"]:
        assert (np.diff(values, axis=-1) <= 1e-4).all()  # in descending order
    for both in frame["alignments"].map(np.array):
        assert (both[:, 0] <= both[:, 1] + 1e-5).all()
        assert (both[:, 1] <= 1 + 1e-5).all()


def check_info_sam(frame):
    assert (frame["noise_free_increase"] > 0).all()
    assert (frame["cosine_with_the_noise_free"].dropna().abs() < 1 + 1e-5).all()
    assert set(frame["step"].dropna()) == {3, 6}  # every third after the second of eight


def check_xsam_direction(frame):
    for losses in frame["loss_at"].dropna():
        on_the_arc = [losses[name] for name in ("v(0)", "v(1)", "v(kept)")]
        assert max(on_the_arc) - 1e-6 <= losses["v(alpha*)"] <= losses["worst found"] + 1e-6


def check_solvers(frame):
    own = frame[frame["kind"] == "alignment"]
    assert set(own["step"]) == {1}  # a first refresh has nothing to start from
    means = own.groupby(["start", "solver", "num_iters"])["alignment"].mean()
    assert means["cold"].tolist() == means["warm"].tolist()
    cold = means["cold"]
    assert cold["lanczos", 5] > cold["power", 5] > cold["power", 1]


def check_trackers(frame):
    own = frame[frame["tracker"] != "exact"]
    for first, span in zip(own["alignment"].map(np.array), own["span"].map(np.array), strict=True):
        assert (first <= span + 1e-4).all()
        assert (span <= 1 + 1e-4).all()
    paper = own[(own["tracker"] == "paper") & (own["training"] == "sam")]
    assert np.mean(paper["span"].tolist()) > 0.5  # of a random vector about 0.07


def check_step_cost(frame):
    for low, median, high in frame["seconds"]:
        assert 0 < low <= median <= high
    sgd, info_sam = frame.to_dict("records")
    assert sgd["rounds"] == info_sam["rounds"] == 2
    assert sgd["seconds_relative_to_sgd"] == [1, 1, 1]
    assert info_sam["state_bytes"] == pytest.approx(3 * sgd["parameter_bytes"], rel=1e-3)


CHECKS = {
    "step_cost": check_step_cost,
    "fine_tuning": check_fine_tuning,
    "eigen_sam": check_eigen_sam,
    "eigen_sam_tracked": check_eigen_sam_tracked,
    "info_sam": check_info_sam,
    "xsam_direction": check_xsam_direction,
    "eigenvector_solvers": check_solvers,
    "trackers": check_trackers,
}


def test_all_trackers_have_the_papers_budget():
    for tracker in TRACKERS.values():
        budget = 0 if tracker.solver in FREE else pytest.approx(TRACKERS["paper"].cost(), rel=0.05)
        assert tracker.cost() == budget


def test_a_new_row_takes_two_lines(tmp_path, data_dir):
    """A line in the table of methods, a line in the rows of the suite, and nothing else."""
    rows = dict(SUITE.rows) | {"new": searched("vasso", 1, label="New", epochs=1)}
    before = dataclasses.replace(SUITE, noise=(0.0,))
    measure_missing(before, tmp_path, data_dir, 1)
    after = dataclasses.replace(before, rows=rows)
    added = measure_missing(after, tmp_path, data_dir, 1, lambda job: job["row"] == "new")
    assert {record["row"] for record in added} == {"new"}
    texts = after.tables(pd.DataFrame(read(after, tmp_path)), tmp_path)["docs/evidence/accuracy.md"]
    assert "| New |" in texts["accuracy"]
    after.draw(pd.DataFrame(read(after, tmp_path)), tmp_path, tmp_path)
