"""A perturbation that is smaller where past gradients were large: the adaptive form of RWP.

    ε_f = e_f / √(1 + η F_f),    e = ascent(g),    g' = ∇L(w + ε),    d = descent(g')
    F ← β F + g'²                                                              (F_0 = 0)

F_f is the sum of F over the filter f, and in an array with one axis or none F itself, entry by entry. The
noise of a step uses the F of before it, so ε does not wait for a gradient.

Symbols: F `running_fisher` of the state, η `eta`, β `decay`.

Deviations from the authors' code (nblt/mARWP): a gradient g' that is not finite leaves F as it is; on several
devices F comes of the averaged g'.

References:
  Li et al., `Revisiting random weight perturbation for efficiently improving generalization
  <https://arxiv.org/abs/2404.00357>`_, 2024
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, filters, tree_math
from optax_sam.sharpness_aware import SharpnessAwareState, sharpness_aware


class RunningFisherState(NamedTuple):
    """What `running_fisher` learns.

    Attributes:
      running_fisher: F, the decayed sum of the squared gradients at the perturbed points; like the
        parameters, float32 or wider: 4 bytes per parameter. (With β = 0.99 a step changes F by less than
        bfloat16 resolves.)
    """

    running_fisher: optax.Updates


def running_fisher(
    ascent: optax.GradientTransformation,
    descent: optax.GradientTransformation = optax.identity(),  # noqa: B008 (immutable)
    *,
    eta: float = 0.1,
    decay: float = 0.99,
    filter_axis: filters.FilterAxis = -1,
) -> optax.GradientTransformationExtraArgs:
    """Builds a sharpness-aware method whose ε is divided by √(1 + η F), F a running sum of g'².

    `update` takes the arguments of `sharpness_aware`.

    Args:
      ascent: transformation of a gradient into a perturbation e, such as
        `optax.chain(random_normal(), scale_by_filter_norm(0.015))`.
      descent: transformation of g' into the direction for the base optimizer.
      eta: η; 0.1 in the authors' runs, 1 the default of their code.
      decay: β, in [0, 1); 0.99 in the authors' runs, 0.9 the default of their code.
      filter_axis: the axis that counts the filters, over whose other axes F is summed; see
        `scale_by_filter_norm`.

    Returns:
      A gradient transformation with `SharpnessAwareState`.

    Raises:
      ValueError: if eta is negative, or the decay outside [0, 1).

    Cost: as `sharpness_aware`. Memory for F: 4 bytes per parameter.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> noise = optax.chain(optax_sam.random_normal(), optax_sam.scale_by_filter_norm(0.1))
      >>> tx = optax.chain(optax_sam.running_fisher(noise, eta=1.0), optax.sgd(0.1))
      >>> loss = lambda w: jnp.sum(w**2)
      >>> w = jnp.array([3.0, 0.0])
      >>> _, state = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
      >>> bool(optax.tree.get(state, "running_fisher")[0] > 10)
      True
    """
    checks.check_number("eta", eta)
    checks.check_number("decay", decay, below=1.0)
    checks.check_stage("ascent", ascent)
    checks.check_stage("descent", descent)
    filters.check_filter_axis(filter_axis)
    ascent = optax.with_extra_args_support(ascent)

    def divided(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        running_fisher: optax.Updates,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        epsilon, state = ascent.update(updates, state, params, **extra_args)
        fisher = filters.totals(tree_math.full_precision(running_fisher), filter_axis, whole=False)
        leaf = lambda e, f: e.astype(f.dtype) * jax.lax.rsqrt(1 + jnp.asarray(eta, f.dtype) * f)
        return tree_math.cast_like(jax.tree.map(leaf, epsilon, fisher), updates), state

    adapted = optax.GradientTransformationExtraArgs(ascent.init, divided)
    method = sharpness_aware(adapted, optax.chain(_sum_of_squares(decay), descent))

    def update(
        updates: optax.Updates,
        state: SharpnessAwareState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SharpnessAwareState]:
        checks.check_params(updates, params)
        checks.check_state(state, SharpnessAwareState)
        fisher = state.descent[0].running_fisher
        return method.update(updates, state, params, running_fisher=fisher, **extra_args)

    return optax.GradientTransformationExtraArgs(method.init, update)


def _sum_of_squares(decay: float) -> optax.GradientTransformation:
    """Returns a stage that passes g' on and adds up its squares."""

    def init(params: optax.Params) -> RunningFisherState:
        return RunningFisherState(tree_math.zeros_like(params))

    def update(
        updates: optax.Updates, state: RunningFisherState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, RunningFisherState]:
        squares = jax.tree.map(lambda g: g**2, tree_math.full_precision(updates))
        total = tree_math.total(squares)
        learnt = tree_math.combine(
            jnp.asarray(decay, total.dtype), state.running_fisher, jnp.ones_like(total), squares
        )
        return updates, RunningFisherState(tree_math.where(jnp.isfinite(total), learnt, state.running_fisher))

    return optax.GradientTransformation(init, update)
