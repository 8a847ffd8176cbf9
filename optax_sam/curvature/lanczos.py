"""Lanczos with full re-orthogonalisation, for runs between training steps: eigenpairs and densities.

    H Q = Q T + β_m q_{m+1} e_mᵀ,   QᵀQ = 1,   T tridiagonal

The same method as in `optax_sam.curvature.eigen`, but the products are taken in a Python loop, so
that compile time does not grow with their number, and where the Krylov space ends, as with repeated
eigenvalues, a random vector starts another: m products give m orthonormal vectors.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import tree_math
from optax_sam.curvature.eigen import MatVec, orthogonalise, random_vector, unit
from optax_sam.curvature.progress import steps


class Tridiagonal(NamedTuple):
    """T and Q.

    Attributes:
      diagonal: of T, (m,).
      off_diagonal: β_1 ... β_m, (m,); T holds all but the last. 0 where a space ended.
      basis: Q, like the parameters with a first axis m, float32 or wider.
    """

    diagonal: jax.Array
    off_diagonal: jax.Array
    basis: optax.Params


def tridiagonalise(
    matvec: MatVec, start: optax.Params, num_iters: int, key: jax.Array, *, progress: str = ""
) -> Tridiagonal:
    """Returns T and Q of the Krylov space of `start`.

    Args:
      matvec: v ↦ H v.
      start: a non-zero vector, of any length.
      num_iters: number m of products, and of vectors held in memory; no more than H has dimensions.
      key: of the random vectors that start another space.
      progress: title of a progress bar; "" is none.
    """
    vector, basis = _first(start, num_iters)
    diagonal, off_diagonal = [], []
    for k in steps(num_iters, progress):
        # One product at a time: what is enqueued takes memory, and simulated devices can deadlock.
        product = jax.block_until_ready(matvec(vector))
        alpha, beta, vector, basis = _next(basis, k, vector, product, jax.random.fold_in(key, k))
        diagonal.append(alpha)
        off_diagonal.append(beta)
    return Tridiagonal(jnp.stack(diagonal), jnp.stack(off_diagonal), basis)


@functools.partial(jax.jit, static_argnames="num_iters")
def _first(start: optax.Params, num_iters: int) -> tuple[optax.Params, optax.Params]:
    vector = unit(jax.tree.map(lambda x: x.astype(tree_math.accumulation_dtype(x)), start))
    rest = lambda x: jnp.concatenate([x[None]] + [jnp.zeros_like(x)[None]] * (num_iters - 1))
    return vector, jax.tree.map(rest, vector)


@functools.partial(jax.jit, donate_argnames="basis")
def _next(
    basis: optax.Params, k: jax.Array, vector: optax.Params, product: optax.Params, key: jax.Array
) -> tuple[jax.Array, jax.Array, optax.Params, optax.Params]:
    """Returns α_k, β_k, and the next vector, alone and in the basis (dropped if that is full)."""

    def project(x: optax.Params) -> optax.Params:
        weights = jax.vmap(lambda row: tree_math.vdot(row, x))(basis)
        along = jax.vmap(tree_math.scale)(weights, basis)
        return jax.tree.map(lambda x, y: x - jnp.sum(y, axis=0), x, along)

    alpha = tree_math.vdot(vector, product)
    rest, residual, is_new = orthogonalise(product, project)
    restart = lambda: unit(project(project(random_vector(key, rest))))
    new = jax.lax.cond(is_new, lambda: unit(rest), restart)
    basis = jax.tree.map(lambda rows, x: rows.at[k + 1].set(x, mode="drop"), basis, new)
    return alpha, jnp.where(is_new, residual, 0), new, basis
