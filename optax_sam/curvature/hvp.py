"""Hessian-vector products: `jax.jvp` over the gradient, about two gradients each, no Hessian stored."""

from collections.abc import Callable

import jax
import optax

from optax_sam import tree_math
from optax_sam.devices import AxisName
from optax_sam.loss import BatchLoss, ValueFn


def hvp(
    value_fn: ValueFn,
    params: optax.Params,
    vector: optax.Params,
    *,
    axis_name: AxisName = None,
) -> optax.Params:
    """Computes the Hessian-vector product ∇²L(w) v.

    Args:
      value_fn: the loss L as a function of the parameters, a scalar.
      params: parameters w, a pytree.
      vector: direction v, a pytree like `params`.
      axis_name: `pmap` or `shard_map` axis over which the loss is averaged.

    Returns:
      A pytree like `params`, float32 or wider.

    Cost: about two gradients, and no more memory than two.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam.curvature.hvp import hvp
      >>> hvp(lambda w: w[0] ** 2 * w[1], jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])).tolist()
      [4.0, 2.0]
    """
    loss = BatchLoss(value_fn, axis_name=axis_name)
    return hessian_vector_product(loss.gradient, params, vector)


def hessian_vector_product(
    gradient_fn: Callable[[optax.Params], optax.Updates],
    params: optax.Params,
    vector: optax.Params,
) -> optax.Params:
    """Computes J(w) v, J the Jacobian of `gradient_fn`, in float32 or wider.

    `jax.jvp` rather than `jax.linearize`: a gradient made of micro-batches keeps its small memory, and
    where several products are taken at one point XLA shares their common part anyway.
    """
    _, product = jax.jvp(gradient_fn, (params,), (tree_math.cast_like(vector, params),))
    return jax.tree.map(lambda x: x.astype(tree_math.accumulation_dtype(x)), product)
