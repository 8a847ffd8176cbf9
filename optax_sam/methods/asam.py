"""ASAM, adaptive SAM: ε = ρ T² g/‖T g‖ with T = |w| + η, a ball that scales with the weights."""

import optax

from optax_sam import checks
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.ascent.weight_magnitude import weight_magnitude
from optax_sam.masks import Mask
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def asam(
    rho: optax.ScalarOrSchedule = 0.5, eta: float = 0.01, *, mask: Mask | None = None, num_steps: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Adaptive SAM: ε = ρ T² g/‖T g‖ with T = |w| + η, a ball that scales with the weights.

    Symbols: g the clean gradient, w `params`, ρ `rho`, η `eta`.

    Args:
      rho: radius ρ in units relative to the weights; 0.5 in the paper (1.0 for CIFAR-100).
      eta: η; 0.01 in the paper.
      mask: selects where T = |w| + η; elsewhere T = 1. See `weight_magnitude`. None: everywhere.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: as `sam`.

    Deviations from the authors' code (SamsungLabs/ASAM): theirs has T = |w| + η for parameters named "weight"
    only, which is `mask` here, and adds 1e-16 to the norm.

    Example:
      >>> import optax, optax_sam
      >>> kernels = optax_sam.mask_by_name("kernel")
      >>> tx = optax.chain(optax_sam.asam(rho=0.5, mask=kernels), optax.sgd(0.1))

    References:
      Kwon et al., `ASAM: Adaptive sharpness-aware minimization for scale-invariant learning of deep
      neural networks <https://arxiv.org/abs/2102.11600>`_, 2021
    """
    ascent = steepest_ascent(rho, constraint=weight_magnitude(eta, mask=mask))
    return sharpness_aware(ascent, num_steps=num_steps)
