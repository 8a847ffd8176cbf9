import dataclasses
import itertools
import json
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks import figures as plots
from benchmarks import tables as pages
from benchmarks.data import arrays
from benchmarks.errors import UsageError
from benchmarks.experiments.suite import figures as suite_figures
from benchmarks.experiments.suite import report as suite_report
from benchmarks.experiments.suite import rows as suite_rows
from benchmarks.experiments.suite import setting_tables, suite
from benchmarks.experiments.suite import tables as suite_tables
from benchmarks.experiments.suite.numbers import differences
from benchmarks.models import table
from benchmarks.records import RESULTS, read_records, write_records
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
    at = ("sgd_decay", 0.0)
    first, second, last = [trial for trial in tuned if (trial["row"], trial["label_noise"]) == at]
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

    check_tables(read_records(file), tuned, times)
    check_pictures(read_records(file), tuned, times, monkeypatch, tmp_path)


def values(records, field, row, noise):
    """In per cent, by seed."""
    return [100 * r[field] for r in records if (r["row"], r["label_noise"]) == (row, noise)]


def check_tables(records, tuned, times):
    """The numbers in the cells are those of the records."""
    tables = {name: make(records, tuned, times) for name, make in suite_tables.TABLES.items()}
    lines = {name: [line.split("|")[1:-1] for line in text.splitlines()[2:]] for name, text in tables.items()}
    found = {name: {row.strip(): cells for row, *cells in table} for name, table in lines.items()}
    label = lambda row: suite_rows.ROWS[row].label
    shown = lambda table, row: [
        float(cell.split("±")[0].replace("**", "")) for cell in found[table][label(row)]
    ]
    means = lambda field, row: [np.mean(values(records, field, row, noise)) for noise in (0.0, 0.4)]
    for row in ROWS:
        accuracy = np.array(means("test_accuracy", row))
        assert shown("accuracy", row) == pytest.approx(accuracy, abs=0.051)
        fitted = means("training_accuracy_on_noisy_labels", row)
        assert shown("fitted", row) == pytest.approx(fitted, abs=0.051)
        sharpness = np.array(means("largest_hessian_eigenvalue", row)) / 100
        assert shown("sharpness", row) == pytest.approx(sharpness, abs=0.0051)
        for name, other in (("differences", "sam"), ("differences_to_tuned", "sgd_decay")):
            assert shown(name, row) == pytest.approx(accuracy - means("test_accuracy", other), abs=0.051)
    for row in ("sam", "sgd_decay"):
        for noise, cell in zip((0.0, 0.4), found["settings"][label(row)], strict=True):
            chosen = suite_rows.best(tuned, row, noise)
            assert cell.strip() == ", ".join(f"{name} {value:g}" for name, value in chosen.items())
    a_step = {time["row"]: time["seconds_per_step"] / times[0]["seconds_per_step"] for time in times}
    for row in ROWS:
        assert shown("cost", row) == pytest.approx([a_step[row]] * 2, abs=0.0051)
    numbers = ("networks reported", 12), ("seeds of each row and noise level", 2)
    for name, number in (*numbers, ("trials on validation data", 12)):
        assert int(found["runs"][name][0]) == number


