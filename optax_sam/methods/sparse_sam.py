"""Sparse SAM: SAM's ε on a part of the parameters, ε = M ⊙ ρ g/‖g‖ with a mask M."""

import optax

from optax_sam import checks
from optax_sam.ascent.sparse_mask import fisher_mask
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def sparse_sam(
    rho: optax.ScalarOrSchedule = 0.1,
    mask: optax.GradientTransformation | None = None,
    *,
    num_steps: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Sparse SAM: ε = M ⊙ ρ g/‖g‖ with a mask M that is chosen anew from time to time.

    Symbols: g the clean gradient, M `mask`, ρ `rho`.

    Args:
      rho: radius ρ before the mask; 0.1 in the authors' example for CIFAR-10.
      mask: a stage ε ↦ M ⊙ ε: `random_mask`, `fisher_mask` (SSAM-F in the paper) or `dynamic_mask` (SSAM-D).
        None: `fisher_mask(0.5)`.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: as `sam`, and the mask.

    Deviations from the authors' code: see `optax_sam.ascent.sparse_mask`; theirs adds 1e-7 to the norm.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.sparse_sam(0.1, optax_sam.dynamic_mask(0.8)), optax.sgd(0.1))

    References:
      Mi et al., `Make sharpness-aware minimization stronger: a sparsified perturbation approach
      <https://arxiv.org/abs/2210.05177>`_, 2022
    """
    stage = fisher_mask(0.5) if mask is None else mask
    checks.check_keeps_signs("mask", stage, "a stage ε ↦ M ⊙ ε such as `optax_sam.fisher_mask(0.5)`")
    return sharpness_aware(optax.chain(steepest_ascent(rho), stage), num_steps=num_steps)
