"""Filters: the parts of a weight array that compute one output each.

A filter is the slice of an array at one index of its output axis, the last in Flax: it extends over all other
axes. Arrays with one axis or none (biases, scales) have no filters. The number of axes tells this only if
each layer has arrays of its own: where layers are stacked, or heads have an axis, say which axes count the
filters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import shards, tree_math

# An axis, axes, or None for an array without filters, from the name of an array and the array.
FilterAxis = int | Callable[[str, jax.Array], int | tuple[int, ...] | None]


def axes_that_count(filter_axis: FilterAxis, path: Any, w: jax.Array) -> set[int] | None:
    """Returns the axes that count the filters of the array at a path; None if it has no filters."""
    if not callable(filter_axis):
        return None if w.ndim <= 1 else {filter_axis % w.ndim}
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    found = filter_axis(name, w)
    if found is None:
        return None
    axes = (found,) if isinstance(found, int) else tuple(found)
    if not all(-w.ndim <= axis < w.ndim for axis in axes):
        raise ValueError(
            f"`filter_axis` returned {found} for the array `{name}` of shape {w.shape}, which has no such"
            " axis. Return the axis, or axes, that count its filters, or None if it is no weight."
        )
    return {axis % w.ndim for axis in axes}


def check_filter_axis(filter_axis: Any) -> None:
    """Raises unless `filter_axis` is a Python integer or a function."""
    if not callable(filter_axis) and not isinstance(filter_axis, int | np.integer):
        raise TypeError(
            "`filter_axis` must be a Python integer, the axis that counts the outputs, or a function"
            f" `filter_axis(name, array)`, got {type(filter_axis).__name__}. With `optax.inject_hyperparams`"
            ' name it in `static_args`: `static_args=("filter_axis", "key")`.'
        )


def totals(tree: optax.Params, filter_axis: FilterAxis, *, whole: bool = True) -> optax.Params:
    """Returns the sum of the entries of each filter, with axes of size 1, so that it broadcasts.

    Args:
      tree: a pytree like the parameters, float32 or wider.
      filter_axis: the axis that counts the filters; see `optax_sam.diagnostics.filter_normalised`.
      whole: whether an array without filters is one filter; if not, each of its entries is.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)

    def total(path: Any, x: jax.Array, sharded: shards.Axes) -> jax.Array:
        counting = axes_that_count(filter_axis, path, x)
        if counting is None and not whole:
            return x
        axes = tuple(axis for axis in range(x.ndim) if axis not in (counting or ()))
        # Inside `jax.shard_map` the rest of a filter may be on other devices.
        along = shards.along(path, x, axes) if sharded and counting else sharded
        here = jnp.sum(x, axis=axes, keepdims=True)
        return jax.lax.psum(here, along) if along else here

    each = zip(leaves, shards.axes_of(tree), strict=True)
    return jax.tree.unflatten(structure, [total(path, x, axes) for (path, x), axes in each])


def norms(tree: optax.Params, filter_axis: FilterAxis) -> optax.Params:
    """Returns the length of each filter, and of each array without filters, in float32 or wider."""
    squares = jax.tree.map(lambda x: x**2, tree_math.full_precision(tree))
    return jax.tree.map(jnp.sqrt, totals(squares, filter_axis))
