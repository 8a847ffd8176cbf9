import dataclasses
import itertools
import json
from collections import Counter

import pytest

from benchmarks.data import arrays
from benchmarks.errors import UsageError
from benchmarks.experiments import suite, suite_rows
from benchmarks.models import table
from benchmarks.reports import pages, suite_figures, suite_report, suite_tables
from benchmarks.reports.records import RESULTS, read_records, write_records
from benchmarks.reports.suite_numbers import differences
from tests.benchmarks.networks import Tiny

ROWS = ("sgd", "sam", "sgd_decay")


@pytest.fixture
def tiny(monkeypatch, tmp_path, data_dir):
    """A suite of three rows on the digits, with a network that compiles fast."""
    monkeypatch.setitem(table.MODELS, "tiny", Tiny)
    full = suite.row_config

    def row_config(*row):
        return dataclasses.replace(full(*row), model="tiny", dataset="digits", batch_size=50)

    monkeypatch.setattr(suite, "row_config", row_config)
    monkeypatch.setattr(suite, "dataset_of", lambda tiny: arrays.load("digits", data_dir, train_size=100))
    monkeypatch.setattr(suite, "programs", {})
    for name in ROWS:
        row = suite_rows.ROWS[name]
        monkeypatch.setitem(suite_rows.ROWS, name, row._replace(first=row.first[:2]))
    return suite.Suite(
        "tune",
        seeds=2,
        rows=ROWS,
        noise=(0.0, 0.4),
        epochs=1,
        output=tmp_path,
        tuning_file=tmp_path / "tuning.jsonl",
        data_dir=data_dir,
        processes=1,
    )


def test_suite_tunes_runs_goes_on_and_reports(tiny, tmp_path, monkeypatch, capsys):
    with pytest.raises(UsageError, match="suite tune"):
        suite.run(tiny)
    suite.tune(tiny)
    tuned = read_records(tiny.tuning_file)
    assert Counter((trial["row"], trial["label_noise"]) for trial in tuned) == {
        (row, noise): 3 for row in ("sam", "sgd_decay") for noise in (0.0, 0.4)
    }
    # The last trial of a row goes on from the better of the first two.
    first, second, last = [trial for trial in tuned if trial["row"] == "sgd_decay"][:3]
    better = max(first, second, key=lambda trial: trial["validation_accuracy"])
    assert last["settings"] == {**better["settings"], **suite_rows.ROWS["sgd_decay"].then}
    assert all("test_accuracy" not in trial for trial in tuned)

    # Stopped before the last trial of a row, `tune` makes this one only, and `run` does not go without it.
    write_records(tiny.tuning_file, [trial for trial in tuned if trial is not last])
    with pytest.raises(UsageError, match=r"lacks trials of \[\('sgd_decay', 0.0\)\].*suite tune"):
        suite.run(tiny)
    suite.tune(tiny)
    again = read_records(tiny.tuning_file)
    assert again == [*(trial for trial in tuned if trial is not last), last]

    # Stopped in the middle of a line, `run` goes on with what is missing and repeats nothing.
    suite.run(tiny)
    file = tmp_path / "suite.jsonl"
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == len(ROWS) * 2 * 2
    file.write_text("".join(lines[:5]) + lines[5][:30])
    trained = []
    monkeypatch.setattr(
        suite, "run_job", lambda job: trained.append(job) or {"row": job.row, "seed": job.seed}
    )
    suite.run(tiny)
    assert len(trained) == len(lines) - 5
    assert file.read_text().startswith("".join(lines[:5]))
    file.write_text(whole)

    suite.time_rows(tiny)
    times = read_records(tmp_path / "suite_time.jsonl")
    assert [time["row"] for time in times] == list(ROWS)

    records = read_records(file)
    for make in suite_tables.TABLES.values():
        assert "SAM" in make(records, tuned, times) or "networks" in make(records, tuned, times)
    suite_figures.draw_noise(records, tmp_path / "noise.png")
    suite_figures.draw_radius(tuned, tmp_path / "radius.png")
    suite_figures.draw_cost(records, times, tmp_path / "cost.png")


