import collections
import dataclasses
import json

import pytest

from benchmarks import data, demo, methods
from benchmarks.errors import UsageError
from benchmarks.sharpness import largest_hessian_eigenvalue


@pytest.fixture
def tiny(monkeypatch, tmp_path, data_dir):
    """A demonstration of two methods, two settings each."""
    monkeypatch.setattr(demo, "SHOWN", ("sgd", "xsam"))
    monkeypatch.setattr(demo, "SGD_SEARCH", {"weight_decay": (5e-4, 8e-3)})
    monkeypatch.setattr(demo, "WEIGHT_DECAY_SEARCH", {})
    monkeypatch.setattr(demo, "TUNING_SEEDS", (1000,))
    shared = demo.base_config  # a network that compiles faster than the real one
    monkeypatch.setattr(demo, "base_config", lambda d: dataclasses.replace(shared(d), model="mlp"))
    row = methods.METHODS["xsam"]._replace(search={"rho": (0.1, 0.2)})
    monkeypatch.setitem(methods.METHODS, "xsam", row)
    return demo.Demo(
        seeds=2,
        epochs=2,
        processes=1,
        output=tmp_path / "out",
        data_dir=data_dir,
        tuning_file=tmp_path / "tuning.jsonl",
    )


def test_demo_tunes_trains_and_draws(tiny, data_dir, capsys):
    dataset = data.load("digits", data_dir)
    with pytest.raises(UsageError, match=r"benchmarks\.demo --tune"):
        demo.demonstrate(tiny, dataset)

    demo.tune(tiny)
    assert len(tiny.tuning_file.read_text().splitlines()) == 4

    demo.demonstrate(tiny, dataset)
    shown = capsys.readouterr().out
    assert "SGD" in shown
    assert "XSAM" in shown
    assert (tiny.output / "demo.png").stat().st_size > 10_000
    records = [json.loads(line) for line in (tiny.output / "results.jsonl").read_text().splitlines()]
    assert [(record["method"], record["seed"]) for record in records] == [
        ("sgd", 0),
        ("xsam", 0),
        ("sgd", 1),
        ("xsam", 1),
    ]
    assert all(0 < record["test_accuracy"] < 1 for record in records)
    assert all(record["largest_hessian_eigenvalue"] > 0 for record in records)


def test_committed_trials_are_equally_many_and_used_other_seeds():
    trials = [json.loads(line) for line in demo.TUNING_FILE.read_text().splitlines()]
    counts = collections.Counter(trial["method"] for trial in trials)
    assert set(counts) == set(demo.SHOWN)
    assert len(set(counts.values())) == 1
    assert all(min(trial["seeds"]) >= demo.Demo.seeds for trial in trials)


def test_committed_trials_are_those_of_the_code():
    trials = [json.loads(line) for line in demo.TUNING_FILE.read_text().splitlines()]
    for name in demo.SHOWN:
        assert [trial["settings"] for trial in trials if trial["method"] == name] == demo.searched(name)
    configs = demo.chosen_configs(demo.Demo())
    assert list(configs) == list(demo.SHOWN)
    assert {trial["epochs"] for trial in trials} == {demo.Demo.epochs}


def test_largest_eigenvalue_is_the_algebraically_largest():
    def quadratic(params, scale):
        return 0.5 * scale * (-5 * params["a"] ** 2 + 3 * params["b"] ** 2 + params["c"] ** 2)

    params = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert largest_hessian_eigenvalue(quadratic, params, 2.0) == pytest.approx(6.0, rel=1e-3)
