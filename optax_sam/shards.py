"""Parameters that are sharded inside `jax.shard_map` or `jax.pmap`: what a sum over all entries runs over.

There each device sees its own shard of a parameter, and an inner product over what it sees is that of the
shard. The rest is on the devices along certain mesh axes, and the sum must run over those too:

    ⟨a, b⟩ = Σ_leaves psum(Σ a·b, axes of the leaf)

Which axes, a step knows: those along which JAX knows that the parameter varies, or those that the argument
`params_axis_name` of `update` names. They are not the axes along which a *vector* varies, since with
m-sharpness a gradient varies along the axis of the batch as well. So `update` notes them for as long as it
runs, and the sums of `optax_sam.tree_math` read them: a stage never handles them.
"""

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import jax
import optax
from jax.sharding import PartitionSpec

from optax_sam import descriptions, keys
from optax_sam.devices import axis_names, tracked, varies_over

Axes = tuple[Hashable, ...]
Update = TypeVar("Update", bound=Callable[..., Any])

# Axes by the path of the parameter. Part of the key of JAX's caches: without it, a sum that was traced for
# whole parameters would be used again for shards of the same shape.
_noted: Any = jax.make_user_context(default_value=())
# The `PartitionSpec` by the path of the parameter, for those whose `PartitionSpec` the user passed.
_placed: Any = jax.make_user_context(default_value=())


def axes_of_parameters(params: optax.Params, params_axis_name: Any = None) -> list[Axes]:
    """Returns for each leaf the axes along which it is sharded.

    Args:
      params: parameters, or vectors like them.
      params_axis_name: a name, a tuple of names, a `PartitionSpec`, or a pytree of these: the structure of
        the parameters, or a prefix of it. Where JAX tracks what varies, only the axes named are considered;
        None: all. Elsewhere every leaf is sharded along the axes named for it; None: along none.
    """
    leaves = jax.tree.leaves(params)
    manual = frozenset(jax.sharding.get_abstract_mesh().manual_axes)
    if params_axis_name is None:
        named = [manual & tracked(tuple(manual))] * len(leaves)
    else:
        named = _named(params, params_axis_name)
    known = tracked(tuple(frozenset[Hashable]().union(*named)), "params_axis_name")
    sharded = [axes & varies_over(x) | axes - known for axes, x in zip(named, leaves, strict=True)]
    return [tuple(sorted(axes, key=str)) for axes in sharded]


def axes_named(params_axis_name: Any) -> frozenset[Hashable]:
    """Returns all axes that the argument names."""
    leaves = jax.tree.leaves(params_axis_name, is_leaf=_is_names)
    return frozenset[Hashable]().union(*map(_names, leaves))


def _named(params: optax.Params, params_axis_name: Any) -> list[frozenset[Hashable]]:
    return [_names(node) for node in _by_leaf(params, params_axis_name)]


def _by_leaf(params: optax.Params, params_axis_name: Any) -> list[Any]:
    """Returns for each parameter what `params_axis_name` says of it."""
    names = jax.tree.leaves(params_axis_name, is_leaf=_is_names)
    structure: Any = jax.tree.structure(params_axis_name, is_leaf=_is_names)
    try:
        subtrees = structure.flatten_up_to(params)
    except ValueError as error:
        raise ValueError(
            "`params_axis_name` must be one name (or a tuple of names) for all parameters, or a pytree with"
            " their structure or a prefix of it, such as the `in_specs` of `jax.shard_map` for them, but"
            f" {descriptions.first_difference(params_axis_name, params, prefix=True)}."
        ) from error
    return [name for name, subtree in zip(names, subtrees, strict=True) for _ in jax.tree.leaves(subtree)]


def _is_names(node: Any) -> bool:
    """Whether a node says the axes of a leaf, and is not a tree of such."""
    if isinstance(node, tuple) and not isinstance(node, PartitionSpec) and not hasattr(node, "_fields"):
        return all(isinstance(name, str) for name in node)
    return node is None or isinstance(node, PartitionSpec) or jax.tree_util.all_leaves([node])


def _names(node: Any) -> frozenset[Hashable]:
    if not isinstance(node, PartitionSpec):
        return frozenset(axis_names(node))
    return frozenset(name for entry in node for name in axis_names(entry))


