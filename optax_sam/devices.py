"""What is the same on all devices, and what each has of its own.

Inside `jax.pmap`, `jax.shard_map` or `jax.vmap(axis_name=...)` each device (or group) runs the step on its
own part of the batch. The gradient passed to `update`, and with it ε, is either averaged over the axis, or
local: the device's own (m-sharpness). Which of the two follows from

    m_sharpness=False, True      what the user says: averaged, local
    shard_map(check_vma=True)    JAX knows along which axes of the mesh a value varies
    otherwise                    not known: what may be local is averaged where that is needed, which is for
                                 nothing if it is averaged, and what the later ascents follow is found out
                                 when the program runs (`averaged_like`)
"""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import tree_math

AxisName = Hashable | tuple[Hashable, ...] | None


def axis_names(axis_name: AxisName) -> tuple[Hashable, ...]:
    """Returns the names: none, one or several."""
    if axis_name is None:
        return ()
    return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def average(
    tree: optax.Updates, axis_name: AxisName = None, m_sharpness: bool | None = None
) -> optax.Updates:
    """Returns the mean over `axis_name` of what was passed in; what is the same everywhere, as it is."""
    if axis_name is None or m_sharpness is False:
        return tree
    return jax.tree.map(lambda x: x if known_averaged(x, axis_name) else jax.lax.pmean(x, axis_name), tree)


def averaged_like(passed: optax.Updates, gradient: optax.Updates, axis_name: AxisName) -> optax.Updates:
    """Returns `gradient` averaged over the axes along which `passed` is, found out when the program runs."""
    for name in axis_names(axis_name):
        is_local, mean = differs(passed, name), jax.lax.pmean(gradient, name)
        gradient = jax.tree.map(lambda g, m, is_local=is_local: jnp.where(is_local, g, m), gradient, mean)
    return gradient


def differs(tree: optax.Updates, axis_name: Hashable) -> jax.Array:
    """Returns whether `tree` differs along the axis. One number tells: ⟨tree, (1, 2, 3, ...)⟩."""
    ramp = lambda x: jnp.arange(1, x.size + 1, dtype=tree_math.accumulation_dtype(x)).reshape(x.shape)
    number = tree_math.vdot(tree, jax.tree.map(ramp, tree))
    high, low = jax.lax.pmax(number, axis_name), -jax.lax.pmax(-number, axis_name)
    # An average is the same on all devices but for rounding, or replicas would drift apart in training.
    return high - low > 100 * jnp.finfo(number.dtype).eps * jnp.maximum(high, -low)


def local_axes(
    gradient: optax.Updates, axis_name: AxisName, m_sharpness: bool | None
) -> tuple[Hashable, ...] | None:
    """Returns the axes along which each device has a `gradient` of its own; None where that is not known.

    Raises:
      ValueError: if JAX knows that it is not as `m_sharpness` says.
    """
    names = axis_names(axis_name)
    if m_sharpness:
        check_local("the gradient passed to `update`", gradient, axis_name)
        return names
    if m_sharpness is None:
        is_known = all(tracked(name) for name in names)
        return tuple(name for name in names if not known_averaged(gradient, name)) if is_known else None
    check_averaged(gradient, axis_name)
    return ()


def known_averaged(tree: optax.Updates, axis_name: AxisName) -> bool:
    """Whether JAX knows that `tree` is the same along the axis; outside `shard_map(check_vma=True)`, no."""
    return all(
        name in tracked(name) and name not in varies_over(leaf)
        for name in axis_names(axis_name)
        for leaf in jax.tree.leaves(tree)
    )


def check_averaged(gradient: optax.Updates, axis_name: AxisName) -> None:
    """Raises if JAX knows that a gradient passed to `update` as an average varies along the axis."""
    axes = frozenset[Hashable]().union(*map(varies_over, jax.tree.leaves(gradient)))
    unaveraged = axes.intersection(axis_names(axis_name))
    if unaveraged:
        names = ", ".join(sorted(map(repr, unaveraged)))
        raise ValueError(
            "`m_sharpness=False` says that the gradient passed to `update` is an average, but it varies over"
            f" the mesh axis {names}, so that each device would make a perturbation of its own. Average it,"
            f" `tx.update(jax.lax.pmean(grads, {names}), ...)`; or, if the perturbations are to differ,"
            " write `m_sharpness=True`."
        )


def check_local(what: str, gradient: optax.Updates, axis_name: AxisName) -> None:
    """Raises if JAX knows that a gradient which should be each device's own is the same along the axis."""
    same = [name for name in axis_names(axis_name) if known_averaged(gradient, name)]
    if same:
        raise ValueError(
            f"In m-sharpness each device follows its own gradient, but {what} is the same along the mesh axis"
            f" {same[0]!r}: it was averaged, or summed by JAX, which does so with gradients with respect to"
            " parameters that are the same on all devices. Mark the parameters as varying first,"
            f" `jax.grad(value_fn)(jax.lax.pcast(params, {same[0]!r}, to='varying'))`, and do not average;"
            " or, if all devices are to share a perturbation, average and write `m_sharpness=False`."
        )


def varying(tree: Any, axis_name: AxisName) -> Any:
    """Marks the leaves as varying over the axis, where JAX tracks that."""

    def leaf(x: jax.Array) -> jax.Array:
        missing = tuple(name for name in axis_names(axis_name) if name in tracked(name) - varies_over(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(leaf, tree)


def varies_over(x: Any) -> frozenset[Hashable]:
    """Returns the mesh axes over which `shard_map(check_vma=True)` knows `x` to vary; else none."""
    kind: Any = jax.typeof(x)
    if hasattr(kind, "manual_axis_type"):  # jax >= 0.10
        return kind.manual_axis_type.varying
    return kind.vma


def tracked(name: Hashable) -> frozenset[Hashable]:
    """Returns {name} under `shard_map(check_vma=True)`, where the index along an axis varies, else {}."""
    try:
        return varies_over(jax.lax.axis_index(name))
    except NameError as error:
        raise ValueError(
            f"`axis_name={name!r}` names an axis of `jax.pmap`, `jax.shard_map` or `jax.vmap`, and there is"
            " none of that name here. Under `jax.jit` with sharded arrays leave `axis_name` out."
        ) from error
