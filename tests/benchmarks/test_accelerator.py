"""What an accelerator is to measure: in order, until the time is over, and nothing twice."""

import dataclasses
import signal
import sys
import time

import pytest

from benchmarks import accelerator
from benchmarks.cost import step_cost
from benchmarks.errors import UsageError
from benchmarks.experiments import suite
from benchmarks.models import table
from benchmarks.reports import accelerator_report, pages
from benchmarks.reports.records import read_records, write_records
from benchmarks.training import suite_settings
from benchmarks.training.interrupt import ask_for_interrupt, time_limit
from tests.benchmarks.networks import Tiny


@pytest.fixture
def tiny(monkeypatch, tmp_path, data_dir):
    """The miniature, with the smallest network, two methods and one trial a row."""
    monkeypatch.setitem(table.MODELS, "mlp", Tiny)
    monkeypatch.setattr(accelerator, "METHODS", {row: accelerator.METHODS[row] for row in ("sgd", "sam")})
    monkeypatch.setattr(accelerator, "keep_programs", lambda folder: None)
    monkeypatch.setattr(suite, "programs", {})
    digits = suite_settings.SETTINGS["digits"]
    rows = {
        name: digits.rows[name]._replace(first=digits.rows[name].first[:1], then=None)
        for name in ("sgd", "sgd_tuned", "sam")
    }
    monkeypatch.setitem(suite_settings.SETTINGS, "digits", digits._replace(rows=rows))
    monkeypatch.setattr(accelerator, "FIRST_ROWS", tuple(rows))
    return accelerator.Accelerator(seeds=1, tiny=True, work=tmp_path, data_dir=data_dir)


def lines(folder):
    return {file.name: read_records(file) for file in folder.glob("*.jsonl")}


