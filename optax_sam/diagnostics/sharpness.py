"""Sharpness as SAM sees it: how much the loss rises at the perturbation that a linear model says is worst.

    ε = ρ argmax ⟨g, ε⟩ over ‖T⁻¹ ε‖_p ≤ 1,    sharpness  L(w + ε) − L(w),    its linear model  ⟨g, ε⟩

For p = 2, ε is as in `steepest_ascent`, ρ T² g/‖T g‖, and the linear model predicts ρ ‖T g‖; any further
rise is due to curvature.

Symbols: g the gradient at w, T `constraint`, ρ `rho`, p `ord`.

References:
  Foret et al., `Sharpness-aware minimization for efficiently improving generalization
  <https://arxiv.org/abs/2010.01412>`_, 2021
  Kwon et al., `ASAM: Adaptive sharpness-aware minimization for scale-invariant learning of deep neural
  networks <https://arxiv.org/abs/2102.11600>`_, 2021
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import optax

from optax_sam import checks, tree_math
from optax_sam.batches import value_and_gradient_over, value_over
from optax_sam.diagnostics.ball import check_ball, make_ball


class Sharpness(NamedTuple):
    """Result of `sharpness`.

    Attributes:
      sharpness: L(w + ε) − L(w), a scalar.
      linear: ⟨g, ε⟩ = ρ ‖T g‖, the sharpness of the linear model of the loss; a scalar.
      perturbation: ε, like the parameters, float32 or wider.
    """

    sharpness: jax.Array
    linear: jax.Array
    perturbation: optax.Params


def sharpness(
    value_fn: Callable[..., jax.Array],
    params: optax.Params,
    rho: float | jax.Array,
    *,
    ord: float = 2,
    constraint: optax.GradientTransformation | None = None,
    batches: Iterable[Any] | None = None,
) -> Sharpness:
    """Measures the rise of the loss at SAM's perturbation: L(w + ε) − L(w).

    It is a lower bound of the worst case, and equals the loss that SAM minimises minus L(w).

    Args:
      value_fn: the loss L, `value_fn(params)`, or `value_fn(params, batch)` with `batches`.
      params: parameters w, a pytree.
      rho: radius ρ of the ball ‖T⁻¹ ε‖_p ≤ ρ, in units of T⁻¹ w. The same ρ is comparable between
        two networks only if their weights are of the same size, or if T scales with that size.
      ord: p, 2 or `jnp.inf`.
      constraint: a stage that maps the gradient to the diagonal of T, as of `steepest_ascent`, such as
        `optax_sam.weight_magnitude()` for ASAM's adaptive sharpness. None is T = 1.
      batches: data set over which the loss is averaged; see `optax_sam.curvature.hessian_operator`.

    Returns:
      `Sharpness`.

    Raises:
      ValueError: if `rho` is negative, or `ord` is not 2 or `jnp.inf`.

    Cost: a gradient and a forward pass.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import diagnostics
      >>> loss = lambda w: 0.5 * jnp.sum(w**2)
      >>> found = diagnostics.sharpness(loss, jnp.array([3.0, 4.0]), 0.1)
      >>> [round(float(x), 4) for x in found[:2]]  # ((5 + 0.1)² − 5²) / 2, 0.1 · 5
      [0.505, 0.5]
    """
    checks.check_loss(value_fn, params)
    check_ball(rho, ord, constraint)
    params = tree_math.full_precision(params)
    value, gradient = value_and_gradient_over(value_fn, params, batches)(params)
    ball = make_ball(rho, constraint, gradient, params)
    perturbation = ball.perturbation(ball.steepest_ascent(gradient, ord))
    perturbed = value_over(value_fn, params, batches)(tree_math.add(params, perturbation))
    return Sharpness(
        sharpness=perturbed - value,
        linear=tree_math.vdot(gradient, perturbation),
        perturbation=perturbation,
    )
