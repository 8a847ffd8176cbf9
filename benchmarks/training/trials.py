"""What experiments of many short runs share: settings by name, one network, a process on each core."""

import dataclasses
import functools
import importlib.metadata
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import absl.logging
import jax
import tensorflow_datasets as tfds
from tqdm import tqdm

from benchmarks import train
from benchmarks.data import sources as data

Job = TypeVar("Job")
Result = TypeVar("Result")


def with_settings(config: train.Config, settings: Mapping[str, Any]) -> train.Config:
    """Replaces fields of the configuration, and options of its method, by name."""
    fields = {field.name for field in dataclasses.fields(config)}
    own = {key: value for key, value in settings.items() if key in fields}
    options = {key: value for key, value in settings.items() if key not in fields}
    return dataclasses.replace(config, **own, options=config.options | options)


def train_once(
    program: train.Program, config: train.Config, noisy: data.Split, bar: tqdm | None = None
) -> Iterator[tuple[int, train.TrainState]]:
    """Trains one network; yields (epoch, state) after every epoch.

    Raises:
        UsageError: if the run diverges.
    """
    losses = []
    start = program.init(config.seed)
    for step, state, loss in train.train_steps(program, noisy, start, config.seed):
        losses.append(loss)
        if bar is not None:
            bar.update()
        if step % program.steps_per_epoch == 0:
            train.check_finite(losses, step, config)
            losses = []
            yield step // program.steps_per_epoch, state


def quiet() -> None:
    """Leaves the terminal to our own progress bar."""
    absl.logging.set_verbosity(absl.logging.ERROR)  # TFDS would recommend OpenCV
    tfds.disable_progress_bar()


def on_each_core(function: Callable[[Job], Result], jobs: Sequence[Job], processes: int) -> Iterator[Result]:
    """Yields `function(job)` of every job, in their order, as they are done, with a progress bar.

    A process on each core gets more done than one process with as many threads.

    Args:
        function: of one job; importable by name.
        jobs: what to do.
        processes: jobs at a time; with 1, they run in this process.

    Yields:
        The results.
    """
    bar = tqdm(total=len(jobs), unit="job", smoothing=0.0)
    with bar:
        if processes == 1:
            for job in jobs:
                yield function(job)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        cores = context.Queue()
        for core in range(processes):
            cores.put(core)
        with context.Pool(processes, initializer=start_worker, initargs=(cores,)) as pool:
            for result in pool.imap(function, jobs):
                yield result
                bar.update()


def start_worker(cores: multiprocessing.Queue) -> None:
    """Pins this process to a core of its own, where the system can, and leaves the terminal alone."""
    core = cores.get()
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {own[core % len(own)]})
    quiet()


@functools.cache
def versions() -> dict[str, str]:
    """Of the packages and the machine that a result depends on."""
    packages = ("optax_sam", "jax", "optax", "flax")
    return {name: importlib.metadata.version(name) for name in packages} | {
        "device": jax.devices()[0].device_kind
    }


def read_records(file: Path) -> list[dict[str, Any]]:
    """The lines of a result file; none where it is missing, and without a last line cut short by a kill."""
    records = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def write_records(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a result file, one JSON object a line, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial_file = file.with_suffix(".partial")
    partial_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    os.replace(partial_file, file)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.mean(values), error


def time_per_step(
    configs: Mapping[str, train.Config],
    programs: Mapping[str, train.Program],
    noisy: data.Split,
    rounds: int = 40,
    steps: int = 10,
) -> dict[str, float]:
    """Seconds a step, occasional work in its due share: medians over rounds in which the rows take turns."""
    order = train.epoch_order(0, 0, len(noisy.labels))
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
