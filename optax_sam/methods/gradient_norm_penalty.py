"""Gradient norm penalty: the gradient of L + ρ ‖∇L‖, which SAM approximates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, order, tree_math
from optax_sam.curvature.products import check_second_derivative, hessian_vector_product
from optax_sam.devices import AxisName, varying
from optax_sam.loss import BatchLoss, GradFn, ValueFn
from optax_sam.schedules import radius_at
from optax_sam.shards import sums_over_shards


class GradientNormPenaltyState(NamedTuple):
    """State of `gradient_norm_penalty`.

    Attributes:
      step_count: number of updates made, for a schedule of `rho`; int32.
    """

    step_count: jax.Array


@checks.goes_in_front
def gradient_norm_penalty(rho: optax.ScalarOrSchedule = 0.05) -> optax.GradientTransformationExtraArgs:
    """Gradient norm penalty, or explicit gradient regularisation: d = ∇(L + ρ ‖∇L‖) = g + ρ H g/‖g‖.

    SAM's direction ∇L(w + ρ g/‖g‖) is the same to first order in ρ.

    Symbols: g the clean gradient, H the Hessian of the batch loss, ρ `rho`.

    Args:
      rho: weight ρ of the penalty, a number or a schedule of the number of updates made.

    Returns:
      A gradient transformation with `GradientNormPenaltyState` to put in front of a base optimizer. `update`
      takes the arguments of `sharpness_aware`; `curvature_fn` and `refresh` have no effect.

    Raises:
      ValueError: if rho is negative.

    Cost: a Hessian-vector product, about two gradients more than the base optimizer; SAM costs one more.
    With `m_sharpness=True` g, H and d are each device's own, and the mean of d is returned: one all-reduce.

    Deviations from the papers: Zhao et al. approximate the product by a difference of gradients, which is
    `sharpness_aware(steepest_ascent(r), extrapolation(ρ/r))`.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> tx, w = optax_sam.gradient_norm_penalty(rho=0.5), jnp.array([0.0, 1.0])
      >>> tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)[0].tolist()  # 4 + 0.5 · 4
      [0.0, 6.0]

    References:
      Luo et al., `Explicit eigenvalue regularization improves sharpness-aware minimization
      <https://arxiv.org/abs/2501.12666>`_, 2024 (EGR)
      Zhao, Zhang and Hu, `Penalizing gradient norm for efficiently improving generalization in deep learning
      <https://arxiv.org/abs/2202.03599>`_, 2022
    """
    checks.check_radius("rho", rho)

    def init(params: optax.Params) -> GradientNormPenaltyState:
        checks.check_arrays(params)
        return GradientNormPenaltyState(jnp.zeros((), jnp.int32))

    @sums_over_shards
    def update(
        updates: optax.Updates,
        state: GradientNormPenaltyState,
        params: optax.Params | None = None,
        *,
        value_fn: ValueFn | None = None,
        grad_fn: GradFn | None = None,
        axis_name: AxisName = None,
        m_sharpness: bool = False,
        params_axis_name: Any = None,
        observe: Callable[..., None] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GradientNormPenaltyState]:
        checks.check_params(updates, params)
        checks.check_state(state, GradientNormPenaltyState)
        checks.check_spelling(extra_args)
        seen = order.check_nothing_in_between(updates, params)
        loss = BatchLoss(value_fn, grad_fn, None, axis_name, m_sharpness, params_axis_name)
        loss.check_passed(updates, params)
        if observe is not None:
            observe(perturbation=None, ascent_value=None)
        if seen is not None and seen.observe is not None:
            seen.observe(perturbation=updates)  # The direction of the derivative.
        own_params = varying(params, axis_name) if m_sharpness else params
        check_second_derivative(loss.own_gradient, own_params, updates)
        product = hessian_vector_product(loss.own_gradient, own_params, tree_math.unit(updates))
        one = jnp.ones((), tree_math.accumulation_dtype(updates))
        direction = tree_math.combine(one, updates, radius_at(rho, state.step_count) * one, product)
        return loss.average(direction), GradientNormPenaltyState(optax.safe_increment(state.step_count))

    return optax.GradientTransformationExtraArgs(init, update)
