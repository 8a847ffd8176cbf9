"""The blocks of `docs/claims.md` and `docs/theory.md` that are generated from the results."""

from collections.abc import Mapping

from benchmarks.reports.claims import Report
from benchmarks.reports.pages import table


def blocks(reports: Mapping[str, Report], folder: str = "claims") -> dict[str, str]:
    """Name -> Markdown: one block per claim, and `summary` with all verdicts; pictures are in the folder."""
    found = {
        name: "\n\n".join(
            [
                table(("claim", "verdict", "numbers that decided"), report.verdicts, numbers=False),
                *report.tables,
                *([f"![{name}]({folder}/{name}.png)"] if report.has_picture else ["No measurements yet."]),
            ]
        )
        for name, report in reports.items()
    }
    rows = [
        (f"[{name}](#{name})", verdict.statement, verdict.outcome)
        for name, report in reports.items()
        for verdict in report.verdicts
    ]
    return found | {"summary": table(("", "claim", "verdict"), rows, numbers=False)}
