"""Gradient noise: the objective of infoSAM.

Noise in a mini-batch gradient turns SAM's ε away from the true worst direction. Weighting each coordinate
of g by its information, the inverse noise variance, turns it back:

    m_t = a m_{t-1} + (1 − a) g_t,   b_t = (m_t − g_t)²           (m_1 = g_1)
    σ²_t = mean of b_2 ... b_t with weights λ^(t-s)               (σ²_1 = 1: the first step is SAM's)
    C = (σ² + δ s²)^(-p)                                  s² the mean of σ² over all parameters

If each device passes its own gradient g_i (m-sharpness), one step is enough to measure the noise: with
`across_devices`, b_t = mean over i of (g_i − ḡ)², which does not contain the drift of the gradient.

Symbols: a `decay`, m `gradient_mean`, λ `variance_decay`, σ² `noise_variance`, δ `damping`, p `power`.

Deviations from the authors' code (BingcongLi/VaSSO, first commit), which λ = 0, δ = 0, p = 1 reproduces: by
default the variance is averaged and damped, because one squared deviation is a very noisy estimate and
its inverse is huge where it happens to be small. The estimator of the published version could not be
confirmed. Where σ² + δ s² is below the rounding error of s², that bound is used instead (theirs: NaN).

References:
  Zhang, Li and Giannakis, `Preconditioned sharpness-aware minimization: unifying analysis
  and a novel learning algorithm <https://arxiv.org/abs/2501.06603>`_, 2025
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.loss import NO_LOSS, BatchLoss


class GradientNoiseState(NamedTuple):
    """State of `gradient_noise`.

    Attributes:
      noise_count: number of gradients seen; int32.
      gradient_mean: running mean m of the gradients; like the parameters, float32 or wider, or in
        `state_dtype`: 4 bytes per parameter, 2 in bfloat16.
      noise_variance: running mean σ² of the squared deviations; like the parameters, float32 or wider: 4
        bytes per parameter.
    """

    noise_count: jax.Array
    gradient_mean: optax.Updates
    noise_variance: optax.Updates


def gradient_noise(
    decay: float = 0.9,
    *,
    variance_decay: float = 0.99,
    damping: float = 1.0,
    power: float = 1.0,
    across_devices: bool = False,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Maps a gradient to the diagonal C = (σ² + δ s²)^(-p) of the objective ⟨C g, ε⟩.

    The scale of C does not matter to `steepest_ascent`. By default the noise is estimated over *time*: this
    mixes the noise of the batches with the drift of the gradient, which is slow for small learning rates.

    The defaults were chosen on validation images. Averaging and a damping as large as the mean variance
    matter most. `power=0.5` was better than the paper's 1, and `decay` hardly mattered.

    Args:
      decay: a in [0, 1), decay of the running mean of the gradient; 0.9 in the authors' code.
      variance_decay: λ in [0, 1), decay of the running mean of the squared deviations, which is corrected
        for its initial value. 0 in the authors' code.
      damping: δ, in units of the mean of σ² over all parameters, which adapts to the scale of the loss. 0 in
        the authors' code.
      power: p; 1 is the inverse variance, 1/2 the inverse standard deviation, 0 is SAM. Above 1,
        gradients under 1e-6 overflow float32.
      across_devices: whether b is the variance over the devices, each of which passes its own gradient
        (`m_sharpness=True` at `update`), instead of the squared deviation from the running mean. σ² is then
        the variance of one device's gradient (a mean over N devices, not N − 1), and `decay` is not used.
      state_dtype: dtype in which m is kept, as Optax's `mu_dtype`; None: float32 or wider. σ² is float32 or
        wider: with λ = 0.99 a step changes it by less than bfloat16 resolves.

    Returns:
      A gradient transformation for `steepest_ascent(rho, objective=...)` with `GradientNoiseState`. The
      diagonal has the shapes of the gradient and is float32 or wider.

    Raises:
      ValueError: on a decay outside [0, 1) or a negative damping or power; at trace time, on
        `across_devices` without `m_sharpness=True`.

    Cost: no gradient; memory for m and σ², 8 bytes per parameter, 6 with m in bfloat16. With
    `m_sharpness=True` one more all-reduce, with `across_devices` two.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.gradient_noise(decay=0.5, damping=0.0)
      >>> state = stage.init(jnp.zeros(2))
      >>> for gradient in ([1.0, 1.0], [3.0, 1.5]):
      ...     diagonal, state = stage.update(jnp.array(gradient), state)
      >>> state.noise_variance.tolist(), diagonal.tolist()
      ([1.0, 0.0625], [1.0, 16.0])
    """
    checks.check_number("decay", decay, below=1.0)
    checks.check_number("variance_decay", variance_decay, below=1.0, rounded=True)
    checks.check_number("damping", damping)
    checks.check_number("power", power)
    checks.check_state_dtype(state_dtype)

    def init(params: optax.Params) -> GradientNoiseState:
        zeros = tree_math.zeros_like(params)
        return GradientNoiseState(
            noise_count=jnp.zeros((), jnp.int32),
            gradient_mean=tree_math.zeros_like(params, state_dtype),
            noise_variance=jax.tree.map(jnp.ones_like, zeros),
        )

    def update(
        updates: optax.Updates,
        state: GradientNoiseState,
        params: optax.Params | None = None,
        *,
        loss: BatchLoss = NO_LOSS,
        ascent_step: int = 0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GradientNoiseState]:
        checks.check_whole(updates)
        if ascent_step == 0:
            mean = loss.average(updates)
            variance = variance_across_devices(updates, mean, loss) if across_devices else None
            state = observe(mean, variance, state)
        return inverse(state.noise_variance), state

    def observe(
        gradient: optax.Updates, square: optax.Updates | None, state: GradientNoiseState
    ) -> GradientNoiseState:
        # A gradient that is not finite, as in mixed precision with too large a loss scale, is ignored.
        is_seen = jnp.isfinite(tree_math.computed_once(tree_math.norm(gradient)))
        finite = lambda tree: jax.tree.map(lambda x: jnp.where(is_seen, x, 0), tree)

        a = jnp.where(state.noise_count == 0, 0.0, decay)
        gradient = finite(gradient)
        kept = tree_math.widened(state.gradient_mean, gradient)
        gradient_mean = tree_math.mix(jnp.where(is_seen, a, 1.0), kept, gradient)

        # (1 − λ)/(1 − λ^n) is the weight of the n-th of n squares. The first gradient does not deviate from
        # its own running mean, so over time the n-th square comes with gradient n + 1.
        if square is None:
            square = jax.tree.map(lambda m, g: (m - g.astype(m.dtype)) ** 2, gradient_mean, gradient)
            num_squares = state.noise_count
        else:
            square = finite(square)
            num_squares = state.noise_count + 1
        ratio = jnp.asarray(variance_decay)
        log_decay = jnp.log(ratio.astype(tree_math.accumulation_dtype(ratio)))
        n = num_squares.astype(log_decay.dtype)
        # Exactly 0 and 1 at first: a rounding error here would keep a part of the initial σ² = 1, which
        # is large compared with the variance of small gradients. A λ that rounds to 1 gives the plain mean.
        is_one = log_decay == 0
        log_decay = jnp.where(is_one, -1, log_decay)
        weight = jnp.expm1(log_decay) / jnp.expm1(jnp.maximum(n, 1) * log_decay)
        weight = jnp.where(n <= 1, n, jnp.where(is_one, 1 / jnp.maximum(n, 1), weight))
        noise_variance = tree_math.mix(jnp.where(is_seen, 1 - weight, 1.0), state.noise_variance, square)
        count = jnp.where(is_seen, optax.safe_increment(state.noise_count), state.noise_count)
        gradient_mean = tree_math.cast_like(gradient_mean, state.gradient_mean)
        return GradientNoiseState(count, gradient_mean, noise_variance)

    def inverse(noise_variance: optax.Updates) -> optax.Updates:
        mean = tree_math.total(noise_variance) / max(tree_math.size(noise_variance), 1)

        def damping_and_bound(dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
            added, smallest = (damping * mean).astype(dtype), jnp.finfo(dtype).eps * mean.astype(dtype)
            # Without noise and damping no coordinate is preferred: C = 1.
            smallest = jnp.where(added + smallest == 0, 1, smallest)
            once = tree_math.computed_once(jnp.stack([added, smallest]))
            return once[0], once[1]

        dtypes = dict.fromkeys(x.dtype for x in jax.tree.leaves(noise_variance))
        scalars = {dtype: damping_and_bound(dtype) for dtype in dtypes}

        def leaf(variance: jax.Array) -> jax.Array:
            added, smallest = scalars[variance.dtype]
            return jnp.maximum(variance + added, smallest) ** -power

        return jax.tree.map(leaf, noise_variance)

    return optax.GradientTransformationExtraArgs(init, update)


def variance_across_devices(gradient: optax.Updates, mean: optax.Updates, loss: BatchLoss) -> optax.Updates:
    """Returns the mean over the devices of (g_i − ḡ)², in float32 or wider."""
    if not loss.m_sharpness:
        raise ValueError(
            "`across_devices=True` compares the gradients of the devices, so each must pass its own:"
            ' `tx.update(grads, ..., axis_name="batch", m_sharpness=True)`, without `jax.lax.pmean` of the'
            " gradients."
        )
    dtype = tree_math.accumulation_dtype(gradient)
    square = lambda g, m: (g.astype(dtype) - m.astype(dtype)) ** 2
    return loss.average(jax.tree.map(square, gradient, mean))
