"""The figures of `RESULTS.md`, from the records of the accuracy suite."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from benchmarks import figures
from benchmarks.experiments.suite.rows import Row
from benchmarks.experiments.suite.tables import differences
from benchmarks.figures import Style
from benchmarks.tables import column, where

Rows = Mapping[str, Row]


def styles(rows: Rows, made: pd.DataFrame, *left_out: str) -> dict[str, Style]:
    """The looks of the rows of the first group."""
    return {
        name: row.style()
        for name, row in rows.items()
        if row.group == "methods" and name not in left_out and (made["row"] == name).any()
    }


def draw_noise(made: pd.DataFrame, rows: Rows, path: Path) -> None:
    """Test accuracy against the fraction of wrong labels, and its difference from SAM's."""
    figure, (panels,) = figures.panels(1, 2, "", width=6, height=4.8)
    accuracy = made.assign(noise=100 * made["label_noise"], accuracy=100 * made["test_accuracy"])
    gains = differences(made, "sam").assign(noise=lambda own: 100 * own["label_noise"])
    figures.lines(panels[0], accuracy, "noise", "accuracy", styles(rows, made))
    # SGD without tuned decay would compress the scale for all others.
    figures.lines(panels[1], gains, "noise", "difference", styles(rows, made, "sgd", "sgd_40"))
    for axes in panels:
        axes.set(xlabel="wrong training labels (%)", xticks=sorted(accuracy["noise"].unique()))
    panels[0].set(ylabel="test accuracy (%)", title="Test accuracy")
    panels[1].set(
        ylabel="percentage points", title="Difference from SAM, seed by seed (mean ± standard error)"
    )
    figures.legend_below(figure, 5)
    figures.save(figure, path)


def draw_radius(trials: pd.DataFrame, rows: Rows, path: Path) -> None:
    """Validation accuracy against rho, at every noise level."""
    levels = sorted(trials["label_noise"].unique())
    shown = styles(rows, trials, *(name for name in rows if name.endswith("_decay")))
    searched = {name: [dict(settings) for settings in rows[name].first] for name in shown}
    own = trials[[trial.settings in searched.get(trial.row, ()) for trial in trials.itertuples()]]
    # ASAM measures in units of the weights: its radii are ten times those of the others.
    own = own.assign(
        accuracy=100 * own["validation_accuracy"],
        rho=[trial.settings["rho"] / (10 if "asam" in trial.row else 1) for trial in own.itertuples()],
    )
    figure, (panels,) = figures.panels(1, len(levels), "", width=3.25, height=4.2)
    for axes, noise in zip(panels, levels, strict=True):
        figures.lines(axes, where(own, label_noise=noise), "rho", "accuracy", shown)
        decays = where(trials, row="sgd_decay", label_noise=noise)
        usual = column(where(decays, settings={"weight_decay": 5e-4}), "validation_accuracy").max()
        tuned = column(decays, "validation_accuracy").max()
        for accuracy, label, dashes in ((usual, "SGD", "-"), (tuned, "SGD, decay tuned", ":")):
            axes.axhline(100 * accuracy, color="k", lw=1, ls=dashes, label=label)
        # Networks that collapsed to guessing are below the picture: they would compress the scale.
        highest = where(trials, label_noise=noise)["validation_accuracy"].max()
        axes.set_ylim(100 * usual - 4, 100 * highest + 1)
        figures.ticks(axes, (0.05, 0.1, 0.2, 0.3))
        axes.set(xlabel="rho (ASAM: rho / 10)", title=f"{100 * noise:.0f} % wrong labels")
    panels[0].set_ylabel("validation accuracy (%)")
    figures.legend_below(figure, 5)
    figures.save(figure, path)


def draw_cost(made: pd.DataFrame, times: pd.DataFrame, rows: Rows, path: Path) -> None:
    """Test accuracy against the measured time of a step, a panel for each noise level."""
    levels = sorted(made["label_noise"].unique())
    seconds = times.set_index("row")["seconds_per_step"]
    # Twice the epochs at the same time of a step belong in another picture.
    present = [
        name
        for name, row in rows.items()
        if name in seconds and row.epochs == rows["sgd"].epochs and (made["row"] == name).any()
    ]
    figure, panels = figures.panels(2, 2, "", width=6, height=4.2)
    for axes, noise in zip(panels.flat, levels, strict=False):
        for name in present:
            accuracy = 100 * where(made, row=name, label_noise=noise)["test_accuracy"]
            look = rows[name].style()
            is_tuned = name.endswith("_decay")
            axes.errorbar(
                *(seconds[name] / seconds["sgd"], accuracy.mean(), accuracy.sem()),
                capsize=2,
                lw=1,
                markersize=7,
                ls="none",
                label=look.label,
                color=look.colour,
                marker=look.marker,
                fillstyle="none" if is_tuned else "full",
            )
        figures.ticks(axes, (1, 1.1, 1.25, 1.5, 2, 3, 4))
        axes.set(title=f"{100 * noise:.0f} % wrong labels")
    for axes in panels[-1]:
        axes.set_xlabel("measured time of a step, SGD = 1")
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy (%)")
    figures.legend_below(figure, 4)
    figures.save(figure, path)
