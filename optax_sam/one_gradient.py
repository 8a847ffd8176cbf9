"""A sharpness-aware method at the price of one gradient: the ascent follows the gradients of past steps.

SAM takes two gradients, because its ascent follows the clean gradient of this batch. Here the ascent follows
what is remembered, a running mean m of the gradients g' at past perturbed points:

    ε = ascent(m),    g' = ∇L(w + ε),    d = descent(g'),    m ← decay · m + (1 − decay) · g'        (m_0 = 0)

Nothing reads the clean gradient that is passed to `update`. So under `jit` it is dead code: XLA drops its
backward pass, and the step has the flops of one gradient. The training loop is the same as for every method.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from optax_sam import checks, device_checks, order, tree_math
from optax_sam.sharpness_aware import SharpnessAwareState, sharpness_aware


class RememberedGradientState(NamedTuple):
    """What `one_gradient` remembers.

    Attributes:
      remembered_gradient: running mean m of the gradients at the perturbed points; like the parameters,
        float32 or wider, or in `state_dtype`: 4 bytes per parameter, 2 in bfloat16. 0 at first.
    """

    remembered_gradient: optax.Updates


def one_gradient(
    ascent: optax.GradientTransformation,
    descent: optax.GradientTransformation = optax.identity(),  # noqa: B008 (immutable)
    *,
    decay: float = 0.0,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Builds a sharpness-aware method that takes one gradient per step: ε = ascent(m), m of past steps.

    It goes first in a chain, and `update` takes the arguments of `sharpness_aware`. Return no clean loss from
    the compiled step, and log `ascent_value` of the state, the loss at w + ε, in its place:

        @jax.jit
        def step(params, state, batch):
            value_fn = lambda params: loss(params, batch)
            grads = jax.grad(value_fn)(params)  # not computed: nothing reads it
            updates, state = tx.update(grads, state, params, value_fn=value_fn, keep_ascent_value=True)
            return optax.apply_updates(params, updates), state, optax.tree.get(state, "ascent_value")

    A step that returns the clean loss costs one forward pass more. So does a model with BatchNorm whose
    statistics come from the clean pass.

    Args:
      ascent: transformation of a gradient into a perturbation; here it is given m. With
        `steepest_ascent(rho)` the perturbation is uphill along m. `momentum_sam` has it downhill.
      descent: transformation of g' into the direction for the base optimizer. Its extra argument `grad` is m.
      decay: decay of the running mean, in [0, 1). 0: the ascent follows the last g'.
      state_dtype: dtype in which m is kept, as Optax's `mu_dtype`; None: float32 or wider.

    Returns:
      A gradient transformation with `SharpnessAwareState`. Its result has the structure, shapes and dtypes of
      `updates`, whose values are not used. In the first step ε = 0.

    Raises:
      ValueError, TypeError: as `sharpness_aware`; on a decay outside [0, 1).

    Cost: as the base optimizer under `jit`; without `jit` two gradients, since Python computes the
    clean one. Memory for m, 4 bytes per parameter, 2 in bfloat16, and for ε.

    On several devices m is an average, so there is one ε for all of them: `m_sharpness` has no effect.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax_sam.one_gradient(optax_sam.steepest_ascent(0.1), decay=0.9)
      >>> loss = lambda w: jnp.sum(w**2)
      >>> w = jnp.array([3.0, 4.0])
      >>> state = tx.init(w)
      >>> for _ in range(2):
      ...     direction, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
      >>> round(float(optax.tree.get(state, "ascent_value")), 4)  # (5 + 0.1)²
      26.01
    """
    checks.check_number("decay", decay, below=1.0)
    checks.check_stage("descent", descent)
    checks.check_state_dtype(state_dtype)
    method = sharpness_aware(ascent, optax.chain(_remember(decay, state_dtype), descent))

    def update(
        updates: optax.Updates,
        state: SharpnessAwareState,
        params: optax.Params | None = None,
        *,
        m_sharpness: bool = False,
        observe: Callable[..., None] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SharpnessAwareState]:
        checks.check_params(updates, params)
        checks.check_state(state, SharpnessAwareState)
        observe = order.observers(observe, order.check_nothing_in_between(updates, params))
        device_checks.check_m_sharpness(m_sharpness, extra_args.get("axis_name"))
        remembered = tree_math.widened(state.descent[0].remembered_gradient, params)
        direction, state = method.update(remembered, state, params, observe=observe, **extra_args)
        return tree_math.cast_like(direction, updates), state

    return optax.GradientTransformationExtraArgs(method.init, update)


def _remember(decay: float, state_dtype: Any) -> optax.GradientTransformation:
    """Returns a stage that passes g' on and keeps its running mean. A g' that is not finite is ignored."""

    def init(params: optax.Params) -> RememberedGradientState:
        return RememberedGradientState(tree_math.zeros_like(params, state_dtype))

    def update(
        updates: optax.Updates, state: RememberedGradientState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, RememberedGradientState]:
        is_finite = jax.numpy.isfinite(tree_math.norm(updates))
        mean = tree_math.mix(jax.numpy.asarray(decay), state.remembered_gradient, updates)
        return updates, RememberedGradientState(tree_math.where(is_finite, mean, state.remembered_gradient))

    return optax.GradientTransformation(init, update)
