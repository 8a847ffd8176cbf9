"""The density of the Hessian's eigenvalues, by stochastic Lanczos quadrature.

    φ(t) = (1/n) Σ_i δ(t − λ_i) ≈ mean over z of Σ_j w_j δ(t − θ_j),   w_j = ⟨e_1, u_j⟩²

θ_j and u_j are eigenvalues and eigenvectors of the tridiagonal T of a Lanczos run from a random z. m products
give the moments of degree up to 2m − 1 of zᵀ φ(H) z exactly; the remaining error comes from using few z. For
a plot each δ is broadened to a Gaussian.

References:
  Ghorbani, Krishnan and Xiao, `An investigation into neural net optimization via Hessian eigenvalue density
  <https://arxiv.org/abs/1901.10159>`_, 2019
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import ndtr

from optax_sam import checks, tree_math
from optax_sam.curvature.krylov import ritz_pairs, tridiagonalise
from optax_sam.curvature.products import hessian_operator
from optax_sam.curvature.trace import sample_key
from optax_sam.progress import counted


class SpectralDensity(NamedTuple):
    """Result of `spectral_density`.

    Attributes:
      grid: points t, ascending and equidistant, (num_points,).
      density: φ(t), broadened, and averaged over the cell of the grid around each point, (num_points,); its
        trapezoidal sum is 1, however narrow the Gaussians are.
      nodes: θ, (num_samples, m).
      weights: w, (num_samples, m); every row sums to 1.
    """

    grid: jax.Array
    density: jax.Array
    nodes: jax.Array
    weights: jax.Array


def spectral_density(
    value_fn: Callable[..., jax.Array],
    params: optax.Params,
    *,
    num_iters: int = 50,
    num_samples: int = 4,
    num_points: int = 1024,
    width: float | None = None,
    key: jax.Array | int = 0,
    batches: Iterable[Any] | None = None,
    progress: bool = False,
) -> SpectralDensity:
    """Estimates how the eigenvalues of the Hessian ∇²L(w) are distributed.

    Args:
      value_fn: the loss L, `value_fn(params)`, or `value_fn(params, batch)` with `batches`.
      params: parameters w, a pytree.
      num_iters: number m of Hessian-vector products for each random vector: the resolution.
      num_samples: number of random vectors; the noise falls with its square root.
      num_points: length of the grid, at least 8.
      width: standard deviation of the Gaussians; None is 1 % of the range of the eigenvalues.
      key: of the random vectors, a random key or an integer. `trace` draws the same: with the same key and
        number of samples, the mean of the nodes, weighted, is the estimate of `trace` divided by the number
        of parameters.
      batches: data set over which the loss is averaged; see `hessian_operator`.
      progress: whether to show a progress bar; needs tqdm.

    Returns:
      `SpectralDensity`. On a logarithmic axis the density shows single large eigenvalues, each of which has
      a share of one over the number of parameters.

    Raises:
      ValueError: if `width` is not positive, or `num_points` below 8.

    Cost: `num_iters` times `num_samples` Hessian-vector products, of about two gradients each; `num_iters`
    vectors of memory.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import curvature
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0, -4.0]) * w**2)
      >>> found = curvature.spectral_density(loss, jnp.ones(3))
      >>> [round(float(x), 3) for x in found.nodes[0]]
      [-4.0, 1.0, 9.0]
    """
    checks.check_loss(value_fn, params)
    checks.check_count("num_iters", num_iters)
    checks.check_count("num_samples", num_samples)
    checks.check_count("num_points", num_points)
    if num_points < 8:
        raise ValueError(
            f"`num_points` must be at least 8, or the grid misses the Gaussians, got {num_points}."
        )
    if width is not None:
        checks.check_number("width", width)
        if not isinstance(width, jax.core.Tracer) and width == 0:
            raise ValueError(
                f"`width` is the standard deviation of a Gaussian and must be positive, got {width}."
            )
    num_iters = min(num_iters, optax.tree.size(params))
    matvec = hessian_operator(value_fn, params, batches=batches)
    quadratures = []
    with counted(matvec, num_iters * num_samples, "product", show=progress) as matvec:
        for i in range(num_samples):
            of_sample = sample_key(key, i)
            start = tree_math.random_signs(of_sample, params)
            found = tridiagonalise(matvec, start, num_iters, of_sample)
            nodes, vectors = ritz_pairs(found.diagonal, found.off_diagonal[:-1])
            quadratures.append((nodes, vectors[0] ** 2))
    nodes, weights = map(jnp.stack, zip(*quadratures, strict=True))
    return SpectralDensity(*_broaden(nodes, weights, num_points, width), nodes, weights)


def _broaden(
    nodes: jax.Array, weights: jax.Array, num_points: int, width: float | None
) -> tuple[jax.Array, jax.Array]:
    low, high = jnp.min(nodes), jnp.max(nodes)
    # If all eigenvalues are equal the range is 0, and if they are 0 so is the size.
    size = jnp.maximum(jnp.abs(low), jnp.abs(high))
    default = jnp.maximum(0.01 * (high - low), 0.001 * size)
    sigma = jnp.where(default == 0, 1, default) if width is None else jnp.asarray(width, nodes.dtype)
    # Margins of more than a cell, so that the outermost cells, which a trapezoidal sum halves, are empty.
    margin = jnp.maximum(5 * sigma, 1.5 * (high - low) / max(num_points - 4, 1))
    grid = jnp.linspace(low - margin, high + margin, num_points)
    cell = (high - low + 2 * margin) / max(num_points - 1, 1)
    edges = jnp.concatenate([grid[:1] - cell / 2, (grid[:-1] + grid[1:]) / 2, grid[-1:] + cell / 2])
    # The mean of each Gaussian over a cell rather than its value in the middle, which misses narrow ones.
    distances = (edges[:, None] - nodes.ravel()[None, :]) / sigma
    left, right = distances[:-1], distances[1:]
    # Mirrored on the right of the mean, where differences of numbers near 1 would be rounded away.
    is_mirrored = left + right > 0
    left, right = jnp.where(is_mirrored, -right, left), jnp.where(is_mirrored, -left, right)
    shares = ndtr(right) - ndtr(left)
    return grid, jnp.matmul(shares, weights.ravel(), precision="highest") / (cell * len(nodes))
