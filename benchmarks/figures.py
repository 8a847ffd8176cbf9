"""The style of all pictures: panels side by side, colours and markers of the methods from `methods.py`."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd

mpl.use("agg")  # pictures go to files; no display needed
import matplotlib.pyplot as plt
import seaborn as sns

from benchmarks.methods import METHODS

# Ten points are readable where a page is as wide as the picture.
sns.set_theme(
    context={"axes.titlesize": "medium", "figure.titlesize": "medium", "lines.markersize": 5},
    style="white",
    rc={
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.bottom": True,
        "ytick.left": True,
        "legend.frameon": False,
    },
)
DASHES = {"-": "", "--": (4, 1.5), ":": (1, 1), "-.": (3, 1.25, 1.5, 1.25)}


class Style(NamedTuple):
    """How a row is drawn."""

    label: str  # in the legend
    colour: str  # of line and marker
    marker: str  # at the points
    line: str = "-"  # style of the line


def style(method: str, label: str | None = None, line: str | None = None) -> Style:
    """Colour and marker of a method, perhaps with another label and line."""
    row = METHODS[method]
    return Style(label or row.label, row.colour, row.marker, line or row.line)


def panels(
    rows: int, columns: int, title: str, width: float = 3.5, height: float = 3.5
) -> tuple[plt.Figure, np.ndarray]:
    """A figure with rows of panels; width and height of a panel, in inches."""
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    figure.suptitle(title)
    return figure, axes


def lines(
    axes: plt.Axes, frame: pd.DataFrame, x: str, y: str, styles: Mapping[Hashable, Style], by: str = "row"
) -> None:
    """Means of y with a band of one standard error, a line for each row of the styles that is there."""
    present = [key for key in styles if (frame[by] == key).any()] if by in frame else []
    own = [styles[key] for key in present]
    if not own:
        return
    labels = [row.label for row in own]
    sns.lineplot(
        frame[frame[by].isin(present)].assign(
            label=lambda rows: rows[by].map({k: styles[k].label for k in present})
        ),
        x=x,
        y=y,
        hue="label",
        style="label",
        hue_order=labels,
        style_order=labels,
        palette=[row.colour for row in own],
        markers=[row.marker for row in own],
        dashes=[DASHES[row.line] for row in own],
        errorbar="se",
        mec="none",
        ax=axes,
    )
    axes.get_legend().set_title(None)
    axes.set(xlabel=None, ylabel=None)


def name_point(axes: plt.Axes, place: tuple[float, float], text: str, side: str, colour: str) -> None:
    """Writes a name beside a point, instead of a legend."""
    (x, y), horizontal, vertical = {
        "right": ((8, 0), "left", "center"),
        "left": ((-8, 0), "right", "center"),
        "above": ((0, 10), "center", "bottom"),
        "below": ((0, -12), "center", "top"),
    }[side]
    axes.annotate(
        *(text, place, (x, y)),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        color=colour,
    )


def name_lines(
    axes: plt.Axes, frame: pd.DataFrame, x: str, y: str, styles: Mapping[Hashable, Style], by: str = "row"
) -> None:
    """Writes the name of each line at its right end, instead of a legend; names do not overlap."""
    ends = {
        key: frame[(frame[by] == key) & (frame[x] == frame[frame[by] == key][x].max())]
        for key in styles
        if by in frame and (frame[by] == key).any()
    }
    places = sorted((own[y].mean(), own[x].iloc[0], key) for key, own in ends.items())
    low, high = axes.get_ylim()
    height, last = 0.065 * (high - low), -np.inf
    for value, right, key in places:
        last = max(value, last + height)
        axes.annotate(
            *(styles[key].label, (right, last), (5, 0)),
            textcoords="offset points",
            va="center",
            color=styles[key].colour,
            annotation_clip=False,
        )
    if legend := axes.get_legend():
        legend.remove()


def ticks(axes: plt.Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with these numbers below it."""
    axes.set(xscale="log", xticks=list(values))
    axes.set_xticklabels([f"{value:g}" for value in values])
    axes.minorticks_off()


def legend_below(figure: plt.Figure, columns: int = 3) -> None:
    """One legend of all panels below them, where it covers nothing."""
    found = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        if legend := axes.get_legend():
            handles += legend.legend_handles
            labels += [text.get_text() for text in legend.get_texts()]
            legend.remove()
        for handle, label in zip(handles, labels, strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, fontsize=9)


def save(figure: plt.Figure, path: Path, dpi: int = 200) -> None:
    """Writes the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
