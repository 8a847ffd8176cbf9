"""Average-case sharpness: how much the loss rises on average under random noise in the parameters.

    E[L(w + ε)] − L(w),   ε = T z,   z normal with independent entries of standard deviation σ

To second order this is ½ σ² tr(T H T): each of the n parameters has the same noise, so ‖T⁻¹ ε‖ ≈ σ √n, and
random directions are rarely sharp. To compare with a ball of radius ρ take σ = ρ/√n, which
gives ρ² tr H/(2n) where the worst case is ½ ρ² λ_max.

z and −z are used in pairs, which cancels the gradient and all odd orders. The expectation is the same, and
for small σ the error is far smaller.

Symbols: σ `sigma` (ρ in the paper), T `constraint`.

Deviations from the authors' code (tml-epfl/sharpness-vs-generalization): pairs ±z; with batches, the same z
for all of them (theirs: different ones).

References:
  Andriushchenko et al., `A modern look at the relationship between sharpness and generalization
  <https://arxiv.org/abs/2302.07011>`_, 2023
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, keys, tree_math
from optax_sam.batches import over_batches, value, value_and_gradient_over
from optax_sam.diagnostics.ball import Ball, check_ball, make_ball
from optax_sam.loss import ValueFn


class AverageCaseSharpness(NamedTuple):
    """Result of `average_case_sharpness`.

    Attributes:
      estimate: of E[L(w + ε)] − L(w), a scalar.
      standard_error: of the estimate: the standard deviation of the pairs over the square root of their
        number.
    """

    estimate: jax.Array
    standard_error: jax.Array


def average_case_sharpness(
    value_fn: Callable[..., jax.Array],
    params: optax.Params,
    sigma: float | jax.Array,
    *,
    constraint: optax.GradientTransformation | None = None,
    num_samples: int = 50,
    key: jax.Array | int = 0,
    batches: Iterable[Any] | None = None,
    progress: bool = False,
) -> AverageCaseSharpness:
    """Estimates the mean rise of the loss under Gaussian noise: E[L(w + ε)] − L(w), ε = σ T × normal.

    Args:
      value_fn: the loss L, `value_fn(params)`, or `value_fn(params, batch)` with `batches`.
      params: parameters w, a pytree.
      sigma: standard deviation σ of the noise of each parameter, in units of T. The noise of n parameters
        is about σ √n long.
      constraint: a stage that maps the gradient at w to the diagonal of T; see `worst_case_sharpness`. None
        is T = 1.
      num_samples: number of pairs ±ε, at least 2; the error falls with its square root. The paper takes 100
        single samples.
      key: of the noise, a random key or an integer.
      batches: data set over which the loss is averaged; see `optax_sam.curvature.hessian_operator`.
      progress: whether to show a progress bar, which counts the batches; needs tqdm. Without
        `batches` all samples are computed at once, as one.

    Returns:
      `AverageCaseSharpness`, with the standard error.

    Raises:
      ValueError: if `sigma` is negative, or if there are fewer than two samples, which give no standard
        error.

    Cost: 2 `num_samples` + 1 forward passes, one after another, in constant memory; one gradient for T.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import diagnostics
      >>> loss = lambda w: jnp.sum(jnp.cos(w)) + 100 * jnp.sum(w)
      >>> found = diagnostics.average_case_sharpness(loss, jnp.zeros(1000), 0.1)
      >>> bool(abs(found.estimate - 1000 * (jnp.exp(-0.1**2 / 2) - 1)) < 3 * found.standard_error)
      True
    """
    checks.check_loss(value_fn, params)
    checks.check_number("sigma", sigma)
    check_ball(0, 2, constraint)
    checks.check_count("num_samples", num_samples)
    if num_samples < 2:
        raise ValueError("`num_samples` must be at least 2, because one sample has no standard error.")
    params = tree_math.full_precision(params)
    ball = Ball(jnp.asarray(sigma, tree_math.accumulation_dtype(params)), None)
    if constraint is not None:
        _, gradient = value_and_gradient_over(value_fn, params, batches)(params)
        ball = make_ball(sigma, constraint, gradient, params)
    zeros = lambda: jnp.zeros(num_samples, ball.radius.dtype)
    mean_rises = over_batches(_mean_rises, value_fn, batches, zeros=zeros, progress=progress)
    rises = mean_rises(params, ball, tree_math.random_key(key), jnp.arange(num_samples))
    return AverageCaseSharpness(jnp.mean(rises), jnp.std(rises, ddof=1) / num_samples**0.5)


def _mean_rises(
    loss: ValueFn, params: optax.Params, ball: Ball, key: jax.Array, indices: jax.Array
) -> jax.Array:
    """Returns ½ [L(w + ε) + L(w − ε)] − L(w) for each sample."""
    at_w = value(loss, params)

    def mean_rise(index: jax.Array) -> jax.Array:
        noise = tree_math.random_vector(keys.fold_in(key, index), params)
        epsilon = ball.perturbation(tree_math.scale(ball.radius, noise))
        plus = value(loss, tree_math.add(params, epsilon))
        minus = value(loss, jax.tree.map(jnp.subtract, params, epsilon))
        return ((plus - at_w) + (minus - at_w)) / 2

    return jax.lax.map(mean_rise, indices)
