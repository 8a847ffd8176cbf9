"""What all pictures share: matplotlib, the size of a column, colours and dashes."""

from typing import TYPE_CHECKING, Any

try:
    import matplotlib as mpl
    import matplotlib.pyplot as plt
except ImportError as error:
    raise ImportError(
        "`optax_sam.diagnostics.plotting` needs matplotlib: `pip install 'optax_sam[plot]'` or `pip install"
        " matplotlib`. The arrays that it draws can be computed without it."
    ) from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "lines.linewidth": 1.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def applied() -> Any:
    """A context in which pictures have the style of this module."""
    return mpl.rc_context(STYLE)


def axes_of(ax: "Axes | None", height: float = 2.4) -> "Axes":
    """The axes given, or the axes of a new figure as wide as a column."""
    return plt.subplots(figsize=(3.3, height), layout="constrained")[1] if ax is None else ax


def next_line(ax: "Axes") -> dict[str, Any]:
    """Colour and dashes of the next curve in these axes."""
    count = len(ax.get_lines())
    return {"color": COLOURS[count % len(COLOURS)], "linestyle": DASHES[count % len(DASHES)]}


def legend(ax: "Axes", label: str | None) -> None:
    """A legend, where a curve has a label."""
    if label is not None:
        ax.legend(frameon=False)
