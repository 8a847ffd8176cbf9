"""What is committed is complete and reproduces its pages; the layout of the code."""

import ast
import re
from collections import Counter

import pytest

from benchmarks import __main__
from benchmarks.experiment import is_done, is_result_of, read
from benchmarks.experiments.budgets.equal_budgets import EqualBudgets
from benchmarks.experiments.budgets.search import neighbours
from benchmarks.experiments.demo import SGD_SEARCH, TUNING_SEEDS, best
from benchmarks.experiments.fine_tuning import GRIDS
from benchmarks.experiments.suite.rows import known_trials
from benchmarks.experiments.suite.suite import TUNING_SEED, Suite
from benchmarks.methods import METHODS
from benchmarks.records import RESULTS
from benchmarks.tables import filled
from tests.benchmarks.conftest import REPOSITORY

EXPERIMENTS = {name: own for name, own in __main__.EXPERIMENTS.items() if read(own, RESULTS)}
SUITES = {name: own for name, own in EXPERIMENTS.items() if isinstance(own, Suite)}
BUDGETS = {name: own for name, own in EXPERIMENTS.items() if isinstance(own, EqualBudgets)}
# Of these, each program or network of which takes minutes, a part may be committed.
IN_PARTS = (*SUITES, *BUDGETS, "fine_tuning", "radius", "tpu")


@pytest.fixture(scope="module")
def tables():
    """All tables, from the committed results."""
    return __main__.tables(EXPERIMENTS, RESULTS)


def test_the_pages_show_the_committed_results(tables):
    """If this fails after new results: python -m benchmarks NAME --report-only."""
    for page, texts in tables.items():
        shown = (REPOSITORY / page).read_text(encoding="utf-8")
        assert filled(shown, texts) == shown, page


def test_every_marked_place_is_filled_by_an_experiment_or_by_the_documentation(tables):
    written_by_docs = {"methods", "first", "choose"}
    pages = [*(REPOSITORY / "docs").rglob("*.md"), *REPOSITORY.glob("*.md")]
    for page in [*pages, *(REPOSITORY / "benchmarks").glob("*.md")]:
        name = page.relative_to(REPOSITORY).as_posix()
        marks = set(re.findall(r"<!-- table: (\S+) -->", page.read_text(encoding="utf-8")))
        if name != "CONTRIBUTING.md":
            assert marks - written_by_docs <= set(tables.get(name, {})), name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_committed_results_are_those_of_the_code(name):
    own = EXPERIMENTS[name]
    records = read(own, RESULTS)
    jobs = own.jobs(records)
    assert all(any(is_result_of(record, job) for job in jobs) for record in records)
    if name not in IN_PARTS:
        assert all(is_done(job, records) for job in jobs)


@pytest.mark.parametrize("name", SUITES)
def test_committed_networks_have_all_their_trials_and_seeds_of_their_own(name):
    """A row that is defined need not be committed; one that is committed is complete."""
    own = SUITES[name]
    trials, networks = ([r for r in read(own, RESULTS) if r["part"] == part] for part in ("trial", "network"))
    assert {trial["seed"] for trial in trials} == {TUNING_SEED}
    assert all("test_accuracy" not in trial for trial in trials)
    counts = Counter((record["row"], record["label_noise"], record["seed"]) for record in networks)
    assert set(counts.values()) == {1}
    for row, noise, seed in counts:
        assert known_trials(trials, row, noise, own.rows)[1]
        assert seed in own.seeds


@pytest.mark.parametrize("name", BUDGETS)
def test_committed_rows_at_equal_budgets_are_complete_and_at_no_edge(name):
    """A row or level that is defined need not be committed; one that is committed is complete."""
    own = BUDGETS[name]
    records = read(own, RESULTS)
    networks = [record for record in records if record["part"] == "network"]
    assert not any("test_accuracy" in record for record in records if record["part"] == "trial")
    seeds = {}
    for record in networks:
        at = record["row"], record["label_noise"]
        seeds.setdefault(at, []).append(record["seed"])
        tried, chosen = own.walk(records, *at)
        assert record["settings"] == chosen
        assert all(settings in tried for settings in neighbours(chosen))
    assert all(sorted(found) == list(own.seeds) for found in seeds.values())


def test_committed_rows_of_fine_tuning_are_complete_and_at_no_edge():
    """A row or place that is defined need not be committed; one that is committed is complete."""
    own = __main__.EXPERIMENTS["fine_tuning"]
    records, seeds = read(own, RESULTS), {}
    assert not any("test_accuracy" in record for record in records if record["part"] == "trial")
    for record in records:
        if record["part"] == "network":
            at = {name: record[name] for name in ("data", "labels", "training")}
            seeds.setdefault((*at.values(), record["row"]), []).append(record["seed"])
            found, searched = own.walk(records, at, record["row"]), own.rows[record["row"]].start
            assert record["settings"] == found.chosen
            for other in neighbours({name: found.chosen[name] for name in searched}, GRIDS):
                assert found.chosen | other in found.tried
    assert all(sorted(found) == list(own.seeds) for found in seeds.values())


def test_networks_trained_again_are_the_same_to_the_last_digit():
    """Those that were rounded, and those whose accuracy is reported."""
    at = lambda record: (record["row"], record["label_noise"], record["seed"])
    first, again = (
        {at(r): r for r in read(__main__.EXPERIMENTS[name], RESULTS) if r["part"] == "network"}
        for name in ("equal_budgets", "robustness")
    )
    assert again.keys() <= first.keys()
    for key, record in again.items():
        for field in ("test_accuracy", "test_loss", "training_accuracy_on_noisy_labels"):
            assert record[field] == first[key][field], key


