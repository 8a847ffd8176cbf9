"""The tables of the suites on right labels, `experiments/suite/settings.py`, from their result files."""

from pathlib import Path

from benchmarks.experiments.suite.numbers import differences, of, spread
from benchmarks.experiments.suite.settings import SETTINGS
from benchmarks.records import Record, read_records
from benchmarks.tables import table

# Gradients a step, SGD's being one; refreshes excluded.
GRADIENTS = {"sgd": 1.0, "momentum_sam": 1.0, "look_sam": 1.2, "xsam3": 4.0}
NOTHING = "Nothing has been measured yet."


def gradients(setting: str, name: str) -> float:
    """What the training of a row costs, in gradients, relative to the training of the first row."""
    rows = SETTINGS[setting].rows
    row, first = rows[name], next(iter(rows.values()))
    step = GRADIENTS.get(row.method if name != "xsam3" else name, 2.0)
    if "ascent_batch" in row.fixed:
        step = 1 + row.fixed["ascent_batch"] / SETTINGS[setting].config["batch_size"]
    return step * row.epochs / first.epochs


def setting_table(setting: str, folder: Path) -> str:
    """Test accuracies of a setting on right labels, with paired differences to tuned SGD and to SAM."""
    rows, file = SETTINGS[setting].rows, SETTINGS[setting].file
    records = read_records(folder / f"{file}.jsonl")
    made = {record["row"] for record in records}
    if not made:
        return NOTHING
    titles = ["", "gradients", "seeds", "test accuracy (%)", f"minus {rows['sgd_tuned'].label}", "minus SAM"]
    lines = []
    for name in rows:
        if name not in made:
            continue
        accuracies = [100 * value for value in of(records, name, 0.0).values()]
        cells = [f"{gradients(setting, name):.2f}", str(len(accuracies)), spread(accuracies)]
        cells += [difference(records, name, other) for other in ("sgd_tuned", "sam")]
        fitted = [
            100 * value for value in of(records, name, 0.0, "training_accuracy_on_noisy_labels").values()
        ]
        lines.append([rows[name].label, *cells, spread(fitted), chosen(records, name)])
    return table([*titles, "training accuracy (%)", "chosen"], lines)


def difference(records: list[Record], name: str, other: str) -> str:
    """Test accuracy minus that of another row, seed by seed, in percentage points."""
    return "0" if name == other else spread(differences(records, name, 0.0, other), "{:+.1f} ± {:.1f}")


def chosen(records: list[Record], name: str) -> str:
    """The settings of a row's networks."""
    settings = next(record["settings"] for record in records if record["row"] == name)
    return ", ".join(f"{key} {value:g}" for key, value in settings.items()) or "–"
