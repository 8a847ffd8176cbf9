"""The numbers for tables and figures of the accuracy suite, from its records."""

from collections.abc import Sequence

from benchmarks.experiments.suite.rows import ROWS
from benchmarks.records import Record, mean_and_error


def of(records: list[Record], row: str, noise: float, field: str = "test_accuracy") -> dict[int, float]:
    """Seed -> value of a field, for one row at one noise level, where the field exists."""
    return {
        record["seed"]: record[field]
        for record in records
        if (record["row"], record["label_noise"]) == (row, noise) and field in record
    }


def differences(records: list[Record], row: str, noise: float, other: str = "sam") -> list[float]:
    """Test accuracy minus that of another row, seed by seed, in percentage points."""
    ours, theirs = of(records, row, noise), of(records, other, noise)
    return [100 * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def present(records: list[Record], *groups: str) -> tuple[list[str], list[float]]:
    """The rows (of some groups; by default of all) and noise levels in a file, in the order of the table."""
    made = {record["row"] for record in records}
    rows = [name for name, row in ROWS.items() if name in made and (not groups or row.group in groups)]
    return rows, sorted({record["label_noise"] for record in records})


def spread(values: Sequence[float], form: str = "{:.1f} ± {:.1f}") -> str:
    """Mean and standard error as text; of a single value itself."""
    if len(values) == 1:
        return form.split(" ±")[0].format(values[0])
    return form.format(*mean_and_error(values)) if values else "-"