@contextlib.contextmanager
def noted(params: optax.Params, params_axis_name: Any = None) -> Iterator[None]:
    """Notes the axes along which the parameters are sharded, for all sums that are traced within."""
    axes = axes_of_parameters(params, params_axis_name)
    if not any(axes):
        yield  # What is noted belongs to the key of JAX's caches, so nothing is better than empty axes.
        return
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    said = _by_leaf(params, params_axis_name) if params_axis_name is not None else []
    placed = tuple((path, spec) for path, spec in zip(paths, said) if isinstance(spec, PartitionSpec))  # noqa: B905
    with _noted(tuple(zip(paths, axes, strict=True))), _placed(placed):
        yield


def sums_over_shards(update: Update) -> Update:
    """Decorates `update` of a method: its sums over all entries run over the shards on other devices too."""

    @functools.wraps(update)
    def noting(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> Any:
        params_axis_name = extra_args.get("params_axis_name")
        is_mapped = params_axis_name is not None or jax.sharding.get_abstract_mesh().manual_axes
        if params is None or not is_mapped:
            return update(updates, state, params, **extra_args)
        with noted(params, params_axis_name):
            return update(updates, state, params, **extra_args)

    return noting  # type: ignore[return-value]


def axes_here() -> frozenset[Hashable]:
    """Returns all axes along which a parameter is noted to be sharded."""
    return frozenset(name for _, axes in _noted.value for name in axes)


def axes_of(tree: Any) -> list[Axes]:
    """Returns for each leaf of a tree like the parameters, or of a part of it, the axes noted for it."""
    by_path: dict[str, Axes] = dict(_noted.value)
    if not by_path:
        return [()] * len(jax.tree.leaves(tree))
    all_axes = axes_here()

    def axes(path: Any, leaf: jax.Array) -> Axes:
        if (found := by_path.get(jax.tree_util.keystr(path))) is not None:
            return found
        if len(set(by_path.values())) == 1:
            return next(iter(by_path.values()))
        if untracked := all_axes - tracked(tuple(all_axes)):
            raise ValueError(
                "`params_axis_name` says for each parameter along which axes it is sharded, but here a norm"
                f" is taken of something that is none of them, at `{jax.tree_util.keystr(path)}`. Shard all"
                f" parameters along {sorted(map(repr, untracked))}, or let JAX see what varies:"
                " `jax.shard_map(..., check_vma=True)`."
            )
        return tuple(sorted(varies_over(leaf) & all_axes, key=str))

    return [axes(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def along(path: Any, leaf: jax.Array, array_axes: tuple[int, ...]) -> Axes:
    """Returns the mesh axes along which some of the axes of a sharded parameter are sharded."""
    spec = dict(_placed.value).get(jax.tree_util.keystr(path))
    if spec is None:
        raise ValueError(
            f"The parameter `params{jax.tree_util.keystr(path)}` is sharded inside `jax.shard_map` or"
            " `jax.pmap`, and a sum runs over some of its axes, but it is not known along which of them it is"
            " sharded. Pass the `in_specs` of the parameters, whose `PartitionSpec`s tell:"
            " `tx.update(..., params_axis_name=specs)`."
        )
    entries = [*spec, *[None] * (leaf.ndim - len(spec))]
    return tuple(name for axis in array_axes for name in axis_names(entries[axis]))


def map_leaves(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Is `jax.tree.map` of a function that itself takes norms, of one leaf."""
    if not _noted.value:
        return jax.tree.map(function, tree, *rest)

    def leaf(axes: Axes, leaves: tuple[jax.Array, ...]) -> Any:
        with _noted((("", axes),)):
            return function(*leaves)

    structure: Any = jax.tree.structure(tree)
    columns = zip(*(structure.flatten_up_to(x) for x in (tree, *rest)), strict=True)
    return structure.unflatten(map(leaf, axes_of(tree), columns))


def number(axes: Axes) -> int:
    """Returns the number of shards along the axes."""
    return int(jax.lax.psum(1, axes)) if axes else 1


def own_key(key: jax.Array, axes: Axes) -> jax.Array:
    """Returns a random key of this shard's own: with one key all shards would draw the same numbers."""
    for name in axes:
        key = keys.fold_in(key, jax.lax.axis_index(name))
    return key
