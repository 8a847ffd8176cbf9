"""The tables of `RESULTS.md`, from the suites' records of networks, trials on validation data and times."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from benchmarks.experiments.suite.rows import Row, best
from benchmarks.methods import METHODS
from benchmarks.tables import column, mean_and_error, spread, table, where

SIGNED = "{:+.1f} ± {:.1f}"
FITTED = "training_accuracy_on_noisy_labels"
Rows = Mapping[str, Row]


def spreads(frame: pd.DataFrame, field: str, scale: float = 1, form: str = "{:.1f} ± {:.1f}") -> pd.DataFrame:
    """Mean and standard error over the seeds as text, rows by noise levels; "-" where there is none."""
    values = frame.dropna(subset=field).groupby(["row", "label_noise"])[field]
    return values.agg(lambda own: spread(scale * own, form)).unstack().fillna("-")


def differences(frame: pd.DataFrame, other: str) -> pd.DataFrame:
    """Test accuracy minus that of another row, seed by seed, in percentage points: a long frame."""
    wide = frame.pivot(index=["label_noise", "seed"], columns="row", values="test_accuracy")
    long = 100 * wide.sub(wide.get(other, np.nan), axis=0)
    return long.melt(ignore_index=False, value_name="difference").dropna().reset_index()


def compared(frame: pd.DataFrame, other: str) -> pd.DataFrame:
    """Differences to a row as text; "0" for the row itself."""
    cells = spreads(differences(frame, other), "difference", form=SIGNED)
    cells = cells.reindex(
        frame["row"].unique(), columns=sorted(frame["label_noise"].unique()), fill_value="-"
    )
    cells.loc[other] = "0"
    return cells


def titles(cells: pd.DataFrame) -> list[str]:
    """The noise levels above the columns."""
    return [f"{100 * noise:.0f} % wrong" for noise in cells]


def by_noise(cells: pd.DataFrame, rows: Rows, *groups: str) -> str:
    """A table of rows, by default of all groups, against noise levels."""
    present = [name for name, row in rows.items() if name in cells.index and row.group in (groups or ALL)]
    return table(["", *titles(cells)], [[rows[name].label, *cells.loc[name]] for name in present])


ALL = ("methods", "family", "cheap", "controls")


def tables(frame: pd.DataFrame, times: pd.DataFrame, rows: Rows) -> dict[str, str]:
    """The tables of the suite with wrong labels, by name."""
    made, trials = (where(frame, part=part) for part in ("network", "trial"))
    accuracy = spreads(made, "test_accuracy", 100)
    found = {
        "accuracy": by_noise(accuracy, rows, "methods", "family"),
        "differences": by_noise(compared(made, "sam"), rows, "methods", "family"),
        "differences_to_tuned": by_noise(compared(made, "sgd_decay"), rows, "methods", "family"),
        "settings": by_noise(chosen(trials, rows), rows),
        "sharpness": by_noise(spreads(made, "largest_hessian_eigenvalue", form="{:.2f} ± {:.2f}"), rows),
        "fitted": by_noise(spreads(made, FITTED, 100), rows),
        "runs": runs(made, trials),
        "cheap": cheap(made, times, rows, accuracy),
    }
    if not times.empty:
        found["cost"] = cost(times, rows)
    return found


def cheap(made: pd.DataFrame, times: pd.DataFrame, rows: Rows, accuracy: pd.DataFrame) -> str:
    """What less than two gradients buy: time, accuracy, and the share of SAM's gain over SGD."""
    seconds = times.set_index("row")["seconds_per_step"] if not times.empty else pd.Series(dtype=float)
    noisy = [noise for noise in accuracy if noise > 0]
    present = [name for name, row in rows.items() if row.group in ("cheap", "controls")]
    lines = []
    for name in (name for name in ("sgd", "sam", *present) if name in accuracy.index):
        time = f"{seconds[name] / seconds['sgd']:.2f}" if {name, "sgd"} <= set(seconds.index) else "-"
        shares = [share_of_gain(made, name, noise) for noise in noisy]
        lines.append([rows[name].label, time, *accuracy.loc[name], *shares])
    head = ["", "time of a step, SGD = 1", *titles(accuracy)]
    return table([*head, *(f"share of the gain, {100 * noise:.0f} %" for noise in noisy)], lines)


