"""The top eigenvalues and eigenvectors of the Hessian: how sharp a minimum is, and in which directions.

`top_eigenpairs` finds them between training steps; `track_eigenpair` follows the first from step to step.
"""

import functools
from collections.abc import Callable, Iterable
from numbers import Number
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.curvature.krylov import (
    SOLVERS,
    PowerState,
    Tridiagonal,
    finite_power_iteration,
    ritz_pairs,
    tridiagonalise,
)
from optax_sam.curvature.products import check_second_derivative, hessian_operator, hessian_vector_product
from optax_sam.progress import counted

# Of the start vector. A power of two, so that the vector is the same but for its length.
START_SCALE = 2.0**-60


class Eigenpairs(NamedTuple):
    """Result of `top_eigenpairs`.

    Attributes:
      eigenvalues: the k algebraically largest, in descending order, or smallest, in ascending order, (k,).
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
    tolerance: float | None = None,
    smallest: bool = False,
    key: jax.Array | int = 0,
    start: optax.Params | None = None,
    batches: Iterable[Any] | None = None,
    progress: bool = False,
) -> Eigenpairs:
    """Finds the k algebraically largest eigenvalues of the Hessian ∇²L(w), by Lanczos.

    A repeated eigenvalue is found only once, unless `num_iters` is large enough to exhaust the Krylov space.

    Args:
      value_fn: the loss L, `value_fn(params)`, or `value_fn(params, batch)` with `batches`.
      params: parameters w, a pytree.
      k: number of eigenpairs.
      num_iters: number of Hessian-vector products, at least k; the more, the smaller the residuals.
      tolerance: stop before `num_iters` when every residual is at most this part of its eigenvalue; None:
        never.
      smallest: whether to find the algebraically smallest eigenvalues instead, which are negative unless w
        is a minimum.
      key: of the random start vector, a random key or an integer.
      start: start vector instead of a random one, a pytree like `params`, such as an eigenvector found
        before, or the sum of several.
      batches: data set over which the loss is averaged; see `hessian_operator`.
      progress: whether to show a progress bar; needs tqdm.

    Returns:
      `Eigenpairs`. All is NaN if a product with the Hessian is not finite.

    Raises:
      ValueError: if k is larger than `num_iters` or than the number of parameters, on a negative `tolerance`,
        or if `start` is not like `params`, zero, or not finite.

    Cost: `num_iters` Hessian-vector products, of about two gradients each; as many vectors of memory.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import curvature
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0, -4.0]) * w**2)
      >>> pairs = curvature.top_eigenpairs(loss, jnp.ones(3), k=2)
      >>> [round(float(x), 3) for x in pairs.eigenvalues]
      [9.0, 1.0]
      >>> float(curvature.top_eigenpairs(loss, jnp.ones(3), smallest=True).eigenvalues[0].round(3))
      -4.0
    """
    checks.check_loss(value_fn, params)
    checks.check_count("k", k)
    checks.check_count("num_iters", num_iters)
    num_iters = min(num_iters, optax.tree.size(params))
    if k > num_iters:
        raise ValueError(
            f"`k` must be at most `num_iters` and the number of parameters, here {num_iters}, got {k}: each"
            " Hessian-vector product adds one dimension to the space in which eigenvectors are sought."
            " Start with twice as many products as eigenvectors."
        )
    start_key, restart_key = jax.random.split(tree_math.random_key(key))
    if start is None:
        start = tree_math.random_vector(start_key, tree_math.zeros_like(params))
    else:
        start = _checked_start(start, params)
    if tolerance is not None:
        checks.check_number("tolerance", tolerance)
    is_done = None if tolerance is None else functools.partial(_is_converged, k=k, tolerance=tolerance)
    product = hessian_operator(value_fn, params, batches=batches)
    matvec = (lambda v: jax.tree.map(jnp.negative, product(v))) if smallest else product
    with counted(matvec, num_iters, "product", show=progress) as matvec:
        found = tridiagonalise(matvec, start, num_iters, restart_key, is_done=is_done)
    pairs = _top(found, k)
    return pairs._replace(eigenvalues=-pairs.eigenvalues) if smallest else pairs


def _checked_start(start: optax.Params, params: optax.Params) -> optax.Params:
    """Returns the start vector, of unit length. Under `jit`, where its length is unknown, zero gives NaN."""
    checks.check_vector("`start`", start, params)
    start = tree_math.full_precision(start)
    length = tree_math.norm(start)
    if not isinstance(length, jax.core.Tracer) and not 0 < length < jnp.inf:
        raise ValueError(
            "`start` must be a vector whose length is finite and not 0, because its direction is what the"
            f" search begins with, got the length {length}. Leave it out for a random one."
        )
    return tree_math.scale(1 / length, start)


def _is_converged(diagonal: jax.Array, off_diagonal: jax.Array, k: int, tolerance: float) -> bool:
    """Whether the residuals of the top k Ritz pairs are small enough."""
    values, vectors = ritz_pairs(diagonal, off_diagonal[:-1])
    residuals = off_diagonal[-1] * jnp.abs(vectors[-1, -k:])
    return len(diagonal) >= k and bool(jnp.all(residuals <= tolerance * jnp.abs(values[-k:])))


@functools.partial(jax.jit, static_argnames="k")
def _top(tridiagonal: Tridiagonal, k: int) -> Eigenpairs:
    diagonal, off_diagonal, basis = tridiagonal
    values, vectors = ritz_pairs(diagonal, off_diagonal[:-1])
    weights = vectors[:, ::-1][:, :k].T
    return Eigenpairs(
        eigenvalues=values[::-1][:k],
        eigenvectors=jax.vmap(tree_math.unit)(tree_math.combination(weights, basis)),
        residuals=off_diagonal[-1] * jnp.abs(weights[:, -1]),
    )


def start_vector(params: optax.Params, key: jax.Array | int) -> optax.Params:
    """Returns the vector from which `track_eigenpair` starts: random, shaped and sharded like `params`.

    It belongs in `init`. Drawn in the training step, it would be compiled into every program with a refresh,
    where it took half of the time. Its entries are normal, times `START_SCALE`: so short that a tilt to it is
    lost in rounding.
    """
    return _drawn(tree_math.random_key(key), tree_math.zeros_like(params))


@jax.jit
def _drawn(key: jax.Array, zeros: optax.Params) -> optax.Params:
    # The sum is sharded like its second term, also where the sharding is not part of the type.
    short = tree_math.scale(jnp.asarray(START_SCALE), tree_math.random_vector(key, zeros))
    return tree_math.add(short, zeros)


def track_eigenpair(
    last: tuple[jax.Array, optax.Params],
    gradient_fn: Callable[[optax.Params], optax.Updates],
    params: optax.Params,
    *,
    solver: str,
    num_iters: int,
    decay: float | jax.Array = 0.0,
) -> tuple[jax.Array, optax.Params]:
    """Improves an eigenpair by a few products with the Hessian.

    Args:
      last: the previous eigenvalue and unit eigenvector, or 0 and a `start_vector`. A zero vector is
        replaced by a vector of ones.
      gradient_fn: the gradient whose Jacobian is the Hessian.
      params: parameters w.
      solver: one of `SOLVERS`.
      num_iters: number of products.
      decay: β of a running mean of the products, β λ v + (1 − β) H v in place of H v, with the last λ.

    Returns:
      Eigenvalue and unit eigenvector. If a product is not finite, or all is 0: with "power" those before it,
      with "lanczos" `last`.
    """
    return improved_eigenpair(last, gradient_fn, params, solver=solver, num_iters=num_iters, decay=decay)[0]


def improved_eigenpair(
    last: tuple[jax.Array, optax.Params],
    gradient_fn: Callable[[optax.Params], optax.Updates],
    params: optax.Params,
    *,
    solver: str,
    num_iters: int,
    decay: float | jax.Array = 0.0,
) -> tuple[tuple[jax.Array, optax.Params], jax.Array]:
    """Returns what `track_eigenpair` returns, and whether all products were finite and gave a vector."""
    check_second_derivative(gradient_fn, params, last[1])
    product = matvec = lambda v: hessian_vector_product(gradient_fn, params, v)
    if not isinstance(decay, Number) or decay != 0:
        # Before the first refresh, and with a start vector of one's own, λ is 0: there is no mean yet.
        weight = jnp.where(last[0] == 0, 0, jnp.asarray(decay, last[0].dtype))
        matvec = lambda v: tree_math.mix(weight, tree_math.scale(last[0], v), product(v))
    length = tree_math.norm(last[1])

    def begin(vector: optax.Params) -> optax.Params:
        longer = tree_math.scale(jnp.where(length < 1e-6, 1 / START_SCALE, 1), vector)
        return tree_math.where(length == 0, jax.tree.map(jnp.ones_like, vector), longer)

    if solver == "power":
        begun = PowerState(*last, jnp.array(True))
        value, vector, is_usable = finite_power_iteration(matvec, begun, begin, num_iters)
        return (value, vector), is_usable
    found = SOLVERS[solver](matvec, begin(last[1]), num_iters)
    is_usable = jnp.isfinite(found[0]) & (tree_math.norm(found[1]) > 0.5)
    return tree_math.where(is_usable, found, last), is_usable
