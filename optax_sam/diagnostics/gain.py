"""The gain of a perturbation: how good an ascent is, against the best that is found at the same radius.

    gain  L(w + ε) − L(w)        best  max L(w + ε') − L(w)  over  ‖T⁻¹ ε'‖_p ≤ ‖T⁻¹ ε‖_p

What a method's ascent is for is a large gain. Gradient noise, a bad preconditioner, rounding and a curved
loss all cost some of it.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import optax

from optax_sam import checks, tree_math
from optax_sam.diagnostics.ball import NORMS, check_ball, make_ball
from optax_sam.diagnostics.losses import full_precision, value_and_gradient_over
from optax_sam.diagnostics.worst_case import (
    Point,
    check_ascents,
    first_and_random_points,
    point_at,
    worst_of,
)


class PerturbationGain(NamedTuple):
    """Result of `perturbation_gain`.

    Attributes:
      gain: L(w + ε) − L(w), a scalar; negative where the loss falls.
      best_gain: the largest rise found in the ball on whose surface ε lies; at least the gain, and at least
        0.
      ratio: the gain over the best one; 1 is perfect. 0 where nothing rises.
      best_perturbation: where the largest rise was found, like the parameters, float32 or wider.
    """

    gain: jax.Array
    best_gain: jax.Array
    ratio: jax.Array
    best_perturbation: optax.Params


def perturbation_gain(
    value_fn: Callable[..., jax.Array],
    params: optax.Params,
    perturbation: optax.Params,
    *,
    ord: float = 2,
    constraint: optax.GradientTransformation | None = None,
    num_iters: int = 20,
    num_restarts: int = 3,
    seed: int = 0,
    batches: Iterable[Any] | None = None,
    progress: bool = False,
) -> PerturbationGain:
    """Compares the rise of the loss at w + ε with the largest one at that radius.

    Args:
      value_fn: the loss L, `value_fn(params)`, or `value_fn(params, batch)` with `batches`. The loss of the
        whole data set shows what noise in the gradient of a batch, of which ε was made, has cost.
      params: parameters w, a pytree.
      perturbation: ε, a pytree like `params`, such as the result of an ascent stage.
      ord: p of the ball, 2 or `jnp.inf`.
      constraint: a stage that maps the gradient at w to the diagonal of T; see `sharpness`.
      num_iters: gradients of each ascent.
      num_restarts: number of ascents besides the one that starts at ε: one from w, the others from
        random points.
      seed: of the random points.
      batches: data set over which the loss is averaged; see `optax_sam.curvature.hessian_operator`.
      progress: whether to show a progress bar; needs tqdm.

    Returns:
      `PerturbationGain`.

    Raises:
      ValueError: if `perturbation` is not like `params`, `ord` another, or a number under 1.

    Cost: that of `worst_case_sharpness` with one more ascent.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> from optax_sam import diagnostics
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 100.0]) * w**2)
      >>> w = jnp.array([1.0, 0.0])  # in a valley, along which the gradient points
      >>> ascent = optax_sam.steepest_ascent(0.1)
      >>> epsilon, _ = ascent.update(jax.grad(loss)(w), ascent.init(w), w)
      >>> found = diagnostics.perturbation_gain(loss, w, epsilon)
      >>> [round(float(x), 3) for x in found[:3]]
      [0.105, 0.505, 0.208]
    """
    check_ball(0, ord, constraint)
    check_ascents(num_iters, num_restarts)
    checks.check_gradient("`perturbation`", perturbation, params)
    params, perturbation = full_precision(params), full_precision(perturbation)
    evaluate = value_and_gradient_over(value_fn, params, batches)
    value, gradient = evaluate(params)
    ball = make_ball(0, constraint, gradient, params)
    position = ball.position(perturbation)
    ball = ball._replace(radius=NORMS[ord].norm(position).astype(ball.radius.dtype))

    given = point_at(evaluate, params, ball, position)
    first = Point(tree_math.zeros_like(params), value, gradient)
    others = first_and_random_points(first, evaluate, params, ball, ord, num_restarts, seed)
    titles = [f"ascent {i + 1}/{num_restarts + 1}" if progress else "" for i in range(num_restarts + 1)]
    starts = itertools.chain([given], others)
    best = worst_of(evaluate, params, ball, ord, starts, value, num_iters, titles)
    gain = given.value - value
    return PerturbationGain(
        gain=gain,
        best_gain=best.sharpness,
        ratio=gain * tree_math.reciprocal_or_zero(best.sharpness),
        best_perturbation=best.perturbation,
    )
