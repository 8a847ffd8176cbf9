"""Verdicts on claims, computed from the results.

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

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.records import mean_and_error


class Verdict(NamedTuple):
    """The outcome for a claim.

    Attributes:
        statement: the claim in one sentence.
        outcome: "holds", "in part", "does not hold" or "not measured yet".
        evidence: the numbers that decided.
    """

    statement: str
    outcome: str
    evidence: str


class Comparison(NamedTuple):
    """A difference that is positive if a claim is right.

    Attributes:
        name: what is compared.
        differences: one for each seed or step.
        scale: factor of the numbers as they are shown, such as 100 for percent.
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
