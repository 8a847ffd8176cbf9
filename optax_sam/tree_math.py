"""Inner products, norms, combinations and random vectors of pytrees, accumulated in float32 or wider.

A float16 norm overflows at 256 entries of size 16 and a bfloat16 sum stalls after 256 equal terms, so
every reduction here is carried out in at least float32, whatever the dtype of the parameters. The
products are element-wise (no `ravel`, no dot), so a sharded leaf is reduced without being gathered. If all
entries of a gradient are under 1e-19, or one is over 1e19, float32 cannot hold their squares: the norm is
0 or inf.

Inside `jax.shard_map` and `jax.pmap` a leaf may be one device's shard of a parameter: while `update` of a
method runs, sums run over all shards (`optax_sam.shards`).
"""

import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from optax_sam import keys, shards

T = TypeVar("T")

# For sums over all leaves that are computed outside of `jax.jit`: one program with one all-reduce, where a
# program a leaf, all of them in flight, can deadlock on simulated devices. In a `jax.jit` it changes nothing.
one_program = functools.partial(jax.jit, inline=True)


def accumulation_dtype(*trees: optax.Params) -> jnp.dtype:
    """Returns float32, or the dtype of the widest leaf if that is wider."""
    dtypes = [jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in jax.tree.leaves(trees)]
    # Explicit promotion, which is wanted also under `jax.numpy_dtype_promotion("strict")`.
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))


def zeros_like(tree: optax.Params, dtype: Any = None) -> optax.Params:
    """Returns zeros shaped and sharded like `tree`: the initial value of a statistic.

    They are float32 or wider, or have the dtype given. What computes with statistics (`mix`, `combine`)
    computes in float32 or wider all the same, and rounds to the dtype of the old one.
    """
    return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype or accumulation_dtype(x)), tree)


@one_program
def total(tree: optax.Params) -> jax.Array:
    """Returns the sum of all entries, a scalar."""
    dtype = accumulation_dtype(tree)
    return _over_leaves([jnp.sum(x.astype(dtype)) for x in jax.tree.leaves(tree)], tree, dtype)


def _over_leaves(parts: Sequence[jax.Array], tree: optax.Params, dtype: jnp.dtype) -> jax.Array:
    """Returns the sum over leaves and shards, given what each leaf of `tree` here adds: scalars, or rows."""
    nothing = jnp.zeros((), dtype)
    sums: dict[shards.Axes, jax.Array] = {}
    for i, (part, axes) in enumerate(zip(parts, shards.axes_of(tree), strict=True), start=1):
        sums[axes] = sums.get(axes, nothing) + part
        if i % 64 == 0:  # XLA for CPU compiles one long sum in a time that grows faster than its length.
            sums[axes] = computed_once(sums[axes])
    # One sum over devices for all leaves that are sharded alike.
    over_shards = (jax.lax.psum(x, axes) if axes else x for axes, x in sums.items())
    return functools.reduce(jnp.add, over_shards) if sums else nothing


def size(tree: optax.Params) -> int:
    """Returns the number of entries."""
    each = zip(jax.tree.leaves(tree), shards.axes_of(tree), strict=True)
    return sum(leaf.size * shards.number(axes) for leaf, axes in each)


@one_program
def vdot(a: optax.Params, b: optax.Params) -> jax.Array:
    """Returns the inner product ⟨a, b⟩ over all leaves, a scalar."""
    dtype = accumulation_dtype(a, b)
    return total(jax.tree.map(lambda x, y: x.astype(dtype) * y.astype(dtype), a, b))


def computed_once(scalars: jax.Array) -> jax.Array:
    """Returns a scalar, or a few, computed once in the program and not again for every leaf that uses them.

    On CPU, XLA fuses the computation of an operand into each operation that reads it, and so repeats it: the
    n additions at the end of a norm, for each of n leaves. It does not fuse a cumulative sum (which, unlike
    `jax.lax.optimization_barrier`, is still there when fusion begins).
    """
    return jnp.cumsum(jnp.stack([scalars, jnp.zeros_like(scalars)]), axis=0)[0]


@one_program
def norm(tree: optax.Params) -> jax.Array:
    """Returns the Euclidean norm over all leaves, a scalar. Its derivative at 0 is 0, not NaN."""
    square = vdot(tree, tree)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def reciprocal_or_zero(x: jax.Array) -> jax.Array:
    """Returns 1/x, and 0 at x = 0: `v * reciprocal_or_zero(norm(v))` is the unit vector, never NaN."""
    return jnp.where(x == 0, 0, 1 / jnp.where(x == 0, 1, x))


