"""`--monitor` of the training loop: what it writes; training is left alone, and a run can be resumed."""

import dataclasses
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from benchmarks import train
from benchmarks.data import arrays
from benchmarks.errors import UsageError
from benchmarks.models import table
from benchmarks.training.checkpoints import restore
from benchmarks.training.config import Config
from benchmarks.training.program import make_program
from optax_sam.diagnostics.monitor import QUANTITIES
from tests.benchmarks.networks import Tiny


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(table.MODELS, "tiny", Tiny)


def config_of(data_dir, **settings):
    return Config(model="tiny", train_size=200, epochs=3, checkpoint_every=1, data_dir=data_dir, **settings)


def run(config):
    """Returns the parameters at the end, and the records of the monitor."""
    train.run(config)
    dataset = arrays.load(config.dataset, config.data_dir, train_size=config.train_size)
    like = make_program(config, dataset).like
    with ocp.CheckpointManager(config.output / "checkpoints") as checkpoints:
        _, state, _ = restore(checkpoints, like)
    lines = map(json.loads, (config.output / "metrics.jsonl").read_text().splitlines())
    return state, [line for line in lines if line["event"] == "monitor"]


def test_what_is_written_and_that_training_is_left_alone(data_dir, tmp_path):
    config = config_of(data_dir, method="sam", monitor=2, output=tmp_path / "monitored")
    state, records = run(config)
    assert [record["step"] for record in records] == [
        1,
        3,
        5,
    ]  # every second of six steps, the first included
    for record in records:
        assert set(record) == {"event", "step", *QUANTITIES}
        np.testing.assert_allclose(record["perturbation_norm"], 0.05, rtol=1e-4)
        assert record["sharpness"] > 0
        assert 0 <= record["alignment"] <= 1
    alone, none = run(dataclasses.replace(config, monitor=None, output=tmp_path / "alone"))
    assert not none
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, state.params, alone.params)


def test_sgd_has_no_perturbation_to_record(data_dir, tmp_path):
    _, records = run(config_of(data_dir, method="sgd", monitor=4, output=tmp_path / "run"))
    assert [set(record) for record in records] == [{"event", "step", "gradient_norm", "top_eigenvalue"}] * 2


def test_a_resumed_run_has_the_same_bits(data_dir, tmp_path, monkeypatch):
    """Interrupted between two recordings: eigenvector and count are in the checkpoint."""
    config = config_of(data_dir, method="sam", monitor=3, output=tmp_path / "whole")
    state, records = run(config)
    stopped = dataclasses.replace(config, output=tmp_path / "stopped")
    evaluate, calls = train.evaluate, []

    def interrupted(*args):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.run(stopped)
    resumed, again = run(dataclasses.replace(stopped, resume=True))
    assert again == records
    same = lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    jax.tree.map(same, (resumed.params, resumed.opt_state), (state.params, state.opt_state))


def test_an_interval_under_1(data_dir):
    with pytest.raises(UsageError, match="--monitor is a number of steps, at least 1, got 0"):
        train.run(config_of(data_dir, monitor=0, output=data_dir / "never"))
