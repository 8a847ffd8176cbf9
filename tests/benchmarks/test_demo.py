import collections
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import methods
from benchmarks.data.arrays import Split
from benchmarks.errors import UsageError
from benchmarks.experiments import demo
from benchmarks.models import table
from benchmarks.reports.demo_report import page_table, summarise
from benchmarks.tables import DOCS, filled
from benchmarks.training.sharpness import largest_hessian_eigenvalue
from tests.benchmarks.networks import Tiny


@pytest.fixture
def tiny(monkeypatch, tmp_path, data_dir):
    """A demonstration of three rows and few settings, with a network that compiles fast."""
    monkeypatch.setitem(table.MODELS, "tiny", Tiny)
    full = demo.row_config
    monkeypatch.setattr(demo, "row_config", lambda *row: dataclasses.replace(full(*row), model="tiny"))
    rows = {name: demo.ROWS[name] for name in ("sgd_usual", "sgd", "xsam")}
    rows["sgd"] = rows["sgd"]._replace(search={"weight_decay": (5e-4, 0.01)})
    rows["xsam"] = rows["xsam"]._replace(search={"rho": (0.1,)})
    monkeypatch.setattr(demo, "ROWS", rows)
    monkeypatch.setattr(demo, "TUNING_SEEDS", (1000,))
    return demo.Demo(
        seeds=2,
        epochs=2,
        processes=1,
        output=tmp_path / "out",
        data_dir=data_dir,
        tuning_file=tmp_path / "tuning.jsonl",
    )


def test_demo_tunes_trains_and_draws(tiny, capsys):
    dataset = demo.dataset_of(tiny)
    with pytest.raises(UsageError, match=r"benchmarks\.experiments\.demo --tune"):
        demo.demonstrate(tiny, dataset)

    demo.tune(tiny)
    trials = [json.loads(line) for line in tiny.tuning_file.read_text().splitlines()]
    assert [trial["row"] for trial in trials] == ["sgd_usual", "sgd", "sgd", "xsam"]

    demo.demonstrate(tiny, dataset)
    shown = capsys.readouterr().out
    assert all(row.label in shown for row in demo.ROWS.values())
    assert (tiny.output / "demo.png").stat().st_size > 10_000
    records = [json.loads(line) for line in (tiny.output / "results.jsonl").read_text().splitlines()]
    assert [(record["row"], record["seed"]) for record in records] == [
        (name, seed) for seed in (0, 1) for name in ("sgd_usual", "sgd", "xsam")
    ]
    assert all(0 < record["test_accuracy"] < 1 for record in records)
    assert all(record["largest_hessian_eigenvalue"] > 0 for record in records)


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_tuned_rows_had_equally_many_trials_with_other_seeds():
    trials = read(demo.TUNING_FILE)
    counts = collections.Counter(trial["row"] for trial in trials)
    assert set(counts) == set(demo.ROWS)
    assert len({counts[name] for name in demo.ROWS if not name.endswith("_usual")}) == 1
    assert all(min(trial["seeds"]) >= demo.Demo.seeds for trial in trials)


def test_committed_trials_are_those_of_the_code():
    trials = read(demo.TUNING_FILE)
    for name, row in demo.ROWS.items():
        settings = [trial["settings"] for trial in trials if trial["row"] == name]
        assert settings == methods.combinations(row.search)
        assert {trial["model"] for trial in trials} == {demo.row_config(demo.Demo(), name).model}
    assert {trial["epochs"] for trial in trials} == {demo.Demo.epochs}


def test_choice_of_tuned_sgd_is_not_at_the_edge_of_its_grid():
    chosen = demo.best(read(demo.TUNING_FILE), "sgd")
    for name, values in demo.SGD_SEARCH.items():
        assert min(values) < chosen[name] < max(values)


def test_committed_results_are_those_of_the_committed_trials():
    records, trials = read(demo.RESULT_FILE), read(demo.TUNING_FILE)
    assert len(records) == len(demo.ROWS) * demo.Demo.seeds
    for record in records:
        assert record["epochs"] == demo.Demo.epochs
        assert record["settings"].items() >= demo.best(trials, record["row"]).items()


def test_gains_are_differences_seed_by_seed():
    accuracies = {"sgd": (0.90, 0.80, 0.85), "sam": (0.91, 0.81, 0.86)}
    records = [
        {"row": row, "test_accuracy": accuracy, "largest_hessian_eigenvalue": 1.0}
        for row, values in accuracies.items()
        for accuracy in values
    ]
    numbers = summarise(records, {"sgd": 1.0, "sam": 2.0})["sam"]
    assert numbers["gain"] == pytest.approx(1.0)
    assert numbers["gain_error"] == pytest.approx(0.0, abs=1e-9)
    assert numbers["accuracy_error"] == pytest.approx(5 / 3**0.5)
    assert numbers["time"] == 2.0


def test_largest_eigenvalue_is_the_algebraically_largest():
    def quadratic(params, batch):
        scales, _ = batch
        return 0.5 * scales.mean() * (-5 * params["a"] ** 2 + 3 * params["b"] ** 2 + params["c"] ** 2)

    params = {"a": jnp.float32(1.0), "b": jnp.float32(2.0), "c": jnp.float32(3.0)}
    scales = Split(np.linspace(1.0, 3.0, 300, dtype=np.float32), np.zeros(300, np.int32))
    assert largest_hessian_eigenvalue(quadratic, params, scales) == pytest.approx(6.0, rel=1e-3)


def test_the_page_shows_the_committed_results():
    page = (DOCS / "demo.md").read_text(encoding="utf-8")
    labels = {name: row.label for name, row in demo.ROWS.items()}
    assert filled(page, {"demo": page_table(read(demo.RESULT_FILE), labels)}) == page