def share_of_gain(made: pd.DataFrame, name: str, noise: float) -> str:
    """(row − SGD)/(SAM − SGD) of the mean accuracies in per cent; the error is that of row − SAM."""
    if name in ("sgd", "sam"):
        return "100" if name == "sam" else "0"
    own = where(made, label_noise=noise)
    if not {"sgd", "sam"} <= set(own["row"]):
        return "-"
    gain, _ = mean_and_error(where(differences(own, "sgd"), row="sam")["difference"])
    missing, error = mean_and_error(where(differences(own, "sam"), row=name)["difference"])
    return f"{100 * (1 + missing / gain):.0f} ± {100 * error / gain:.0f}"


def chosen(trials: pd.DataFrame, rows: Rows) -> pd.DataFrame:
    """What was chosen on validation data, as text."""
    made = trials.to_dict("records")
    cells = {
        (name, noise): words(best(made, name, noise, rows))
        for name, noise in trials.groupby(["row", "label_noise"]).groups
    }
    return pd.Series(cells).unstack().fillna("-")


def words(settings: Mapping[str, float]) -> str:
    """Settings as text."""
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())


def runs(made: pd.DataFrame, trials: pd.DataFrame) -> str:
    """Networks, how many of them diverged, and the versions of the first."""
    diverged = int(column(made, "diverged").sum())
    lines = [
        ["networks reported", str(len(made))],
        ["of these diverged (counted as guessing)", str(diverged)],
        ["seeds of each row and noise level", str(made["seed"].nunique())],
        ["trials on validation data", str(len(trials))],
        *([name, version] for name, version in made["versions"].iloc[0].items()),
    ]
    return table(["", ""], lines)


def cost(times: pd.DataFrame, rows: Rows) -> str:
    """Time of a step and of a training, relative to SGD."""
    sgd = where(times, row="sgd").iloc[0]
    a_step = times["seconds_per_step"] / sgd["seconds_per_step"]
    training = a_step * times["steps"] / sgd["steps"]
    lines = [
        [rows[name].label, f"{one:.2f}", f"{whole:.2f}"]
        for name, one, whole in zip(times["row"], a_step, training, strict=True)
    ]
    return table(["", "time of a step, SGD = 1", "time of the training, SGD = 1"], lines)


def gradients(rows: Rows, name: str, batch_size: int) -> float:
    """What the training of a row costs, in gradients, relative to the first row; refreshes excluded."""
    row, first = rows[name], next(iter(rows.values()))
    step = METHODS[row.method].price
    if "ascent_batch" in row.fixed:
        step = 1 + row.fixed["ascent_batch"] / batch_size
    return step * row.epochs / first.epochs


def setting_table(made: pd.DataFrame, rows: Rows, batch_size: int) -> str:
    """Test accuracies of a suite on right labels, with paired differences to tuned SGD and to SAM."""
    present = [name for name in rows if (made["row"] == name).any()]
    accuracy, fitted = (spreads(made, field, 100)[0.0] for field in ("test_accuracy", FITTED))
    others = [compared(made, other)[0.0] for other in ("sgd_tuned", "sam")]
    lines = []
    for name in present:
        own = where(made, row=name)
        lines.append(
            [
                rows[name].label,
                *(f"{gradients(rows, name, batch_size):.2f}", str(len(own)), accuracy[name]),
                *(other[name] for other in others),
                fitted[name],
                words(own["settings"].iloc[0]) or "–",
            ]
        )
    head = ["", "gradients", "seeds", "test accuracy (%)", f"minus {rows['sgd_tuned'].label}", "minus SAM"]
    return table([*head, "training accuracy (%)", "chosen"], lines)
