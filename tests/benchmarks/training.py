"""Trains a little, or until something stops it; states are on the host, for comparisons."""

import contextlib
import dataclasses
import itertools
import signal
from typing import NamedTuple

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from benchmarks import train
from benchmarks.training.checkpoints import restore

make_program, programs = train.make_program, {}


def shared_program(config, dataset):
    """Instead of `train.make_program`: compiles once what several runs share."""
    key = repr(dataclasses.replace(config, output=None, resume=False, seed=0))
    if key not in programs:
        programs[key] = make_program(config, dataset)
    return programs[key]


def as_numpy(state):
    """A copy, because the next step gives the buffers away."""
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda leaf: np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf), state)


def assert_same(one, other):
    """The same numbers to the last bit."""
    jax.tree.map(np.testing.assert_array_equal, one, other)


class Steps(NamedTuple):
    """States, losses at w and at w + ε after each step, and where the last state lies."""

    states: list
    losses: list[float]
    ascent: list[float]
    shardings: list


def first_steps(config, dataset, number=None, program=None):
    """Makes the first steps of a training, or all."""
    program = program or train.make_program(config, dataset)
    noisy = train.add_label_noise(dataset.train, config, dataset.num_classes)
    found = Steps([], [], [], [])
    run = train.train_steps(program, noisy, program.init(config.seed), config.seed)
    for _, state, loss in itertools.islice(run, number):
        found.states.append(as_numpy(state))
        found.losses.append(float(loss))
        found.ascent.append(float(optax.tree.get(state, "ascent_value", 0.0)))
        found.shardings[:] = [leaf.sharding for leaf in jax.tree.leaves(state)]
    return found


def last_checkpoint(config):
    """Step, state and losses of the last checkpoint of a run, whose program is shared."""
    with ocp.CheckpointManager(config.output / "checkpoints") as checkpoints:
        step, state, losses = restore(checkpoints, shared_program(config, None).like)
    return step, as_numpy(state), losses


def stop(train_steps, number, last):
    """Lets the loop get a signal after its step `last`, in a test or in a process of its own."""

    def stopped(*args):
        for step, state, loss in train_steps(*args):
            if step == last:
                signal.raise_signal(number)
            yield step, state, loss

    return stopped


@contextlib.contextmanager
def stopped_in_epoch(number):
    """Lets `train.run` be stopped before it evaluates an epoch."""
    evaluate, calls = train.evaluate, itertools.count(1)

    def stopped(*args):
        if next(calls) == number:
            raise KeyboardInterrupt
        return evaluate(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", stopped)
        with pytest.raises(KeyboardInterrupt):
            yield
