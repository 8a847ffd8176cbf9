"""Tables of result files in Markdown pages whose text is written by hand."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.errors import UsageError


def table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (titles, rule, *lines))


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
            raise UsageError(f"the page has {count} places for the table {name!r}; it needs one")
    return page


def fill_tables(page: Path, tables: Mapping[str, str]) -> None:
    """Writes the tables into their places in a page."""
    page.write_text(filled(page.read_text(), tables))
