"""A limit to how much the loss may rise at w + ε: the radius of LE-SAM.

To first order the loss rises by ⟨g, ε⟩. A perturbation for which that exceeds the budget σ is shortened:

    ε ← ε min(1, σ/⟨g, ε⟩)

After `steepest_ascent(rho)`, where ⟨g, ε⟩ = ρ ‖g‖, this is ε = ρ_t g/‖g‖ with ρ_t = min(σ/‖g‖, ρ). An ε
along which the loss falls is left as it is.

Symbols: ε `updates`, g `grad`, σ `sigma`.

Deviations from the authors' code (smithgun2005/LE-SAM-ICML2026): a zero gradient gives ε = 0; theirs adds
1e-12 to ‖g‖² and to ‖g‖.

References:
  Wang et al., `Fix the loss, not the radius: rethinking the adversarial perturbation of sharpness-aware
  minimization <https://arxiv.org/abs/2605.10183>`_, 2026
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.schedules import radius_at


def loss_budget(sigma: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """Shortens a perturbation whose linearised rise of the loss, ⟨g, ε⟩, is above a budget σ.

    Args:
      sigma: σ, in units of the loss; a number, or a schedule of the number of updates made.

    Returns:
      A gradient transformation ε ↦ ε without state, to put behind an ascent. It reads the extra argument
      `grad`, the clean gradient.

    Raises:
      ValueError: if sigma is negative.

    Cost: an inner product; no gradient and no memory.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.loss_budget(sigma=0.5)
      >>> gradient, epsilon = jnp.array([2.0, 0.0]), jnp.array([1.0, 0.0])
      >>> stage.update(epsilon, stage.init(epsilon), grad=gradient)[0].tolist()  # a rise of 2 before
      [0.25, 0.0]
    """
    checks.check_radius("sigma", sigma, what="the budget for a rise of the loss")

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        grad: optax.Updates,
        step_count: jax.Array | int = 0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        checks.check_whole(updates)
        rise = tree_math.vdot(grad, updates)
        budget = radius_at(sigma, step_count, "sigma").astype(rise.dtype)
        factor = jnp.where(rise > budget, budget * tree_math.reciprocal_or_zero(rise), 1)
        return tree_math.scale(factor, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
