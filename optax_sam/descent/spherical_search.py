"""Spherical search: the descent direction of XSAM.

SAM steps against the gradient at w + ε as if the worst point near w lay in that direction. XSAM searches: on
the arc from ε's direction v₀ through the gradient's v₁ and beyond it, it chooses the direction in which the
loss at distance ρ_m from w is largest, and keeps the angle until the next search:

    v₀ = ε/‖ε‖,   v₁ = g'/‖g'‖,   ψ = arccos⟨v₀, v₁⟩
    v(α) = [sin((1−α)ψ) v₀ + sin(αψ) v₁] / sin ψ
    α* = argmax L(w + ρ_m v(α))  over  α ∈ {0, ..., α_max}     on refresh
    d = ‖g'‖ v(α*)

α = 1 is SAM, α = 0 the authors' "SGD+" (ε's direction, the length of g'), α > 1 goes beyond v₁ on purpose.

Symbols: g' `updates`, ε `perturbation`, ρ_m `rho_max`, α* `alpha`.

Deviations from the authors' code (Cccjl219/XSAM): a negative loss can be the largest (theirs starts the
running maximum at 0), and a non-finite loss is ignored; if v₀ = −v₁, which spans no arc, d = g' (theirs:
d = 0). If several losses are the largest up to rounding, the last α* is kept if it is one of them, else the
first maximum is taken (theirs: always the first). So α* does not change when nothing can be compared: if
there is no arc, as for ρ = 0, or if the loss is too coarse.

A loss computed in 16 bits *is* too coarse: its 21 values are often equal. The model may compute in bfloat16,
but cast its outputs to float32 before the loss. To compare ⟨∇L(w + ρ_m v/2), ρ_m v⟩ instead, which bfloat16
resolves better than a small difference of losses, takes twice as long and is no better, so it is not offered.

References:
  Chen and Zhou, `Revisiting sharpness-aware minimization: a more faithful and effective
  implementation <https://arxiv.org/abs/2603.10048>`_, 2026
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.loss import NO_LOSS, BatchLoss
from optax_sam.platforms import is_traced
from optax_sam.refresh import refreshed
from optax_sam.schedules import radius_at


class SphericalSearchState(NamedTuple):
    """State of `spherical_search`.

    Attributes:
      alpha: α* of the last search, a scalar; 1 (SAM's direction) before the first.
    """

    alpha: jax.Array

    @property
    def is_shared(self) -> bool:
        """Whether it is the same on all devices: it comes of losses that are averages over them."""
        return True


def spherical_search(
    rho_max: optax.ScalarOrSchedule,
    *,
    alpha_max: float = 2.0,
    num_alphas: int = 21,
    interval: int = 100,
) -> optax.GradientTransformationExtraArgs:
    """Maps the gradient g' at w + ε to d = ‖g'‖ v(α*), where v(α*) is the worst direction on an arc.

    Args:
      rho_max: distance ρ_m from w at which losses are compared, in units of the parameters; a number or a
        schedule of the number of updates made. 0.3, twice `rho`, in the paper.
      alpha_max: largest α; 2 in the paper.
      num_alphas: number of equidistant α from 0 to `alpha_max`, at least 2; 21 in the paper.
      interval: steps from one search to the next with `refresh=None`. The authors search at the first
        batch of every epoch (of 400 steps) and find that the interval hardly matters; at the best radius we
        found otherwise (docs/evidence/claims.md).

    Returns:
      A gradient transformation g' ↦ d with `SphericalSearchState`, for the descent of `sharpness_aware`. It
      reads the extra arguments `perturbation` and `loss`.

    Raises:
      ValueError: if `rho_max` is negative, the interval below 1, `num_alphas` below 2, or if `update` gets no
        perturbation.
      TypeError: if `num_alphas` is not a Python integer.

    Cost: `num_alphas` forward passes on refresh steps; on others two norms and an inner product. No memory.

    With `m_sharpness=True` each device has its own arc, through its own ε and g'. α* is one for all, since it
    is kept: it maximises the mean of the devices' losses, each on its own arc.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> loss = lambda w: jnp.sum(jnp.array([1.0, 9.0]) * w**2)
      >>> tx = optax_sam.xsam(rho=0.1, rho_max=2.0)
      >>> w = jnp.ones(2)
      >>> _, state = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
      >>> bool(optax.tree.get(state, "alpha") > 1.0)
      True
    """
    checks.check_radius("rho_max", rho_max)
    checks.check_number("alpha_max", alpha_max)
    checks.check_count("num_alphas", num_alphas)
    if num_alphas == 1:
        raise ValueError(
            "`num_alphas` is the number of directions to compare and must be at least 2. With one, only"
            " α = 0, the direction of the perturbation, would be left. Without a search (α = 1) the method"
            " is `optax_sam.sam(rho)`."
        )
    checks.check_interval(interval)

    def init(params: optax.Params) -> SphericalSearchState:
        return SphericalSearchState(alpha=jnp.ones((), tree_math.accumulation_dtype(params)))

    def update(
        updates: optax.Updates,
        state: SphericalSearchState,
        params: optax.Params | None = None,
        *,
        loss: BatchLoss = NO_LOSS,
        perturbation: optax.Updates | None = None,
        step_count: jax.Array | int = 0,
        refresh: bool | jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SphericalSearchState]:
        if perturbation is None:
            raise ValueError(
                "`spherical_search` searches between the perturbation and the gradient it led to, but"
                " got no `perturbation`: use it as the descent of `sharpness_aware(steepest_ascent(rho),"
                " spherical_search(rho_max))`."
            )
        inverse_0 = tree_math.reciprocal_or_zero(tree_math.norm(perturbation))
        length = tree_math.norm(updates)
        inverse_1 = tree_math.reciprocal_or_zero(length)
        cosine = jnp.clip(tree_math.vdot(perturbation, updates) * inverse_0 * inverse_1, -1, 1)
        # If one of the two is zero, there is no arc, and the direction is the gradient's.
        cosine = jnp.where(inverse_0 * inverse_1 == 0, -1, cosine)

        def point(alpha: jax.Array, radius: jax.Array) -> optax.Updates:
            """Returns radius · v(α), in the dtypes of the gradient."""
            weight_0, weight_1 = slerp(alpha, cosine)
            return tree_math.combine(
                radius * weight_1 * inverse_1, updates, radius * weight_0 * inverse_0, perturbation
            )

        def search() -> jax.Array:
            if loss.value_fn is None:
                raise ValueError(
                    "`spherical_search` compares losses, so it needs `value_fn` even if `grad_fn` is"
                    " given: `tx.update(grads, state, params, value_fn=value_fn, grad_fn=grad_fn)`."
                )
            radius = radius_at(rho_max, step_count, "rho_max")
            alphas = jnp.linspace(0, alpha_max, num_alphas, dtype=state.alpha.dtype)
            value = lambda alpha: loss.value(tree_math.add(params, point(alpha, radius)))
            if is_traced(params):
                losses = jax.lax.map(value, alphas)
            else:  # Without `jit` the loop would be compiled again at every search.
                losses = jnp.stack([value(alpha) for alpha in alphas])
            return _worst(alphas, losses, state.alpha)

        alpha = refreshed(refresh, step_count, interval, search, state.alpha)
        return point(alpha, length), SphericalSearchState(alpha)

    return optax.GradientTransformationExtraArgs(init, update)


def _worst(alphas: jax.Array, losses: jax.Array, last: jax.Array) -> jax.Array:
    """Returns the last α if its loss is the largest up to rounding, else the first α of the largest loss."""
    is_finite = jnp.isfinite(losses)
    largest = jnp.max(jnp.where(is_finite, losses, -jnp.inf))
    # In 16 bits only equal losses count as equal: a tolerance of their few digits hides most differences.
    rounding = 4 * min(jnp.finfo(losses.dtype).eps, jnp.finfo(jnp.float32).eps) * jnp.abs(largest)
    is_as_large = is_finite & (losses >= largest - rounding)
    stays = jnp.all(is_as_large) | jnp.any(is_as_large & (jnp.abs(alphas - last) < 1e-6))
    best = jnp.argmax(jnp.where(is_finite, losses, -jnp.inf))
    return jnp.where(stays | ~jnp.any(is_finite), last, alphas[best])


def slerp(alpha: jax.Array, cosine: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the weights of v₀ and v₁ in v(α)."""
    # Near −1, arccos cannot resolve less than the square root of the rounding error.
    smallest = jnp.where(cosine > 0, 1e-8, 4 * jnp.finfo(cosine.dtype).eps ** 0.5)
    is_degenerate = jnp.sin(jnp.arccos(jax.lax.stop_gradient(cosine))) < smallest
    # Not at ±1, where the derivative of arccos is infinite.
    angle = jnp.arccos(jnp.where(is_degenerate, 0, cosine))
    sine = jnp.sin(angle)
    inverse = 1 / sine
    degenerate_0 = jnp.where(cosine > 0, 0.5, 0.0).astype(sine.dtype)
    return (
        jnp.where(is_degenerate, degenerate_0, jnp.sin((1 - alpha) * angle) * inverse),
        jnp.where(is_degenerate, 1 - degenerate_0, jnp.sin(alpha * angle) * inverse),
    )
