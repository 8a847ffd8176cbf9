"""Tables and figures of `RESULTS.md` from the result files of the suite.

    python -m benchmarks.experiments.suite.report
    python -m benchmarks.experiments.suite.report --results runs/bench --print

Writes the tables between the marks in `RESULTS.md`, in `docs/choose.md` and in the methods' pages (the text
around them is written by hand) and the figures in `docs/`. Nothing is trained here:
`python -m benchmarks.experiments.suite` does that.
"""

import dataclasses
import sys
from pathlib import Path

import tyro

from benchmarks.errors import UsageError
from benchmarks.experiments.suite.figures import draw_cost, draw_noise, draw_radius
from benchmarks.experiments.suite.setting_tables import setting_table
from benchmarks.experiments.suite.tables import TABLES, accuracy_table, difference_table
from benchmarks.records import RESULTS, Record, read_records
from benchmarks.tables import DOCS, fill_tables
from docs.extensions.method_tables import write_pages

PAGE = Path(__file__).parents[2] / "RESULTS.md"
OTHER_SETTINGS = ("cifar_resnet_fitted", "fashion_vit_fitted", "cifar_resnet", "fashion_vit")


@dataclasses.dataclass(frozen=True)
class Report:
    """Tables and figures of the suite."""

    results: Path = RESULTS
    """Folder of the suite's result files."""
    tuning_file: Path = RESULTS / "suite_tuning.jsonl"
    """The trials."""
    print: bool = False
    """Print the tables of accuracies instead of writing page and figures."""


def read(file: Path, action: str) -> list[Record]:
    """Reads a result file."""
    records = read_records(file)
    if not records:
        raise UsageError(
            f"{file} is missing or empty; make it with python -m benchmarks.experiments.suite.suite {action}"
        )
    return records


def other_settings(results: Path) -> dict[str, str]:
    """The tables of the settings on right labels, by name."""
    return {name: setting_table(name, results) for name in OTHER_SETTINGS}


def main() -> None:
    """The command line."""
    report = tyro.cli(Report, prog="python -m benchmarks.experiments.suite.report", description=__doc__)
    try:
        records = read(report.results / "suite.jsonl", "run")
        trials = read(report.tuning_file, "tune")
        if report.print:
            print(accuracy_table(records, trials, []), difference_table(records, trials, []), sep="\n\n")
            return
        times = read(report.results / "suite_time.jsonl", "time")
        tables = {name: make(records, trials, times) for name, make in TABLES.items()}
        fill_tables(PAGE, tables | other_settings(report.results))
        if report.results == RESULTS:
            fill_tables(DOCS / "choose.md", {"cheap": tables["cheap"]})
            write_pages()
    except UsageError as error:
        sys.exit(f"error: {error}")
    draw_noise(records, DOCS / "suite_noise.png")
    draw_radius(trials, DOCS / "suite_radius.png")
    draw_cost(records, times, DOCS / "suite_cost.png")
    print(f"{PAGE} and figures in {DOCS} written from {len(records)} networks")


if __name__ == "__main__":
    main()
