"""XSAM: SAM's ε, then the direction of the worst point on the arc through ε and ∇L(w + ε)."""

import optax

from optax_sam import checks
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.descent.spherical_search import spherical_search
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def xsam(
    rho: optax.ScalarOrSchedule = 0.15,
    rho_max: optax.ScalarOrSchedule = 0.3,
    *,
    alpha_max: float = 2.0,
    num_alphas: int = 21,
    interval: int = 100,
    num_steps: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """XSAM: SAM's ε, then the direction of the worst point on the arc through ε and ∇L(w + ε).

        d = ‖g'‖ v(α*),   α* = argmax L(w + ρ_m v(α))

    with v(α) the unit vectors on the great circle through v(0) = ε/‖ε‖ and v(1) = g'/‖g'‖.

    Symbols: g' the gradient at w + ε, ρ `rho`, ρ_m `rho_max`, α* `alpha` of the state.

    Args:
      rho: radius ρ of all ascents together; 0.15 in the paper (CIFAR-100, ResNet-18).
      rho_max: distance at which the losses on the arc are compared; 0.3 in the paper.
      alpha_max: end of the arc; 2 in the paper.
      num_alphas: number of losses per search, at least 2; 21 in the paper.
      interval: steps from one search to the next with `refresh=None`; see `spherical_search`.
      num_steps: number of ascents that make up ε; 1 and 3 in the paper.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: as `sam`, and on refresh steps `num_alphas` forward passes.

    Deviations from the authors' code (Cccjl219/XSAM): see `optax_sam.descent.spherical_search`.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.xsam(rho=0.15, rho_max=0.3), optax.sgd(0.1))

    References:
      Chen and Zhou, `Revisiting sharpness-aware minimization: a more faithful and
      effective implementation <https://arxiv.org/abs/2603.10048>`_, 2026
    """
    search = spherical_search(rho_max, alpha_max=alpha_max, num_alphas=num_alphas, interval=interval)
    return sharpness_aware(steepest_ascent(rho), search, num_steps=num_steps)