def unit(vector: optax.Params) -> optax.Params:
    """Returns v / ‖v‖, and 0 for 0."""
    return scale(reciprocal_or_zero(norm(vector)), vector)


def is_rounding(length: jax.Array, minuend: jax.Array) -> jax.Array:
    """Returns whether a difference is as short as rounding errors, given its length and its minuend's.

    To be asked before a difference is normalised: of equal vectors it has a random direction, not length 0.
    """
    return length <= jnp.finfo(length.dtype).eps ** 0.75 * minuend


def scale(factor: jax.Array, tree: optax.Params) -> optax.Params:
    """Returns factor · tree, each leaf in its own dtype, multiplied in float32 or wider."""
    factor = computed_once(factor)

    def leaf(x: jax.Array) -> jax.Array:
        dtype = accumulation_dtype(x)
        return (factor.astype(dtype) * x.astype(dtype)).astype(jax.dtypes.canonicalize_dtype(x.dtype))

    return jax.tree.map(leaf, tree)


def combine(a: jax.Array, x: optax.Params, b: jax.Array, y: optax.Params) -> optax.Params:
    """Returns a·x + b·y, each leaf in the dtype of x's, computed in float32 or wider."""
    dtype = accumulation_dtype(a, b)
    once = computed_once(jnp.stack([a.astype(dtype), b.astype(dtype)]))
    a, b = once[0], once[1]

    def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        dtype = accumulation_dtype(x, y)
        total = a.astype(dtype) * x.astype(dtype) + b.astype(dtype) * y.astype(dtype)
        return total.astype(jax.dtypes.canonicalize_dtype(x.dtype))

    return jax.tree.map(leaf, x, y)


def mix(weight: jax.Array, old: optax.Params, new: optax.Params) -> optax.Params:
    """Returns weight · old + (1 − weight) · new, in the dtypes of `old`: a step of a running mean."""
    return combine(weight, old, 1 - weight, new)


def add(x: optax.Params, y: optax.Params) -> optax.Params:
    """Returns x + y, each leaf in the dtype of x's."""

    def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            dtype = jax.dtypes.canonicalize_dtype(jnp.promote_types(x.dtype, y.dtype))
        return (x.astype(dtype) + y.astype(dtype)).astype(jax.dtypes.canonicalize_dtype(x.dtype))

    return jax.tree.map(leaf, x, y)


def cast_like(tree: optax.Params, target: optax.Params) -> optax.Params:
    """Returns `tree` with the dtypes of `target`."""
    return jax.tree.map(lambda x, t: x.astype(jax.dtypes.canonicalize_dtype(t.dtype)), tree, target)


def finite_or(value: jax.Array, kept: jax.Array) -> jax.Array:
    """Returns the scalar `value` if it is finite, else `kept`; in the dtype of `kept`."""
    return jnp.where(jnp.isfinite(value), value.astype(kept.dtype), kept)


def where(condition: jax.Array, yes: T, no: T) -> T:
    """Returns one of two trees of the same structure: `yes` if the scalar condition is true, else `no`."""
    condition = computed_once(condition.astype(jnp.int32)) == 1
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), yes, no)


def full_precision(tree: optax.Params) -> optax.Params:
    """Returns `tree` in float32, or wider where it is wider."""
    return jax.tree.map(lambda x: jnp.asarray(x, accumulation_dtype(jnp.asarray(x))), tree)


def widened(kept: optax.Params, like: optax.Params) -> optax.Params:
    """Returns a statistic as it is computed with: in float32, or wider where it is or where `like` is."""
    return jax.tree.map(lambda x, y: x.astype(accumulation_dtype(x, y)), kept, like)


# Of stacked vectors: pytrees with one more axis, the first, which counts the vectors.


