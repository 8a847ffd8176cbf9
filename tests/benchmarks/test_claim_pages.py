"""The pages of claims and theory show the committed results, which are those of the code."""

import re
from pathlib import Path

import pytest

from benchmarks import experiment as claim
from benchmarks.experiments.claims.__main__ import CLAIMS
from benchmarks.experiments.theory.__main__ import CLAIMS as THEORY
from benchmarks.records import RESULTS, read_records
from benchmarks.reports.claim_pages import blocks
from benchmarks.tables import DOCS, filled

PAGES = {
    "claims": (CLAIMS, claim.read_suite(RESULTS)),
    "theory": (THEORY, claim.SuiteResults([], [])),
}


def stored(one):
    return read_records(claim.result_file(one, RESULTS))


@pytest.mark.parametrize("one", [*CLAIMS.values(), *THEORY.values()], ids=lambda one: one.name)
def test_stored_results_are_those_of_the_code(one):
    records = stored(one)
    jobs = one.jobs(records)
    assert all(claim.is_done(job, records) for job in jobs)
    assert all(any(claim.is_result_of(record, job) for job in jobs) for record in records)


@pytest.mark.parametrize("page", PAGES)
def test_page_shows_the_stored_results(page):
    """If this fails after new results: python -m benchmarks.experiments.<page> --report-only."""
    claims, suite = PAGES[page]
    reports = {
        name: one.report(stored(one), suite)._replace(has_picture=bool(stored(one)))
        for name, one in claims.items()
    }
    shown = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert filled(shown, blocks(reports, page)) == shown
    pictures = re.findall(r"!\[.*\]\((.*)\)", shown)
    assert {Path(picture).stem for picture in pictures} == set(claims)
    assert all((DOCS / picture).stat().st_size > 10_000 for picture in pictures)
