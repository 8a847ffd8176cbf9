"""LE-SAM, loss-equated SAM: a radius for which the loss rises by σ to first order."""

import optax

from optax_sam import checks
from optax_sam.ascent.loss_budget import loss_budget
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def le_sam(
    sigma: optax.ScalarOrSchedule = 0.35, rho_max: optax.ScalarOrSchedule = 0.3
) -> optax.GradientTransformationExtraArgs:
    """Loss-equated SAM: ε = ρ_t g/‖g‖ with ρ_t = min(σ/‖g‖, ρ_max), d = ∇L(w + ε).

    The budget is in units of the loss: to first order L(w + ε) = L(w) + σ in every step, until ρ_max limits
    ε. The radius grows as the gradient shrinks.

    Symbols: g the clean gradient, σ `sigma`, ρ_max `rho_max`.

    Args:
      sigma: σ, a number or a schedule of the number of updates made; 0.35 for CIFAR-100 in the authors' code,
        from 0 along a line in the first 10 of 200 epochs, and to 0 along a cosine in the last 40.
      rho_max: largest radius ρ_max, a number or a schedule; 0.3 by default in the authors' code, and 999,
        which is none, in their example.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Raises:
      ValueError: if sigma or rho_max is negative.

    Cost: as `sam`.

    Deviations from the authors' code (smithgun2005/LE-SAM-ICML2026): see `optax_sam.ascent.loss_budget`.

    Example: a budget that ends at 0.
      >>> import optax, optax_sam
      >>> sigma = optax.cosine_decay_schedule(0.35, decay_steps=1000)
      >>> tx = optax.chain(optax_sam.le_sam(sigma, rho_max=0.3), optax.sgd(0.1))

    References:
      Wang et al., `Fix the loss, not the radius: rethinking the adversarial perturbation of sharpness-aware
      minimization <https://arxiv.org/abs/2605.10183>`_, 2026
    """
    checks.check_radius("rho_max", rho_max)
    return sharpness_aware(optax.chain(steepest_ascent(rho_max), loss_budget(sigma)))
