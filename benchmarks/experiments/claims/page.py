"""The generated blocks of `docs/claims.md`: between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""

import re
from collections.abc import Mapping

from benchmarks.experiments.claims.claim import Report, table


def blocks(reports: Mapping[str, Report]) -> dict[str, str]:
    """Block name -> Markdown: one block a claim, and `summary` with all verdicts."""
    found = {
        name: "\n\n".join(
            [
                table(("claim", "verdict", "numbers that decided"), report.verdicts),
                *report.tables,
                *([f"![{name}](claims/{name}.png)"] if report.has_picture else ["No measurements yet."]),
            ]
        )
        for name, report in reports.items()
    }
    rows = [
        (f"[{name}](#{name})", verdict.statement, verdict.outcome)
        for name, report in reports.items()
        for verdict in report.verdicts
    ]
    return found | {"summary": table(("", "claim", "verdict"), rows)}


def fill(page: str, reports: Mapping[str, Report]) -> str:
    """The page with its blocks replaced; text between them, written by hand, stays.

    Raises:
        ValueError: if a block has no place in the page.
    """
    for name, content in blocks(reports).items():
        pattern = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise ValueError(
                f"the page needs exactly one block {name!r} to fill in: <!-- {name}: begin --> and, on a"
                f" later line, <!-- {name}: end -->"
            )
        page = pattern.sub(lambda match, content=content: match[1] + content + "\n" + match[2], page)
    return page
