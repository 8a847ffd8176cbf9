"""A claim that is tested by a program: jobs whose results are kept in a file, and their report."""

import abc
import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from benchmarks.claim import Verdict
from benchmarks.experiments.networks import settings_of
from benchmarks.records import Record, read_records, versions_and_device, write_records
from benchmarks.training.config import Config
from benchmarks.workers import on_each_core

Job = dict[str, Any]


class Report(NamedTuple):
    """What the page shows for a claim.

    Attributes:
        verdicts: one for each of its statements.
        tables: Markdown.
        has_picture: whether it has its own measurements to draw.
    """

    verdicts: list[Verdict]
    tables: list[str]
    has_picture: bool = True


class SuiteResults(NamedTuple):
    """Result files of the accuracy suite; empty if they do not exist yet.

    Attributes:
        tuning: trials on validation data.
        networks: networks with tuned settings, on test data.
    """

    tuning: list[Record]
    networks: list[Record]


def read_suite(folder: Path) -> SuiteResults:
    """Reads what the suite has measured so far."""
    return SuiteResults(read_records(folder / "suite_tuning.jsonl"), read_records(folder / "suite.jsonl"))


@dataclasses.dataclass(frozen=True)
class Claim(abc.ABC):
    """One of the programs. Its fields are the settings of the measurement."""

    page: ClassVar[str] = "claims"
    """Name of the page in `docs/` on which it is reported, and of the folder with its picture."""
    name: ClassVar[str]
    """Name of its result file, its picture and its block on the page."""

    @abc.abstractmethod
    def jobs(self, records: list[Record]) -> list[Job]:
        """The measurements to make; later jobs may depend on the records of earlier ones."""

    @abc.abstractmethod
    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Does a job, with the data sets prepared in `data_dir`; each record contains the job."""

    @abc.abstractmethod
    def report(self, records: list[Record], suite: SuiteResults) -> Report:
        """Verdicts and tables."""

    @abc.abstractmethod
    def draw(self, records: list[Record], suite: SuiteResults, path: Path) -> None:
        """Writes the picture."""


def result_file(claim: Claim, folder: Path) -> Path:
    """The file with the records of a claim."""
    return folder / f"{claim.page}_{claim.name}.jsonl"


def is_result_of(record: Record, job: Job) -> bool:
    """Whether the record is a result of the job."""
    return job.items() <= record.items()


def is_done(job: Job, records: Iterable[Record]) -> bool:
    """Whether there are results of the job."""
    return any(is_result_of(record, job) for record in records)


def measure_missing(claim: Claim, folder: Path, data_dir: Path, processes: int) -> None:
    """Does the jobs of a claim that have no results yet. If stopped, it continues where it was."""
    file = result_file(claim, folder)
    records = read_records(file)

    def missing() -> list[Job]:
        return [job for job in claim.jobs(records) if not is_done(job, records)]

    while jobs := missing():
        for own in on_each_core(functools.partial(claim.measure, data_dir=data_dir), jobs, processes):
            records += own
            write_records(file, records)
    # In the order of the jobs, without the results of earlier versions of the program.
    write_records(file, (r for job in claim.jobs(records) for r in records if is_result_of(r, job)))


def record_of(job: Job, config: Config | None = None, **measured: Any) -> Record:
    """A line of a result file: the job, the measured values, and what the result depends on."""
    of_network = {} if config is None else {"config": settings_of(config)}
    return job | measured | of_network | {"versions": versions_and_device()}


def select(records: Iterable[Record], **values: Any) -> list[Record]:
    """The records with these values."""
    return [record for record in records if is_result_of(record, values)]


def paired(records: Iterable[Record], field: str, one: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """Differences one − other of a field, for the seeds that both have."""
    records = list(records)
    values = [{r["seed"]: r[field] for r in select(records, **side) if field in r} for side in (one, other)]
    return [values[0][seed] - values[1][seed] for seed in sorted(values[0].keys() & values[1].keys())]
