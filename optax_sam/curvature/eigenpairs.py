"""The top eigenvalues and eigenvectors of the Hessian: how sharp a minimum is, and in which directions."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks
from optax_sam.curvature.data_set import hessian_operator
from optax_sam.curvature.eigen import random_vector, ritz_pairs, unit
from optax_sam.curvature.lanczos import Tridiagonal, tridiagonalise
from optax_sam.tree_math import zeros_like


class Eigenpairs(NamedTuple):
    """Result of `top_eigenpairs`.

    Attributes:
      eigenvalues: the k algebraically largest, in descending order, (k,).
      eigenvectors: of unit length, like the parameters with a first axis k, float32 or wider.
      residuals: ‖H v − λ v‖, (k,), up to rounding errors of about eps ‖H‖. There is an eigenvalue within
        that distance of λ.
    """

    eigenvalues: jax.Array
    eigenvectors: optax.Params
    residuals: jax.Array


def top_eigenpairs(
    value_fn: Callable[..., jax.Array],
    params: optax.Params,
    k: int = 1,
    *,
    num_iters: int = 20,
    seed: int = 0,
    start: optax.Params | None = None,
    batches: Iterable[Any] | None = None,
    progress: bool = False,
) -> Eigenpairs:
    """Finds the k algebraically largest eigenvalues of the Hessian ∇²L(w), by Lanczos.

    The smallest ones are those of −L, negated. A repeated eigenvalue is found once, unless `num_iters` is
    large enough to exhaust the Krylov space.

    Args:
      value_fn: the loss L, `value_fn(params)`, or `value_fn(params, batch)` with `batches`.
      params: parameters w, a pytree.
      k: number of eigenpairs.
      num_iters: number of Hessian-vector products, at least k; the more, the smaller the residuals.
      seed: of the random start vector.
      start: start vector instead, a pytree like `params`, such as an eigenvector found before, or the sum of
        several.
      batches: data set over which the loss is averaged; see `hessian_operator`.
      progress: whether to show a progress bar; needs tqdm.

    Returns:
      `Eigenpairs`.

    Raises:
      ValueError: if k is larger than `num_iters` or than the number of parameters.

    Cost: `num_iters` Hessian-vector products, of about two gradients each; as many vectors of memory.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import curvature
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0, -4.0]) * w**2)
      >>> pairs = curvature.top_eigenpairs(loss, jnp.ones(3), k=2)
      >>> [round(float(x), 3) for x in pairs.eigenvalues]
      [9.0, 1.0]
    """
    checks.check_count("k", k)
    checks.check_count("num_iters", num_iters)
    num_iters = min(num_iters, optax.tree.size(params))
    if k > num_iters:
        raise ValueError(
            f"`k` must be at most `num_iters` and the number of parameters, here {num_iters}, got {k}: each"
            " Hessian-vector product adds one dimension to the space in which eigenvectors are sought."
            " Twice as many products as eigenvectors are a start."
        )
    start_key, restart_key = jax.random.split(jax.random.key(seed))
    if start is None:
        start = random_vector(start_key, zeros_like(params))
    matvec = hessian_operator(value_fn, params, batches=batches)
    title = "eigenpairs" if progress else ""
    return _top(tridiagonalise(matvec, start, num_iters, restart_key, progress=title), k)


@functools.partial(jax.jit, static_argnames="k")
def _top(tridiagonal: Tridiagonal, k: int) -> Eigenpairs:
    diagonal, off_diagonal, basis = tridiagonal
    values, vectors = ritz_pairs(diagonal, off_diagonal[:-1])
    weights = vectors[:, ::-1][:, :k].T
    combine = lambda rows: jnp.tensordot(weights.astype(rows.dtype), rows, axes=1, precision="highest")
    return Eigenpairs(
        eigenvalues=values[::-1][:k],
        eigenvectors=jax.vmap(unit)(jax.tree.map(combine, basis)),
        residuals=off_diagonal[-1] * jnp.abs(weights[:, -1]),
    )
