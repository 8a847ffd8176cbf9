"""`--monitor` of the training loop: what it writes; training is left alone, and a run can be resumed."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import train
from benchmarks.errors import UsageError
from benchmarks.training.config import Config
from optax_sam.diagnostics.monitor import QUANTITIES
from tests.benchmarks.training import assert_same, last_checkpoint, shared_program, stopped_in_epoch


@pytest.fixture(autouse=True)
def shared_programs(monkeypatch):
    monkeypatch.setattr(train, "make_program", shared_program)


def config_of(data_dir, **settings):
    return Config(model="tiny", train_size=200, epochs=3, checkpoint_every=1, data_dir=data_dir, **settings)


def run(config):
    """The state at the end, and the records of the monitor."""
    train.run(config)
    lines = map(json.loads, (config.output / "metrics.jsonl").read_text().splitlines())
    return last_checkpoint(config)[1], [line for line in lines if line["event"] == "monitor"]


def test_what_is_written_and_that_training_is_left_alone(data_dir, tmp_path):
    config = config_of(data_dir, method="sam", monitor=3, output=tmp_path / "monitored")
    state, records = run(config)
    assert [record["step"] for record in records] == [1, 4]  # every third of six steps, the first included
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


def test_a_resumed_run_has_the_same_bits(data_dir, tmp_path):
    """Interrupted between two recordings: eigenvector and count are in the checkpoint."""
    config = config_of(data_dir, method="sam", monitor=3, output=tmp_path / "whole")
    state, records = run(config)
    stopped = dataclasses.replace(config, output=tmp_path / "stopped")
    with stopped_in_epoch(2):
        train.run(stopped)
    resumed, again = run(dataclasses.replace(stopped, resume=True))
    assert again == records
    assert_same(resumed, state)


def test_an_interval_under_1(data_dir):
    with pytest.raises(UsageError, match="--monitor is a number of steps, at least 1, got 0"):
        train.run(config_of(data_dir, monitor=0, output=data_dir / "never"))
