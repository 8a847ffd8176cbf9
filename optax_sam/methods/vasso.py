"""VaSSO, variance-suppressed SAM: ε = ρ m/‖m‖ with the running mean m of the gradients."""

from typing import Any

import optax

from optax_sam import checks
from optax_sam.ascent.running_mean import running_mean
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def vasso(
    rho: optax.ScalarOrSchedule = 0.05, theta: float = 0.9, *, num_steps: int = 1, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Variance-suppressed SAM: ε = ρ m/‖m‖ with m_t = (1 − θ) m_{t-1} + θ g_t, m_1 = g_1.

    Symbols: g the clean gradient, m `running_mean` of the state, ρ `rho`, θ `theta`.

    Args:
      rho: radius ρ; 0.05 is the default of the authors' code.
      theta: weight θ of the newest gradient, in (0, 1]; 0.9 is the default of the authors' code. 1 is SAM.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.
      state_dtype: dtype in which m is kept, as Optax's `mu_dtype`; None: float32 or wider.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Raises:
      ValueError: if theta is outside (0, 1].

    Cost: as `sam`, and memory for m: 4 bytes per parameter, 2 in bfloat16.

    Deviations from the authors' code (BingcongLi/VaSSO): see `optax_sam.ascent.running_mean`; theirs adds
    1e-7 to the norm.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.vasso(rho=0.1, theta=0.4), optax.sgd(0.1))

    References:
      Li and Giannakis, `Enhancing sharpness-aware optimization through variance suppression
      <https://arxiv.org/abs/2309.15639>`_, 2023
    """
    checks.check_number("theta", theta)
    checks.check_number("1 - theta", 1 - theta, below=1.0)
    ascent = optax.chain(running_mean(1 - theta, state_dtype=state_dtype), steepest_ascent(rho))
    return sharpness_aware(ascent, num_steps=num_steps)
