"""Pictures of `loss_surface` and `spectral_density`, readable at the width of a column (3.3 inches).

    surface = diagnostics.loss_surface(loss, plane.origin, plane.directions, np.linspace(-1, 1, 31))
    plotting.plot_loss_surface(surface, arrows={"g₀": plane.coordinates[1], "g₁": plane.coordinates[2]})

Each draws into `ax`, or makes a figure of its own, and returns the axes, to be changed further. Colours can
be told apart with any colour vision: viridis, and those of Wong (Nature Methods 2011). Needs matplotlib,
the extra `plot`, which is why this module is not imported by `optax_sam.diagnostics`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from optax_sam.curvature.density import SpectralDensity
from optax_sam.diagnostics.slices import LossSurface

try:
    import matplotlib as mpl
    import matplotlib.pyplot as plt
except ImportError as error:
    raise ImportError(
        "`optax_sam.diagnostics.plotting` needs matplotlib: `pip install 'optax_sam[plot]'` or `pip install"
        " matplotlib`. The arrays that it draws come without it."
    ) from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_loss_surface", "plot_spectral_density"]

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


def plot_loss_surface(
    surface: LossSurface,
    *,
    ax: "Axes | None" = None,
    label: str | None = None,
    points: Mapping[str, Any] | None = None,
    arrows: Mapping[str, Any] | None = None,
    levels: int = 14,
) -> "Axes":
    """Draws a slice of the loss: a curve for one direction, contours for two.

    Several curves in one picture: call it again with the same `ax`; colours and dashes change by themselves.

    Args:
      surface: from `loss_surface`. Losses that are not finite are left blank.
      ax: axes to draw into. None makes a figure.
      label: of a curve, for the legend.
      points: name -> (a, b), drawn as labelled dots: the coordinates of `plane_through`. For contours.
      arrows: name -> (a, b), drawn as labelled arrows from the origin, the parameters, and shortened where
        they would leave the picture: the coordinates of `gradient_plane`. For contours.
      levels: number of contours.

    Returns:
      The axes.

    Raises:
      ValueError: if points or arrows are given for a curve.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import diagnostics
      >>> from optax_sam.diagnostics import plotting
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0]) * w**2)
      >>> line = diagnostics.loss_surface(loss, jnp.zeros(2), [jnp.array([0.0, 1.0])])
      >>> axes = plotting.plot_loss_surface(line, label="along the top eigenvector")
      >>> axes.get_ylabel()
      'loss'
    """
    values = _finite(surface.values)
    with mpl.rc_context(STYLE):
        if values.ndim == 1:
            if points or arrows:
                raise ValueError(
                    "`points` and `arrows` are places in a plane, but this `surface` is a line: give"
                    " `loss_surface` two directions, such as `plane.directions`."
                )
            ax = _axes(ax)
            ax.plot(np.asarray(surface.coordinates[0]), values, label=label, **_next_line(ax))
            ax.set(xlabel="distance along the direction", ylabel="loss")
            _legend(ax, label)
            return ax
        ax = _axes(ax, height=2.7)
        first, second = map(np.asarray, surface.coordinates)
        contours = ax.contourf(first, second, values.T, levels, cmap="viridis")
        ax.contour(first, second, values.T, levels, colors="white", linewidths=0.4, alpha=0.6)
        bar = ax.figure.colorbar(contours, ax=ax)
        bar.set_label("loss")
        ax.set(xlabel="first direction", ylabel="second direction")
        ax.set(xlim=(first.min(), first.max()), ylim=(second.min(), second.max()))
        for name, place in (points or {}).items():
            _name(ax, name, np.asarray(place))
            ax.plot(*np.asarray(place), "o", ms=4, color="white", markeredgecolor="black")
        for name, tip in (arrows or {}).items():
            tip = _within(ax, np.asarray(tip, float))
            ax.annotate("", tip, (0, 0), arrowprops={"arrowstyle": "-|>", "color": "white", "lw": 1.3})
            _name(ax, name, tip)
    return ax


def plot_spectral_density(
    density: SpectralDensity, *, ax: "Axes | None" = None, label: str | None = None, lowest: float = 1e-6
) -> "Axes":
    """Draws the density of the eigenvalues of a Hessian, on a logarithmic axis, which shows single ones.

    Args:
      density: from `optax_sam.curvature.spectral_density`.
      ax: axes to draw into. None makes a figure.
      label: for the legend; several densities can share axes.
      lowest: where the axis of densities ends below. An eigenvalue on its own among n has a share of 1/n.

    Returns:
      The axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import curvature
      >>> from optax_sam.diagnostics import plotting
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 1.0, 9.0]) * w**2)
      >>> axes = plotting.plot_spectral_density(curvature.spectral_density(loss, jnp.ones(3), num_iters=2))
      >>> axes.get_yscale()
      'log'
    """
    with mpl.rc_context(STYLE):
        ax = _axes(ax)
        heights = np.asarray(density.density)
        shown = np.where(heights >= lowest, heights, np.nan)
        ax.plot(np.asarray(density.grid), shown, label=label, **_next_line(ax))
        ax.set(xlabel="eigenvalue of the Hessian", ylabel="density", yscale="log")
        ax.set_ylim(bottom=lowest)
        _legend(ax, label)
    return ax


def _axes(ax: "Axes | None", height: float = 2.4) -> "Axes":
    return plt.subplots(figsize=(3.3, height), layout="constrained")[1] if ax is None else ax


def _next_line(ax: "Axes") -> dict[str, Any]:
    count = len(ax.get_lines())
    return {"color": COLOURS[count % len(COLOURS)], "linestyle": DASHES[count % len(DASHES)]}


def _legend(ax: "Axes", label: str | None) -> None:
    if label is not None:
        ax.legend(frameon=False)


def _finite(values: jax.Array) -> "np.ma.MaskedArray[Any, Any]":
    return np.ma.masked_invalid(np.asarray(values))


def _within(ax: "Axes", tip: np.ndarray[Any, Any], share: float = 0.85) -> Any:
    """Shortens an arrow that would end outside the picture, or near its edge."""
    limits = np.array([ax.get_xlim(), ax.get_ylim()])
    reach = np.where(tip >= 0, limits[:, 1], limits[:, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(tip == 0, np.inf, reach / tip)
    return tip * min(1.0, share * float(room.min()))


def _name(ax: "Axes", name: str, place: Any) -> None:
    # Towards the middle, so that no name leaves the picture; dark behind the letters, for any background.
    middle = np.mean([ax.get_xlim(), ax.get_ylim()], axis=1)
    right, above = place[0] <= middle[0], place[1] <= middle[1]
    ax.annotate(
        name,
        place,
        (4 if right else -4, 4 if above else -4),
        textcoords="offset points",
        ha="left" if right else "right",
        va="bottom" if above else "top",
        color="white",
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "black", "alpha": 0.45, "linewidth": 0},
    )
