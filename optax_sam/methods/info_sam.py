"""InfoSAM: ε = ρ C g/‖C g‖ with C the damped inverse of the gradient's noise variance."""

from typing import Any

import optax

from optax_sam import checks
from optax_sam.ascent.gradient_noise import gradient_noise
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def info_sam(
    rho: optax.ScalarOrSchedule = 0.05,
    decay: float = 0.9,
    *,
    variance_decay: float = 0.99,
    damping: float = 1.0,
    power: float = 1.0,
    across_devices: bool = False,
    num_steps: int = 1,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """InfoSAM: ε = ρ C g/‖C g‖ with C the damped inverse of the gradient's noise variance.

    Symbols: g the clean gradient, ρ `rho`, C `optax_sam.gradient_noise`.

    Args:
      rho: radius ρ.
      decay: decay of the running mean of the gradient; see `gradient_noise`.
      variance_decay: decay of the running mean of the variance; 0 in the authors' early code.
      damping: added to the variance, in units of its mean over all parameters; 0 in the authors' early code.
      power: C = (σ² + δ)^(-power).
      across_devices: whether to estimate σ² from the gradients of the devices; needs `m_sharpness=True` at
        `update`.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.
      state_dtype: dtype of the running mean of the gradient; see `gradient_noise`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: as `sam`, and memory: 8 bytes per parameter, 6 with the mean in bfloat16.

    Deviations from the authors' code (BingcongLi/VaSSO, first commit): the variance is averaged and
    damped; see `optax_sam.ascent.gradient_noise`, which says how to reproduce theirs.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.info_sam(rho=0.1), optax.sgd(0.1))

    References:
      Zhang, Li and Giannakis, `Preconditioned sharpness-aware minimization: unifying
      analysis and a novel learning algorithm <https://arxiv.org/abs/2501.06603>`_, 2025
    """
    noise = gradient_noise(
        decay,
        variance_decay=variance_decay,
        damping=damping,
        power=power,
        across_devices=across_devices,
        state_dtype=state_dtype,
    )
    return sharpness_aware(steepest_ascent(rho, objective=noise), num_steps=num_steps)
