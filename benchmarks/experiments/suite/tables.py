"""The tables of the suites on noisy and on clean labels."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from benchmarks.experiments.suite.rows import Row, best
from benchmarks.methods import METHODS
from benchmarks.tables import column, mean_and_error, spread, table, where

SIGNED = "{:+.1f} ± {:.1f}"
FITTED, SHARPNESS = "training_accuracy_on_noisy_labels", "largest_hessian_eigenvalue"
Rows = Mapping[str, Row]


def spreads(frame: pd.DataFrame, field: str, scale: float = 1, form: str = "{:.1f} ± {:.1f}") -> pd.DataFrame:
    """Mean and standard error over the seeds as text, rows by noise levels; "-" where there is none."""
    values = frame.dropna(subset=field).groupby(["row", "label_noise"])[field]
    return values.agg(lambda own: spread(scale * own, form)).unstack().fillna("-")


def differences(frame: pd.DataFrame, other: str) -> pd.DataFrame:
    """Test accuracy minus another row's, seed by seed, in percentage points: a long frame."""
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
    return [f"{100 * noise:.0f} % noisy" for noise in cells]


STEP_TIME = "step time (SGD = 1)"


def tables(frame: pd.DataFrame, times: pd.DataFrame, rows: Rows) -> dict[str, str]:
    """The tables of the suite with noisy labels, by name."""
    made, trials = (where(frame, part=part) for part in ("network", "trial"))
    accuracy = spreads(made, "test_accuracy", 100)
    present = [name for name in rows if name in accuracy.index]
    difference = compared(made, "sgd_decay").get(0.4, pd.Series(dtype=str))
    lines = [[rows[name].label, *accuracy.loc[name], difference.get(name, "-")] for name in present]
    return {
        "accuracy": table(["", *titles(accuracy), "minus tuned SGD, 40 % noisy"], lines),
        "minima": minima(made, rows),
        "runs": runs(made, trials),
        "cheap": cheap(made, times, rows),
        "radii": chosen_radii(trials, rows),
    }


def relative(times: pd.DataFrame) -> dict[str, str]:
    """The time of a step of each row in steps of SGD, as text."""
    if times.empty:
        return {}
    seconds = times.set_index("row")["seconds_per_step"]
    return {name: f"{value / seconds['sgd']:.2f}" for name, value in seconds.items()}


def cheap(made: pd.DataFrame, times: pd.DataFrame, rows: Rows) -> str:
    """What less than two gradients buy: the time of a step, and the share of SAM's gain over SGD."""
    noisy = [noise for noise in sorted(made["label_noise"].unique()) if noise > 0]
    seconds = relative(times)
    lines = [
        [rows[name].label, seconds.get(name, "-"), *(share_of_gain(made, name, noise) for noise in noisy)]
        for name, row in rows.items()
        if (name == "sam" or row.group in ("cheap", "controls")) and (made["row"] == name).any()
    ]
    head = ["share of SAM's gain (%)", STEP_TIME, *(f"{100 * noise:.0f} % noisy" for noise in noisy)]
    return table(head, lines)


MINIMA = ("sgd", "sgd_40", "sgd_decay", "sam", "asam", "random")


def minima(made: pd.DataFrame, rows: Rows) -> str:
    """λ_max and the accuracy on the training labels of some rows, at the first noise level and at 40 %."""
    levels = [noise for noise in sorted(made["label_noise"].unique()) if noise in (0.0, 0.4)]
    sharpness = spreads(made, SHARPNESS) if SHARPNESS in made else pd.DataFrame()
    fitted = spreads(made, FITTED, 100)
    present = [name for name in MINIMA if name in rows and name in fitted.index]
    cell = lambda cells, name, noise: cells[noise].get(name, "-") if noise in cells else "-"
    lines = [
        [rows[name].label, *(cell(cells, name, noise) for cells in (sharpness, fitted) for noise in levels)]
        for name in present
    ]
    head = [
        f"{title}, {100 * noise:.0f} % noisy"
        for title in ("λ_max", "training labels fitted (%)")
        for noise in levels
    ]
    return table(["", *head], lines)


def chosen_radii(trials: pd.DataFrame, rows: Rows) -> str:
    """The radii with the highest validation accuracy: with clean labels, and the range over noisy ones."""
    records, lines = trials.to_dict("records"), []
    for name, row in rows.items():
        if row.group == "controls" or not row.first or "weight_decay" in row.first[0]:
            continue
        levels = sorted(where(trials, row=name)["label_noise"].unique())
        radius = {noise: best(records, name, noise, rows)["rho"] for noise in levels}
        noisy = sorted({rho for noise, rho in radius.items() if noise > 0})
        spread = " to ".join(f"{rho:g}" for rho in dict.fromkeys((noisy[0], noisy[-1]))) if noisy else "-"
        lines.append([row.label, f"{radius[0.0]:g}" if 0.0 in radius else "-", spread])
    return table(["best ρ on validation data", "clean labels", "noisy labels"], lines)


def share_of_gain(made: pd.DataFrame, name: str, noise: float) -> str:
    """(row − SGD)/(SAM − SGD) of the mean accuracies in per cent; the error belongs to row − SAM."""
    if name == "sam":
        return "100"
    own = where(made, label_noise=noise)
    if not {"sgd", "sam"} <= set(own["row"]):
        return "-"
    gain, _ = mean_and_error(where(differences(own, "sgd"), row="sam")["difference"])
    missing, error = mean_and_error(where(differences(own, "sam"), row=name)["difference"])
    return f"{100 * (1 + missing / gain):.0f} ± {100 * error / gain:.0f}"


def runs(made: pd.DataFrame, trials: pd.DataFrame) -> str:
    """Networks, how many of them diverged, and the versions of the first, in a sentence."""
    diverged = int(column(made, "diverged").sum())
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].iloc[0].items())
    return (
        f"{len(made)} networks in {made['seed'].nunique()} seeds, of which {diverged} diverged (counted as "
        f"guessing), and {len(trials)} trials on validation data; {versions}"
    )


def gradients(rows: Rows, name: str, batch_size: int) -> float:
    """What the training of a row costs, in gradients, relative to the first row; refreshes excluded."""
    row, first = rows[name], next(iter(rows.values()))
    step = METHODS[row.method].price
    if "ascent_batch" in row.fixed:
        step = 1 + row.fixed["ascent_batch"] / batch_size
    return step * row.epochs / first.epochs


def setting_table(made: pd.DataFrame, rows: Rows, batch_size: int) -> str:
    """Test accuracies of a suite on clean labels, with paired differences to the tuned optimizer.

    Of the rows with the usual recipe only the optimizer and SAM: there a method differs from the tuned
    optimizer by more than its own step.
    """
    is_shown = lambda name: name in ("sgd", "sgd_tuned", "sam") or rows[name].starts_from is not None
    present = [name for name in rows if is_shown(name) and (made["row"] == name).any()]
    accuracy = spreads(made, "test_accuracy", 100)[0.0]
    difference = compared(made, "sgd_tuned")[0.0]
    lines = [
        [
            *(rows[name].label, f"{gradients(rows, name, batch_size):.2f}"),
            *(accuracy[name], difference[name]),
        ]
        for name in present
    ]
    tuned = rows["sgd_tuned"].label
    return table(["", "gradients", "test accuracy (%)", f"minus {tuned}"], lines)
