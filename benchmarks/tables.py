"""Puts generated tables between marks into Markdown pages whose text is written by hand."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.errors import UsageError

DOCS = Path(__file__).parents[1] / "docs"


def table(
    titles: Sequence[str], lines: Iterable[Sequence[str]], *, numbers: bool = True, padded: bool = False
) -> str:
    """A Markdown table.

    Args:
        titles: of the columns.
        lines: cells.
        numbers: whether all columns except the first are numbers, aligned to the right.
        padded: whether columns are aligned in the source too, for the terminal.
    """
    rule = ["---", *["---:" if numbers else "---"] * (len(titles) - 1)]
    rows = [titles, rule, *lines]
    widths = [max(map(len, column)) if padded else 0 for column in zip(*rows, strict=True)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def filled(page: str, tables: Mapping[str, str]) -> str:
    """Puts each table between its marks, `<!-- table: name -->` and `<!-- end -->`.

    Raises:
        UsageError: if a table does not have exactly one place.
    """
    for name, text in tables.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        put = lambda match, text=text: f"{match[1]}{text}\n{match[2]}"
        page, count = re.subn(pattern, put, page, flags=re.DOTALL)
        if count != 1:
            raise UsageError(
                f"the page has {count} places for the table {name!r}; it needs one: <!-- table: {name} --> "
                "and, on a later line, <!-- end -->"
            )
    return page


def fill_tables(page: Path, tables: Mapping[str, str]) -> None:
    """Writes the tables into their places in a page."""
    text = filled(page.read_text(encoding="utf-8"), tables)
    page.write_text(text, encoding="utf-8")
