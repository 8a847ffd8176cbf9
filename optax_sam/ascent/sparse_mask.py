"""Sparse masks: a perturbation of a part of the parameters, the ascent of sparse SAM.

    ε ← M ⊙ ε,    M a mask that is 0 for a fraction s of all coordinates

It is not normalised again, so ‖ε‖ shrinks. The mask is chosen anew on refresh steps:

    random_mask     at random
    fisher_mask     the coordinates with the largest g², the diagonal of the empirical Fisher information
    dynamic_mask    drops the fraction of the mask with the smallest |g| and takes in as many others at
                    random: sparse training, applied to the mask

Symbols: ε `updates`, g `grad`, M `mask`, s `sparsity`.

Deviations from the authors' code (Mi-Peng/Sparse-Sharpness-Aware-Minimization): the Fisher information
comes from the mean gradient of the batch (theirs: from the gradients of 1,024 examples), and its mask exists
from the first step (theirs: after it); coordinates of equal score are kept or dropped together, so that with
many zero gradients M may keep more than 1 − s of them. The drop rate does not decay by itself: pass a
schedule of the number of refreshes, such as `optax.cosine_decay_schedule(0.5, num_refreshes)`.

References:
  Mi et al., `Make sharpness-aware minimization stronger: a sparsified perturbation approach
  <https://arxiv.org/abs/2210.05177>`_, 2022
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, keys, shards, tree_math
from optax_sam.loss import NO_LOSS, BatchLoss
from optax_sam.refresh import refreshed


class SparseMaskState(NamedTuple):
    """State of a mask.

    Attributes:
      mask: M, booleans with the shapes of the parameters. A random one before the first refresh. A refresh
        with a gradient that is not finite leaves it as it is.
    """

    mask: optax.Params


def random_mask(
    sparsity: float = 0.5, *, interval: int = 100, key: jax.Array | int = 0
) -> optax.GradientTransformationExtraArgs:
    """Masks a perturbation at random: ε ← M ⊙ ε with M = 0 for a fraction s of the coordinates.

    Args:
      sparsity: s in [0, 1). 0 is SAM. Each coordinate is drawn on its own, so s holds on average.
      interval: steps from one mask to the next with `refresh=None`.
      key: of the masks; an int or a key of `jax.random`.

    Returns:
      A gradient transformation ε ↦ M ⊙ ε with `SparseMaskState`, to put behind `steepest_ascent`.

    Raises:
      ValueError: if the sparsity is outside [0, 1), or the interval below 1.

    Cost: no gradient; memory for M, one byte per parameter.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.random_mask(sparsity=0.25)
      >>> epsilon = jnp.ones(1000)
      >>> masked, state = stage.update(epsilon, stage.init(epsilon))
      >>> bool(abs(masked.mean() - 0.75) < 0.05)
      True
    """

    def choose(mask: optax.Params, gradient: optax.Updates, key: jax.Array, count: Any) -> optax.Params:
        return jax.tree.map(lambda u: u >= sparsity, _uniform(key, gradient))

    return _masked(choose, sparsity, interval, key)


def fisher_mask(sparsity: float = 0.5, *, interval: int = 100) -> optax.GradientTransformationExtraArgs:
    """Keeps the fraction 1 − s of the coordinates with the largest g² and zeroes the rest.

    Args:
      sparsity: s in [0, 1); 0.5 in the authors' example. 0 is SAM.
      interval: steps from one mask to the next with `refresh=None`; every epoch in the paper's code.

    Returns:
      A gradient transformation ε ↦ M ⊙ ε with `SparseMaskState`, to put behind `steepest_ascent`. It reads
      the extra argument `grad`.

    Raises:
      ValueError: if the sparsity is outside [0, 1), or the interval below 1.

    Cost: no gradient; on refresh steps about 32 passes over the parameters; memory for M, one byte per
    parameter. With `m_sharpness=True` one more all-reduce.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.fisher_mask(sparsity=0.5)
      >>> gradient = jnp.array([3.0, 0.1, -2.0, 0.2])
      >>> stage.update(gradient, stage.init(gradient), grad=gradient)[0].tolist()
      [3.0, 0.0, -2.0, 0.0]
    """

    def choose(mask: optax.Params, gradient: optax.Updates, key: jax.Array, count: Any) -> optax.Params:
        scores = jax.tree.map(lambda g: g * g, gradient)
        return _largest(scores, (1 - sparsity) * tree_math.size(scores))

    return _masked(choose, sparsity, interval, key=0)


def dynamic_mask(
    sparsity: float = 0.5,
    drop_rate: optax.ScalarOrSchedule = 0.5,
    *,
    interval: int = 100,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Masks a perturbation; at each refresh a fraction of the mask moves from small |g| to random places.

    Args:
      sparsity: s in [0, 1); 0.5 in the authors' example. 0 is SAM. The first mask is random.
      drop_rate: fraction of the mask that is dropped at a refresh; 0.5 in the authors' code, where it falls
        to 0 along a cosine. A number, or a schedule of the number of refreshes.
      interval: steps from one mask to the next with `refresh=None`.
      key: of the random choices; an int or a key of `jax.random`.

    Returns:
      A gradient transformation ε ↦ M ⊙ ε with `SparseMaskState`, to put behind `steepest_ascent`. It reads
      the extra argument `grad`.

    Raises:
      ValueError: if the sparsity is outside [0, 1), the drop rate outside [0, 1], or the interval below 1.

    Cost: twice the cost of `fisher_mask`.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.dynamic_mask(sparsity=0.5)
      >>> epsilon = jnp.ones(1000)
      >>> masked, state = stage.update(epsilon, stage.init(epsilon), grad=epsilon)
      >>> bool(abs(masked.mean() - 0.5) < 0.05)
      True
    """
    checks.check_fraction("drop_rate", drop_rate)

    def choose(mask: optax.Params, gradient: optax.Updates, key: jax.Array, count: Any) -> optax.Params:
        size, num_kept = tree_math.size(gradient), (1 - sparsity) * tree_math.size(gradient)
        first = _largest(_uniform(key, gradient), num_kept)
        rate = drop_rate(jnp.asarray(count // interval)) if callable(drop_rate) else drop_rate
        num_dropped = jnp.minimum(num_kept * rate, size - num_kept)
        # A score below all others, which `_largest` never selects.
        inside = jax.tree.map(lambda m, g: jnp.where(m, jnp.abs(g), -1), mask, gradient)
        outside = jax.tree.map(lambda m, u: jnp.where(m, -1, u), mask, _uniform(key, gradient))
        stay, enter = _largest(inside, num_kept - num_dropped), _largest(outside, num_dropped)
        moved = jax.tree.map(jnp.logical_or, stay, enter)
        return tree_math.where(jnp.asarray(count) == 0, first, moved)

    return _masked(choose, sparsity, interval, key)


def _masked(
    choose: Callable[[optax.Params, optax.Updates, jax.Array, jax.Array | int], optax.Params],
    sparsity: float,
    interval: int,
    key: jax.Array | int,
) -> optax.GradientTransformationExtraArgs:
    checks.check_number("sparsity", sparsity, below=1.0)
    checks.check_interval(interval)

    def init(params: optax.Params) -> SparseMaskState:
        return SparseMaskState(_first_mask(tree_math.random_key(key), tree_math.zeros_like(params), sparsity))

    def update(
        updates: optax.Updates,
        state: SparseMaskState,
        params: optax.Params | None = None,
        *,
        loss: BatchLoss = NO_LOSS,
        grad: optax.Updates | None = None,
        step_count: jax.Array | int = 0,
        refresh: bool | jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SparseMaskState]:
        checks.check_whole(updates)
        gradient = tree_math.full_precision(loss.average(updates if grad is None else grad))

        def chosen() -> optax.Params:
            key_now = keys.fold_in(tree_math.random_key(key), step_count)
            mask = choose(state.mask, gradient, key_now, step_count)
            return tree_math.where(jnp.isfinite(tree_math.norm(gradient)), mask, state.mask)

        mask = refreshed(refresh, step_count, interval, chosen, state.mask)
        return jax.tree.map(lambda x, m: jnp.where(m, x, 0), updates, mask), SparseMaskState(mask)

    return optax.GradientTransformationExtraArgs(init, update)


@jax.jit
def _first_mask(key: jax.Array, zeros: optax.Params, sparsity: float | jax.Array) -> optax.Params:
    # The sum is sharded like its second term, also where the sharding is not part of the type.
    return jax.tree.map(lambda u, zero: u + zero >= sparsity, _uniform(key, zeros), zeros)


def _uniform(key: jax.Array, like: optax.Params) -> optax.Params:
    """Returns independent uniform entries in [0, 1) with the shapes and shardings of `like`."""
    leaves, treedef = jax.tree.flatten(like)

    def uniform(i: int, leaf: jax.Array, axes: shards.Axes) -> jax.Array:
        # On a mesh with explicit axes the sharding is part of the type; elsewhere it has no effect.
        sharding = jax.typeof(leaf).sharding
        key_i = keys.fold_in(shards.own_key(key, axes), i)
        return jax.random.uniform(key_i, leaf.shape, out_sharding=sharding)

    each = zip(range(len(leaves)), leaves, shards.axes_of(like), strict=True)
    return jax.tree.unflatten(treedef, [uniform(*of_leaf) for of_leaf in each])


@tree_math.one_program  # Without `jit` its loop would be compiled again at every refresh.
def _largest(scores: optax.Params, num_kept: jax.Array | float) -> optax.Params:
    """Returns where the scores are among the `num_kept` largest of all leaves; negative scores never are.

    The threshold is found by bisection, not by sorting, so sharded leaves are not gathered.
    """
    dtype = tree_math.accumulation_dtype(scores)
    integer = jnp.int64 if dtype == jnp.float64 else jnp.int32
    # The bits of floats that are not negative, read as integers, have the same order.
    bits = jax.tree.map(lambda x: jax.lax.bitcast_convert_type(x.astype(dtype), integer), scores)
    num_kept = jnp.floor(jnp.asarray(num_kept, dtype))

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        count = tree_math.total(jax.tree.map(lambda b: (b >= middle).astype(dtype), bits))
        enough = count >= num_kept
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    # Invariant: at least `num_kept` scores reach `low`, fewer reach `high`.
    low, high = jnp.zeros((), integer), jnp.full((), jnp.iinfo(integer).max, integer)
    low, _ = jax.lax.fori_loop(0, jnp.iinfo(integer).bits, halve, (low, high))
    return jax.tree.map(lambda b: (b >= low) & (num_kept > 0), bits)