def test_committed_rows_of_the_first_suite_had_five_trials_each():
    trials = [record for record in read(SUITES["suite"], RESULTS) if record["part"] == "trial"]
    assert set(Counter((trial["row"], trial["label_noise"]) for trial in trials).values()) == {5}


def test_tuned_rows_of_the_demonstration_had_equally_many_trials_with_other_seeds():
    demo = EXPERIMENTS["demo"]
    trials = [record for record in read(demo, RESULTS) if record["part"] == "trial"]
    counts = Counter(trial["row"] for trial in trials)
    assert len({counts[name] for name in demo.rows if not name.endswith("_usual")}) == 1
    assert not set(TUNING_SEEDS) & set(demo.seeds)
    chosen = best(trials, "sgd")
    for name, values in SGD_SEARCH.items():  # not at the edge of its grid
        assert min(values) < chosen[name] < max(values)


def test_pictures_of_the_pages_exist():
    """And have a text for those who cannot see them; no picture is left over."""
    shown = set()
    for page in (REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")):
        for text, picture in re.findall(r"!\[(.*?)\]\(([^)]*\.png)\)", page.read_text(encoding="utf-8")):
            path = (page.parent / picture).resolve()
            shown.add(path)
            assert len(text) > 20, picture
            assert path.stat().st_size > 10_000, picture
    assert shown == {path.resolve() for path in (REPOSITORY / "docs" / "evidence").rglob("*.png")}


# --- The layout ---------------------------------------------------------------------------------------

FLOORS = (
    ("errors", "records", "methods"),
    ("tables", "figures"),
    ("experiment",),
    ("claim",),
    ("data", "models"),
    ("training",),
    ("train",),
    ("experiments", "cost"),
    ("__main__",),
)


def test_no_import_goes_up():
    """Nothing imports what stands on a higher floor: records and engine below, experiments above."""
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    upward = []
    for path in (REPOSITORY / "benchmarks").rglob("*.py"):
        own = path.relative_to(REPOSITORY / "benchmarks").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "benchmarks":
                parts = node.module.split(".")
                names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [a.name.split(".")[1] for a in node.names if a.name.startswith("benchmarks.")]
            upward += [(path.name, name) for name in names if floor[name] > floor[own]]
    assert upward == []


def test_no_test_of_the_package_imports_the_benchmarks():
    """But of the reader of compiled programs, which counts what a method sends between devices."""
    tests = REPOSITORY / "tests"
    importing = [
        path.relative_to(tests).as_posix()
        for path in tests.rglob("*.py")
        if re.search(r"^\s*(?:from|import) benchmarks", path.read_text(encoding="utf-8"), re.MULTILINE)
        and path.relative_to(tests).parts[0] != "benchmarks"
    ]
    assert sorted(importing) == ["devices/test_collectives.py", "devices/test_manual_shards.py"]


def test_there_is_one_table_of_methods():
    """Constructors of methods are called in one file; experiments that take one apart use stages."""
    aliases = "|".join(name for name in METHODS if name not in ("sgd", "one_gradient"))
    found = {
        path.relative_to(REPOSITORY / "benchmarks").as_posix()
        for path in (REPOSITORY / "benchmarks").rglob("*.py")
        if len(set(re.findall(rf'^\s+"(?:{aliases})": ', path.read_text(encoding="utf-8"), re.MULTILINE))) > 6
    }
    assert found == {"methods.py"}


# --- Numbers ------------------------------------------------------------------------------------------

EVIDENCE = (
    "docs/choose.md",
    *sorted(f"docs/evidence/{path.name}" for path in (REPOSITORY / "docs" / "evidence").glob("*.md")),
)
TYPED = re.compile(
    r"\d+\.\d+|±\s*\d|\d\s*±"
    r"|(?<![\w.])\d[\d,]*\s*(?:%(?! noisy)|points?\b|times\b|ms\b|GB\b|MB\b)"
)


def prose(text):
    """A page without generated tables, code, formulas, links and headings."""
    for pattern in (r"<!-- table: .*?<!-- end -->", r"```.*?```", r"\$\$.*?\$\$"):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    text = re.sub(r"^(?: {4}|#).*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)|arXiv:\S+", "", text)


@pytest.mark.parametrize("page", EVIDENCE)
def test_a_number_stands_in_a_generated_table_or_nowhere(page):
    """Prose says what a table means; where it needs a number, that is filled between marks like a table."""
    text = prose((REPOSITORY / page).read_text(encoding="utf-8"))
    typed = [(line, TYPED.findall(line)) for line in text.splitlines() if TYPED.search(line)]
    assert typed == []


def test_typed_numbers_are_found():
    for typed in ("gains 0.5 points", "keeps 92 %", "of 3 ± 1", "1.7 times SGD", "takes 26 ms", "2 points"):
        assert TYPED.search(prose(f"SAM {typed} here.")), typed
    for kept in ("40 % noisy labels", "`rho=0.1`", "eight times", "| table |", "ten seeds, 60 epochs"):
        assert not TYPED.search(prose(f"SAM with {kept} here.")), kept
    assert not TYPED.search(prose("a <!-- table: x -->0.5 ± 0.1<!-- end --> gain"))
