"""SAM, sharpness-aware minimisation: ε = ρ g/‖g‖, d = ∇L(w + ε)."""

import optax

from optax_sam import checks
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def sam(rho: optax.ScalarOrSchedule = 0.05, *, num_steps: int = 1) -> optax.GradientTransformationExtraArgs:
    """Sharpness-aware minimisation: ε = ρ g/‖g‖, d = ∇L(w + ε).

    Symbols: g the clean gradient, ρ `rho`.

    Args:
      rho: radius ρ; 0.05 in the paper (0.1 for CIFAR-100), a number or a schedule.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: `num_steps` more gradients than the base optimizer.

    Deviations from the authors' code (google-research/sam): a zero gradient gives ε = 0 (theirs: NaN).

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(optax_sam.sam(rho=0.05), optax.adam(0.1))
      >>> loss = lambda w: jnp.sum(w**2)
      >>> w = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
      >>> round(float(optax.tree.get(state, "ascent_value")), 4)  # (5 + 0.05)²
      25.5025

    References:
      Foret et al., `Sharpness-aware minimization for efficiently improving generalization
      <https://arxiv.org/abs/2010.01412>`_, 2021
    """
    return sharpness_aware(steepest_ascent(rho), num_steps=num_steps)
