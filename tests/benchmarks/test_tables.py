"""Statistics, on which every table and verdict depends: pairing, errors, judging, averaging, filling."""

import pandas as pd
import pytest

from benchmarks.claim import Comparison, judge
from benchmarks.errors import UsageError
from benchmarks.tables import fill_tables, filled, nested, number, paired, spread, table, where

FRAME = pd.DataFrame(
    [
        {"row": "sam", "seed": 0, "accuracy": 0.5, "settings": {"rho": 0.1}},
        {"row": "sam", "seed": 2, "accuracy": 0.6, "settings": {"rho": 0.2}},
        {"row": "sam", "seed": 1, "accuracy": 0.8, "settings": {"rho": 0.1}},
        {"row": "asam", "seed": 1, "accuracy": 0.9, "settings": {}},
        {"row": "asam", "seed": 0, "accuracy": 0.7, "settings": {"rho": 0.1}},
        {"row": "asam", "seed": 3, "accuracy": None, "settings": {}},
    ]
)


def test_rows_are_found_by_values_and_by_dictionaries():
    assert where(FRAME, row="sam", settings={"rho": 0.1})["seed"].tolist() == [0, 1]
    assert where(FRAME, row="asam", settings={})["seed"].tolist() == [1, 3]
    assert where(FRAME, nothing=1).empty
    assert nested(FRAME, "settings", "rho").tolist()[:3] == [0.1, 0.2, 0.1]


def test_differences_are_taken_seed_by_seed_where_both_have_a_value():
    gains = paired(FRAME, "accuracy", {"row": "asam"}, {"row": "sam"})
    assert gains.to_dict() == {0: pytest.approx(0.2), 1: pytest.approx(0.1)}
    assert paired(FRAME, "accuracy", {"row": "asam"}, {"row": "xsam"}).empty


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [
        ([], "not measured yet"),
        ([[]], "not measured yet"),
        ([[1.0, 1.1, 0.9]], "holds"),
        ([[1.0, 1.1, 0.9], [0.5, 0.6, 0.4]], "holds"),
        ([[1.0, 1.1, 0.9], [3.0, -1.0, 0.5]], "in part"),
        ([[3.0, -1.0, 0.5]], "does not hold"),
        ([[-1.0, -1.1, -0.9]], "does not hold"),
        ([[1.0]], "does not hold"),  # one seed shows nothing
    ],
)
def test_rule_of_verdicts(differences, outcome):
    verdict = judge("it is so", [Comparison("a", values) for values in differences])
    assert verdict.outcome == outcome
    assert (verdict.evidence == "–") == (outcome == "not measured yet")


def test_numbers_have_the_digits_that_their_error_allows():
    assert number([0.5, 0.5]) == "0.5"
    assert number([1.0, 2.0, 3.0]) == "2.0 ± 0.6"
    assert number([0.101, 0.102, 0.103]) == "0.1020 ± 0.0006"
    assert number([100.0, 200.0], sign="+") == "+150 ± 50"
    assert number([]) == "–"
    assert str(Comparison("a", [0.01, 0.02, 0.03], 100)) == "a +2.0 ± 0.6"


def test_numbers_of_a_table_with_the_same_digits():
    assert spread([1.0, 2.0, 3.0]) == "2.0 ± 0.6"
    assert spread([2.0], "{:+.2f} ± {:.2f}") == "+2.00"
    assert spread([]) == "-"


def test_a_page_has_one_place_for_each_table():
    text = table(["", "a"], [["b", "1"]])
    form = "before\n<!-- table: one -->\n{}\n<!-- end -->\nafter <!-- table: two -->{}<!-- end --> words\n"
    page = form.format("old", 3)
    new = filled(page, {"one": text, "two": "4"})
    assert new == form.format(text, 4)
    assert filled(new, {"one": text, "two": "4"}) == new
    with pytest.raises(UsageError, match=r"0 places for the table 'three'; it needs one: <!-- table: three"):
        filled(page, {"three": text})
    with pytest.raises(UsageError, match="2 places"):
        filled(page + page, {"one": text})
    with pytest.raises(ValueError, match="a cell for each"):
        table(["", "a"], [["b"]])


def test_tables_without_a_page_say_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=r"no page .*the records are kept.*with the places a, b, or print"):
        fill_tables(tmp_path / "page.md", {"a": "", "b": ""})
