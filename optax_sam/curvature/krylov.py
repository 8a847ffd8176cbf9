"""Krylov spaces: power iteration and Lanczos for a symmetric operator, in a training step or between steps.

    H Q = Q T + β_m q_{m+1} e_mᵀ,   QᵀQ = 1,   T tridiagonal

`power_iteration` and `lanczos` return one eigenpair after a few products from a warm start: Eigen-SAM runs
them inside a training step, in a loop where that is fast (`optax_sam.platforms`).

`tridiagonalise` returns all of Q and T, for eigenpairs and densities between steps. The products are taken
in a Python loop, so that compile time does not grow with their number. Where the Krylov space ends, as with
repeated eigenvalues, a random vector starts another one: m products give m orthonormal vectors.

Both forms of Lanczos share `orthogonalise` and `ritz_pairs`, the steps in which rounding matters.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import keys, tree_math
from optax_sam.platforms import repeated

MatVec = Callable[[optax.Params], optax.Params]


def power_iteration(matvec: MatVec, start: optax.Params, num_iters: int) -> tuple[jax.Array, optax.Params]:
    """Repeats v ← H v / ‖H v‖, which converges to the eigenvalue of largest magnitude.

    Args:
      matvec: v ↦ H v.
      start: a non-zero vector, of any length.
      num_iters: number of products.

    Returns:
      (⟨u, H u⟩, v), where u is the iterate before the last: the last product gives both. NaN if a product is
      not finite, or 0.
    """
    nothing = jnp.zeros((), tree_math.accumulation_dtype(start))
    last = PowerState(nothing, start, jnp.array(True))
    value, vector, is_finite = finite_power_iteration(matvec, last, lambda v: v, num_iters)
    one = jnp.where(is_finite, 1, jnp.asarray(jnp.nan, value.dtype))
    return one * value, tree_math.scale(one, vector)


class PowerState(NamedTuple):
    """What `finite_power_iteration` knows after a product.

    Attributes:
      eigenvalue: ⟨u, H u⟩.
      eigenvector: H u/‖H u‖, the next to be multiplied; before the first, a vector of any length.
      is_finite: whether all products so far were finite, and not 0.
    """

    eigenvalue: jax.Array
    eigenvector: optax.Params
    is_finite: jax.Array


def finite_power_iteration(
    matvec: MatVec, last: PowerState, begin: Callable[[optax.Params], optax.Params], num_iters: int
) -> PowerState:
    """Power iteration that ends before the first product that is not finite, or 0.

    It holds no copy of the first vector for that case, which would take the memory of the parameters.

    Args:
      matvec: v ↦ H v.
      last: an eigenvalue and a vector, which are the result if the first product is not finite.
      begin: maps the vector to one with which to begin, of any length.
      num_iters: number of products.
    """
    to_unit = tree_math.reciprocal_or_zero(tree_math.norm(begin(last.eigenvector)))

    def step(k: int | jax.Array, found: PowerState) -> PowerState:
        vector = found.eigenvector
        if not isinstance(k, int) or k == 0:
            first = tree_math.scale(to_unit, begin(vector))
            vector = first if isinstance(k, int) else tree_math.where(k == 0, first, vector)
        product = matvec(vector)
        value, length = tree_math.vdot(vector, product), tree_math.norm(product)
        is_usable = found.is_finite & jnp.isfinite(value) & jnp.isfinite(length) & (length > 0)
        kept = (found.eigenvalue, found.eigenvector)
        unit = tree_math.scale(tree_math.reciprocal_or_zero(length), product)
        value, unit = tree_math.where(is_usable, tree_math.cast_like((value, unit), kept), kept)
        return PowerState(value, unit, is_usable)

    return repeated(step, last, num_iters)


class LanczosState(NamedTuple):
    """What `lanczos` knows between two products.

    Attributes:
      vector: q_{k+1}, the next to be multiplied, of unit length; 0 after the end of the space.
      basis: Q, like the parameters with a first axis; 0 where nothing is known yet.
      diagonal: of T, (m,).
      off_diagonal: β_1 ... β_m, (m,); T contains all but the last. 0 where the space ended.
      rest: the part of the last product that is outside the space.
    """

    vector: optax.Params
    basis: optax.Params
    diagonal: jax.Array
    off_diagonal: jax.Array
    rest: optax.Params


def lanczos(matvec: MatVec, start: optax.Params, num_iters: int) -> tuple[jax.Array, optax.Params]:
    """Returns the top Ritz pair of the Krylov space of `start`: the algebraically largest eigenvalue.

    With full re-orthogonalisation, done twice. The residual vanishes when the space is exhausted; further
    vectors would be rounding errors and do not enter the result.

    The last product allows one more step: with the top Ritz pair (θ, y) it gives H y = θ y + r, and

        v = (H + σ I) y / ‖·‖,    σ = max(0, −2 θ_min)

    is nearer to the top eigenvector than y. It is a step of the power iteration, shifted by the smallest Ritz
    value, so that no negative eigenvalue seen so far outweighs the top one. With one product and θ ≥ 0 this
    is the power iteration.

    Args:
      matvec: v ↦ H v.
      start: a non-zero vector, of any length.
      num_iters: number of products, and of vectors held in memory.

    Returns:
      (θ, v), v of unit length; θ = ⟨y, H y⟩ is the largest in the Krylov space.
    """
    # Rows not known yet are 0, so that one operation per leaf gives all inner products with the basis.
    vector, basis = _first(start, num_iters)
    zeros = jnp.zeros(num_iters, tree_math.accumulation_dtype(start))

    def step(k: int | jax.Array, found: LanczosState) -> LanczosState:
        vector = found.vector
        basis = jax.tree.map(lambda rows, x: rows.at[k].set(x), found.basis, vector)
        known = k + 1 if isinstance(k, int) else num_iters  # In a loop with the rows that are 0.

        def project(vector: optax.Params) -> optax.Params:
            products = tree_math.computed_once(tree_math.coordinates(basis, vector))
            return jax.tree.map(jnp.subtract, vector, tree_math.weighted_sum(products[:known], basis))

        product = matvec(vector)
        diagonal = found.diagonal.at[k].set(tree_math.vdot(vector, product))
        rest, residual, is_new = orthogonalise(product, project)
        residual = jnp.where(is_new, residual, 0)
        vector = tree_math.scale(tree_math.reciprocal_or_zero(residual), rest)
        return LanczosState(vector, basis, diagonal, found.off_diagonal.at[k].set(residual), rest)

    start = LanczosState(vector, basis, zeros, zeros, vector)
    _, basis, diagonal, off_diagonal, rest = repeated(step, start, num_iters)

    # A vector after the end of the space is 0. Its entry is set below the first one, which is at most the top
    # Ritz value, so that it is never chosen. Derivatives of `eigh` need entries that are all different.
    exists = jnp.append(True, off_diagonal[:-1] > 0)
    below = 0.618 + jnp.arange(num_iters, dtype=diagonal.dtype)
    lower = diagonal[0] - (1 + jnp.abs(diagonal[0])) * below
    ritz_values, ritz_vectors = ritz_pairs(jnp.where(exists, diagonal, lower), off_diagonal[:-1])
    value, coordinates = ritz_values[-1], ritz_vectors[:, -1]
    shift = jnp.maximum(0, -2 * ritz_values[0])
    return value, _shifted_step(basis, coordinates, rest, value + shift, off_diagonal[-1] > 0)


def _shifted_step(
    basis: optax.Params, y: jax.Array, rest: optax.Params, factor: jax.Array, is_new: jax.Array
) -> optax.Params:
    """Returns (H + σ I) y / ‖·‖ = ((θ + σ) y + y_m r) / ‖·‖ for a Ritz vector y, given by its coordinates.

    Args:
      basis: Q.
      y: coordinates of the Ritz vector in the basis.
      rest: r, the part of the last product that is outside the Krylov space.
      factor: θ + σ.
      is_new: whether there is such a part. If not, H y = θ y, and the result is y even if θ + σ = 0.
    """
    along = jnp.where(is_new, factor, 1)
    beyond = jnp.where(is_new, y[-1], 0)
    inside = tree_math.weighted_sum(along * y, basis)
    return tree_math.unit(tree_math.add(inside, tree_math.scale(beyond, rest)))


SOLVERS = {"lanczos": lanczos, "power": power_iteration}


class Tridiagonal(NamedTuple):
    """T and Q.

    Attributes:
      diagonal: of T, (m,).
      off_diagonal: β_1 ... β_m, (m,); T contains all but the last. 0 where a space ended.
      basis: Q, like the parameters with a first axis m, float32 or wider.
    """

    diagonal: jax.Array
    off_diagonal: jax.Array
    basis: optax.Params


def tridiagonalise(
    matvec: MatVec,
    start: optax.Params,
    num_iters: int,
    key: jax.Array,
    *,
    is_done: Callable[[jax.Array, jax.Array], bool] | None = None,
) -> Tridiagonal:
    """Returns T and Q of the Krylov space of `start`.

    Args:
      matvec: v ↦ H v.
      start: a non-zero vector, of any length.
      num_iters: number m of products, and of vectors held in memory; at most the dimension of H.
      key: random key of the vectors that start another space.
      is_done: maps what is found of `diagonal` and `off_diagonal` to whether that is enough; None: never.
    """
    vector, basis = _first(start, num_iters)
    diagonal, off_diagonal = [], []
    for k in range(num_iters):
        # One product at a time: queued products take memory, and simulated devices can deadlock.
        product = jax.block_until_ready(matvec(vector))
        alpha, beta, vector, basis = _next(basis, k, vector, product, keys.fold_in(key, k))
        diagonal.append(alpha)
        off_diagonal.append(beta)
        if is_done is not None and is_done(jnp.stack(diagonal), jnp.stack(off_diagonal)):
            basis = jax.tree.map(lambda rows: rows[: len(diagonal)], basis)
            break
    return Tridiagonal(jnp.stack(diagonal), jnp.stack(off_diagonal), basis)


@functools.partial(jax.jit, static_argnames="num_iters")
def _first(start: optax.Params, num_iters: int) -> tuple[optax.Params, optax.Params]:
    vector = tree_math.unit(jax.tree.map(lambda x: x.astype(tree_math.accumulation_dtype(x)), start))
    rest = lambda x: jnp.concatenate([x[None]] + [jnp.zeros_like(x)[None]] * (num_iters - 1))
    return vector, jax.tree.map(rest, vector)


@functools.partial(jax.jit, donate_argnames="basis")
def _next(
    basis: optax.Params, k: jax.Array, vector: optax.Params, product: optax.Params, key: jax.Array
) -> tuple[jax.Array, jax.Array, optax.Params, optax.Params]:
    """Returns α_k, β_k, and the next vector, alone and in the basis (dropped if that is full)."""
    inside = lambda x: tree_math.combination(tree_math.coordinates(basis, x), basis)
    project = lambda x: jax.tree.map(jnp.subtract, x, inside(x))
    alpha = tree_math.vdot(vector, product)
    rest, residual, is_new = orthogonalise(product, project)
    restart = lambda: tree_math.unit(project(project(tree_math.random_vector(key, rest))))
    new = jax.lax.cond(is_new, lambda: tree_math.unit(rest), restart)
    basis = jax.tree.map(lambda rows, x: rows.at[k + 1].set(x, mode="drop"), basis, new)
    return alpha, jnp.where(is_new, residual, 0), new, basis


def orthogonalise(
    product: optax.Params, project: Callable[[optax.Params], optax.Params]
) -> tuple[optax.Params, jax.Array, jax.Array]:
    """Removes from `product` its part in the Krylov space, twice: once leaves rounding errors that grow.

    Args:
      product: the last product H q.
      project: v ↦ v − Q Qᵀ v, Q the basis.

    Returns:
      (r, ‖r‖, whether r is new): the rest r; it is not new if it is only a rounding error.
    """
    length = tree_math.norm(product)
    for _ in range(2):
        product = project(product)
    residual = tree_math.norm(product)
    # What is not a number is new: it stays in the result, where a new start would hide it.
    return product, residual, ~(residual <= 100 * jnp.finfo(residual.dtype).eps * length)


def ritz_pairs(diagonal: jax.Array, off_diagonal: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the eigenvalues, ascending, and the eigenvectors (columns) of the tridiagonal matrix."""
    matrix = jnp.diag(diagonal)
    if len(off_diagonal):
        matrix += jnp.diag(off_diagonal, 1) + jnp.diag(off_diagonal, -1)
    return jnp.linalg.eigh(matrix)
