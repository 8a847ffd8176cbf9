"""Jobs on all cores: one process per core is faster than one process with as many threads."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import absl.logging
import tensorflow_datasets as tfds
from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")


def on_each_core(function: Callable[[Job], Result], jobs: Sequence[Job], processes: int) -> Iterator[Result]:
    """Yields `function(job)` for every job, in order, as they finish, with a progress bar.

    Args:
        function: does one job; importable by name.
        jobs: the jobs.
        processes: number of jobs at a time; with 1, they run in this process.

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
    """Pins this process to its own core, if the system allows it, and writes nothing to the terminal."""
    core = cores.get()
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {own[core % len(own)]})
    quiet()


def quiet() -> None:
    """Leaves the terminal to our own progress bar."""
    absl.logging.set_verbosity(absl.logging.ERROR)  # TFDS would recommend OpenCV
    tfds.disable_progress_bar()
