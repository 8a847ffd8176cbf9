"""LookSAM: SAM on every k-th step; in between a part of its direction is reused, d = g + α ‖g‖ u."""

from typing import Any

import optax

from optax_sam import checks
from optax_sam.methods.sam import sam
from optax_sam.reuse import reuse


@checks.goes_in_front
def look_sam(
    rho: optax.ScalarOrSchedule = 0.1,
    alpha: float = 0.2,
    *,
    interval: int = 5,
    num_steps: int = 1,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """LookSAM: SAM on every k-th step; in between, d = g + α ‖g‖ u.

        on refresh:   d = g' = ∇L(w + ρ ĝ),   r = g' − ⟨g', ĝ⟩ ĝ,   u = r/‖r‖,   ĝ = g/‖g‖

    Symbols: g the clean gradient, u `reused_direction` of the state, ρ `rho`, α `alpha`, k `interval`.

    Args:
      rho: radius ρ of SAM, a number or a schedule of the number of *refreshes* made.
      alpha: α; 0.2 is the default of Becker's code, 0.7 its setting for CIFAR-100. 0 is SAM on every k-th
        step, without memory for u.
      interval: steps k from one refresh to the next with `refresh=None`; 5 by default in that code, 10
        for CIFAR-100.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.
      state_dtype: dtype in which u is kept, as Optax's `mu_dtype`; None: float32 or wider.

    Returns:
      A gradient transformation to put in front of a base optimizer. Any other method is reused in the same
      way by `reuse(method, alpha, interval=interval)`.

    Raises:
      ValueError: if alpha is negative or the interval below 1.

    Cost: 1 + 1/k gradients per step on average, memory for u: 4 bytes per parameter, 2 in bfloat16. See
    `reuse`.

    Deviations from the code (MarlonBecker/MSAM, `looksam.py`): where g' is parallel to g there is nothing to
    reuse and u = 0 (theirs: a unit vector of rounding errors, or NaN).

    Example: the refresh decided on the host, which is fastest.
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(optax_sam.look_sam(rho=0.1, interval=5), optax.sgd(0.1))
      >>> loss = lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2)
      >>> w = jnp.ones(2)
      >>> state = tx.init(w)
      >>> for step in range(20):
      ...     refresh = step % 5 == 0
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss, refresh=refresh)
      ...     w = optax.apply_updates(w, updates)

    References:
      Liu et al., `Towards efficient and scalable sharpness-aware minimization
      <https://arxiv.org/abs/2203.02714>`_, 2022
    """
    return reuse(sam(rho, num_steps=num_steps), alpha, interval=interval, state_dtype=state_dtype)
