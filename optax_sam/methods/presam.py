"""PreSAM, preconditioned SAM: ε = ρ T² C g/‖T C g‖ for preconditioners C and T of your choice."""

import optax

from optax_sam import checks
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def presam(
    rho: optax.ScalarOrSchedule,
    *,
    objective: optax.GradientTransformation | None = None,
    constraint: optax.GradientTransformation | None = None,
    num_steps: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Preconditioned SAM: ε = ρ T² C g/‖T C g‖ for preconditioners of your choice.

        max ⟨C g, ε⟩  subject to  ‖T⁻¹ ε‖ ≤ ρ

    Symbols: g the clean gradient, ρ `rho`, C `objective`, T `constraint`; D = T⁻¹ in the paper.

    Args:
      rho: radius ρ of the ball ‖T⁻¹ ε‖ ≤ ρ.
      objective: a stage g ↦ diagonal of C; see `steepest_ascent`.
      constraint: a stage g ↦ diagonal of T; see `steepest_ascent`. Zhang et al. write D = T⁻¹.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: as `sam`, and the preconditioners.

    Deviations from the paper: none.

    Example: infoSAM's objective on ASAM's ball.
      >>> import optax, optax_sam
      >>> method = optax_sam.presam(
      ...     0.5,
      ...     objective=optax_sam.gradient_noise(),
      ...     constraint=optax_sam.weight_magnitude(),
      ... )
      >>> tx = optax.chain(method, optax.sgd(0.1))

    References:
      Zhang, Li and Giannakis, `Preconditioned sharpness-aware minimization: unifying
      analysis and a novel learning algorithm <https://arxiv.org/abs/2501.06603>`_, 2025
    """
    ascent = steepest_ascent(rho, objective=objective, constraint=constraint)
    return sharpness_aware(ascent, num_steps=num_steps)
