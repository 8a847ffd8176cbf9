"""Errors that say what was wrong, why it matters, and what to write instead."""

from typing import Any

import jax
import numpy as np
import optax

Number = int | float | np.number


def check_number(name: str, value: Any, *, low: float = 0.0, below: float | None = None) -> None:
    """Raises unless `value` is in [low, below). Arrays and schedules are not looked into.

    `optax.inject_hyperparams` hands numbers over as (traced) arrays, whose values are unknown here.
    """
    if not isinstance(value, Number):
        return
    if not value >= low or (below is not None and not value < below):
        bounds = f"at least {low:g}" if below is None else f"in [{low:g}, {below:g})"
        raise ValueError(f"`{name}` must be {bounds}, got {value}.")


def check_rho(name: str, rho: Any) -> None:
    """Raises on a negative radius."""
    if isinstance(rho, Number) and not rho >= 0:
        raise ValueError(
            f"`{name}` is the radius of a ball and must be at least 0, got {rho}: a negative radius"
            " would turn the ascent into a descent. To descend on purpose (Reverse-SAM), chain"
            " `optax.scale(-1.0)` behind the ascent stage:"
            " `sharpness_aware(optax.chain(steepest_ascent(rho), optax.scale(-1.0)))`."
        )


def check_count(name: str, value: Any) -> None:
    """Raises unless `value` is a Python integer of at least 1, known when the step is traced."""
    if not isinstance(value, int | np.integer):
        raise TypeError(
            f"`{name}` must be a Python integer, because it fixes the shape of the compiled program;"
            f" got {type(value).__name__}. With `optax.inject_hyperparams` name it in `static_args`:"
            ' `optax.inject_hyperparams(optax_sam.sam, static_args=("num_steps", "axis_name"))`.'
        )
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")


def check_interval(interval: Any) -> None:
    """Raises on an interval under 1."""
    if isinstance(interval, Number) and not interval >= 1:
        raise ValueError(
            f"`interval` is the number of steps from one refresh to the next and must be at least 1,"
            f" got {interval}. To never refresh, pass `refresh=False` to `update`."
        )


def check_params(updates: optax.Updates, params: optax.Params | None) -> None:
    """Raises unless `updates` are gradients with respect to all of `params`."""
    if params is None:
        raise ValueError(
            "Sharpness-aware methods perturb the parameters, but `update` got none:"
            " call `tx.update(grads, state, params, value_fn=value_fn)`."
        )
    is_masked = lambda x: isinstance(x, optax.MaskedNode)
    if any(map(is_masked, jax.tree.leaves((updates, params), is_leaf=is_masked))):
        raise ValueError(
            "The parameters contain `optax.MaskedNode`s, so `value_fn` cannot be evaluated at them:"
            " `optax.masked` or `optax.partition` was put around a sharpness-aware method. Mask the"
            " perturbation instead, `sharpness_aware(optax.chain(optax.masked(optax.set_to_zero(),"
            " frozen), steepest_ascent(rho)))`, and put the mask or partition on the base optimizer"
            " behind it."
        )
    structures: tuple[Any, Any] = (jax.tree.structure(updates), jax.tree.structure(params))
    if structures[0] != structures[1]:
        raise ValueError(
            "The gradients must have the tree structure of the parameters, got"
            f" {structures[0]} for the gradients and {structures[1]} for"
            " the parameters. Pass the gradient of `value_fn` with respect to all of `params`."
        )
    shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
    if shapes(updates) != shapes(params):
        raise ValueError(
            f"The gradients must have the shapes of the parameters, got {shapes(updates)} for the"
            f" gradients and {shapes(params)} for the parameters."
        )
