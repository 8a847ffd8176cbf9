"""Slices of the loss along one or two directions, as curves, contours and surfaces."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from jax.scipy.ndimage import map_coordinates

from optax_sam.diagnostics.plotting import style
from optax_sam.diagnostics.slices import LossSurface

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Values = np.ndarray[Any, Any]


def plot_loss_surface(
    surface: LossSurface,
    *,
    ax: "Axes | None" = None,
    label: str | None = None,
    points: Mapping[str, Any] | None = None,
    arrows: Mapping[str, Any] | None = None,
    circle: float | None = None,
    levels: int | Sequence[float] = 14,
    log: bool = False,
) -> "Axes":
    """Draws a slice of the loss: a curve for one direction; for two, contours with equal scales of the axes.

    To draw several curves in one picture, call it again with the same `ax`; colours and dashes then change.

    Args:
      surface: from `loss_surface`. Losses that are not finite are left blank.
      ax: axes to draw into. None makes a figure.
      label: of a curve, for the legend.
      points: name -> (a, b), drawn as labelled dots: the coordinates of `plane_through`. For contours.
      arrows: name -> (a, b), drawn as labelled arrows from the origin, the parameters: the gradients of
        `gradient_plane`. If one would leave the picture, all are shortened by a common factor, which is
        written above the picture. For contours.
      circle: radius ρ of a circle around the origin, with a star at the highest loss on it (interpolated
        between the points of the grid), or none if all of it is blank or outside. For contours.
      levels: number of contours, or the losses at which to draw them.
      log: whether colours and contours follow the logarithm of the loss, which has to be positive.

    Returns:
      The axes.

    Raises:
      ValueError: if points, arrows or a circle are given for a curve, if there is a single value along one of
        two directions, if there is no finite loss to draw contours of, or if `log` is given and a loss is not
        positive.

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
    axes, values = _in_order(surface)
    if values.ndim == 1 and (points or arrows or circle is not None):
        raise ValueError(
            "`points`, `arrows` and `circle` lie in a plane, but this `surface` is a line: give"
            " `loss_surface` two directions, such as `plane.directions`."
        )
    _check_drawable(axes, values, log)
    with style.applied():
        if values.ndim == 1:
            ax = style.axes_of(ax)
            ax.plot(*axes, values, label=label, **style.next_line(ax))
            ax.set(xlabel="distance along the direction", ylabel="loss")
            if log:
                ax.set_yscale("log")
            style.legend(ax, label)
            return ax
        first, second = axes
        # Colour bar, labels and ticks take an inch of the width; labels and ticks half an inch of the height.
        ax = style.axes_of(ax, height=float(np.clip(0.5 + 2.3 * np.ptp(second) / np.ptp(first), 1.5, 5)))
        if log and isinstance(levels, int):
            low, high = float(values.min()), float(values.max())
            margin = 1 if high > 1.001 * low else 1.1  # The levels of a constant loss lie around it.
            levels = np.geomspace(low / margin, high * margin, max(levels, 2)).tolist()
        colours = {"norm": mpl.colors.LogNorm()} if log else {}
        contours = ax.contourf(first, second, values.T, levels, cmap="viridis", **colours)
        ax.contour(first, second, values.T, levels, colors="white", linewidths=0.4, alpha=0.6)
        bar = ax.figure.colorbar(contours, ax=ax, format="%.3g")
        bar.set_label("loss")
        ax.set(xlabel="first direction", ylabel="second direction", aspect="equal")
        ax.set(xlim=(first.min(), first.max()), ylim=(second.min(), second.max()))
        names: dict[str, Any] = {}
        if circle is not None:
            angles = np.linspace(0, 2 * np.pi, 361)
            around = circle * np.stack([np.cos(angles), np.sin(angles)])
            ax.plot(*around, "--", color="white", lw=0.8)
            losses = _interpolated(axes, values, around)
            if not losses.mask.all():
                star = around[:, losses.argmax()]
                ax.plot(*star, "*", ms=8, color="white", markeredgecolor="black", mew=0.6)
        for name, place in (points or {}).items():
            names[name] = np.asarray(place, float)
            ax.plot(*names[name], "o", ms=4, color="white", markeredgecolor="black")
        tips = {name: np.asarray(tip, float) for name, tip in (arrows or {}).items()}
        factor = min([1.0, *(_room(ax, tip) for tip in tips.values())])
        for name, tip in tips.items():
            names[name] = factor * tip
            arrow = {"arrowstyle": "-|>", "color": "white", "lw": 1.3}
            ax.annotate("", tuple(factor * tip), (0, 0), arrowprops=arrow)
        if factor < 1:
            ax.set_title(f"arrows × {factor:.2g}", loc="right", fontsize=7)
        shafts = [share * factor * tip for tip in tips.values() for share in np.linspace(0, 1, 9)]
        _label(ax, names, shafts)
    return ax


