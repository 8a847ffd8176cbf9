"""A method at the price of 1 + 1/k: its direction d is computed every k-th step, and reused in between.

On a refresh step the direction is the method's. What it adds to the clean gradient g is kept: the
unit vector u of the part of d that is orthogonal to g. In between no second gradient is taken:

    refresh:      d = method(g),    r = d − ⟨d, ĝ⟩ ĝ,    u = r/‖r‖        ĝ = g/‖g‖
    in between:   d = g + α ‖g‖ u

u changes more slowly than g from one step to the next. α = 0 is the method on every k-th step alone, with
plain gradient steps in between.

Symbols: g `updates`, α `alpha`, k `interval`, u `reused_direction`.

References:
  Liu et al., `Towards efficient and scalable sharpness-aware minimization
  <https://arxiv.org/abs/2203.02714>`_, 2022
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, order, tree_math
from optax_sam.devices import AxisName
from optax_sam.loss import BatchLoss
from optax_sam.refresh import refreshed
from optax_sam.shards import sums_over_shards


class ReuseState(NamedTuple):
    """State of `reuse`.

    Attributes:
      reuse_count: number of updates made, of which the method made those on refresh steps; int32.
      reused_direction: u, of unit length or 0; like the parameters, float32 or wider, or in `state_dtype`:
        4 bytes per parameter, 2 in bfloat16. `optax.EmptyState()` if α = 0.
      inner_state: state of the method, which does not change between refreshes.
    """

    reuse_count: jax.Array
    reused_direction: optax.Updates
    inner_state: optax.OptState


def reuse(
    method: optax.GradientTransformation, alpha: float = 0.0, *, interval: int = 5, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Computes the direction of a method on every k-th step and reuses a part of it in between.

    Args:
      method: any sharpness-aware method, such as `optax_sam.sam(0.1)`.
      alpha: length α of the reused part, relative to the gradient. 0: nothing is reused, and the steps in
        between are the base optimizer's. For LookSAM 0.2 is the default of Becker's code, 0.7 its
        setting for CIFAR-100.
      interval: steps k from one refresh to the next with `refresh=None`; 5 by default in that code, 10 for
        CIFAR-100. The first update refreshes.
      state_dtype: dtype in which u is kept, as Optax's `mu_dtype`; None: float32 or wider.

    Returns:
      A gradient transformation with `ReuseState` to put in front of a base optimizer. `update` takes the
      arguments of `sharpness_aware`; `refresh` (see `optax_sam.refresh`) says whether the method is used in
      this step, and is passed on to it.

    Raises:
      ValueError: if alpha is negative or the interval below 1.

    Cost: as the method on refresh steps, otherwise as the base optimizer and, with α > 0, a norm.
    Memory for u with α > 0: 4 bytes per parameter, 2 in bfloat16. A step compiled with `refresh=False` has
    no second gradient; with `refresh=None` the second gradient is inside a `lax.cond`, which is slow for
    convolutions on CPU. With `m_sharpness=True` u, ‖g‖ and d come from the averages of the method's direction
    and of the clean gradient, since u is kept: one all-reduce more.

    Example: SAM on every 5th step.
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(optax_sam.reuse(optax_sam.sam(0.4), interval=5), optax.sgd(0.1))
      >>> loss = lambda w: jnp.sum(w**2)
      >>> w = jnp.array([3.0, 4.0])
      >>> state = tx.init(w)
      >>> for step in range(10):
      ...     refresh = step % 5 == 0
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss, refresh=refresh)
      ...     w = optax.apply_updates(w, updates)
    """
    checks.check_stage("method", method)
    checks.check_number("alpha", alpha)
    if isinstance(alpha, int) and alpha > 1:
        raise ValueError(
            f"`alpha` is a length relative to the gradient, 0.2 or 0.7 in published code, got {alpha}. If it"
            f" is the number of steps between two refreshes, write `reuse(method, interval={alpha})`."
        )
    checks.check_interval(interval)
    checks.check_state_dtype(state_dtype)
    method = optax.with_extra_args_support(method)
    reuses = isinstance(alpha, jax.Array) or alpha > 0

    def init(params: optax.Params) -> ReuseState:
        checks.check_arrays(params)
        return ReuseState(
            reuse_count=jnp.zeros((), jnp.int32),
            reused_direction=tree_math.zeros_like(params, state_dtype) if reuses else optax.EmptyState(),
            inner_state=method.init(params),
        )

    @sums_over_shards
    def update(
        updates: optax.Updates,
        state: ReuseState,
        params: optax.Params | None = None,
        *,
        refresh: bool | jax.Array | None = None,
        axis_name: AxisName = None,
        m_sharpness: bool = False,
        params_axis_name: Any = None,
        observe: Callable[..., None] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ReuseState]:
        checks.check_params(updates, params)
        checks.check_state(state, ReuseState)
        checks.check_spelling(extra_args)
        observe = order.observers(observe, order.check_nothing_in_between(updates, params))
        seen: list[Any] = []

        def observe_method(**what: Any) -> None:
            seen.append(what)
            if observe is not None:
                observe(**what)

        if observe is not None:
            observe(perturbation=None, ascent_value=None)  # Until the method says more.
        where: dict[str, Any] = {
            "axis_name": axis_name,
            "m_sharpness": m_sharpness,
            "params_axis_name": params_axis_name,
        }
        loss = BatchLoss(**where)
        loss.check_passed(updates, params)
        gradient = loss.average(updates)

        def compute() -> tuple[optax.Updates, optax.Updates, optax.OptState]:
            # Inside a refresh step a nested method refreshes by its own count, or on request.
            inner = None if refresh is None else True
            direction, inner_state = method.update(
                updates,
                state.inner_state,
                params,
                refresh=inner,
                observe=observe_method,
                **where,
                **extra_args,
            )
            if not seen:
                raise TypeError(
                    "`reuse` takes a sharpness-aware method, such as `optax_sam.sam(0.1)`, but what it got"
                    " took no second gradient. The base optimizer goes behind it:"
                    " `optax.chain(reuse(sam(0.1)), optax.sgd(0.1))`."
                )
            new = _new_part(direction, gradient, state.reused_direction) if reuses else optax.EmptyState()
            return direction, new, inner_state

        length = alpha * tree_math.norm(gradient)
        between = (
            tree_math.combine(jnp.ones_like(length), gradient, length, state.reused_direction)
            if reuses
            else gradient
        )
        kept = between, state.reused_direction, state.inner_state
        direction, reused, inner_state = refreshed(refresh, state.reuse_count, interval, compute, kept)
        return direction, ReuseState(optax.safe_increment(state.reuse_count), reused, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _new_part(direction: optax.Updates, gradient: optax.Updates, last: optax.Updates) -> optax.Updates:
    """Returns the unit vector of the part of d orthogonal to g; 0 without one, `last` if it is not finite."""
    direction, gradient = tree_math.full_precision(direction), tree_math.full_precision(gradient)
    inverse = tree_math.reciprocal_or_zero(tree_math.norm(gradient))
    along = tree_math.vdot(direction, gradient) * inverse * inverse
    rest = tree_math.combine(jnp.ones_like(along), direction, -along, gradient)
    length = tree_math.norm(rest)
    # Where d is parallel to g, as for rho = 0, there is no such part.
    nothing = tree_math.is_rounding(length, tree_math.norm(direction))
    inverse = jnp.where(nothing, 0, tree_math.reciprocal_or_zero(length))
    new = tree_math.cast_like(tree_math.scale(inverse, rest), last)
    return tree_math.where(jnp.isfinite(length), new, last)
