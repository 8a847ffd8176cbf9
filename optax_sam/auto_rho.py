"""A radius that follows the loss: ρ grows or shrinks until the loss rises by a given share at w + ε.

    r = (L(w + ε) − L(w)) / L(w)            the relative rise of the batch loss in this step
    ρ ← ρ q  if r < c,  otherwise ρ / q     the radius of the next step

The best ρ of a method changes with the network, the data and the batch from which ε is made, the best c much
less: docs/evidence/radius.md. Where the loss falls to 0 during training, so does ρ.

Symbols: c `rise`, q `factor`, ρ at first `rho`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, order, tree_math
from optax_sam.devices import AxisName
from optax_sam.loss import BatchLoss, ValueFn
from optax_sam.shards import sums_over_shards


class AutoRhoState(NamedTuple):
    """State of `auto_rho`.

    Attributes:
      current_rho: ρ of the next step, a scalar, float32 or wider.
      inner_state: state of the method.
    """

    current_rho: jax.Array
    inner_state: optax.OptState


def auto_rho(
    method: Callable[[jax.Array], optax.GradientTransformation],
    rise: float = 0.05,
    *,
    rho: float = 0.05,
    factor: float = 1.02,
    min_rho: float = 1e-4,
    max_rho: float = 10.0,
) -> optax.GradientTransformationExtraArgs:
    """Chooses the radius of a method in every step, so that the loss rises by a given share at w + ε.

    Args:
      method: a function from the radius to a method: `optax_sam.sam`, or with other arguments
        `functools.partial(optax_sam.asam, eta=0.1)`. Its ε must be uphill: with `momentum_sam` and
        `reverse_sam`, along whose ε the loss falls, ρ grows to `max_rho`.
      rise: c, the relative rise of the loss that is held. 0.05 is what `python -m benchmarks radius` chose
        on one of its settings and used on the others.
      rho: ρ of the first step.
      factor: q, by which ρ changes in each step, above 1. With 1.02 a tenfold change takes 116 steps.
      min_rho: smallest ρ, from which it can grow again.
      max_rho: largest ρ, where no ρ makes the loss rise by c.

    Returns:
      A gradient transformation with `AutoRhoState` to put in front of a base optimizer. `update` takes the
      arguments of `sharpness_aware`, and

        clean_value: L(w), the value of `value_fn` at `params`, which `jax.value_and_grad` gives with the
          gradient. Without it the loss is evaluated there.

      ρ stays as it is in a step without a second gradient, and if L(w) is not finite. It shrinks if L(w + ε)
      alone is not finite, and if L(w) is not positive.

    Raises:
      TypeError: if `method` is a method rather than a function that makes one.
      ValueError: if a number is too small or the radii are not in order; at trace time without `value_fn`,
        and if the method runs inside a `lax.cond`.

    Cost: with `clean_value` as the method; without it a forward pass, which XLA drops where it can see that
    it is the clean one; with `grad_fn` one more. On TPUs, memory for the loss at w + ε: see
    `keep_ascent_value` of `sharpness_aware`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(optax_sam.auto_rho(optax_sam.sam, rise=0.21), optax.sgd(0.0))
      >>> loss = lambda w: jnp.sum(w**2)  # at ‖w‖ = 1 it rises by 2 ρ + ρ²
      >>> w = jnp.array([0.6, 0.8])
      >>> state = tx.init(w)
      >>> for _ in range(100):
      ...     value, grads = jax.value_and_grad(loss)(w)
      ...     updates, state = tx.update(grads, state, w, value_fn=loss, clean_value=value)
      ...     w = optax.apply_updates(w, updates)
      >>> round(float(optax.tree.get(state, "current_rho")), 2)
      0.1
    """
    build = _checked_method(method)
    checks.check_number("rise", rise)
    checks.check_number("factor", factor, low=1.0)
    radii = {"min_rho": min_rho, "rho": rho, "max_rho": max_rho}
    for name, value in radii.items():
        checks.check_number(name, value)
    is_known = not any(isinstance(value, jax.Array) for value in radii.values())
    if is_known and not 0 < min_rho <= rho <= max_rho:
        raise ValueError(f"The radii must be 0 < `min_rho` <= `rho` <= `max_rho`, got {radii}.")

    def init(params: optax.Params) -> AutoRhoState:
        checks.check_arrays(params)
        first = jnp.asarray(rho, tree_math.accumulation_dtype(params))
        return AutoRhoState(first, build(first).init(params))

    @sums_over_shards
    def update(
        updates: optax.Updates,
        state: AutoRhoState,
        params: optax.Params | None = None,
        *,
        value_fn: ValueFn | None = None,
        clean_value: jax.Array | None = None,
        axis_name: AxisName = None,
        m_sharpness: bool = False,
        params_axis_name: Any = None,
        observe: Callable[..., None] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AutoRhoState]:
        checks.check_params(updates, params)
        checks.check_state(state, AutoRhoState)
        checks.check_spelling(extra_args)
        observe = order.observers(observe, order.check_nothing_in_between(updates, params))
        seen: dict[str, Any] = {}

        def observe_method(**what: Any) -> None:
            seen.update(what, trace=order.current_trace())
            if observe is not None:
                observe(**what)

        where: dict[str, Any] = {
            "axis_name": axis_name,
            "m_sharpness": m_sharpness,
            "params_axis_name": params_axis_name,
        }
        direction, inner_state = build(state.current_rho).update(
            updates,
            state.inner_state,
            params,
            value_fn=value_fn,
            observe=observe_method,
            **where,
            **extra_args,
        )
        _check_seen(seen)
        if seen["perturbation"] is None:
            return direction, AutoRhoState(state.current_rho, inner_state)
        loss = BatchLoss(value_fn, **where)
        known = BatchLoss(lambda params: cast(jax.Array, clean_value), **where)
        clean = (loss if clean_value is None else known).value(params)
        perturbed = seen["ascent_value"]
        if perturbed is None:  # with `grad_fn`
            perturbed = loss.value(tree_math.add(params, seen["perturbation"]))
        is_low = perturbed - clean < rise * clean  # False if the loss at w + ε is not a number
        change = jnp.where(jnp.isfinite(clean), jnp.where(is_low, factor, 1 / factor), 1)
        new = jnp.clip(state.current_rho * change, min_rho, max_rho).astype(state.current_rho.dtype)
        return direction, AutoRhoState(new, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _checked_method(
    method: Callable[[jax.Array], optax.GradientTransformation],
) -> Callable[[jax.Array], optax.GradientTransformationExtraArgs]:
    """Returns the function from ρ to a method that takes extra arguments."""
    if isinstance(method, optax.GradientTransformation) or not callable(method):
        raise TypeError(
            "`auto_rho` takes a function from the radius to a method, because it sets the radius:"
            " `auto_rho(optax_sam.sam)`, with other arguments `auto_rho(functools.partial(optax_sam.asam,"
            f" eta=0.1))`. Got {type(method).__name__}."
        )

    def build(rho: jax.Array) -> optax.GradientTransformationExtraArgs:
        built = method(rho)
        checks.check_stage("method", built)
        return optax.with_extra_args_support(built)

    return build


def _check_seen(seen: dict[str, Any]) -> None:
    """Raises unless a method was observed and its values can be used here."""
    if not seen:
        raise TypeError(
            "`auto_rho` takes a sharpness-aware method, such as `optax_sam.sam`, but what it got took no"
            " second gradient. The base optimizer goes behind it: `optax.chain(auto_rho(optax_sam.sam),"
            " optax.sgd(0.1))`."
        )
    if seen["trace"] != order.current_trace():
        raise ValueError(
            "`auto_rho` cannot see the losses of a method that runs inside a `lax.cond`, as `look_sam` and"
            " `reuse` under `jit`: pass `update` a Python bool, `refresh=step % 5 == 0`, with `refresh` among"
            " the `static_argnames` of the step. `optax.apply_if_finite` goes around the base optimizer."
        )
