"""Code shared by experiments of many short runs: settings by name, training a network, timing a step."""

import collections
import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from tqdm import tqdm

from benchmarks.data.arrays import Split
from benchmarks.train import check_finite, epoch_order, train_steps
from benchmarks.training.config import Config
from benchmarks.training.program import Program, TrainState

RECORDED = (
    *("dataset", "train_size", "augment", "model", "epochs", "batch_size"),
    *("optimizer", "learning_rate", "momentum", "weight_decay", "refresh_every"),
)


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Replaces fields of the configuration, and options of its method, by name."""
    fields = {field.name for field in dataclasses.fields(config)}
    own = {key: value for key, value in settings.items() if key in fields}
    options = {key: value for key, value in settings.items() if key not in fields}
    return dataclasses.replace(config, **own, options=config.options | options)


def train_once(
    program: Program, config: Config, noisy: Split, bar: tqdm | None = None
) -> Iterator[tuple[int, TrainState]]:
    """Trains one network; yields (epoch, state) after every epoch.

    Raises:
        UsageError: if the run diverges.
    """
    losses = []
    start = program.init(config.seed)
    for step, state, loss in train_steps(program, noisy, start, config.seed):
        losses.append(loss)
        if bar is not None:
            bar.update()
        if step % program.steps_per_epoch == 0:
            check_finite(losses, step, config)
            losses = []
            yield step // program.steps_per_epoch, state


def train_to_the_end(program: Program, config: Config, noisy: Split) -> TrainState:
    """Trains one network; returns the state after the last epoch.

    Raises:
        UsageError: if the run diverges.
    """
    return collections.deque(train_once(program, config, noisy), maxlen=1).pop()[1]


def settings_of(config: Config) -> dict[str, Any]:
    """The part of a configuration that result files contain."""
    return {name: getattr(config, name) for name in RECORDED}


def time_per_step(
    configs: Mapping[str, Config],
    programs: Mapping[str, Program],
    noisy: Split,
    rounds: int = 40,
    steps: int = 10,
) -> dict[str, float]:
    """Seconds per step, with its share of the refreshes: medians over rounds in which rows take turns."""
    order = epoch_order(0, 0, len(noisy.labels))
    states = {name: program.init(0) for name, program in programs.items()}
    times: dict[tuple[str, bool], list[float]] = {}

    def run(name: str, refresh: bool, steps: int) -> None:
        began = time.perf_counter()
        for _ in range(steps):
            states[name], loss = programs[name].step(states[name], noisy, order, 0, refresh=refresh)
        jax.block_until_ready((states[name], loss))
        times.setdefault((name, refresh), []).append((time.perf_counter() - began) / steps)

    for _ in range(rounds + 1):
        for name in configs:
            run(name, False, steps)
            if programs[name].refresh_every is not None:
                run(name, True, 1)

    # The first round compiles.
    median = {key: statistics.median(values[1:]) for key, values in times.items()}
    seconds = {}
    for name in configs:
        seconds[name] = median[name, False]
        if programs[name].refresh_every is not None:
            seconds[name] += (median[name, True] - median[name, False]) / programs[name].refresh_every
    return seconds