def plot_loss_surface_3d(surface: LossSurface, *, ax: Any = None, log: bool = False) -> Any:
    """Draws a slice of the loss along two directions as a surface in three dimensions.

    Args:
      surface: from `loss_surface` with two directions. Losses that are not finite are left blank.
      ax: axes with `projection="3d"` to draw into. None makes a figure.
      log: whether the height is the decimal logarithm of the loss, which has to be positive.

    Returns:
      The axes.

    Raises:
      ValueError: on a slice along one direction, or with a single value along one of two, without a finite
        loss, or on `log` of a loss that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import diagnostics
      >>> from optax_sam.diagnostics import plotting
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0]) * w**2)
      >>> surface = diagnostics.loss_surface(loss, jnp.zeros(2), list(jnp.eye(2)))
      >>> plotting.plot_loss_surface_3d(surface).get_zlabel()
      'loss'
    """
    axes, values = _in_order(surface)
    if values.ndim == 1:
        raise ValueError("This `surface` is a line: `plot_loss_surface` draws it as a curve.")
    _check_drawable(axes, values, log)
    with style.applied():
        if ax is None:
            figure = plt.figure(figsize=(3.3, 3.0), layout="constrained")
            ax = figure.add_subplot(projection="3d")
            ax.set_box_aspect(None, zoom=0.85)  # The label of the height lies outside otherwise.
        first, second = np.meshgrid(*axes, indexing="ij")
        height = np.ma.log10(values) if log else values
        ax.plot_surface(first, second, height.filled(np.nan), cmap="viridis", linewidth=0)
        ax.set(xlabel="first direction", ylabel="second direction")
        ax.set_zlabel("log₁₀ of the loss" if log else "loss")
    return ax


def _in_order(surface: LossSurface) -> tuple[list["Values"], "np.ma.MaskedArray[Any, Any]"]:
    """Returns ascending coordinates, and the losses there; those that are not finite are masked."""
    values = np.ma.masked_invalid(np.asarray(surface.values))
    axes = []
    for i, coordinates in enumerate(map(np.asarray, surface.coordinates)):
        order = np.argsort(coordinates, kind="stable")
        axes.append(coordinates[order])
        values = values.take(order, axis=i)
    return axes, values


def _check_drawable(axes: Sequence["Values"], values: Any, log: bool) -> None:
    """Raises unless there is something to draw, and what is drawn on a logarithmic scale is positive."""
    if values.ndim == 2 and any(len(np.unique(axis)) < 2 for axis in axes):
        raise ValueError(
            "Contours and surfaces need at least two values along each direction, got"
            f" {[len(np.unique(axis)) for axis in axes]}. A slice along one direction is drawn as a curve:"
            " `loss_surface(value_fn, params, [direction], coordinates)`."
        )
    if (values.ndim == 2 or log) and values.count() == 0:
        raise ValueError("There is nothing to draw: no loss of this `surface` is finite.")
    if log and not values.min() > 0:
        raise ValueError(f"`log=True` needs positive losses, but the lowest is {values.min()}.")


def _interpolated(axes: Sequence["Values"], values: Any, places: "Values") -> Any:
    """Returns the bilinear interpolation of the grid at places, (2, number); masked outside and at blanks."""
    indices = [
        np.interp(place, axis, np.arange(len(axis)), left=-1, right=-1)
        for place, axis in zip(places, axes, strict=True)
    ]
    losses = map_coordinates(values.filled(np.nan), indices, order=1, mode="nearest")
    outside = (indices[0] < 0) | (indices[1] < 0)
    return np.ma.array(losses, mask=outside | ~np.isfinite(losses))


def _room(ax: "Axes", tip: "Values", share: float = 0.85) -> float:
    """Returns the factor that makes an arrow end at the edge of the picture, less a margin."""
    limits = np.array([ax.get_xlim(), ax.get_ylim()])
    reach = np.where(tip >= 0, limits[:, 1], limits[:, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(tip == 0, np.inf, reach / tip)
    return share * float(room.min())


def _label(ax: "Axes", names: Mapping[str, Any], avoided: Sequence[Any]) -> None:
    """Writes each name beside its place, in the picture, not over other names, places or `avoided` ones."""
    figure: Any = ax.figure
    figure.figure.draw_without_rendering()  # makes sizes and positions on the page known
    inside = ax.get_window_extent()
    covered = np.array([ax.transData.transform(place) for place in [*names.values(), *avoided]])
    taken: list[Any] = []
    for name, place in names.items():
        best = None
        for distance, angle in itertools.product((8, 14, 22), range(0, 360, 45)):
            x, y = np.cos(np.radians(angle + 45)), np.sin(np.radians(angle + 45))
            text = ax.annotate(
                name,
                place,
                (distance * x, distance * y),
                textcoords="offset points",
                ha="center",
                va="center",
                color="white",
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "black", "alpha": 0.45, "linewidth": 0},
            )
            box = text.get_window_extent().padded(2)
            is_free = not box.count_overlaps(taken) and not box.count_contains(covered)
            if is_free and inside.count_contains(box.corners()) == 4:
                best = box
                break
            text.remove()
        if best is None:  # no free room: as near as possible
            text = ax.annotate(name, place, (8, 8), textcoords="offset points", color="white")
            best = text.get_window_extent()
        taken.append(best)
