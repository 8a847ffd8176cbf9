"""When the costly, occasional part of a step is done: the eigenvector tracker, the α-search.

    refresh=None      every `interval` steps, by the stage's own count, in a `lax.cond`
    refresh=True      now; decided at trace time, no control flow in the program
    refresh=False     not now; the program is as small and as fast as plain SAM's
    a traced bool     a `lax.cond` on it

A training loop that decides on the host gets two compiled programs and pays nothing between refreshes:

    step = jax.jit(step, static_argnames="refresh")
    for i, batch in enumerate(batches):
        params, state = step(params, state, batch, refresh=i % 100 == 0)

One that runs without `jit` is decided in Python as well. Under `vmap` over an ensemble a `cond` computes
both branches: pass a `refresh` that is not mapped, or every step pays for a refresh.

Deciding on the host is worth it: on XLA:CPU the weight gradient of a convolution inside `cond`, `while` or
`scan` runs far slower than outside (jax-ml/jax#12868; `python -m benchmarks.cost.step_cost` measures it),
and everywhere a program with a `cond` reserves the memory of its largest branch on every step.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

T = TypeVar("T")


def refreshed(
    refresh: bool | jax.Array | None,
    count: jax.Array,
    interval: int | jax.Array,
    compute: Callable[[], T],
    kept: T,
) -> T:
    """Returns `compute()` on refresh steps and `kept` on all others.

    Args:
      refresh: as in the table above.
      count: number of updates made so far; `refresh=None` refreshes when it is a multiple of
        `interval`, the first update included.
      interval: number of steps from one refresh to the next.
      compute: the costly work; returns the structure, shapes and dtypes of `kept`.
      kept: the values of the last refresh.
    """
    if refresh is None:
        refresh = True if isinstance(interval, int | np.integer) and interval == 1 else count % interval == 0
    # Not traced, and known: without `jit` a `cond` would be compiled anew at every step.
    if not isinstance(refresh, jax.core.Tracer):
        return compute() if refresh else kept
    return jax.lax.cond(refresh, compute, lambda: kept)
