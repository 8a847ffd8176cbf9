"""The top eigenpair of the loss of a training step, followed from one refresh to the next."""

import jax
import jax.numpy as jnp
import optax

from optax_sam import tree_math
from optax_sam.curvature.eigen import SOLVERS, random_vector
from optax_sam.curvature.hvp import hessian_vector_product
from optax_sam.devices import AxisName
from optax_sam.loss import GradFn, ValueFn, value_and_gradient_function


def track_eigenpair(
    last: tuple[jax.Array, optax.Params],
    params: optax.Params,
    *,
    value_fn: ValueFn | None,
    grad_fn: GradFn | None,
    curvature_fn: ValueFn | None,
    axis_name: AxisName,
    solver: str,
    num_iters: int,
    seed: int,
) -> tuple[jax.Array, optax.Params]:
    """Improves an eigenpair by a few products with the Hessian.

    Args:
      last: eigenvalue and unit eigenvector of the last time; a zero vector is replaced by a random one.
      params: parameters w.
      value_fn: the loss, whose Hessian is meant, unless one of the next two is given.
      grad_fn: its gradient.
      curvature_fn: another loss instead.
      axis_name: mapped axis over which the loss is averaged.
      solver: one of `SOLVERS`.
      num_iters: number of products.
      seed: of the random start vector.

    Returns:
      Eigenvalue and unit eigenvector; `last` where nothing finite was found.
    """
    if curvature_fn is None:
        evaluate = value_and_gradient_function(value_fn, grad_fn, axis_name=axis_name)
    else:
        evaluate = value_and_gradient_function(curvature_fn, axis_name=axis_name, name="curvature_fn")
    matvec = lambda v: hessian_vector_product(lambda w: evaluate(w)[1], params, v)
    is_unset = tree_math.norm(last[1]) == 0
    start = jax.tree.map(
        lambda old, random: jnp.where(is_unset, random, old),
        last[1],
        random_vector(jax.random.key(seed), last[1]),
    )
    found = SOLVERS[solver](matvec, start, num_iters)
    is_usable = jnp.isfinite(found[0]) & (tree_math.norm(found[1]) > 0.5)
    return jax.tree.map(lambda new, old: jnp.where(is_usable, new, old), found, last)
