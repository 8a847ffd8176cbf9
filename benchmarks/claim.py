"""Claims that are tested by an experiment: verdicts on them, computed from the results.

The rule for every verdict, unless the claim's docstring says otherwise: a claim consists of comparisons. Each
is a difference that is positive if the claim is right, measured several times (seeds, or steps). A comparison
is *shown* if the mean of its differences is more than two standard errors above zero.

    holds             every comparison is shown
    in part           some are
    does not hold     none is
    not measured yet  the numbers are missing

If there is no true difference, a comparison is shown by chance with probability 0.09 for three seeds and 0.04
for ten: verdicts from few seeds are weak evidence.
"""

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from benchmarks import figures
from benchmarks.experiment import Experiment, Tables
from benchmarks.tables import mean_and_error, number, table

OUTCOMES = ("holds", "in part", "does not hold")


class Verdict(NamedTuple):
    """The outcome for a claim."""

    statement: str  # the claim in one sentence
    outcome: str  # "holds", "in part", "does not hold" or "not measured yet"
    evidence: str  # the numbers that decided


class Comparison(NamedTuple):
    """A difference that is positive if a claim is right."""

    name: str  # what is compared
    differences: Iterable[float]  # one for each seed or step
    scale: float = 1.0  # factor of the numbers as they are shown, such as 100 for percent

    def is_shown(self) -> bool:
        """Whether the mean is more than two standard errors above zero."""
        mean, error = mean_and_error(self.differences)
        return mean > 2 * error

    def __str__(self) -> str:
        return f"{self.name} {number([self.scale * float(x) for x in self.differences], sign='+')}"


def outcome(shown: Sequence[bool]) -> str:
    """The verdict of the comparisons."""
    if not shown:
        return "not measured yet"
    if all(shown):
        return "holds"
    return "in part" if any(shown) else "does not hold"


def judge(statement: str, comparisons: Iterable[Comparison]) -> Verdict:
    """The verdict by the rule at the top of this file; comparisons without any number are left out."""
    comparisons = [comparison for comparison in comparisons if len(list(comparison.differences))]
    shown = [comparison.is_shown() for comparison in comparisons]
    return Verdict(statement, outcome(shown), "; ".join(map(str, comparisons)) or "–")


class Report(NamedTuple):
    """What the page shows for a claim."""

    verdicts: list[Verdict]  # one for each of its statements
    tables: list[str]  # Markdown


@dataclasses.dataclass(frozen=True)
class Claim(Experiment):
    """An experiment that ends in verdicts, one block of a page.

    Attributes:
        page: name of the page in `docs/evidence/`, of the folder with its picture, and beginning of the
            result file.
        picture: what the picture shows, for those who cannot see it; empty if there is none.
    """

    page: str = "claims"
    picture: str = ""

    @property
    def files(self) -> dict[str, str]:
        """One file for each page and claim."""
        return {"": f"{self.page}_{self.name}"}

    @abc.abstractmethod
    def report(self, frame: pd.DataFrame, results: Path) -> Report:
        """Verdicts and tables."""

    def tables(self, frame: pd.DataFrame, results: Path) -> Tables:
        """One block: the verdicts, the tables and the picture."""
        report = self.report(frame, results)
        verdicts = table(("claim", "verdict", "numbers that decided"), report.verdicts, numbers=False)
        picture = [f"![{self.picture}]({self.page}/{self.name}.png)"] if self.picture else []
        block = "\n\n".join([verdicts, *report.tables, *picture])
        return {f"docs/evidence/{self.page}.md": {self.name: block}}

    def save(self, figure: Any, docs: Path) -> None:
        """Writes the picture of the claim, with a legend of all panels below them."""
        figures.legend_below(figure, 2)
        figures.save(figure, docs / "evidence" / self.page / f"{self.name}.png")


def summary(verdicts: Iterable[tuple[str, Verdict]]) -> str:
    """How many statements hold, from (name of the experiment, verdict): the table at the top of a page."""
    found: dict[str, list[str]] = {}
    for name, verdict in verdicts:
        found.setdefault(name, []).append(verdict.outcome)
    rows = [
        (f"[{name}](#{name})", *(str(own.count(outcome)) for outcome in OUTCOMES))
        for name, own in found.items()
    ]
    return table(("", *OUTCOMES), rows)
