"""When a stage refreshes, that is, does the costly part of its work: the eigenvector, the α-search.

    refresh=None      every `interval` steps, by the stage's own count, in a `lax.cond`
    refresh=True      in this step; decided at trace time, no control flow in the program
    refresh=False     not in this step; the program is as small and as fast as plain SAM's
    a traced bool     a `lax.cond` on it

A training loop that decides on the host has two compiled programs and no extra cost between refreshes:

    step = jax.jit(step, static_argnames="refresh")
    for i, batch in enumerate(batches):
        params, state = step(params, state, batch, refresh=i % 100 == 0)

Without `jit`, the decision is made in Python as well.

Under `vmap` over an ensemble (seeds, hyper-parameters) the costly work is done for all members in each step
in which one of them refreshes. Members with one `interval` that began together refresh together. If they do
not, as with a mapped `interval`, pass a `refresh` that is not mapped.

Why to decide on the host: on XLA:CPU the weight gradient of a convolution inside `cond`, `while` or
`scan` runs far slower than outside (jax-ml/jax#12868; `python -m benchmarks step_cost` measures it),
and on every device a program with a `cond` reserves the memory of its largest branch on every step.
"""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.custom_batching
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")


def refreshed(
    refresh: bool | jax.Array | None,
    count: jax.Array | int,
    interval: int | jax.Array,
    compute: Callable[[], T],
    kept: T,
) -> T:
    """Returns `compute()` on refresh steps and `kept` on all other steps.

    Args:
      refresh: as in the table above.
      count: number of updates made so far; `refresh=None` refreshes when it is a multiple of
        `interval`, the first update included.
      interval: number of steps from one refresh to the next.
      compute: the costly work; returns the structure, shapes and dtypes of `kept`.
      kept: the result of the last refresh.
    """
    if refresh is None:
        refresh = True if isinstance(interval, int | np.integer) and interval == 1 else count % interval == 0
    # A known value is used here: without `jit` a `cond` would be compiled again at every step.
    if not isinstance(refresh, jax.core.Tracer):
        return compute() if refresh else kept

    def of_those_that_refresh() -> T:
        return jax.tree.map(functools.partial(jnp.where, _in_this(refresh)), compute(), kept)

    return jax.lax.cond(_in_any(refresh), of_those_that_refresh, lambda: kept)


# Under `vmap`, a `cond` on a mapped condition computes both branches in every step. So it is made on
# whether any member of the ensemble refreshes, which is not mapped. Without `vmap` neither function
# computes anything.


@jax.custom_batching.custom_vmap
def _in_any(refresh: jax.Array) -> jax.Array:
    """Returns whether any member refreshes."""
    return refresh


@_in_any.def_vmap
def _in_any_mapped(size: int, is_mapped: list[bool], refresh: jax.Array) -> tuple[jax.Array, bool]:
    return _in_any(jnp.any(refresh)), False


@jax.custom_batching.custom_vmap
def _in_this(refresh: jax.Array) -> jax.Array:
    """Returns whether this member refreshes, where any does."""
    return jnp.ones((), bool)


@_in_this.def_vmap
def _in_this_mapped(size: int, is_mapped: list[bool], refresh: jax.Array) -> tuple[jax.Array, bool]:
    return refresh, True
