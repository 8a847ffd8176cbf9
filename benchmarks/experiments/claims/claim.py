"""What all claims share: jobs whose results are kept in a file, and verdicts computed from the results.

The rule of every verdict, unless the claim's docstring says otherwise: a claim consists of comparisons, each
one a difference that is positive where the claim is right, measured several times (seeds, or steps). A
comparison is *shown* when the mean of its differences is more than two standard errors above zero.

    holds             every comparison is shown
    in part           some are
    does not hold     none is
    not measured yet  the numbers are missing

With three seeds and no true difference a comparison is shown by chance with probability 0.09, with ten seeds
with probability 0.04: verdicts of few seeds are weak evidence.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.training.trials import mean_and_error, on_each_core, read_records, write_records

Job = dict[str, Any]
Record = dict[str, Any]


class Verdict(NamedTuple):
    """What came out.

    Attributes:
        statement: the claim in one sentence.
        outcome: "holds", "in part", "does not hold" or "not measured yet".
        evidence: the numbers that decided.
    """

    statement: str
    outcome: str
    evidence: str


class Comparison(NamedTuple):
    """A difference that is positive where a claim is right.

    Attributes:
        name: what is compared.
        differences: one for each seed or step.
        scale: of the numbers as they are shown, such as 100 for percent.
    """

    name: str
    differences: Sequence[float]
    scale: float = 1.0

    def is_shown(self) -> bool:
        """Whether the mean is more than two standard errors above zero."""
        mean, error = mean_and_error(self.differences)
        return mean > 2 * error

    def __str__(self) -> str:
        return f"{self.name} {number([self.scale * x for x in self.differences], sign='+')}"


def outcome(shown: Sequence[bool]) -> str:
    """The verdict of the comparisons."""
    if not shown:
        return "not measured yet"
    if all(shown):
        return "holds"
    return "in part" if any(shown) else "does not hold"


def judge(statement: str, comparisons: Iterable[Comparison]) -> Verdict:
    """The verdict by the rule at the top of this file."""
    comparisons = list(comparisons)
    shown = [comparison.is_shown() for comparison in comparisons]
    return Verdict(statement, outcome(shown), "; ".join(map(str, comparisons)) or "–")


class Report(NamedTuple):
    """What the page shows of a claim.

    Attributes:
        verdicts: one for each of its statements.
        tables: Markdown.
        has_picture: whether there are measurements of its own to draw.
    """

    verdicts: list[Verdict]
    tables: list[str]
    has_picture: bool = True


class Claim(NamedTuple):
    """One of the programs.

    Attributes:
        name: of its result file, picture and block in the page.
        jobs: records so far -> what is to be measured; later jobs may depend on the results of earlier ones.
        measure: job, folder of prepared data sets -> records, each of which contains the job.
        report: records, those of the accuracy suite -> verdicts and tables.
        draw: records, those of the accuracy suite, path of the picture.
    """

    name: str
    jobs: Callable[[list[Record]], list[Job]]
    measure: Callable[[Job, Path], list[Record]]
    report: Callable[[list[Record], "SuiteResults"], Report]
    draw: Callable[[list[Record], "SuiteResults", Path], None]


class SuiteResults(NamedTuple):
    """Result files of `benchmarks.experiments.suite`; empty where they are not there yet.

    Attributes:
        tuning: trials on validation data.
        networks: networks with tuned settings, on test data.
    """

    tuning: list[Record]
    networks: list[Record]


def read_suite(folder: Path) -> SuiteResults:
    """Reads what the suite has measured so far."""
    return SuiteResults(read_records(folder / "suite_tuning.jsonl"), read_records(folder / "suite.jsonl"))


def result_file(claim: Claim, folder: Path) -> Path:
    """Where the records of a claim are."""
    return folder / f"claims_{claim.name}.jsonl"


def is_result_of(record: Record, job: Job) -> bool:
    """Whether the job has made the record."""
    return job.items() <= record.items()


def is_done(job: Job, records: Iterable[Record]) -> bool:
    """Whether there are results of the job."""
    return any(is_result_of(record, job) for record in records)


def measure(claim: Claim, folder: Path, data_dir: Path, processes: int) -> None:
    """Does the jobs of a claim that have no results yet; stopped, it goes on where it was."""
    file = result_file(claim, folder)
    records = read_records(file)

    def missing() -> list[Job]:
        return [job for job in claim.jobs(records) if not is_done(job, records)]

    while jobs := missing():
        for own in on_each_core(functools.partial(claim.measure, data_dir=data_dir), jobs, processes):
            records += own
            write_records(file, records)
    # In the order of the jobs, without what an earlier version of the program has left.
    write_records(file, (r for job in claim.jobs(records) for r in records if is_result_of(r, job)))


def select(records: Iterable[Record], **values: Any) -> list[Record]:
    """The records with these values."""
    return [record for record in records if is_result_of(record, values)]


def paired(records: Iterable[Record], field: str, one: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """Differences one − other of a field, seed by seed, where both are there."""
    records = list(records)
    values = [{r["seed"]: r[field] for r in select(records, **side) if field in r} for side in (one, other)]
    return [values[0][seed] - values[1][seed] for seed in sorted(values[0].keys() & values[1].keys())]


def number(values: Sequence[float], *, sign: str = "") -> str:
    """Mean ± standard error, with two digits of the error."""
    if len(values) == 0:
        return "–"
    mean, error = mean_and_error(values)
    if not error > 0:
        return f"{mean:{sign}.3g}"
    digits = 0
    while digits < 6 and error * 10**digits < 1:
        digits += 1
    return f"{mean:{sign}.{digits}f} ± {error:.{digits}f}"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
