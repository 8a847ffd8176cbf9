"""A top eigenpair of a symmetric operator in a few products, warm-started: power iteration and Lanczos.

What Eigen-SAM runs inside a training step. Loops are unrolled: a handful of products, and gradients with
convolutions are slow inside loops on CPU. For longer runs between steps see `optax_sam.curvature.lanczos`,
which shares the two steps that are easy to get wrong, `orthogonalise` and `ritz_pairs`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from optax_sam import tree_math

MatVec = Callable[[optax.Params], optax.Params]


def power_iteration(matvec: MatVec, start: optax.Params, num_iters: int) -> tuple[jax.Array, optax.Params]:
    """Repeats v ← H v / ‖H v‖, which converges to the eigenvalue of largest magnitude.

    Args:
      matvec: v ↦ H v.
      start: a non-zero vector, of any length.
      num_iters: number of products.

    Returns:
      (⟨u, H u⟩, v), u the iterate before the last: the last product gives both.
    """
    vector = unit(start)
    for _ in range(num_iters):
        product = matvec(vector)
        eigenvalue = tree_math.vdot(vector, product)
        vector = unit(product)
    return eigenvalue, vector


def lanczos(matvec: MatVec, start: optax.Params, num_iters: int) -> tuple[jax.Array, optax.Params]:
    """Returns the top Ritz pair of the Krylov space of `start`: the algebraically largest eigenvalue.

    With full re-orthogonalisation, done twice. The residual vanishes when the space is exhausted; what
    would follow is rounding error and is kept out of the result.

    The last product is good for one step more: with the top Ritz pair (θ, y) it gives H y = θ y + r, and

        v = (H + σ I) y / ‖·‖,    σ = max(0, −2 θ_min)

    is nearer to the top eigenvector than y, as an iterate of the power iteration is, shifted by the smallest
    Ritz value so that no negative eigenvalue seen so far outweighs the top one. With one product and θ ≥ 0
    this is the power iteration.

    Args:
      matvec: v ↦ H v.
      start: a non-zero vector, of any length.
      num_iters: number of products, and of vectors held in memory.

    Returns:
      (θ, v), v of unit length; θ = ⟨y, H y⟩ is the largest in the Krylov space.
    """
    basis = [unit(start)]
    diagonal: list[jax.Array] = []
    off_diagonal: list[jax.Array] = []

    def project(vector: optax.Params) -> optax.Params:
        coordinates = [-tree_math.vdot(other, vector) for other in basis]
        return _sum([jnp.ones_like(coordinates[0]), *coordinates], [vector, *basis])

    for k in range(num_iters):
        product = matvec(basis[k])
        diagonal.append(tree_math.vdot(basis[k], product))
        rest, residual, is_new = orthogonalise(product, project)
        residual = jnp.where(is_new, residual, 0)
        if k == num_iters - 1:
            break
        off_diagonal.append(residual)
        factor = jnp.where(is_new, tree_math.reciprocal_or_zero(residual), 0)
        basis.append(tree_math.scale(factor, rest))

    # A vector after the end of the space is 0; an entry under the first one, itself at most the top
    # Ritz value, keeps it from being picked.
    exists = jnp.stack([jnp.asarray(True)] + [beta > 0 for beta in off_diagonal])
    entries = jnp.where(exists, jnp.stack(diagonal), diagonal[0] - 1 - jnp.abs(diagonal[0]))
    ritz_values, ritz_vectors = ritz_pairs(entries, jnp.stack(off_diagonal) if off_diagonal else None)
    value, coordinates = ritz_values[-1], ritz_vectors[:, -1]
    # Where nothing is left over, H y = θ y and v = y, also for θ + σ = 0.
    along = jnp.where(residual > 0, value + jnp.maximum(0, -2 * ritz_values[0]), 1)
    beyond = jnp.where(residual > 0, coordinates[-1], 0)
    return value, unit(_sum([*(along * coordinates), beyond], [*basis, rest]))


def orthogonalise(
    product: optax.Params, project: Callable[[optax.Params], optax.Params]
) -> tuple[optax.Params, jax.Array, jax.Array]:
    """Takes from `product` its part in the Krylov space, twice: once leaves rounding errors that grow.

    Args:
      product: the last product H q.
      project: v ↦ v − Q Qᵀ v, Q the basis.

    Returns:
      (r, ‖r‖, whether r is new): the rest r, and False where r is but rounding error.
    """
    length = tree_math.norm(product)
    for _ in range(2):
        product = project(product)
    residual = tree_math.norm(product)
    return product, residual, residual > 100 * jnp.finfo(residual.dtype).eps * length


def ritz_pairs(diagonal: jax.Array, off_diagonal: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns the eigenvalues, ascending, and the eigenvectors (columns) of the tridiagonal matrix."""
    matrix = jnp.diag(diagonal)
    if off_diagonal is not None:
        matrix += jnp.diag(off_diagonal, 1) + jnp.diag(off_diagonal, -1)
    return jnp.linalg.eigh(matrix)


def _sum(weights: list[jax.Array], vectors: list[optax.Params]) -> optax.Params:
    """Returns the sum of the vectors with the weights, in one pass over them."""

    def leaf(*leaves: jax.Array) -> jax.Array:
        terms = [weight.astype(x.dtype) * x for weight, x in zip(weights, leaves, strict=True)]
        return functools.reduce(jnp.add, terms)

    return jax.tree.map(leaf, *vectors)


SOLVERS = {"lanczos": lanczos, "power": power_iteration}


def random_vector(key: jax.Array, like: optax.Params) -> optax.Params:
    """Returns independent normal entries with the shapes, dtypes and shardings of `like`."""
    leaves, treedef = jax.tree.flatten(like)

    def normal(i: int, leaf: jax.Array) -> jax.Array:
        # The sharding is a part of the type on a mesh with explicit axes, and no constraint elsewhere.
        sharding = jax.typeof(leaf).sharding
        return jax.random.normal(jax.random.fold_in(key, i), leaf.shape, leaf.dtype, out_sharding=sharding)

    return jax.tree.unflatten(treedef, [normal(i, leaf) for i, leaf in enumerate(leaves)])


def unit(vector: optax.Params) -> optax.Params:
    """Returns v / ‖v‖, and 0 for 0."""
    return tree_math.scale(tree_math.reciprocal_or_zero(tree_math.norm(vector)), vector)
