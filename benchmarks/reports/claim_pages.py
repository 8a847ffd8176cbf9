"""The blocks and pictures of `docs/claims.md` and `docs/theory.md` that are generated from the results."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.experiment import Claim, Report, SuiteResults, result_file
from benchmarks.records import read_records
from benchmarks.tables import fill_tables, table


def write_page(
    page: str, claims: Mapping[str, Claim], suite: SuiteResults, results: Path, docs: Path
) -> None:
    """Draws the pictures, prints the verdicts and fills the page, from the result files.

    Args:
        page: name of the page, and of the folder of its pictures.
        claims: name -> claim.
        suite: results of the accuracy suite.
        results: folder of the result files.
        docs: folder of the page.
    """
    reports = {}
    for name, claim in claims.items():
        records = read_records(result_file(claim, results))
        reports[name] = claim.report(records, suite)._replace(has_picture=bool(records))
        if records:
            claim.draw(records, suite, docs / page / f"{name}.png")
        for verdict in reports[name].verdicts:
            print(f"{verdict.outcome:16s} {verdict.statement}: {verdict.evidence}")
    fill_tables(docs / f"{page}.md", blocks(reports, page))


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