def stack(vectors: Sequence[optax.Params]) -> optax.Params:
    """Returns the vectors along a new first axis of each leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *vectors)


@jax.jit
def inner_products(rows: optax.Params, columns: optax.Params) -> jax.Array:
    """Returns the inner products of stacked vectors, a row for each of `rows`."""
    return jax.vmap(lambda a: jax.vmap(lambda b: vdot(a, b))(columns))(rows)


def combination(weights: jax.Array, vectors: optax.Params) -> optax.Params:
    """Returns Σ_j weights_j v_j of stacked vectors; a matrix of weights gives as many sums as it has rows."""
    leaf = lambda rows: jnp.tensordot(weights.astype(rows.dtype), rows, axes=1, precision="highest")
    return jax.tree.map(leaf, vectors)


def coordinates(basis: optax.Params, vector: optax.Params) -> jax.Array:
    """Returns the inner products of stacked vectors with one more, as many as are stacked.

    Leaves are not flattened, so a sharded one is reduced without being gathered.
    """
    dtype = accumulation_dtype(vector)

    def leaf(rows: jax.Array, x: jax.Array) -> jax.Array:
        # On a mesh with explicit axes a sum over a sharded axis must state the sharding of its result.
        everywhere = NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec())
        products = jnp.tensordot(rows, x, axes=x.ndim, precision="highest", out_sharding=everywhere)
        return products.astype(dtype)

    return _over_leaves(jax.tree.leaves(jax.tree.map(leaf, basis, vector)), vector, dtype)


def weighted_sum(weights: jax.Array, vectors: optax.Params) -> optax.Params:
    """Returns Σ_i weights_i v_i of the first of the stacked vectors, in one pass over each leaf."""

    def leaf(rows: jax.Array) -> jax.Array:
        # Not a sum over the axis, for which XLA for CPU takes a hundred times as long.
        terms = [weight * rows[i] for i, weight in enumerate(weights.astype(rows.dtype))]
        return functools.reduce(jnp.add, terms)

    return jax.tree.map(leaf, vectors)


def random_key(key: jax.Array | int) -> jax.Array:
    """Returns a random key, made from an integer, or the one given, typed or raw."""
    if isinstance(key, jax.Array | np.ndarray) and jnp.ndim(key) == 1 and key.dtype == jnp.uint32:
        return jax.random.wrap_key_data(jnp.asarray(key))
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and jnp.ndim(key) == 0:
        return jnp.asarray(key)
    is_integer = isinstance(key, int) or (dtype is not None and jnp.issubdtype(dtype, jnp.integer))
    if isinstance(key, bool) or not is_integer or jnp.ndim(key) != 0:
        what = type(key).__name__ if dtype is None else f"{dtype}{list(jnp.shape(key))}"
        raise TypeError(
            f"`key` must be an integer or a single random key, `jax.random.key(0)`, got {what}. Several: call"
            " the function once for each."
        )
    return jax.random.key(key)


@jax.jit
def random_vector(key: jax.Array, like: optax.Params) -> optax.Params:
    """Returns independent normal entries with the shapes, dtypes and shardings of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    # Leaves of one type are drawn together: the generator takes long to compile, and deep networks repeat
    # their layers. In a loop, because XLA for CPU would repeat it for each leaf (see `computed_once`).
    alike: dict[Any, list[int]] = {}
    for i, (leaf, axes) in enumerate(zip(leaves, shards.axes_of(like), strict=True)):
        alike.setdefault((jax.typeof(leaf), axes), []).append(i)
    drawn: list[jax.Array] = [*leaves]
    for (kind, axes), indices in alike.items():
        own_key = shards.own_key(key, axes)

        def normal(i: jax.Array, kind: Any = kind, key: jax.Array = own_key) -> jax.Array:
            # On a mesh with explicit axes the sharding is part of the type; elsewhere it has no effect.
            key_i = keys.fold_in(key, i)
            return jax.random.normal(key_i, kind.shape, kind.dtype, out_sharding=kind.sharding)

        together = jax.lax.map(normal, jnp.asarray(indices))
        for place, i in enumerate(indices):
            drawn[i] = together[place]
    return jax.tree.unflatten(treedef, drawn)


@jax.jit
def random_signs(key: jax.Array, like: optax.Params) -> optax.Params:
    """Returns independent signs ±1 with the shapes and shardings of `like`, float32 or wider."""
    leaves, treedef = jax.tree.flatten(zeros_like(like))

    def signs(i: int, leaf: jax.Array) -> jax.Array:
        # On a mesh with explicit axes the sharding is part of the type; elsewhere it has no effect.
        sharding = jax.typeof(leaf).sharding
        key_i = keys.fold_in(key, i)
        heads = jax.random.bernoulli(key_i, shape=leaf.shape, out_sharding=sharding)
        return jnp.where(heads, 1, -1).astype(leaf.dtype)  # `rademacher`, which takes no sharding in jax 0.8

    return jax.tree.unflatten(treedef, [signs(i, leaf) for i, leaf in enumerate(leaves)])
