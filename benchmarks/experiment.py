"""The engine of all experiments: does the jobs that have no records yet, and fills pages from the records.

An experiment says what its jobs are, how one is measured, and what its tables and pictures are. The rest is
the same for all: one process pinned to each core, a record written as soon as its job ends, going on after
Ctrl-C and SIGKILL with what is missing, trainings that diverge, and the marked tables of pages.
"""

import abc
import dataclasses
import functools
import json
import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import absl.logging
import pandas as pd
import tensorflow_datasets as tfds
from tqdm import tqdm

from benchmarks.errors import DivergenceError
from benchmarks.records import Record, commit, device_and_machine, read_records, versions, write_records

Job = dict[str, Any]
Tables = dict[str, dict[str, str]]  # page -> name of a table -> Markdown
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Experiment(abc.ABC):
    """One of the programs. Its fields are the settings of the measurement."""

    name: str = ""  # on the command line, and of the result file
    seeds: tuple[int, ...] = (0,)  # of the networks or runs; `--seeds` replaces them
    datasets: tuple[str, ...] = ()  # that are prepared before the jobs start
    # Whether a job needs the whole machine: jobs are done one after another in this process.
    is_alone: bool = False

    @property
    def files(self) -> Mapping[str, str]:
        """Kind of job (their field `part`) -> name of the result file; one file if they have no kinds."""
        return {"": self.name}

    @abc.abstractmethod
    def jobs(self, records: list[Record]) -> list[Job]:
        """The measurements to make; later jobs may depend on the records of earlier ones."""

    @abc.abstractmethod
    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Does a job, with the data sets prepared in `data_dir`; returns what was measured."""

    def diverged(self, job: Job) -> Record:
        """What is recorded for a training that diverged: no better than guessing one of ten classes."""
        return {"diverged": True, "validation_accuracy": 0.1, "test_accuracy": 0.1}

    @abc.abstractmethod
    def tables(self, frame: pd.DataFrame, results: Path) -> Tables:
        """The tables, from the records and, if other experiments' are needed, their files."""

    def draw(self, frame: pd.DataFrame, results: Path, docs: Path) -> None:  # noqa: B027
        """Writes the pictures, if there are any, into the folder of the documents."""


def read(experiment: Experiment, folder: Path) -> list[Record]:
    """All records of an experiment."""
    return [
        record | ({"part": part} if part else {})
        for part, name in experiment.files.items()
        for record in read_records(folder / f"{name}.jsonl")
    ]


def write(experiment: Experiment, folder: Path, records: Sequence[Record]) -> None:
    """Writes the records into their files."""
    for part, name in experiment.files.items():
        own = [record for record in records if record.get("part", "") == part]
        if own:
            without = ({key: value for key, value in record.items() if key != "part"} for record in own)
            write_records(folder / f"{name}.jsonl", without)


def is_result_of(record: Record, job: Job) -> bool:
    """Whether the record is a result of the job."""
    return job.items() <= record.items()


def is_done(job: Job, records: Sequence[Record]) -> bool:
    """Whether there are results of the job."""
    return any(is_result_of(record, job) for record in records)


def measure_missing(
    experiment: Experiment,
    folder: Path,
    data_dir: Path,
    processes: int,
    is_wanted: Callable[[Job], bool] = lambda job: True,
) -> list[Record]:
    """Does the jobs that have no results yet; returns the new records."""
    records, added = read(experiment, folder), []

    def missing() -> list[Job]:
        return [job for job in experiment.jobs(records) if is_wanted(job) and not is_done(job, records)]

    for own in results(experiment, missing, data_dir, processes):
        records += own
        added += own
        write(experiment, folder, records)
    if added:  # In the order of the jobs, whichever ended first; nothing is left out.
        jobs = experiment.jobs(records)
        place = lambda record: next((i for i, job in enumerate(jobs) if is_result_of(record, job)), len(jobs))
        write(experiment, folder, sorted(records, key=place))
    return added


