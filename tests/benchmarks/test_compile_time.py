"""The measurement of compile times on the smallest network, and the table on the page."""

from benchmarks.cost import compile_time
from benchmarks.records import RESULTS, read_records
from benchmarks.tables import DOCS, filled


def test_measures_time_and_size():
    record = compile_time.measure("sam", 4)
    assert record["arrays"] == 4
    assert record["compile"] > 0
    assert record["lines"] > record["kernels"] > 4


def test_the_page_shows_the_medians_of_the_results():
    one = {"trace": 0.1, "lower": 0.1, "lines": 100, "kernels": 15, "arrays": 10}
    records = [
        one | {"method": name, "compile": factor * seconds}
        for factor, name in enumerate(compile_time.METHODS, start=1)
        for seconds in (1.0, 2.0, 30.0)
    ]
    text = compile_time.tables(records)["compile_time"]
    assert "2.2 s" in text
    assert "1.91" in text  # (0.2 + 2 · 2)/(0.2 + 2)
    page = (DOCS / "cost.md").read_text(encoding="utf-8")
    assert filled(page, compile_time.tables(read_records(RESULTS / "compile_time.jsonl"))) == page
