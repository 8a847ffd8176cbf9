"""The look of all pictures: panels side by side, a colour and a marker for each method."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np

from benchmarks.experiments.demo import ROWS

mpl.use("agg")  # pictures go to files; no display needed
import matplotlib.pyplot as plt


class Style(NamedTuple):
    """How a method is drawn.

    Attributes:
        label: in the legend.
        colour: of line and marker.
        marker: at the points.
        line: style of the line.
    """

    label: str
    colour: str
    marker: str
    line: str = "-"


def style(row: str, label: str, line: str = "-") -> Style:
    """Colour and marker of a row of the demonstration, chosen to be told apart by colour-blind readers."""
    return Style(label, ROWS[row].colour, ROWS[row].marker, line)


def panels(num: int, title: str) -> tuple[plt.Figure, Sequence[plt.Axes]]:
    """A figure with panels side by side."""
    figure, axes = plt.subplots(1, num, figsize=(5 * num, 4.6), layout="constrained", squeeze=False)
    figure.suptitle(title)
    for each in axes[0]:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25)
    return figure, axes[0]


def curve(axes: plt.Axes, x: Sequence[float], values: np.ndarray, style: Style) -> None:
    """Mean over the first axis (seeds) with a band of one standard error."""
    values = np.asarray(values, float)
    if not values.size:
        return
    mean = values.mean(0)
    axes.plot(
        x,
        mean,
        label=style.label,
        color=style.colour,
        marker=style.marker,
        linestyle=style.line,
        markersize=5,
    )
    if len(values) > 1:
        error = values.std(0, ddof=1) / len(values) ** 0.5
        axes.fill_between(x, mean - error, mean + error, color=style.colour, alpha=0.15, lw=0)


def legend(axes: plt.Axes) -> None:
    """A legend of what was drawn, if anything was."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def legend_below(axes: plt.Axes) -> None:
    """The same for all panels of the figure, where a panel has no room."""
    labels = axes.get_legend_handles_labels()
    axes.figure.legend(*labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def save(figure: plt.Figure, path: Path) -> None:
    """Writes the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
