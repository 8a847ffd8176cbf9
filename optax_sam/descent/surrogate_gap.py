"""Surrogate gap: the descent direction of GSAM.

SAM lowers the loss at w + ε, the surrogate L_p. The minimum is flat where the gap L_p(w) − L(w) is small, and
the gap can be lowered without raising L_p: along the part of g that is orthogonal to g'. With g = g∥ + g⊥,

    d = g' − α g⊥,    g⊥ = g − ⟨g, ĝ'⟩ ĝ',    ĝ' = g'/‖g'‖

Symbols: g `grad`, g' `updates`, α `alpha`.

Deviations from the authors' code (juntang-zhuang/GSAM): g' = 0 gives g⊥ = g without 1e-12 in the
denominators. On several devices they decompose the g of each device along its own g' and average d, as
`m_sharpness=True` does here; by default averages are decomposed.

References:
  Zhuang et al., `Surrogate gap minimization improves sharpness-aware training
  <https://arxiv.org/abs/2203.08065>`_, 2022
"""

from typing import Any

import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math


def surrogate_gap(alpha: float = 0.4) -> optax.GradientTransformationExtraArgs:
    """Maps the gradient g' at w + ε to d = g' − α g⊥, with g⊥ the part of g orthogonal to g'.

    Args:
      alpha: α; 0.4 in the authors' example. 0 is SAM.

    Returns:
      A gradient transformation g' ↦ d without state, for the descent of `sharpness_aware`. It reads the extra
      argument `grad`.

    Raises:
      ValueError: if alpha is negative.

    Cost: a norm and an inner product; no gradient and no memory.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.surrogate_gap(alpha=0.5)
      >>> g, g_prime = jnp.array([1.0, 2.0]), jnp.array([3.0, 0.0])
      >>> stage.update(g_prime, stage.init(g), g, grad=g)[0].tolist()
      [3.0, -1.0]
    """
    checks.check_number("alpha", alpha)

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        grad: optax.Updates,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        inverse = tree_math.reciprocal_or_zero(tree_math.norm(updates))
        along = tree_math.vdot(grad, updates) * inverse * inverse
        weight = jnp.asarray(alpha, along.dtype)
        return tree_math.combine(1 + weight * along, updates, -weight, grad), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
