"""When a stage refreshes, that is, does the costly part of its work: the eigenvector, the α-search.

    refresh=None      every `interval` steps, by the stage's own count, in a `lax.cond`
    refresh=True      in this step; decided at trace time, no control flow in the program
    refresh=False     not in this step; the program is as small and as fast as that of plain SAM
    a traced bool     a `lax.cond` on it

A training loop that decides on the host has two compiled programs and no extra cost between refreshes:

    step = jax.jit(step, static_argnames="refresh")
    for i, batch in enumerate(batches):
        params, state = step(params, state, batch, refresh=i % 100 == 0)

Without `jit`, the decision is made in Python as well. Under `vmap` over an ensemble a `cond` computes both
branches: pass a `refresh` that is not mapped, or every step costs as much as a refresh.

Why to decide on the host: on XLA:CPU the weight gradient of a convolution inside `cond`, `while` or
`scan` runs far slower than outside (jax-ml/jax#12868; `python -m benchmarks step_cost` measures it),
and on every device a program with a `cond` reserves the memory of its largest branch on every step.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
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
    return jax.lax.cond(refresh, compute, lambda: kept)
