"""Which parameters are perturbed though they never move: frozen by the optimizer behind the method.

`chain(sam, partition({..., "frozen": set_to_zero()}))` and a mask on the updates behind the chain freeze what
is applied. The method does not know, perturbs the frozen arrays too, and they take up most of the radius.

`wiring_check` sees the parameters at each of its updates, but not the optimizer. So its state keeps a
fingerprint of each array, by which it knows whether the array moved at all, and counts the updates in which

    another array moved, the gradient in this one is not zero, and it did not move.

Where the rule of the arrays that move would change this one by less than its last digit, nothing is counted:

    u · min(1, max|g| / max|g*|)  <  ROOM · eps · max|w|,      u how far the array moved that moved most,
                                                               g* the gradient in it

With the first factor the array would move under Adam, with the second under SGD. In 16 bits that is most
often so; there it is counted all the same, and the message says so. What the method perturbs is known behind
the check only: the method tells it when the step is traced (`optax_sam.order`).

    what is done                                      what is said
    updates set to zero, in or behind the chain       reported in the third update
    the same, but the method is restricted            nothing: ε = 0 there
    `stop_gradient` in the loss, unused parameters    nothing: g = 0 there
    a learning rate of 0, `MultiSteps`, skipped steps nothing counts where no array moves
    optimizers in turn                                nothing, if each array moves in one of two updates
    trained first, then frozen                        reported after PATIENCE updates more
"""

import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import tree_math
from optax_sam.diagnostics.wiring_causes import Cause
from optax_sam.diagnostics.wiring_measure import Leaves, Products, over_shards
from optax_sam.refresh import refreshed
from optax_sam.shards import Axes

NEEDED = 2  # updates that count, until something is said: a training of three steps is seen
# Of optimizers in turn, each has updates in which its parameters rest.
PATIENCE = 30
ROOM = 8
LISTED = 4


class Movement(NamedTuple):
    """What is known of the movement of the parameter arrays; an entry for each, in the order of the leaves.

    Attributes:
      fingerprint: a hash of the array at the last update that was checked; uint32.
      largest_weight: its largest |w| then; float32, and -1 before the first.
      unmoved: in how many updates it did not move though it had a gradient and others moved; int32. It starts
        again from -30 where the array moves.
    """

    fingerprint: jax.Array
    largest_weight: jax.Array
    unmoved: jax.Array


def init(params: optax.Params) -> Movement:
    """Returns what is known before the first update."""
    num = len(jax.tree.leaves(params))
    return Movement(jnp.zeros(num, jnp.uint32), jnp.full(num, -1, jnp.float32), jnp.zeros(num, jnp.int32))


def watched(last: Movement, params: Leaves, numbers: Products, axes: list[Axes]) -> Movement:
    """Returns what is known after a look at the parameters."""
    if not params:
        return last
    new = jnp.stack(over_shards(jax.lax.psum, list(map(_fingerprint, params)), axes))
    sizes = [jnp.max(jnp.abs(w), initial=0).astype(jnp.float32) for w in params]
    largest = jnp.stack(over_shards(jax.lax.pmax, sizes, axes))
    gradient = numbers.largest[:, 1].astype(jnp.float32)
    is_first = last.largest_weight < 0
    has_moved = (new != last.fingerprint) & ~is_first
    by = jnp.where(has_moved & (gradient > 0), jnp.abs(largest - last.largest_weight), 0)
    most = jnp.argmax(by)
    would_move_by = by[most] * jnp.minimum(1, gradient / jnp.where(by[most] > 0, gradient[most], 1))
    eps = [float(jnp.finfo(leaf.dtype).eps) for leaf in params]
    is_seen = would_move_by > ROOM * jnp.asarray(eps, jnp.float32) * largest
    is_seen |= np.asarray([tree_math.accumulation_dtype(leaf) != leaf.dtype for leaf in params])
    counts = jnp.any(has_moved) & (gradient > 0) & is_seen & ~is_first
    unmoved = jnp.where(has_moved, -PATIENCE, last.unmoved + counts)
    return Movement(new, largest, unmoved)


def observer(
    params: optax.Params, unmoved: jax.Array, axes: list[Axes], say: Callable[[Cause], None]
) -> Callable[..., None]:
    """Returns what the method behind the check calls with its perturbation; it says what never moves."""
    arrays = [
        (jax.tree_util.keystr(path), str(leaf.dtype)) for path, leaf in jax.tree.leaves_with_path(params)
    ]
    unmoved_if_alive = weakref.ref(unmoved)  # There may be no method, and nothing is kept for it.

    def report(unmoved: Any, squares: Any) -> None:
        """Runs on the host, where JAX must not compute: NumPy alone."""
        unmoved, squares = np.asarray(unmoved), np.asarray(squares, np.float64)
        chosen = (unmoved >= NEEDED) & (squares > 0)
        if chosen.any():
            frozen = [array for array, is_chosen in zip(arrays, chosen, strict=True) if is_chosen]
            say(_cause(frozen, math.sqrt(squares[~chosen].sum() / squares.sum())))

    def observe(*, perturbation: optax.Updates | None = None, **what: Any) -> None:
        unmoved = unmoved_if_alive()
        if perturbation is None or unmoved is None:
            return
        dtype = tree_math.accumulation_dtype(perturbation)
        leaves = [leaf.astype(dtype) for leaf in jax.tree.leaves(perturbation)]
        squares = jnp.stack(over_shards(jax.lax.psum, [jnp.sum(x * x) for x in leaves], axes))
        is_due = jnp.any((unmoved >= NEEDED) & (squares > 0))
        refreshed(is_due, 0, 1, lambda: jax.debug.callback(report, unmoved, squares), None)

    return observe


def _cause(arrays: list[tuple[str, str]], share: float) -> Cause:
    """Returns what is said of arrays, given as path and dtype. `share`: the part of ‖ε‖ in the others."""
    paths = ", ".join(f"`params{path}`" for path, _ in arrays[:LISTED])
    more = f" and {len(arrays) - LISTED} more arrays" if arrays[LISTED:] else ""
    narrow = sorted({dtype for _, dtype in arrays if jnp.finfo(dtype).bits <= 16})
    rounded = (
        f" Or what is added to them is lost in the rounding of {narrow[0]}: keep float32 parameters."
        if narrow
        else ""
    )
    return Cause(
        "unmoved",
        f"The method perturbs {paths}{more}, which did not move in the last updates, though others did",
        f"Likely they are frozen behind the method: `optax.set_to_zero`, a mask on the updates.{rounded} The"
        f" others get {share:.0%} of the perturbation's length. Restrict the method to what is trained:"
        " `optax_sam.masked(method, trained)`, where `trained` is a pytree of bools or"
        " `optax_sam.mask_by_name(...)`. If they are trained in other updates, nothing is wrong.",
    )


def _fingerprint(w: jax.Array) -> jax.Array:
    """Returns a hash that does not depend on the order of the entries, so that those of shards add up."""
    words = [w]
    if jnp.finfo(w.dtype).bits > 32:  # Two float32, in place of 64 bits, which TPUs cannot cast to integers.
        high = jax.lax.reduce_precision(w, exponent_bits=8, mantissa_bits=23)
        words = [high, w - high]
    return sum((_sum_of_hashes(word.astype(jnp.float32)) for word in words), jnp.zeros((), jnp.uint32))


def _sum_of_hashes(w: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(jnp.abs(w), jnp.uint32)  # Without the sign: −0 + 0 is no movement.
    bits = (bits ^ (bits >> 16)) * jnp.uint32(2654435769)
    return jnp.sum(bits ^ (bits >> 15), dtype=jnp.uint32)
