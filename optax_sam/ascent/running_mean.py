"""The running mean of the gradient in the ascent: followed by VaSSO, left out by Friendly SAM.

The gradient of a mini-batch is the gradient of the whole loss plus noise. A running mean m of past gradients
estimates the gradient of the whole loss:

    running_mean            m_t = λ m_{t-1} + (1 − λ) g_t              ε follows m_t: less noise, a steadier ε
    subtract_running_mean   g_t − σ m_{t-1},  m_t as above             ε follows what is special to this batch

Both means start at the first gradient, m_1 = g_1, where the second stage returns g_1. With several ascents in
a step the equations hold for each, with its own g_t and the same m_{t-1}; m_t contains the first g_t.

If g_t − σ m_{t-1} is only a rounding error, because all gradients are the same, the second stage returns 0.

Symbols: g `updates`, m `running_mean`, λ `decay`, σ `sigma`.

Deviations from the authors' code (BingcongLi/VaSSO, nblt/F-SAM): a gradient that is not finite is left out of
the mean.

References:
  Li and Giannakis, `Enhancing sharpness-aware optimization through variance suppression
  <https://arxiv.org/abs/2309.15639>`_, 2023
  Li et al., `Friendly sharpness-aware minimization <https://arxiv.org/abs/2403.12350>`_, 2024
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.loss import NO_LOSS, BatchLoss


class RunningMeanState(NamedTuple):
    """State of `running_mean` and of `subtract_running_mean`.

    Attributes:
      mean_count: number of gradients seen; int32.
      running_mean: running mean m of the gradients; like the parameters, float32 or wider, or in
        `state_dtype`: 4 bytes per parameter, 2 in bfloat16.
    """

    mean_count: jax.Array
    running_mean: optax.Updates

    def for_later_ascents(self, new: "RunningMeanState") -> "RunningMeanState":
        """Returns m_{t-1}, which every ascent of the step uses."""
        return self


def running_mean(decay: float = 0.9, *, state_dtype: Any = None) -> optax.GradientTransformationExtraArgs:
    """Maps a gradient to the running mean m_t = λ m_{t-1} + (1 − λ) g_t, with m_1 = g_1.

    Args:
      decay: λ in [0, 1). 0 is the gradient itself.
      state_dtype: dtype in which m is kept, as Optax's `mu_dtype`; None: float32 or wider.

    Returns:
      A gradient transformation with `RunningMeanState`, to put in front of `steepest_ascent`.

    Raises:
      ValueError: if the decay is outside [0, 1).

    Cost: no gradient; memory for m, 4 bytes per parameter, 2 in bfloat16. With `m_sharpness=True` a device's
    m_t contains its own gradient, and what is kept is the average: one more all-reduce.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.running_mean(decay=0.75)
      >>> state = stage.init(jnp.zeros(1))
      >>> for gradient in (1.0, 5.0):
      ...     mean, state = stage.update(jnp.array([gradient]), state)
      >>> mean.tolist()
      [2.0]
    """

    def mean(gradient: optax.Updates, state: RunningMeanState) -> optax.Updates:
        kept = tree_math.widened(state.running_mean, gradient)
        return tree_math.cast_like(tree_math.mix(_weight(decay, state), kept, gradient), gradient)

    return _stage(mean, decay, state_dtype)


def subtract_running_mean(
    sigma: float = 1.0, decay: float = 0.9, *, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Maps a gradient to g_t − σ m_{t-1}, and the first one to itself.

    Args:
      sigma: σ; 1 in the authors' code.
      decay: decay λ of the running mean, in [0, 1); 0.9 in the authors' code, 0.6 and 0.95 in their runs.
      state_dtype: dtype in which m is kept, as Optax's `mu_dtype`; None: float32 or wider.

    Returns:
      A gradient transformation with `RunningMeanState`, to put in front of `steepest_ascent`.

    Raises:
      ValueError: if sigma is negative, or the decay outside [0, 1).

    Cost: as `running_mean`.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.subtract_running_mean(sigma=1.0, decay=0.75)
      >>> state = stage.init(jnp.zeros(1))
      >>> for gradient in (1.0, 5.0):
      ...     rest, state = stage.update(jnp.array([gradient]), state)
      >>> rest.tolist(), state.running_mean.tolist()
      ([4.0], [2.0])
    """
    checks.check_number("sigma", sigma)

    def rest(gradient: optax.Updates, state: RunningMeanState) -> optax.Updates:
        one = jnp.ones((), tree_math.accumulation_dtype(gradient))
        factor = jnp.where(state.mean_count == 0, 0, -jnp.asarray(sigma, one.dtype))
        difference = tree_math.combine(one, gradient, factor, state.running_mean)
        nothing = tree_math.is_rounding(tree_math.norm(difference), tree_math.norm(gradient))
        return tree_math.scale(jnp.where(nothing, 0, one), difference)

    return _stage(rest, decay, state_dtype)


def _stage(
    direction: Callable[[optax.Updates, RunningMeanState], optax.Updates], decay: float, state_dtype: Any
) -> optax.GradientTransformationExtraArgs:
    """Returns the stage that maps g to `direction(g, state)` and then includes g in the mean."""
    checks.check_number("decay", decay, below=1.0)
    checks.check_state_dtype(state_dtype)

    def init(params: optax.Params) -> RunningMeanState:
        return RunningMeanState(jnp.zeros((), jnp.int32), tree_math.zeros_like(params, state_dtype))

    def update(
        updates: optax.Updates,
        state: RunningMeanState,
        params: optax.Params | None = None,
        *,
        loss: BatchLoss = NO_LOSS,
        ascent_step: int = 0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RunningMeanState]:
        checks.check_whole(updates)
        mapped = direction(updates, state)
        if ascent_step == 0:
            state = _observed(loss.average(updates), state, decay)
        return mapped, state

    return optax.GradientTransformationExtraArgs(init, update)


def _weight(decay: float, state: RunningMeanState) -> jax.Array:
    """Returns λ, and 0 for the first gradient."""
    return jnp.where(state.mean_count == 0, 0.0, decay)


def _observed(gradient: optax.Updates, state: RunningMeanState, decay: float) -> RunningMeanState:
    """Returns the state after a gradient, or as it was if the gradient is not finite."""
    is_seen = jnp.isfinite(tree_math.norm(gradient))
    mean = tree_math.mix(_weight(decay, state), state.running_mean, gradient)
    return RunningMeanState(
        jnp.where(is_seen, optax.safe_increment(state.mean_count), state.mean_count),
        tree_math.where(is_seen, mean, state.running_mean),
    )
