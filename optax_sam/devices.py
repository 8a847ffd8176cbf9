"""What JAX knows about the devices over which a step is mapped.

Inside `jax.pmap`, `jax.shard_map` or `jax.vmap(axis_name=...)` each device (or group) runs the step on its
own part of the batch. Under `shard_map(check_vma=True)` JAX tracks along which mesh axes a value varies;
elsewhere nothing is known, and what the user says is used unchecked.
"""

from collections.abc import Hashable, Iterable
from typing import Any

import jax

AxisName = Hashable | tuple[Hashable, ...] | None


def axis_names(axis_name: AxisName) -> tuple[Hashable, ...]:
    """Returns the names as a tuple: none, one or several."""
    if axis_name is None:
        return ()
    return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def varies_over(tree: Any) -> frozenset[Hashable]:
    """Returns the mesh axes along which a leaf is known to vary; none outside `shard_map(check_vma=True)`."""

    def axes(leaf: Any) -> frozenset[Hashable]:
        kind: Any = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
        if (manual := getattr(kind, "manual_axis_type", None)) is not None:  # jax >= 0.10
            return manual.varying
        return getattr(kind, "vma", None) or frozenset()

    return frozenset[Hashable]().union(*map(axes, jax.tree.leaves(tree)))


def tracked(axis_name: AxisName, argument: str = "axis_name") -> frozenset[Hashable]:
    """Returns the axes that JAX tracks: those along which their own index is known to vary."""
    names = axis_names(axis_name)
    try:
        return frozenset[Hashable]().union(*(varies_over(jax.lax.axis_index(name)) for name in names))
    except NameError as error:
        raise ValueError(
            f"`{argument}={axis_name!r}` names an axis of `jax.pmap`, `jax.shard_map` or `jax.vmap`, but"
            f" there is none of that name here. Under `jax.jit` with sharded arrays leave `{argument}` out."
        ) from error


def unnamed_axes(named: Iterable[Hashable] = ()) -> tuple[Hashable, ...]:
    """Returns the axes of `jax.pmap` or `jax.shard_map` here that JAX does not track and nobody named."""
    axes = tuple(sorted(jax.sharding.get_abstract_mesh().manual_axes, key=str))
    return () if tracked(axes) else tuple(axis for axis in axes if axis not in set(named))


def varying(tree: Any, axis_name: AxisName) -> Any:
    """Marks the leaves as varying along the axis if JAX tracks it."""
    axes = tracked(axis_name)
    if not axes:
        return tree

    def leaf(x: jax.Array) -> jax.Array:
        missing = tuple(axes - varies_over(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(leaf, tree)
