"""WSAM, weighted SAM: d = g + γ/(1 − γ) (g' − g), where γ weighs the sharpness against the loss."""

import optax

from optax_sam import checks
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.descent.extrapolation import extrapolation
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def wsam(
    rho: optax.ScalarOrSchedule = 0.05, gamma: float = 0.9, *, num_steps: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Weighted SAM: ε = ρ g/‖g‖, then d = g + γ/(1 − γ) (g' − g).

    The loss is regularised by the sharpness max L(w + ε) − L(w) with the weight γ/(1 − γ).

    Symbols: g the clean gradient, g' the gradient at w + ε, ρ `rho`, γ `gamma`.

    Args:
      rho: radius ρ; 0.05 in the code.
      gamma: γ in [0, 1); 0.9 in the code, 0.5 is SAM, 0 the base optimizer.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Raises:
      ValueError: if gamma is outside [0, 1).

    Cost: as `sam`.

    Deviations from the authors' code (intelligent-machine-learning/dlrover), as read in
    kozistr/pytorch_optimizer: there the base optimizer sees g alone by default, and the second part is
    applied at its learning rate, without its momentum ("decoupled"). Here the base optimizer sees d; for
    plain SGD the two are equal.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.wsam(rho=0.05, gamma=0.8), optax.sgd(0.1))

    References:
      Yue et al., `Sharpness-aware minimization revisited: weighted sharpness as a regularization term
      <https://arxiv.org/abs/2305.15817>`_, 2023
    """
    checks.check_number("gamma", gamma, below=1.0)
    return sharpness_aware(steepest_ascent(rho), extrapolation(gamma / (1 - gamma)), num_steps=num_steps)