def measure_again(
    experiment: Experiment,
    folder: Path,
    data_dir: Path,
    processes: int,
    number: int,
    is_wanted: Callable[[Job], bool] = lambda job: True,
) -> Iterator[tuple[Job, list[str]]]:
    """Does some of the recorded jobs again, from all over the experiment, and changes no record.

    Yields:
        A job, and where it gave something else than its records: field, recorded and measured value.
    """
    records = read(experiment, folder)
    done = [job for job in experiment.jobs(records) if is_wanted(job) and is_done(job, records)]
    number = min(number, len(done))
    chosen = [done[i * len(done) // number] for i in range(number)]
    for measured in results(experiment, lambda: list(chosen), data_dir, processes):
        job = next(job for job in chosen if is_result_of(measured[0], job))
        chosen.remove(job)
        recorded = [record for record in records if is_result_of(record, job)]
        yield job, differences(recorded, measured)


def differences(recorded: Sequence[Record], measured: Sequence[Record]) -> list[str]:
    """Where records of one job differ, apart from times and from where they were measured."""
    if len(recorded) != len(measured):
        return [f"{len(recorded)} records, now {len(measured)}"]
    return [text for old, new in zip(recorded, measured, strict=True) for text in changes(old, new)]


def changes(old: Record, new: Record) -> list[str]:
    """Where two records differ in what both have; settings that were added since are left out."""
    found = []
    for name in sorted(old.keys() & new.keys() - {"commit", "versions", "device", "machine"}):
        if isinstance(old[name], dict) and isinstance(new[name], dict):
            found += [f"{name}.{text}" for text in changes(old[name], new[name])]
        # As in a file, where a tuple is a list, and what is not a number equals itself.
        elif "seconds" not in name and json.dumps(old[name]) != json.dumps(new[name]):
            found.append(f"{name}: {old[name]}, now {new[name]}")
    return found


def results(
    experiment: Experiment, find_jobs: Callable[[], list[Job]], data_dir: Path, processes: int
) -> Iterator[list[Record]]:
    """Yields the records of each job, as they end."""
    task = functools.partial(do, experiment=experiment, data_dir=data_dir, code=commit())
    return on_each_core(task, find_jobs, 1 if experiment.is_alone else processes)


def do(job: Job, experiment: Experiment, data_dir: Path, code: str) -> list[Record]:
    """Does a job; each record contains the job, the code, the versions, the machine and the seed."""
    try:
        measured = experiment.measure(job, data_dir)
    except DivergenceError:
        measured = [experiment.diverged(job)]
    stamp = {"seed": job.get("seed", 0), "commit": code, "versions": versions()} | device_and_machine()
    return [job | record | {key: x for key, x in stamp.items() if key not in record} for record in measured]


def on_each_core(
    function: Callable[[Job], R], find_jobs: Callable[[], list[Job]], processes: int
) -> Iterator[R]:
    """Yields `function(job)` for every job, as they end, with a progress bar.

    One process on each core is faster than one process with as many threads.

    Args:
        function: does one job; importable by name.
        find_jobs: the jobs that can be done; called again after each result, which may make others possible.
        processes: number of jobs at a time; with 1, they run in this process.

    Yields:
        The results.
    """
    with tqdm(unit="job", smoothing=0.0) as bar:
        if processes == 1:
            while jobs := find_jobs():
                bar.total = bar.n + len(jobs)
                yield function(jobs[0])
                bar.update()
            return
        context, results = multiprocessing.get_context("spawn"), queue.SimpleQueue()
        cores = context.Queue()
        for core in range(processes):
            cores.put(core)
        submitted: list[Job] = []
        with context.Pool(processes, initializer=start_worker, initargs=(cores,)) as pool:
            while True:
                for job in find_jobs():
                    if job not in submitted:
                        pool.apply_async(function, (job,), callback=results.put, error_callback=results.put)
                        submitted.append(job)
                bar.total = len(submitted)
                if bar.n == len(submitted):
                    return
                result = results.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
                bar.update()


def start_worker(cores: multiprocessing.Queue) -> None:
    """Pins this process to its own core, if the system allows it, and leaves the terminal alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The first process ends this one.
    core = cores.get()
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {own[core % len(own)]})
    quiet()


def quiet() -> None:
    """Leaves the terminal to our own progress bar."""
    absl.logging.set_verbosity(absl.logging.ERROR)  # TFDS would recommend OpenCV
    tfds.disable_progress_bar()
