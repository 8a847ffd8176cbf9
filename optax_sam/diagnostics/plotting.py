"""Pictures of loss surfaces, spectral densities and recordings, to be read at a column's width (3.3 inches).

    surface = diagnostics.loss_surface(loss, plane.origin, plane.directions, np.linspace(-1, 1, 31))
    plotting.plot_loss_surface(surface, arrows={"g₀": plane.coordinates[1], "g₁": plane.coordinates[2]})

Each function draws into `ax`, or into a new figure, and returns the axes for further changes. The colours
suit any colour vision: viridis, and those of Wong (Nature Methods 2011). The module needs matplotlib, from
the extra `plot`, so `optax_sam.diagnostics` does not import it.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
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
        " matplotlib`. The arrays that it draws can be computed without it."
    ) from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Values = np.ndarray[Any, Any]

__all__ = ["plot_history", "plot_loss_surface", "plot_loss_surface_3d", "plot_spectral_density"]

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
        between the points of the grid). For contours.
      levels: number of contours, or the losses at which to draw them.
      log: whether colours and contours follow the logarithm of the loss, which has to be positive.

    Returns:
      The axes.

    Raises:
      ValueError: if points, arrows or a circle are given for a curve, or if `log` is given and a loss is not
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
    values = _finite(surface.values)
    if values.ndim == 1 and (points or arrows or circle is not None):
        raise ValueError(
            "`points`, `arrows` and `circle` lie in a plane, but this `surface` is a line: give"
            " `loss_surface` two directions, such as `plane.directions`."
        )
    if log and not values.min() > 0:
        raise ValueError(f"`log=True` needs positive losses, but the lowest is {values.min()}.")
    with mpl.rc_context(STYLE):
        if values.ndim == 1:
            ax = _axes(ax)
            ax.plot(np.asarray(surface.coordinates[0]), values, label=label, **_next_line(ax))
            ax.set(xlabel="distance along the direction", ylabel="loss")
            if log:
                ax.set_yscale("log")
            _legend(ax, label)
            return ax
        first, second = map(np.asarray, surface.coordinates)
        # Colour bar, labels and ticks take an inch of the width; labels and ticks half an inch of the height.
        ax = _axes(ax, height=float(np.clip(0.5 + 2.3 * np.ptp(second) / np.ptp(first), 1.5, 5)))
        if log and isinstance(levels, int):
            levels = np.geomspace(values.min(), values.max(), levels).tolist()
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
            highest = np.ma.argmax(_interpolated(first, second, values, around))
            ax.plot(*around[:, highest], "*", ms=8, color="white", markeredgecolor="black", mew=0.6)
        for name, place in (points or {}).items():
            names[name] = np.asarray(place, float)
            ax.plot(*names[name], "o", ms=4, color="white", markeredgecolor="black")
        tips = {name: np.asarray(tip, float) for name, tip in (arrows or {}).items()}
        factor = min([1.0, *(_room(ax, tip) for tip in tips.values())])
        for name, tip in tips.items():
            names[name] = factor * tip
            style = {"arrowstyle": "-|>", "color": "white", "lw": 1.3}
            ax.annotate("", tuple(factor * tip), (0, 0), arrowprops=style)
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
      ValueError: on a slice along one direction, or on `log` of a loss that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import diagnostics
      >>> from optax_sam.diagnostics import plotting
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0]) * w**2)
      >>> surface = diagnostics.loss_surface(loss, jnp.zeros(2), list(jnp.eye(2)))
      >>> plotting.plot_loss_surface_3d(surface).get_zlabel()
      'loss'
    """
    values = _finite(surface.values)
    if values.ndim == 1:
        raise ValueError("This `surface` is a line: `plot_loss_surface` draws it as a curve.")
    if log and not values.min() > 0:
        raise ValueError(f"`log=True` needs positive losses, but the lowest is {values.min()}.")
    with mpl.rc_context(STYLE):
        if ax is None:
            figure = plt.figure(figsize=(3.3, 3.0), layout="constrained")
            ax = figure.add_subplot(projection="3d")
            ax.set_box_aspect(None, zoom=0.85)  # The label of the height lies outside otherwise.
        first, second = np.meshgrid(*map(np.asarray, surface.coordinates), indexing="ij")
        height = np.ma.log10(values) if log else values
        ax.plot_surface(first, second, height.filled(np.nan), cmap="viridis", linewidth=0)
        ax.set(xlabel="first direction", ylabel="second direction")
        ax.set_zlabel("log₁₀ of the loss" if log else "loss")
    return ax


