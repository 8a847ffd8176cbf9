"""Extrapolation from the clean gradient to the one at w + ε: the descent direction of WSAM.

    d = g + c (g' − g)

g is the gradient of the loss and g' − g, to first order, of the sharpness max L(w + ε) − L(w). So c is
the weight of the sharpness: c = 0 is the base optimizer, c = 1 SAM, c > 1 regularises more strongly.

Symbols: g `grad`, g' `updates`, c `weight`.

References:
  Yue et al., `Sharpness-aware minimization revisited: weighted sharpness as a regularization term
  <https://arxiv.org/abs/2305.15817>`_, 2023
"""

import math
from typing import Any

import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math


def extrapolation(weight: float) -> optax.GradientTransformationExtraArgs:
    """Maps the gradient g' at w + ε to d = g + c (g' − g).

    Args:
      weight: c. 1 is SAM; a negative c moves away from g'.

    Returns:
      A gradient transformation g' ↦ d without state, for the descent of `sharpness_aware`. It reads the extra
      argument `grad`.

    Cost: element-wise operations; no gradient and no memory.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.extrapolation(weight=2.0)
      >>> g, g_prime = jnp.array([1.0]), jnp.array([1.5])
      >>> stage.update(g_prime, stage.init(g), g, grad=g)[0].tolist()
      [2.0]
    """
    checks.check_number("weight", weight, low=-math.inf)

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        grad: optax.Updates,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        c = jnp.asarray(weight, tree_math.accumulation_dtype(updates))
        return tree_math.combine(c, updates, 1 - c, grad), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
