import dataclasses

import pytest

from benchmarks import tables as pages
from benchmarks.experiments import eigenvector_solvers
from benchmarks.models import table
from benchmarks.records import read_records
from benchmarks.reports import eigenvector_report
from tests.benchmarks.networks import Tiny


def test_measures_every_solver_and_start_and_goes_on(tmp_path, monkeypatch, data_dir):
    monkeypatch.setitem(table.MODELS, "tiny", Tiny)
    experiment = eigenvector_solvers.Experiment(
        seeds=1,
        epochs=1,
        most_products=5,
        most_products_for_eigenvalue=4,
        model="tiny",
        dataset="digits",
        train_size=256,
        data_dir=data_dir,
        processes=1,
        output=tmp_path / "results.jsonl",
    )
    eigenvector_solvers.measure_all(experiment)
    records = read_records(experiment.output)
    found = eigenvector_report.select(records, "alignment")
    assert {(r["solver"], r["start"], r["num_iters"]) for r in found} == {
        (solver, start, products)
        for solver in ("lanczos", "power")
        for start in ("cold", "warm")
        for products in range(1, 6)
    }
    # A first refresh has nothing to start from, and a linear model's Hessian nothing negative.
    assert {r["step"] for r in found} == {1}
    alignment = {(r["solver"], r["start"], r["num_iters"]): r["alignment"] for r in found}
    assert all(alignment[s, "cold", n] == alignment[s, "warm", n] for s, _, n in alignment)
    assert alignment["lanczos", "cold", 5] > alignment["power", "cold", 5] > alignment["power", "cold", 1]

    monkeypatch.setattr(eigenvector_solvers, "measure", pytest.fail)
    eigenvector_solvers.measure_all(experiment)  # nothing left to do
    assert read_records(experiment.output) == records
    eigenvector_report.draw(records, tmp_path / "picture.png")


def test_fewest_products_of_equal_quality():
    quality = {"power": {5: 0.8}, "lanczos": {2: 0.5, 3: 0.9, 5: 0.99}}
    records = [
        {"kind": "alignment", "solver": s, "start": "warm", "num_iters": n, "alignment": a}
        for s, values in quality.items()
        for n, a in values.items()
    ]
    text = eigenvector_report.equal_quality(records, (2, 3, 5))
    assert "with 3 products (0.900), 60 % of the cost; with 5 products it reaches 0.990" in text


def test_the_page_shows_the_committed_results():
    page = (pages.DOCS / "curvature.md").read_text()
    records = read_records(eigenvector_solvers.RESULT_FILE)
    assert pages.filled(page, eigenvector_report.tables(records)) == page


def test_one_per_cent_of_the_top_eigenvalue_takes_at_most_twenty_products():
    records = read_records(eigenvector_solvers.RESULT_FILE)
    errors = eigenvector_report.select(records, "eigenvalue", solver="lanczos", num_iters=8)
    assert len({r["seed"] for r in errors}) == dataclasses.replace(eigenvector_solvers.Experiment()).seeds
    assert max(r["relative_error"] for r in errors) < 0.01
