"""Friendly SAM: ε along g − σ m, the gradient of this batch without the running mean m of all."""

from typing import Any

import optax

from optax_sam import checks
from optax_sam.ascent.running_mean import subtract_running_mean
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def friendly_sam(
    rho: optax.ScalarOrSchedule = 0.05,
    sigma: float = 1.0,
    decay: float = 0.9,
    *,
    num_steps: int = 1,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Friendly SAM: ε = ρ r/‖r‖ with r_t = g_t − σ m_{t-1}.

        m_t = λ m_{t-1} + (1 − λ) g_t,   m_1 = r_1 = g_1

    The gradient of the whole loss is a part of SAM's ε that does not help; an estimate of it is left out.

    Symbols: g the clean gradient, m `running_mean` of the state, ρ `rho`, σ `sigma`, λ `decay`.

    Args:
      rho: radius ρ; 0.05 is the default of the authors' code, 0.2 their choice for CIFAR.
      sigma: σ; 1 in the authors' code. 0 is SAM.
      decay: λ in [0, 1); 0.9 is the default of the authors' code, 0.6 and 0.95 in their runs.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.
      state_dtype: dtype in which m is kept, as Optax's `mu_dtype`; None: float32 or wider.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Raises:
      ValueError: if sigma is negative or the decay outside [0, 1).

    Cost: as `sam`, and memory for m: 4 bytes per parameter, 2 in bfloat16.

    Deviations from the authors' code (nblt/F-SAM): see `optax_sam.ascent.running_mean`; theirs adds 1e-12 to
    the norm.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.friendly_sam(rho=0.2), optax.sgd(0.1))

    References:
      Li et al., `Friendly sharpness-aware minimization <https://arxiv.org/abs/2403.12350>`_, 2024
    """
    ascent = optax.chain(subtract_running_mean(sigma, decay, state_dtype=state_dtype), steepest_ascent(rho))
    return sharpness_aware(ascent, num_steps=num_steps)
