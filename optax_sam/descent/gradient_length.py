"""The length of the clean gradient with the direction of g': the descent of StableSAM.

Near a saddle point or a sharp minimum ‖g'‖ stays large while ‖g‖ vanishes, and SAM with a large step is
unstable there. StableSAM keeps the direction and takes the length of the clean gradient:

    d = g' ‖g‖/‖g'‖

Symbols: g `grad`, g' `updates`.

References:
  Tan et al., `Stabilizing sharpness-aware minimization through a simple renormalization strategy
  <https://arxiv.org/abs/2401.07250>`_, 2025
"""

from typing import Any

import optax

from optax_sam import tree_math


def gradient_length() -> optax.GradientTransformationExtraArgs:
    """Maps the gradient g' at w + ε to d = g' ‖g‖/‖g'‖.

    Returns:
      A gradient transformation g' ↦ d without state, for the descent of `sharpness_aware`. It reads the extra
      argument `grad`.

    Cost: two norms; no gradient and no memory.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.gradient_length()
      >>> g, g_prime = jnp.array([0.0, 1.0]), jnp.array([4.0, 0.0])
      >>> stage.update(g_prime, stage.init(g), g, grad=g)[0].tolist()
      [1.0, 0.0]
    """

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        grad: optax.Updates,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        ratio = tree_math.norm(grad) * tree_math.reciprocal_or_zero(tree_math.norm(updates))
        return tree_math.scale(ratio, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
