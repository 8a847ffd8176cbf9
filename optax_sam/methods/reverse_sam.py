"""Reverse-SAM: SAM with its perturbation downhill, ε = −ρ g/‖g‖."""

import optax

from optax_sam import checks
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def reverse_sam(
    rho: optax.ScalarOrSchedule = 0.05, *, num_steps: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Reverse-SAM: ε = −ρ g/‖g‖, d = ∇L(w + ε).

    A control for SAM: to first order in ρ it adds the opposite of what SAM adds to the gradient.

    Symbols: g the clean gradient, ρ `rho`.

    Args:
      rho: radius ρ.
      num_steps: number of descents that make up ε; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: as `sam`.

    Deviations from the paper: none.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.reverse_sam(rho=0.05), optax.sgd(0.1))

    References:
      Luo et al., `Explicit eigenvalue regularization improves sharpness-aware minimization
      <https://arxiv.org/abs/2501.12666>`_, 2024
    """
    return sharpness_aware(optax.chain(steepest_ascent(rho), optax.scale(-1.0)), num_steps=num_steps)
