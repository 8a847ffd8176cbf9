"""The density of the eigenvalues of a Hessian."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from optax_sam.curvature.density import SpectralDensity
from optax_sam.diagnostics.plotting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Values = np.ndarray[Any, Any]


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
    with style.applied():
        ax = style.axes_of(ax)
        if ax.get_xscale() == "asinh":
            transform: Any = ax.xaxis.get_transform()
            linear = float(transform.linear_width)
        elif linear is None:
            linear = _bulk(nodes, weights)
        if np.isfinite(linear):
            grid, heights = _broadened(nodes, weights, linear, len(grid))
            ax.set_xscale("asinh", linear_width=linear)
        line = style.next_line(ax)
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
        style.legend(ax, label)
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
