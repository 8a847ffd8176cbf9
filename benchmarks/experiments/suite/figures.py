"""The figures of `RESULTS.md`, from the records of the accuracy suite."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib import ticker

from benchmarks import figures as plots
from benchmarks.experiments.suite.numbers import differences, of, present
from benchmarks.experiments.suite.rows import ROWS
from benchmarks.figures import STYLES
from benchmarks.records import Record, mean_and_error

Records = list[Record]


def draw_noise(records: Records, path: Path) -> None:
    """Test accuracy against the fraction of wrong labels, and its difference from SAM's."""
    rows, levels = present(records, "methods")
    if len(levels) < 2:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", width_ratios=(2, 3))
    percent = [100 * noise for noise in levels]
    for index, row in enumerate(rows):
        # Side by side at each level, so that error bars do not cover one another.
        shifted = [x + 0.8 * (index - (len(rows) - 1) / 2) for x in percent]
        accuracy = [mean_and_error([100 * a for a in of(records, row, noise).values()]) for noise in levels]
        left.plot(percent, [mean for mean, _ in accuracy], label=ROWS[row].label, markersize=6, **STYLES[row])
        gains = [mean_and_error(differences(records, row, noise)) for noise in levels]
        if row not in ("sam", "sgd", "sgd_40"):  # the last two would compress the scale for all others
            style = STYLES[row] | {"linestyle": "none"}
            right.errorbar(
                shifted, [g for g, _ in gains], [e for _, e in gains], capsize=2, markersize=6, **style
            )
    right.axhline(0, color=STYLES["sam"]["color"], lw=1)
    right.annotate(
        "SAM",
        (1, 0),
        (-2, 3),
        xycoords=right.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=9,
        color=STYLES["sam"]["color"],
    )
    left.set(xlabel="wrong training labels (%)", ylabel="test accuracy (%)", title="Test accuracy")
    right.set(
        xlabel="wrong training labels (%)",
        ylabel="percentage points",
        title="Difference from SAM, seed by seed (mean ± standard error)",
    )
    for axes in (left, right):
        axes.set_xticks(percent)
        plots.tidy(axes)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    plots.save(figure, path)


def draw_radius(trials: Records, path: Path) -> None:
    """Validation accuracy against rho, at every noise level."""
    rows, levels = present(trials, "methods")
    rows = [row for row in rows if not row.endswith("_decay")]
    figure, panels = plt.subplots(1, len(levels), figsize=(13, 4.2), layout="constrained", squeeze=False)
    for axes, noise in zip(panels[0], levels, strict=True):
        for row in rows:
            searched = [dict(settings) for settings in ROWS[row].first]
            points = sorted(
                # ASAM measures in units of the weights: its radii are ten times those of the others.
                (trial["settings"]["rho"] / (10 if "asam" in row else 1), 100 * trial["validation_accuracy"])
                for trial in trials
                if (trial["row"], trial["label_noise"]) == (row, noise) and trial["settings"] in searched
            )
            if points:
                axes.plot(*zip(*points, strict=True), label=ROWS[row].label, markersize=5, **STYLES[row])
        decays = [trial for trial in trials if (trial["row"], trial["label_noise"]) == ("sgd_decay", noise)]
        usual = [
            trial["validation_accuracy"] for trial in decays if trial["settings"] == {"weight_decay": 5e-4}
        ]
        tuned = max((trial["validation_accuracy"] for trial in decays), default=float("nan"))
        for accuracy, label, dashes in (
            (usual[0] if usual else float("nan"), "SGD", "-"),
            (tuned, "SGD, decay tuned", ":"),
        ):
            axes.axhline(100 * accuracy, color="k", lw=1, ls=dashes, label=label)
        # Networks that collapsed to guessing are below the picture: they would compress the scale.
        shown = [100 * trial["validation_accuracy"] for trial in trials if trial["label_noise"] == noise]
        axes.set_ylim(100 * (usual[0] if usual else min(shown) / 100) - 4, max(shown) + 1)
        axes.set(xscale="log", xlabel="rho (ASAM: rho / 10)", title=f"{100 * noise:.0f} % wrong labels")
        axes.set_xticks([0.05, 0.1, 0.2, 0.3])
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        plots.tidy(axes)
    panels[0][0].set_ylabel("validation accuracy (%)")
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    plots.save(figure, path)


def draw_cost(records: Records, times: Records, path: Path) -> None:
    """Test accuracy against the measured time of a step, a panel for each noise level."""
    rows, levels = present(records)
    sgd = next(time["seconds_per_step"] for time in times if time["row"] == "sgd")
    costs = {time["row"]: time["seconds_per_step"] / sgd for time in times}
    # Twice the epochs at the same time of a step belong in another picture.
    rows = [row for row in rows if row in costs and ROWS[row].epochs == ROWS["sgd"].epochs]
    columns = min(len(levels), 2)
    size = (12, 4.2 * -(-len(levels) // columns))
    figure, panels = plt.subplots(
        -(-len(levels) // columns), columns, figsize=size, layout="constrained", squeeze=False
    )
    for axes, noise in zip(panels.flat, levels, strict=False):
        for row in rows:
            mean, error = mean_and_error([100 * value for value in of(records, row, noise).values()])
            style = {"markersize": 7} | STYLES[row] | {"linestyle": "none"}
            axes.errorbar(costs[row], mean, error, capsize=2, lw=1, label=ROWS[row].label, **style)
        axes.set(title=f"{100 * noise:.0f} % wrong labels", xscale="log")
        axes.set_xticks([1, 1.1, 1.25, 1.5, 2, 3, 4])
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        plots.tidy(axes)
    for axes in panels[-1]:
        axes.set_xlabel("measured time of a step, SGD = 1")
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy (%)")
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
    plots.save(figure, path)
