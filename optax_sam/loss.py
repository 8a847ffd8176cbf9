"""The batch loss and its gradient, checked, and averaged over devices where an axis is named.

Inside `jax.pmap`, `jax.shard_map` or `jax.vmap(axis_name=...)` each device (or group) holds its own part
of the batch, and `value_fn` is the loss of that part. The mean over the axis is the loss of the batch:

    L(w) = mean_i L_i(w)        ∇L(w) = mean_i ∇L_i(w)

Under `shard_map(check_vma=True)` JAX tracks which values vary over the axis, and the gradient of a
varying loss with respect to parameters that do not vary is *summed* over the axis already; a mean taken
afterwards would change nothing and the result would be N times too large. So the parameters are marked
as varying before the gradient is taken, which leaves one all-reduce, the mean's own.
"""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks
from optax_sam.devices import (
    AxisName,
    averaged_like,
    axis_names,
    check_local,
    local_axes,
    varies_over,
    varying,
)

ValueFn = Callable[[optax.Params], jax.Array]
GradFn = Callable[[optax.Params], optax.Updates]


def value_function(
    value_fn: ValueFn | None, *, axis_name: AxisName = None, name: str = "value_fn"
) -> ValueFn:
    """Returns w ↦ L(w), averaged over `axis_name`. Errors call the function `name`."""
    value_fn = _checked(value_fn, name, axis_name)
    if axis_name is None:
        return value_fn
    return lambda params: jax.lax.pmean(value_fn(varying(params, axis_name)), axis_name)


def value_and_gradient_function(
    value_fn: ValueFn | None,
    grad_fn: GradFn | None = None,
    *,
    axis_name: AxisName = None,
    local_axis: AxisName = None,
    name: str = "value_fn",
) -> Callable[[optax.Params], tuple[jax.Array | None, optax.Updates]]:
    """Returns w ↦ (L(w), ∇L(w)), averaged over `axis_name`. Errors call the function `name`.

    With `grad_fn` the gradient is its result and the value, which would cost a forward pass more, is None.
    Along `local_axis`, a part of `axis_name`, each device keeps its own.
    """
    evaluate: Callable[[optax.Params], tuple[jax.Array | None, optax.Updates]]
    evaluate = (
        jax.value_and_grad(_checked(value_fn, name, axis_name))
        if grad_fn is None
        else _without_value(grad_fn, axis_name)
    )
    if axis_name is None:
        return evaluate
    averaged = tuple(axis for axis in axis_names(axis_name) if axis not in axis_names(local_axis))
    own = lambda params: evaluate(varying(params, axis_name))
    return (lambda params: jax.lax.pmean(own(params), averaged)) if averaged else own


def gradient_function_like(
    gradient: optax.Updates,
    value_fn: ValueFn | None,
    grad_fn: GradFn | None = None,
    *,
    axis_name: AxisName = None,
    m_sharpness: bool | None = None,
) -> Callable[[optax.Params], optax.Updates]:
    """Returns w ↦ ∇L(w), averaged where `gradient` is and local where that is: what later ascents follow.

    `gradient` is the one passed to `update`, and `m_sharpness` says whether it is local, None: unknown. If
    JAX knows that this is wrong, an error is raised at once.
    """
    local = local_axes(gradient, axis_name, m_sharpness)
    kept = axis_name if local is None else local
    evaluate = value_and_gradient_function(value_fn, grad_fn, axis_name=axis_name, local_axis=kept)

    def follow(params: optax.Params) -> optax.Updates:
        _, own = evaluate(params)
        if local is None:
            return averaged_like(gradient, own, axis_name)
        if local:
            check_local("the result of `grad_fn`", own, local)
        return own

    return follow


def _without_value(
    grad_fn: GradFn, axis_name: AxisName
) -> Callable[[optax.Params], tuple[None, optax.Updates]]:
    def evaluate(params: optax.Params) -> tuple[None, optax.Updates]:
        # Taken at parameters marked as varying over all mapped axes, a gradient that would have been summed
        # shows by varying as well.
        axes = jax.sharding.get_abstract_mesh().manual_axes if axis_name is None else ()
        gradient = grad_fn(varying(params, tuple(axes)))
        checks.check_gradient("The result of `grad_fn`", gradient, params)
        if axis_name is None:
            _check_averaged("The gradient returned by `grad_fn`", gradient, params)
        return None, gradient

    return evaluate


def _checked(value_fn: ValueFn | None, name: str, axis_name: AxisName) -> ValueFn:
    """Returns `value_fn` with errors for what would otherwise fail far from its cause, or silently."""
    if value_fn is None:
        raise ValueError(
            "Sharpness-aware methods evaluate the loss at perturbed parameters, but `update` got no"
            f" `{name}`. Pass this batch's loss as a function of the parameters:"
            f" `tx.update(grads, state, params, {name}=lambda params: loss(params, batch))`."
        )
    if not callable(value_fn):
        raise TypeError(
            f"`{name}` must be a function of the parameters, got {type(value_fn).__name__}."
            f" Pass `{name}=lambda params: loss(params, batch)`, not the loss itself."
        )

    def checked(params: optax.Params) -> jax.Array:
        value: Any = value_fn(params)
        if value is None or isinstance(value, tuple | list | dict):
            raise TypeError(
                f"`{name}` must return the loss alone, a scalar, but it returned a"
                f" {type(value).__name__}: return the loss and drop any auxiliary output (as of"
                f" `has_aux=True`), as in `{name}=lambda params: loss_and_aux(params, batch)[0]`."
            )
        value = jnp.asarray(value)
        if value.ndim != 0 or not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(
                f"`{name}` must return a real floating-point scalar, the loss of the whole batch, but it"
                f" returned shape {value.shape}, dtype {value.dtype}. Reduce the losses of the examples,"
                f" as in `{name}=lambda params: losses(params, batch).mean()`."
            )
        _check_averaged(f"The result of `{name}`", value, params)
        # A loss that `value_fn` averaged itself does not vary, and its gradient with respect to parameters
        # that do would be the N-th part. Marked as well, it is that of the local loss, as under `pmap`.
        return value if axis_name is None else varying(value, axis_name)

    return checked


def _check_averaged(name: str, result: Any, params: optax.Params) -> None:
    """Raises where `result` varies over a mesh axis over which the parameters do not."""
    axes = lambda tree: frozenset[Hashable]().union(*map(varies_over, jax.tree.leaves(tree)))
    unaveraged = axes(result) - axes(params)
    if unaveraged:
        names = ", ".join(sorted(map(repr, unaveraged)))
        raise ValueError(
            f"{name} varies over the mesh axis {names} and the parameters do not, so that the gradient would"
            " be summed over the devices instead of averaged. Pass that axis as `axis_name`, as in"
            f" `optax_sam.sam(0.05, axis_name={names})`, or average inside the function:"
            f" `jax.lax.pmean(loss, {names})` in `value_fn`, `jax.lax.pmean(gradient, {names})` in `grad_fn`."
        )