def check_pictures(records, tuned, times, monkeypatch, folder):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure) or figure.savefig(path))
    suite_figures.draw_noise(records, folder / "noise.png")
    suite_figures.draw_radius(tuned, folder / "radius.png")
    suite_figures.draw_cost(records, times, folder / "cost.png")
    noise, radius = ({line.get_label(): line for line in x.axes[0].lines} for x in figures[:2])
    for row in ROWS:
        label = suite_rows.ROWS[row].label
        accuracies = [np.mean(values(records, "test_accuracy", row, level)) for level in (0.0, 0.4)]
        assert noise[label].get_ydata() == pytest.approx(accuracies)
        assert label in [text.get_text() for text in figures[2].legends[0].get_texts()]
    for axes, level in zip(figures[2].axes, (0.0, 0.4), strict=True):
        heights = [line.get_ydata()[0] for line in axes.lines if len(line.get_ydata()) == 1]
        for row in ROWS:
            assert np.isclose(heights, np.mean(values(records, "test_accuracy", row, level))).any()
    searched = [dict(settings) for settings in suite_rows.ROWS["sam"].first]
    points = sorted(
        (trial["settings"]["rho"], 100 * trial["validation_accuracy"])
        for trial in tuned
        if (trial["row"], trial["label_noise"]) == ("sam", 0.0) and trial["settings"] in searched
    )
    assert len(points) == 2
    assert radius[suite_rows.ROWS["sam"].label].get_xydata().tolist() == [pytest.approx(p) for p in points]
    for figure in figures:
        plt.close(figure)


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


def test_a_row_that_starts_from_another_one_has_its_settings():
    made_up = {
        "tuned": suite_rows.Row(
            "sgd", "tuned", [{"weight_decay": 1}, {"weight_decay": 2}], {"learning_rate": 3}
        ),
        "sam": suite_rows.Row("sam", "SAM on tuned", [{"rho": 4}, {"rho": 5}], starts_from="tuned"),
        "long": suite_rows.Row("sgd", "longer", starts_from="tuned"),
    }
    trials = []

    def make(row, accuracy, **settings):
        trials.append({"row": row, "label_noise": 0.0, "settings": settings, "validation_accuracy": accuracy})

    missing = lambda name: suite_rows.missing_trials(trials, name, 0.0, made_up)
    first = [("tuned", {"weight_decay": 1}), ("tuned", {"weight_decay": 2})]
    assert missing("tuned") == missing("sam") == missing("long") == first
    make("tuned", 0.5, weight_decay=1)
    make("tuned", 0.6, weight_decay=2)
    last = {"weight_decay": 2, "learning_rate": 3}
    assert missing("tuned") == missing("sam") == missing("long") == [("tuned", last)]
    make("tuned", 0.7, **last)
    assert missing("tuned") == missing("long") == []
    assert suite_rows.best(trials, "long", 0.0, made_up) == last
    assert missing("sam") == [("sam", last | {"rho": 4}), ("sam", last | {"rho": 5})]
    make("sam", 0.8, **last, rho=5)
    make("sam", 0.7, **last, rho=4)
    assert suite_rows.best(trials, "sam", 0.0, made_up) == last | {"rho": 5}


def test_more_test_images_come_from_those_held_out_and_no_image_is_used_twice():
    split = lambda *numbers: arrays.Split(np.array(numbers)[:, None], np.array(numbers))
    whole = arrays.Dataset(split(1, 2), split(3, 4, 5), split(6, 7), 10)
    moved = suite.with_more_test_images(whole, 2)
    assert moved.validation.labels.tolist() == [3]
    assert moved.test.labels.tolist() == [4, 5, 6, 7]
    assert moved.test.images[:, 0].tolist() == [4, 5, 6, 7]
    assert moved.train == whole.train
    # As the protocol says.
    for name, size in (("cifar_resnet", 2500), ("cifar_resnet_fitted", 1000)):
        config, more_test = suite.SETTINGS[name].config, suite.SETTINGS[name].more_test
        assert (config["train_size"], config["validation_size"] - more_test) == (size, 1500)


def test_rows_of_a_setting():
    with pytest.raises(UsageError, match="'digits' has no row asam_decay; its rows are: sgd, sgd_tuned"):
        suite.tune(suite.Suite("tune", "digits", rows=("asam_decay",), processes=1))
    for name, setting in suite.SETTINGS.items():
        for row in setting.rows:
            config = suite.row_config(suite.Suite("run", name), row, 0.0)
            assert config.epochs == setting.rows[row].epochs
        if "sgd_long" in setting.rows:
            assert setting.rows["sgd_long"].epochs == 2 * setting.rows["sgd"].epochs


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