def plot_spectral_density(
    density: SpectralDensity,
    *,
    ax: "Axes | None" = None,
    label: str | None = None,
    lowest: float = 1e-6,
    num_marked: int = 3,
    linear: float | None = None,
) -> "Axes":
    """Draws the density of the eigenvalues of a Hessian, on a logarithmic axis, which shows single ones.

    If most eigenvalues lie within 2 % of the range, the axis of eigenvalues is linear around 0 and
    logarithmic beyond (matplotlib's "asinh"), and each eigenvalue is broadened by 1 % of the picture.

    Args:
      density: from `optax_sam.curvature.spectral_density`.
      ax: axes to draw into. None makes a figure.
      label: for the legend; several densities can share axes.
      lowest: lower end of the axis of densities. A single eigenvalue among n has a share of 1/n.
      num_marked: how many of the largest eigenvalues found are marked.
      linear: the eigenvalue up to which the axis is linear; `jnp.inf`: all of it. None: chosen as above.

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
    grid, heights = np.asarray(density.grid), np.asarray(density.density)
    nodes, weights = np.ravel(density.nodes), np.ravel(density.weights) / len(density.weights)
    with mpl.rc_context(STYLE):
        ax = _axes(ax)
        if ax.get_xscale() == "asinh":
            transform: Any = ax.xaxis.get_transform()
            linear = float(transform.linear_width)
        elif linear is None:
            linear = _bulk(nodes, weights)
        if np.isfinite(linear):
            grid, heights = _broadened(nodes, weights, linear, len(grid))
            ax.set_xscale("asinh", linear_width=linear)
        line = _next_line(ax)
        ax.plot(grid, np.where(heights >= lowest, heights, np.nan), label=label, **line)
        largest = np.sort(np.asarray(density.nodes)[0])[::-1][:num_marked]
        marks = np.maximum(np.interp(largest, grid, heights), lowest)
        ax.scatter(largest, marks, marker="v", s=12, color=line["color"], zorder=3, clip_on=False)
        ax.set(xlabel="eigenvalue of the Hessian", ylabel="density", yscale="log")
        # The axis also adapts to what is drawn later.
        ax.autoscale(axis="y")
        ax.set_ylim(bottom=lowest, auto=None)
        if np.isfinite(linear):
            _asinh_ticks(ax, linear)
        _legend(ax, label)
    return ax


def plot_history(
    steps: Sequence[int],
    history: Mapping[str, Sequence[float]],
    *,
    ax: "Axes | None" = None,
    log: bool = True,
) -> "Axes":
    """Draws what a `monitor` recorded during training: one curve for each quantity, against the step.

    Args:
      steps: the steps after which the values were read.
      history: name -> values, one for each step: such as "λ_max": those of `top_eigenvalue`. Values that are
        not finite, or with `log` not positive, are left out.
      ax: axes to draw into. None makes a figure.
      log: whether the axis of values is logarithmic.

    Returns:
      The axes.

    Raises:
      ValueError: if a quantity has not one value for each step.

    Example:
      >>> from optax_sam.diagnostics import plotting
      >>> axes = plotting.plot_history([0, 100, 200], {"λ_max": [9.0, 30.0, 12.0]})
      >>> axes.get_xlabel()
      'step'
    """
    with mpl.rc_context(STYLE):
        ax = _axes(ax)
        for name, recorded in history.items():
            values = np.asarray(recorded, float)
            if values.shape != (len(steps),):
                raise ValueError(f"`history[{name!r}]` has shape {values.shape} for {len(steps)} `steps`.")
            shown = np.isfinite(values) & ((values > 0) | (not log))
            ax.plot(np.asarray(steps)[shown], values[shown], label=name, **_next_line(ax))
            _legend(ax, name)
        ax.set(xlabel="step", ylabel="recorded value", yscale="log" if log else "linear")
    return ax


def _asinh_ticks(ax: "Axes", linear: float) -> None:
    """Sets ticks at 0 and at powers of ten, but omits those whose labels would overlap."""
    low, high = ax.get_xlim()
    place = lambda t: np.arcsinh(t / linear)
    chosen = [0.0] if low <= 0 <= high else []
    size = max(abs(low), abs(high))
    powers = 10.0 ** np.arange(math.floor(math.log10(size)), math.floor(math.log10(linear)) - 2, -1)
    for tick in [t for power in powers for t in (power, -power) if low <= t <= high]:
        if all(abs(place(tick) - place(t)) > 0.12 * (place(high) - place(low)) for t in chosen):
            chosen.append(tick)
    ax.set_xticks(sorted(chosen), [f"{tick:g}" for tick in sorted(chosen)])
    ax.set_xticks([], minor=True)


def _bulk(nodes: "Values", weights: "Values") -> float:
    """Returns twice the size below which 95 % of the eigenvalues are, or inf if that is much of the range."""
    order = np.argsort(np.abs(nodes))
    within = np.cumsum(weights[order]) >= 0.95 * weights.sum()
    size = 2 * float(np.abs(nodes)[order][np.argmax(within)])
    return size if 0 < 50 * size < np.ptp(nodes) else math.inf


def _broadened(
    nodes: "Values", weights: "Values", linear: float, num_points: int
) -> tuple["Values", "Values"]:
    """Returns a grid and the density, each eigenvalue a Gaussian in u = arsinh(t / linear)."""
    places = np.arcsinh(nodes / linear)
    width = 0.01 * max(float(np.ptp(places)), 0.1)
    u = np.linspace(places.min() - 3 * width, places.max() + 3 * width, num_points)
    gaussians = np.exp(-0.5 * ((u[:, None] - places) / width) ** 2) / (width * (2 * np.pi) ** 0.5)
    # φ(t) = φ(u) du/dt
    return linear * np.sinh(u), gaussians @ weights / (linear * np.cosh(u))


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


def _interpolated(first: "Values", second: "Values", values: Any, places: "Values") -> Any:
    """Returns the bilinear interpolation of the grid at places, (2, number); masked outside."""
    i = np.clip(np.searchsorted(first, places[0]) - 1, 0, len(first) - 2)
    j = np.clip(np.searchsorted(second, places[1]) - 1, 0, len(second) - 2)
    s = (places[0] - first[i]) / (first[i + 1] - first[i])
    t = (places[1] - second[j]) / (second[j + 1] - second[j])
    lower = (1 - s) * values[i, j] + s * values[i + 1, j]
    upper = (1 - s) * values[i, j + 1] + s * values[i + 1, j + 1]
    outside = (s < 0) | (s > 1) | (t < 0) | (t > 1)
    return np.ma.masked_where(outside, (1 - t) * lower + t * upper)


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
