"""Lookbehind-SAM: k ascents of radius ρ, and the gradients at all their points, d = α Σ ∇L(w_j)."""

import optax

from optax_sam import checks
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.descent.lookbehind import lookbehind
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def lookbehind_sam(
    rho: optax.ScalarOrSchedule = 0.05, alpha: float | None = 0.5, *, num_steps: int = 2
) -> optax.GradientTransformationExtraArgs:
    """Lookbehind-SAM: w_j = w_{j-1} + ρ ∇L(w_{j-1})/‖∇L(w_{j-1})‖, d = α (∇L(w_1) + ... + ∇L(w_k)).

    Symbols: w_0 = w the parameters, ρ `rho`, α `alpha`, k `num_steps`.

    Args:
      rho: radius ρ of *each* ascent (not of all together, as in the other methods); 0.05 in the authors'
        example.
      alpha: α; 0.2, 0.5 or 0.8 in the paper. None: from the agreement of the gradients; see
        `optax_sam.descent.lookbehind`.
      num_steps: number k of ascents; 2 in the authors' example.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Raises:
      ValueError: if rho or alpha is negative or `num_steps` below 1.

    Cost: `num_steps` more gradients than the base optimizer, memory for their sum.

    Deviations from the authors' code (chandar-lab/Lookbehind-SAM): see `optax_sam.descent.lookbehind`.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.lookbehind_sam(rho=0.05, num_steps=5), optax.sgd(0.1))

    References:
      Mordido et al., `Lookbehind-SAM: k steps back, 1 step forward <https://arxiv.org/abs/2307.16704>`_,
      2024
    """
    # `sharpness_aware` divides each ascent by their number.
    ascent = optax.chain(steepest_ascent(rho), optax.scale(num_steps))
    return sharpness_aware(ascent, lookbehind(alpha), num_steps=num_steps)
