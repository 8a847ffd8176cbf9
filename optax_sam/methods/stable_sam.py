"""StableSAM: the direction of SAM with the length of the clean gradient, d = g' ‖g‖/‖g'‖."""

import optax

from optax_sam import checks
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.descent.gradient_length import gradient_length
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def stable_sam(
    rho: optax.ScalarOrSchedule = 0.05, *, num_steps: int = 1
) -> optax.GradientTransformationExtraArgs:
    """StableSAM: ε = ρ g/‖g‖, then d = g' ‖g‖/‖g'‖.

    Symbols: g the clean gradient, g' the gradient at w + ε, ρ `rho`.

    Args:
      rho: radius ρ. It may be larger than SAM's, which becomes unstable earlier.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: as `sam`.

    Deviations from the paper: none.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.stable_sam(rho=0.1), optax.sgd(0.1))

    References:
      Tan et al., `Stabilizing sharpness-aware minimization through a simple renormalization strategy
      <https://arxiv.org/abs/2401.07250>`_, 2025
    """
    return sharpness_aware(steepest_ascent(rho), gradient_length(), num_steps=num_steps)
