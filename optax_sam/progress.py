"""Progress bars: tqdm, of the extra `curvature`, imported where a bar is asked for."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")
NUM_CHUNKS = 50  # ticks of the bar of `in_chunks`


def steps(count: int, title: str, unit: str = "product") -> Iterable[int]:
    """Returns range(count), with a progress bar of that title if it is not empty, which counts in `unit`."""
    return with_bar(range(count), title, unit)


def with_bar(items: Iterable[T], title: str, unit: str) -> Iterable[T]:
    """Returns the items, with a progress bar of that title if it is not empty, which counts in `unit`."""
    if not title:
        return items
    try:
        from tqdm import auto
    except ImportError as error:
        raise ImportError(
            "`progress=True` needs tqdm: `pip install 'optax_sam[curvature]'` or `pip install tqdm`."
        ) from error
    return auto.tqdm(items, desc=title, unit=unit)


def in_chunks(evaluate: Callable[[jax.Array], jax.Array], points: jax.Array, title: str) -> jax.Array:
    """Returns `evaluate(points)`, in one call, or in one for each of equal parts if there is a bar to move.

    Args:
      evaluate: maps an array of points, along its first axis, to their losses.
      points: the points.
      title: of the progress bar; "" is none.
    """
    if not title:
        return evaluate(points)
    size = -(-len(points) // NUM_CHUNKS)
    count = -(-len(points) // size)
    # The last part is filled up: another shape would be compiled anew.
    indices = jnp.minimum(jnp.arange(count * size), len(points) - 1).reshape(count, size)
    losses = [jax.block_until_ready(evaluate(points[indices[i]])) for i in steps(count, title, unit="part")]
    return jnp.concatenate(losses)[: len(points)]