def test_the_table_of_a_setting_shows_paired_differences_and_what_is_there(tmp_path):
    made_up = {
        "sgd": ((0.5, 0.6, 0.7), {}),
        "sgd_tuned": ((0.52, 0.61, 0.72), {"weight_decay": 0.002}),
        "sam": ((0.55, 0.65), {"rho": 0.1}),
        "part_16": ((0.55,), {"rho": 0.1}),
    }
    records = [
        {"row": row, "label_noise": 0.0, "seed": seed, "settings": settings, "test_accuracy": accuracy}
        | {"training_accuracy_on_noisy_labels": 0.9}
        for row, (accuracies, settings) in made_up.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    assert setting_tables.setting_table("digits", tmp_path) == setting_tables.NOTHING
    write_records(tmp_path / "suite_cifar_resnet.jsonl", records)
    lines = setting_tables.setting_table("cifar_resnet", tmp_path).splitlines()
    cells = {
        label.strip(): [cell.strip() for cell in row] for label, *row in (x.split("|")[1:-1] for x in lines)
    }
    assert cells["SGD"][:5] == ["1.00", "3", "60.0 ± 5.8", "-1.7 ± 0.3", "-5.0 ± 0.0"]
    assert cells["SAM"] == ["2.00", "2", "60.0 ± 5.0", "+3.5 ± 0.5", "0", "90.0 ± 0.0", "rho 0.1"]
    assert cells["SGD, tuned"][3] == "0"
    assert cells["SAM, ascent on 16 of 128"][0] == f"{1 + 16 / 128:.2f}"
    assert len(cells) == 2 + len(made_up)
    gradients = lambda row: setting_tables.gradients("cifar_resnet", row)
    assert [gradients(row) for row in ("sgd_long", "xsam3", "look_sam", "momentum_sam")] == [2, 4, 1.2, 1]


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
    assert pages.filled(page, tables | suite_report.other_settings(RESULTS)) == page
    page = (pages.DOCS / "choose.md").read_text()
    assert pages.filled(page, {"cheap": tables["cheap"]}) == page


def test_committed_networks_have_the_settings_of_the_committed_trials():
    records, tuned, _ = committed()
    runs = Counter((record["row"], record["label_noise"], record["seed"]) for record in records)
    seeds = range(suite.Suite("run").seeds)
    assert runs == Counter(itertools.product(suite_rows.ROWS, suite.noise_of(suite.Suite("run")), seeds))
    for record in records:
        assert record["settings"] == suite_rows.best(tuned, record["row"], record["label_noise"])


@pytest.mark.parametrize("name", suite_report.OTHER_SETTINGS)
def test_committed_networks_of_other_settings_have_the_settings_of_their_trials(name):
    setting = suite.SETTINGS[name]
    records, tuned = (read_records(RESULTS / f"{setting.file}{end}.jsonl") for end in ("", "_tuning"))
    runs = Counter((record["row"], record["seed"]) for record in records)
    assert set(runs.values()) <= {1}
    assert {trial["seed"] for trial in tuned} <= {suite.TUNING_SEED}
    assert all("test_accuracy" not in trial for trial in tuned)
    for record in records:
        assert record["settings"] == suite_rows.best(tuned, record["row"], 0.0, setting.rows)
        assert not suite_rows.missing_trials(tuned, record["row"], 0.0, setting.rows)
        assert record["seed"] != suite.TUNING_SEED


def test_committed_rows_had_five_trials_each_with_another_seed():
    _, tuned, times = committed()
    counts = Counter((trial["row"], trial["label_noise"]) for trial in tuned)
    chosen = [name for name in suite_rows.ROWS if name not in ("sgd", "sgd_40")]
    assert counts == {(name, noise): 5 for name in chosen for noise in suite.noise_of(suite.Suite("tune"))}
    assert {trial["seed"] for trial in tuned} == {suite.TUNING_SEED}
    assert [time["row"] for time in times] == list(suite_rows.ROWS)
