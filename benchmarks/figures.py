"""The style of all pictures: panels side by side, a colour and a marker for each method."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np

mpl.use("agg")  # pictures go to files; no display needed
import matplotlib.pyplot as plt

# Ten points are readable where a page is as wide as the picture.
mpl.rcParams.update({"axes.titlesize": "medium", "figure.titlesize": "medium"})

# Colours: Wong, "Points of view: Color blindness", Nature Methods 2011, and for the wider family
# the wine red of Tol's palette. Rows with the same colour differ in their markers and dashes.
STYLES = {
    "sgd": {"color": "#000000", "marker": "o"},
    "sgd_usual": {"color": "#7F7F7F", "marker": "x"},
    "sgd_40": {"color": "#7F7F7F", "marker": "o", "linestyle": "--"},
    "sam": {"color": "#0072B2", "marker": "s"},
    "sam_usual": {"color": "#56B4E9", "marker": "+"},
    "asam": {"color": "#E69F00", "marker": "D"},
    "fisher_sam": {"color": "#56B4E9", "marker": "X"},
    "info_sam": {"color": "#009E73", "marker": "^"},
    "eigen_sam": {"color": "#CC79A7", "marker": "v"},
    "xsam": {"color": "#D55E00", "marker": "P"},
    "xsam3": {"color": "#D55E00", "marker": "*", "linestyle": "--"},
    "asam_xsam": {"color": "#E69F00", "marker": "p", "linestyle": "--"},
    "sgd_decay": {"color": "#000000", "marker": "o", "linestyle": ":", "fillstyle": "none"},
    "sgd_40_decay": {"color": "#7F7F7F", "marker": "o", "linestyle": ":", "fillstyle": "none"},
    "sam_decay": {"color": "#0072B2", "marker": "s", "linestyle": ":", "fillstyle": "none"},
    "vasso": {"color": "#882255", "marker": "o", "linestyle": "-."},
    "friendly_sam": {"color": "#882255", "marker": "s", "linestyle": "-."},
    "gsam": {"color": "#882255", "marker": "^", "linestyle": "-."},
    "wsam": {"color": "#882255", "marker": "v", "linestyle": "-."},
    "stable_sam": {"color": "#882255", "marker": "D", "linestyle": "-."},
    "sparse_sam": {"color": "#882255", "marker": "P", "linestyle": "-."},
    "lookbehind_sam": {"color": "#882255", "marker": "*", "linestyle": "-."},
    "part_32": {"color": "#0072B2", "marker": (4, 1, 0)},
    "part_16": {"color": "#0072B2", "marker": (6, 1, 0)},
    "part_8": {"color": "#0072B2", "marker": (8, 1, 0)},
    "look_sam": {"color": "#009E73", "marker": ">"},
    "every_5th": {"color": "#009E73", "marker": "<"},
    "one_gradient": {"color": "#D55E00", "marker": "^"},
    "momentum_sam": {"color": "#D55E00", "marker": "v"},
    "outside_16": {"color": "#7F7F7F", "marker": (6, 1, 0)},
    "random": {"color": "#7F7F7F", "marker": "d"},
    "asam_decay": {"color": "#E69F00", "marker": "D", "linestyle": ":", "fillstyle": "none"},
}


class Style(NamedTuple):
    """How a row is drawn.

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
    """Colour and marker of a row of `STYLES`, with another label and line."""
    return Style(label, STYLES[row]["color"], STYLES[row]["marker"], line)


def tidy(*panels: plt.Axes) -> None:
    """No frame at the top and at the right, a light grid."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)


def panels(num: int, title: str) -> tuple[plt.Figure, Sequence[plt.Axes]]:
    """A figure with panels side by side."""
    figure, axes = grid(1, num, title)
    return figure, axes[0]


def grid(
    rows: int, columns: int, title: str, width: float = 3.5, height: float = 3.5
) -> tuple[plt.Figure, np.ndarray]:
    """A figure with rows of panels; width and height are those of a panel, in inches."""
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    figure.suptitle(title)
    tidy(*axes.flat)
    return figure, axes


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


def legend_below(axes: plt.Axes) -> None:
    """A legend of all panels below them, where it covers nothing."""
    labels = axes.get_legend_handles_labels()
    axes.figure.legend(*labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def save(figure: plt.Figure, path: Path, dpi: int = 200) -> None:
    """Writes the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