def test_it_measures_everything_goes_on_where_it_was_and_repeats_nothing(tiny, monkeypatch, capsys):
    """Stopped in the middle by its own clock, as on Ctrl-C."""
    train_job, jobs_done = suite.train_job, []

    def stop_before_the_fourth(job, *, test):
        jobs_done.append((job.row, test))
        if len(jobs_done) == 4:
            signal.raise_signal(signal.SIGALRM)
        return train_job(job, test=test)

    monkeypatch.setattr(suite, "train_job", stop_before_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        accelerator.work(dataclasses.replace(tiny, minutes=60))
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert jobs_done == [("sgd", True), ("sgd_tuned", False), ("sgd_tuned", True), ("sam", False)]
    before = lines(accelerator.folder_of(tiny))
    assert [record["row"] for record in before["published.jsonl"]] == ["sgd", "sam"]
    assert [record["row"] for record in before["suite_digits.jsonl"]] == ["sgd", "sgd_tuned"]

    accelerator.work(tiny)
    after = lines(accelerator.folder_of(tiny))
    assert {name: after[name][: len(records)] for name, records in before.items()} == before
    assert jobs_done[4:] == [("sam", False), ("sam", True)]
    assert [record["row"] for record in after["suite_digits_time.jsonl"]] == ["sgd", "sam"]

    def never(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(accelerator, "run", never)
    monkeypatch.setattr(suite, "train_job", never)
    monkeypatch.setattr(suite, "time_per_step", never)
    monkeypatch.setattr(step_cost, "measure", never)
    accelerator.work(tiny)
    assert lines(accelerator.folder_of(tiny)) == after


def test_what_lacks_its_data_is_left_out_and_the_rest_is_done(tiny, monkeypatch):
    def lacks(suite):
        raise UsageError("no such data set")

    done = []
    monkeypatch.setattr(accelerator, "measure_cost", lambda *arguments: done.append("cost"))
    monkeypatch.setattr(accelerator, "train_network", lambda row, *arguments: done.append(row))
    monkeypatch.setattr(suite, "each", lacks)
    monkeypatch.setattr(suite, "time_rows", lambda suite: done.append("time"))
    monkeypatch.setattr(suite, "run", lambda suite: done.append("prices"))
    with pytest.raises(UsageError, match="left out: digits, other rows: no such data set"):
        accelerator.work(tiny)
    assert done == ["cost", "sgd", "sam", "time", "prices"]


def test_a_network_that_diverges_is_a_result_and_missing_data_are_not(tiny, tmp_path, monkeypatch):
    config = accelerator.network_config(tiny, "sgd", 0)
    for message, diverges in (("diverged: the loss", True), ("data set is not prepared", False)):

        def fails(config, message=message):
            raise UsageError(message)

        monkeypatch.setattr(accelerator, "run", fails)
        folder = tmp_path / message
        if diverges:
            accelerator.train_network("sgd", config, folder)
            (record,) = read_records(folder / "published.jsonl")
            assert record["diverged"]
        else:
            with pytest.raises(UsageError, match=message):
                accelerator.train_network("sgd", config, folder)


def test_the_published_settings_are_those_of_the_file():
    config = accelerator.network_config(accelerator.Accelerator(epochs=200), "eigen_sam", 3)
    assert (config.dataset, config.model, config.dtype) == ("fashion_mnist", "resnet18", "bfloat16")
    assert (config.rho, config.options, config.epochs, config.seed) == (0.1, {"alpha": 0.2}, 200, 3)
    assert config.validation_size == 0  # all 60,000 images
    assert accelerator.network_config(accelerator.Accelerator(), "sgd", 0).rho is None


def test_the_time_limit_is_a_signal_that_trainings_remember():
    with time_limit(0.01), ask_for_interrupt() as interrupted:
        while not interrupted():
            pass
    with pytest.raises(KeyboardInterrupt), time_limit(0.01):
        time.sleep(60)


def test_the_command_ends_cleanly_when_the_time_is_over(monkeypatch, tmp_path, capsys):
    def wait(config):
        with time_limit(60 * config.minutes):
            time.sleep(60)

    monkeypatch.setattr(accelerator, "work", wait)
    page = tmp_path / "page.md"
    page.write_text(accelerator_report.PAGE.read_text())
    monkeypatch.setattr(accelerator_report, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["accelerator", "--minutes", "0.001"])
    with pytest.raises(SystemExit) as end:
        accelerator.main()
    assert end.value.code is None
    assert "the same command continues" in capsys.readouterr().out

    def lacks(config):
        raise UsageError("left out: digits")

    monkeypatch.setattr(accelerator, "work", lacks)
    with pytest.raises(SystemExit, match="error: left out: digits"):
        accelerator.main()


def test_tables_of_a_device(tmp_path):
    """Made-up files, and the numbers that they must show."""
    folder = tmp_path / "results" / "some-gpu"
    network = {"row": "xsam", "config": {"epochs": 30}, "rho": 0.1, "options": {"rho_max": 0.2}}
    write_records(
        folder / "published.jsonl",
        [network | {"seed": s, "test_accuracy": a} for s, a in enumerate((0.94, 0.95))],
    )
    write_records(
        folder / "suite_time.jsonl",
        [{"row": row, "seconds_per_step": seconds} for row, seconds in (("sgd", 0.002), ("sam", 0.005))],
    )
    write_records(
        folder / "suite.jsonl", [{"row": "sam", "label_noise": 0.4, "seed": 0, "test_accuracy": 0.83}]
    )
    tables = accelerator_report.tables(tmp_path / "results")
    assert "| XSAM | 30 | 2 | 94.5 ± 0.5 | rho 0.1, rho_max 0.2 |" in tables["published"]
    assert "| SAM | 2.50 | 5.00 ms | 1 | 83.0 |" in tables["prices"]
    for name in ("cost", "cifar_resnet18", "fashion_vit_full"):
        assert tables[name] == "Nothing has been measured on an accelerator yet."


def test_the_page_shows_the_committed_results():
    page = accelerator_report.PAGE.read_text()
    assert pages.filled(page, accelerator_report.tables(accelerator_report.FOLDER)) == page
