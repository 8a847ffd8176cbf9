"""The table and the picture of `make demo`."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from benchmarks import figures as plots
from benchmarks.records import Record, mean_and_error
from benchmarks.tables import table


def summarise(records: list[Record], seconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """The numbers of the table, by row.

    Rows share seeds, and with them initial weights, wrong labels and the order of the batches. Gains over
    tuned SGD are therefore differences seed by seed, which vary less than the accuracies themselves.
    """
    numbers = {}
    accuracies = {
        name: [100 * record["test_accuracy"] for record in records if record["row"] == name]
        for name in seconds
    }
    for name, own in accuracies.items():
        gains = [one - other for one, other in zip(own, accuracies["sgd"], strict=True)]
        sharpness = [r["largest_hessian_eigenvalue"] for r in records if r["row"] == name]
        columns = {"accuracy": own, "gain": gains, "sharpness": sharpness}
        numbers[name] = {"time": seconds[name] / seconds["sgd"]}
        for column, values in columns.items():
            numbers[name][column], numbers[name][column + "_error"] = mean_and_error(values)
    return numbers


def print_table(records: list[Record], seconds: dict[str, float], labels: Mapping[str, str]) -> None:
    """One line per row."""
    titles = ("", "test accuracy", "over tuned SGD", "λ_max", "time per step")
    print("\n{:18s} {:>14s} {:>16s} {:>14s} {:>14s}  settings".format(*titles))
    for name, row in summarise(records, seconds).items():
        settings = next(record["settings"] for record in records if record["row"] == name)
        gain = f"{row['gain']:+.1f} ± {row['gain_error']:.1f} %" if name != "sgd" else "-"
        print(
            f"{labels[name]:18s} {row['accuracy']:6.1f} ± {row['accuracy_error']:.1f} % {gain:>16s} "
            f"{row['sharpness']:7.2f} ± {row['sharpness_error']:4.2f} {row['time']:8.2f} x SGD  "
            + ", ".join(f"{key} {value:g}" for key, value in settings.items())
        )


def page_table(records: list[Record], labels: Mapping[str, str]) -> str:
    """The table of `docs/demo.md`."""
    seconds = {name: next(r["seconds_per_step"] for r in records if r["row"] == name) for name in labels}
    signed = lambda value: f"{value:+.1f}".replace("-", "−")
    return table(
        ["", "test accuracy", "over tuned SGD, seed by seed", "λ_max of the Hessian", "time per step"],
        (
            [
                labels[name],
                f"{row['accuracy']:.1f} ± {row['accuracy_error']:.1f} %",
                "–" if name == "sgd" else f"{signed(row['gain'])} ± {row['gain_error']:.1f}",
                f"{row['sharpness']:.2f} ± {row['sharpness_error']:.2f}",
                f"{row['time']:.1f}",
            ]
            for name, row in summarise(records, seconds).items()
        ),
        numbers=False,
    )


def draw(records: list[Record], labels: Mapping[str, str], path: Path) -> None:
    """Test accuracy along training, and at its end against sharpness."""
    figure = plt.figure(figsize=(8.4, 4.6), layout="constrained")
    # The left axis is broken: SGD with the usual recipe is far below the others.
    grid = figure.add_gridspec(4, 2)
    upper, lower = figure.add_subplot(grid[:3, 0]), figure.add_subplot(grid[3, 0])
    right = figure.add_subplot(grid[:, 1])
    ends = {}
    for name, label in labels.items():
        own = [record for record in records if record["row"] == name]
        if not own:
            continue
        epochs = [epoch for epoch, _ in own[0]["test_accuracy_by_epoch"]]
        curves = 100 * np.array([[a for _, a in record["test_accuracy_by_epoch"]] for record in own])
        mean = curves.mean(0)
        ends[name] = mean[-1]
        style = plots.STYLES[name]
        for axes in (upper, lower):
            axes.plot(epochs, mean, label=label, markevery=4, markersize=5, **style)
            if len(own) > 1:
                error = curves.std(0, ddof=1) / len(own) ** 0.5
                axes.fill_between(epochs, mean - error, mean + error, color=style["color"], alpha=0.15, lw=0)
        right.scatter(
            [record["largest_hessian_eigenvalue"] for record in own],
            [100 * record["test_accuracy"] for record in own],
            label=label,
            alpha=0.8,
            **style,
        )
    lowest = min(ends.values())
    others = [end for end in ends.values() if end > lowest] or [lowest]
    break_at = min(others) - 4
    upper.set(
        ylim=(break_at, max(others) + 1.5),
        title=f"During training\n(mean of {len(own)} seeds ± standard error)",
        ylabel="test accuracy (%)",
    )
    upper.tick_params(labelbottom=False, bottom=False)
    lower.set(ylim=(min(lowest - 5, break_at - 5), break_at), xlabel="epoch")
    upper.sharex(lower)
    slant = {"marker": [(-1, -0.6), (1, 0.6)], "markersize": 9, "color": "k", "clip_on": False, "ls": "none"}
    upper.plot([0], [0], transform=upper.transAxes, **slant)
    lower.plot([0], [1], transform=lower.transAxes, **slant)
    right.set(
        xlabel="largest eigenvalue of the Hessian (log scale)",
        ylabel="test accuracy (%)",
        title="After the last epoch\n(each point a network)",
        xscale="log",
    )
    right.xaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7)))
    right.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    right.xaxis.set_minor_locator(ticker.NullLocator())
    plots.tidy(upper, lower, right)
    upper.spines["bottom"].set_visible(False)
    plots.legend_below(right)
    figure.suptitle("Digits with 40 % of the training labels wrong")
    plots.save(figure, path)
