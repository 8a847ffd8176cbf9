"""Fisher SAM: ε = ρ F⁻¹ g/(gᵀ F⁻¹ g)^(1/2) with the diagonal F = 1 + η g²."""

import optax

from optax_sam import checks
from optax_sam.ascent.fisher import fisher_information
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def fisher_sam(
    rho: optax.ScalarOrSchedule = 0.1, eta: float = 1.0, *, num_steps: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Fisher SAM: ε = ρ F⁻¹ g/(gᵀ F⁻¹ g)^(1/2) with the diagonal F = 1 + η g².

    Symbols: g the clean gradient, ρ `rho`, η `eta`.

    Args:
      rho: radius ρ in the metric F; 0.1 in the paper.
      eta: η; 1 in the community's code.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: as `sam`.

    Deviations from the paper: see `optax_sam.ascent.fisher`.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.fisher_sam(rho=0.1), optax.sgd(0.1))

    References:
      Kim et al., `Fisher SAM: Information geometry and sharpness aware minimisation
      <https://arxiv.org/abs/2206.04920>`_, 2022
    """
    return sharpness_aware(steepest_ascent(rho, constraint=fisher_information(eta)), num_steps=num_steps)
