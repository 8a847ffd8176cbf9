"""Errors about values that differ between devices where they must not, or do not where they must.

They are raised where JAX tracks along which mesh axes a value varies; see `optax_sam.devices`.
"""

from collections.abc import Hashable, Iterable
from typing import Any

import jax
import optax

from optax_sam.devices import AxisName, axis_names, tracked, varies_over


def named(axes: Iterable[Hashable]) -> str:
    """Returns the names of mesh axes as they stand in an error."""
    return ", ".join(sorted(map(repr, axes)))


def check_m_sharpness(m_sharpness: Any, axis_name: Any) -> None:
    """Raises unless `m_sharpness` is a Python bool, and only true where an axis is named."""
    if not isinstance(m_sharpness, bool):
        raise TypeError(
            "`m_sharpness` must be True (the gradients passed to `update` are each device's own) or False"
            " (they are averaged over the devices), because it determines what the compiled program sends"
            f" between devices; got {m_sharpness!r}."
        )
    if m_sharpness and axis_name is None:
        raise ValueError(
            "`m_sharpness=True` lets each device perturb for itself, so `update` must know the axis of"
            " `jax.pmap`, `jax.shard_map` or `jax.vmap` over which the step is mapped:"
            ' `tx.update(grads, ..., axis_name="batch", m_sharpness=True)`. Under `jax.jit` alone there are'
            " no programs of single devices: use `jax.vmap` over groups of the batch."
        )


def check_averaged(gradient: optax.Updates, axis_name: AxisName) -> None:
    """Raises if JAX knows that a gradient passed to `update` as an average varies along the axis."""
    unaveraged = varies_over(gradient).intersection(axis_names(axis_name))
    if unaveraged:
        names = named(unaveraged)
        raise ValueError(
            "`m_sharpness=False`, the default, says that the gradient passed to `update` is an average, but"
            f" it varies over the mesh axis {names}, so that each device would have its own perturbation."
            f" Average it, `tx.update(jax.lax.pmean(grads, {names}), ...)`; or, if the perturbations are to"
            " differ, write `tx.update(grads, ..., m_sharpness=True)`."
        )


def check_local(what: str, gradient: optax.Updates, axis_name: AxisName) -> None:
    """Raises if JAX knows that a gradient which should be each device's own is the same along the axis."""
    same = sorted(map(repr, tracked(axis_name) - varies_over(gradient)))
    if same:
        raise ValueError(
            f"With `m_sharpness=True` each device follows its own gradient, but {what} is the same along the"
            f" mesh axis {same[0]}: it was averaged, or summed by JAX, which does so with gradients with"
            " respect to parameters that are the same on all devices. Mark the parameters as varying first,"
            f" `jax.grad(value_fn)(jax.lax.pcast(params, {same[0]}, to='varying'))`, and do not average;"
            " or, if all devices are to share a perturbation, average and write `m_sharpness=False`."
        )


def check_replicated(params: optax.Params, axis_name: AxisName, sharded: Iterable[Hashable]) -> None:
    """Raises if the parameters are sharded along an axis that `axis_name` says they are the same along."""
    wrong = (varies_over(params) | frozenset(sharded)).intersection(axis_names(axis_name))
    if wrong:
        names = named(wrong)
        raise ValueError(
            f"`axis_name={axis_name!r}` says that the parameters are the same along the axis {names}, but"
            " each device has its own part of them. A mean over the devices would mix entries of different"
            f" parameters, so leave {names} out of `axis_name`, and let `value_fn` gather the parameters and"
            f" average the loss: `lambda params: jax.lax.pmean(loss(gather(params), batch), {names})`. Do not"
            " average its gradient, which is the shard of the gradient of the whole batch."
        )


def check_summed(name: str, gradient: Any, params: optax.Params, sharded: Iterable[Hashable]) -> None:
    """Raises if the gradient of a parameter varies over an axis along which only others are sharded."""
    leaves = zip(jax.tree.leaves(gradient), jax.tree.leaves(params), strict=True)
    varies = frozenset[Hashable]().union(*(varies_over(g) - varies_over(p) for g, p in leaves))
    wrong = varies.intersection(sharded)
    if wrong:
        names = named(wrong)
        raise ValueError(
            f"{name} varies over the mesh axis {names} also for parameters that are the same along it: it is"
            " the part of one device. JAX adds the parts of all devices unless the parameters were marked as"
            " varying (`jax.lax.pcast`): take the gradient with respect to `params` as they"
            " are."
        )


def check_one_loss(name: str, value: jax.Array, sharded: Iterable[Hashable]) -> None:
    """Raises if a loss varies over an axis along which the parameters are sharded."""
    wrong = varies_over(value).intersection(sharded)
    if wrong:
        names = named(wrong)
        raise ValueError(
            f"{name} varies over the mesh axis {names}, and so do the parameters. If each device has a shard"
            " of them, the loss must be that of the whole model and batch, the same on all devices: average"
            f" it inside, `jax.lax.pmean(loss, {names})`. If each device trains a model of its own, say so:"
            " `tx.update(..., params_axis_name=())`."
        )


def check_same(name: str, result: Any, params: optax.Params) -> None:
    """Raises if `result` varies over a mesh axis over which the parameters do not."""
    unaveraged = varies_over(result) - varies_over(params)  # of all leaves; `check_summed` looks at each
    if unaveraged:
        names = named(unaveraged)
        raise ValueError(
            f"{name} varies over the mesh axis {names} and the parameters do not, so the gradient would be"
            " summed over the devices instead of averaged. Name that axis,"
            f" `tx.update(grads, state, params, value_fn=value_fn, axis_name={names})`, or average inside the"
            f" function: `jax.lax.pmean(loss, {names})` in `value_fn`, `jax.lax.pmean(gradient, {names})` in"
            " `grad_fn`."
        )
