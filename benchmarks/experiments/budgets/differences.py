"""Differences between rows, seed by seed, and which of them may be called differences."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd
import scipy.stats

from benchmarks.tables import mean_and_error, paired

LEVEL = 0.05


class Difference(NamedTuple):
    """One row minus another one."""

    mean: float
    error: float  # standard error over the seeds
    p: float  # of a two-sided paired t-test, after Holm's correction over the table

    @property
    def word(self) -> str:
        """By the rule: "more", "less" or "no difference"."""
        if not self.p < LEVEL:
            return "no difference"
        return "more" if self.mean > 0 else "less"

    def text(
        self, more: str = "more", less: str = "less", digits: int = 1, no_word: str = "no difference"
    ) -> str:
        """Mean ± standard error, and the word."""
        word = {"more": more, "less": less}.get(self.word, no_word)
        number = f"{self.mean:+.{digits}f} ± {self.error:.{digits}f}".replace("-", "−")
        return f"{number}, {word}" if word else number


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the smallest of n is multiplied by n, the next by n − 1, ..."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def differences(
    frame: pd.DataFrame, pairs: Iterable[tuple[str, str, str]], scale: float = 100
) -> dict[tuple[str, str, str], Difference]:
    """Differences of all pairs that have at least two seeds in common.

    Args:
        frame: records of networks, with `row` and `seed`.
        pairs: (field, row, other row), all of one table.
        scale: of the numbers.
    """
    found = {}
    for field, row, other in pairs:
        values = scale * paired(frame, field, {"row": row}, {"row": other})
        if len(values) > 1 and row != other:
            found[field, row, other] = values
    p_values = [p_value(values) for values in found.values()]
    return {
        key: Difference(*mean_and_error(values), p)
        for (key, values), p in zip(found.items(), holm(p_values), strict=True)
    }


def p_value(values: pd.Series) -> float:
    """Of a two-sided t-test that the mean is zero; 1 where all are equal to zero."""
    if not values.std() > 0:
        return 0.0 if values.mean() else 1.0
    p = float(scipy.stats.ttest_1samp(values, 0).pvalue)
    return 1.0 if math.isnan(p) else p
