"""The loss and its gradient near w, of one batch or averaged over a data set, in float32 or wider.

Points w + ε are made in float32 or wider too, whatever the dtype of the parameters: in bfloat16 most of a
small ε would be lost by rounding (`effective_perturbation` says how much). So `value_fn` gets float32
parameters.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import tree_math
from optax_sam.curvature.data_set import over_batches
from optax_sam.loss import BatchLoss, ValueFn

Evaluate = Callable[[optax.Params], tuple[jax.Array, optax.Updates]]


def full_precision(tree: optax.Params) -> optax.Params:
    """Returns `tree` in float32, or wider where it is."""
    return jax.tree.map(lambda x: jnp.asarray(x, tree_math.accumulation_dtype(jnp.asarray(x))), tree)


def value(loss: ValueFn, params: optax.Params) -> jax.Array:
    """Returns L(w), float32 or wider."""
    result = BatchLoss(loss).value(params)
    return result.astype(tree_math.accumulation_dtype(result, params))


def value_and_gradient(loss: ValueFn, params: optax.Params) -> tuple[jax.Array, optax.Updates]:
    """Returns L(w) and ∇L(w), float32 or wider."""
    result, gradient = BatchLoss(loss).value_and_gradient(params)
    assert result is not None  # There is no `grad_fn`.
    return result.astype(tree_math.accumulation_dtype(result, params)), gradient


def value_over(
    value_fn: Callable[..., jax.Array], params: optax.Params, batches: Iterable[Any] | None
) -> ValueFn:
    """Returns w ↦ L(w), of one batch or of a data set; `params` are an example of w."""
    zeros = lambda: jnp.zeros((), tree_math.accumulation_dtype(params))
    return over_batches(value, value_fn, batches, zeros=zeros)


def value_and_gradient_over(
    value_fn: Callable[..., jax.Array], params: optax.Params, batches: Iterable[Any] | None
) -> Evaluate:
    """Returns w ↦ (L(w), ∇L(w)), of one batch or of a data set; `params` are an example of w."""
    zeros = lambda: (jnp.zeros((), tree_math.accumulation_dtype(params)), tree_math.zeros_like(params))
    return over_batches(value_and_gradient, value_fn, batches, zeros=zeros)
