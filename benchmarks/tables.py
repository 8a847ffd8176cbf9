"""Records as data frames, numbers with their errors, and tables in Markdown pages written by hand."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.errors import UsageError


def where(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows of a frame with these values; a value may be a dictionary or a list."""
    for name, value in values.items():
        if name not in frame:
            return frame.iloc[:0]
        column = frame[name]
        is_nested = isinstance(value, dict | list)
        frame = frame[column.map(lambda x, value=value: x == value) if is_nested else column == value]
    return frame


def column(frame: pd.DataFrame, field: str) -> pd.Series:
    """The values of a field, where it exists."""
    return frame[field].dropna().astype(float) if field in frame else pd.Series(dtype=float)


def paired(
    frame: pd.DataFrame, field: str, one: Mapping[str, Any], other: Mapping[str, Any], on: Any = "seed"
) -> pd.Series:
    """Differences one − other of a field, for the seeds (or what `on` names) that both have."""
    sides = [where(frame, **side) for side in (one, other)]
    if any(side.empty for side in sides):
        return pd.Series(dtype=float)
    first, second = (column(side.set_index(on), field) for side in sides)
    return (first - second).dropna()


def nested(frame: pd.DataFrame, field: str, name: str) -> pd.Series:
    """One entry of a field that holds dictionaries; missing where there is none."""
    return frame[field].map(lambda entries: entries.get(name))


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard error."""
    values = [float(value) for value in values]
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.mean(values), error


def number(values: Iterable[float], *, sign: str = "") -> str:
    """Mean ± standard error, with two digits of the error."""
    values = list(values)
    if not values:
        return "–"
    mean, error = mean_and_error(values)
    if not error > 0:
        return f"{mean:{sign}.3g}"
    digits = 0
    while digits < 6 and error * 10**digits < 1:
        digits += 1
    return f"{mean:{sign}.{digits}f} ± {error:.{digits}f}"


def spread(values: Iterable[float], form: str = "{:.1f} ± {:.1f}") -> str:
    """Mean and standard error with a fixed number of digits; of a single value itself."""
    values = list(values)
    if len(values) == 1:
        return form.split(" ±")[0].format(values[0])
    return form.format(*mean_and_error(values)) if values else "-"


def table(titles: Iterable[str], lines: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """A Markdown table; with `numbers` all columns but the first are aligned to the right."""
    titles = list(titles)
    rule = ["---", *["---:" if numbers else "---"] * (len(titles) - 1)]
    rows = [titles, rule, *map(list, lines)]
    if any(len(row) != len(titles) for row in rows):
        raise ValueError(f"a line does not have a cell for each of {titles}")
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def filled(page: str, tables: Mapping[str, str]) -> str:
    """Puts each table between its marks, `<!-- table: name -->` and `<!-- end -->`.

    Marks that are in the middle of a line hold a part of a sentence.

    Raises:
        UsageError: if a table does not have exactly one place.
    """
    for name, text in tables.items():
        pattern = rf"(<!-- table: {re.escape(name)} -->)(\n?).*?(<!-- end -->)"
        put = lambda match, text=text: f"{match[1]}{match[2]}{text}{match[2]}{match[3]}"
        page, count = re.subn(pattern, put, page, flags=re.DOTALL)
        if count != 1:
            raise UsageError(
                f"the page has {count} places for the table {name!r}; it needs one: <!-- table: {name} --> "
                "and, on a later line, <!-- end -->"
            )
    return page


def fill_tables(page: Path, tables: Mapping[str, str]) -> None:
    """Writes the tables into their places in a page.

    Raises:
        UsageError: if there is no such page, or as in `filled`.
    """
    if not page.is_file():
        raise UsageError(
            f"there is no page {page}, so the tables have no place; the records are kept. Write the page "
            f"with the places {', '.join(tables)}, or print the tables with another folder for --results"
        )
    text = filled(page.read_text(encoding="utf-8"), tables)
    page.write_text(text, encoding="utf-8")
