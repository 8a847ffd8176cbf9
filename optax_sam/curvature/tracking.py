"""The top eigenpair of the loss of a training step, followed from one refresh to the next."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from optax_sam import tree_math
from optax_sam.curvature.eigen import SOLVERS, random_vector
from optax_sam.curvature.hvp import hessian_vector_product


def track_eigenpair(
    last: tuple[jax.Array, optax.Params],
    gradient_fn: Callable[[optax.Params], optax.Updates],
    params: optax.Params,
    *,
    solver: str,
    num_iters: int,
    seed: int,
) -> tuple[jax.Array, optax.Params]:
    """Improves an eigenpair by a few products with the Hessian.

    Args:
      last: eigenvalue and unit eigenvector of the last time; a zero vector is replaced by a random one.
      gradient_fn: the gradient whose Jacobian is the Hessian.
      params: parameters w.
      solver: one of `SOLVERS`.
      num_iters: number of products.
      seed: of the random start vector.

    Returns:
      Eigenvalue and unit eigenvector; `last` where nothing finite was found.
    """
    matvec = lambda v: hessian_vector_product(gradient_fn, params, v)
    is_unset = tree_math.norm(last[1]) == 0
    start = jax.tree.map(
        lambda old, random: jnp.where(is_unset, random, old),
        last[1],
        random_vector(jax.random.key(seed), last[1]),
    )
    found = SOLVERS[solver](matvec, start, num_iters)
    is_usable = jnp.isfinite(found[0]) & (tree_math.norm(found[1]) > 0.5)
    return jax.tree.map(lambda new, old: jnp.where(is_usable, new, old), found, last)