def test_suite_refuses_to_mix_settings(tiny, tmp_path):
    other = {"row": "sgd", "label_noise": 0.0, "seed": 0, "settings": {"weight_decay": 0.7}}
    (tmp_path / "suite.jsonl").write_text(json.dumps(other) + "\n")
    with pytest.raises(UsageError, match="other settings"):
        suite.run(dataclasses.replace(tiny, rows=("sgd",), noise=(0.0,)))


def test_a_diverged_network_counts_as_guessing(tiny):
    settings = {"learning_rate": 1e30}
    record = suite.run_job(suite.Job(dataclasses.replace(tiny, epochs=3), "sgd", 0.0, 0, settings))
    assert record["diverged"]
    assert record["test_accuracy"] == record["validation_accuracy"] == 0.1


def test_best_is_of_the_row_and_noise_level_and_the_first_of_equals():
    made_up = [
        {"row": row, "label_noise": noise, "settings": settings, "validation_accuracy": accuracy}
        for row, noise, settings, accuracy in [
            ("sam", 0.0, "a", 0.5),
            ("sam", 0.0, "b", 0.7),
            ("sam", 0.0, "c", 0.7),
            ("sam", 0.4, "d", 0.9),
            ("sgd", 0.0, "e", 0.8),
        ]
    ]
    assert suite_rows.best(made_up, "sam", 0.0) == "b"


def test_differences_are_taken_seed_by_seed():
    records = [
        {"row": row, "label_noise": 0.4, "seed": seed, "test_accuracy": accuracy}
        for row, accuracies in {"sam": (0.5, 0.7, 0.6), "asam": (0.52, 0.72)}.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    assert differences(records, "asam", 0.4) == pytest.approx([2.0, 2.0])
    assert "+2.0 ± 0.0" in suite_tables.difference_table(records, [], [])


def test_a_page_has_one_place_for_each_table():
    page = "before\n<!-- table: a -->\nold\n<!-- end -->\nafter\n"
    assert pages.filled(page, {"a": "new"}) == page.replace("old", "new")
    for wrong in ("no place", page + page):
        with pytest.raises(UsageError, match="places for the table 'a'"):
            pages.filled(wrong, {"a": "new"})


# --- The committed results ----------------------------------------------------------------------------


def committed():
    return tuple(
        read_records(RESULTS / name) for name in ("suite.jsonl", "suite_tuning.jsonl", "suite_time.jsonl")
    )


def test_the_page_shows_the_committed_results():
    page = suite_report.PAGE.read_text()
    tables = {name: make(*committed()) for name, make in suite_tables.TABLES.items()}
    assert pages.filled(page, tables) == page


def test_committed_networks_have_the_settings_of_the_committed_trials():
    records, tuned, _ = committed()
    runs = Counter((record["row"], record["label_noise"], record["seed"]) for record in records)
    seeds = range(suite.Suite("run").seeds)
    assert runs == Counter(itertools.product(suite_rows.ROWS, suite.NOISE_LEVELS, seeds))
    for record in records:
        assert record["settings"] == suite_rows.best(tuned, record["row"], record["label_noise"])


def test_committed_rows_had_five_trials_each_with_another_seed():
    _, tuned, times = committed()
    counts = Counter((trial["row"], trial["label_noise"]) for trial in tuned)
    chosen = [name for name in suite_rows.ROWS if name not in ("sgd", "sgd_40")]
    assert counts == {(name, noise): 5 for name in chosen for noise in suite.NOISE_LEVELS}
    assert {trial["seed"] for trial in tuned} == {suite.TUNING_SEED}
    assert [time["row"] for time in times] == list(suite_rows.ROWS)
