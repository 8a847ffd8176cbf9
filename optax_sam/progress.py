"""Progress bars with tqdm, from the extra `progress`, which is imported only if a bar is asked for."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")
NUM_CHUNKS = 50  # steps of the bar in `in_chunks`


def steps(count: int, title: str, unit: str = "product") -> Iterable[int]:
    """Returns range(count), with a progress bar that counts in `unit` unless the title is empty."""
    return with_bar(range(count), title, unit)


def with_bar(items: Iterable[T], title: str, unit: str) -> Iterable[T]:
    """Returns the items, with a progress bar that counts in `unit` unless the title is empty."""
    if not title:
        return items
    try:
        from tqdm import auto
    except ImportError as error:
        raise ImportError(
            "`progress=True` needs tqdm: `pip install 'optax_sam[progress]'` or `pip install tqdm`."
        ) from error
    return auto.tqdm(items, desc=title, unit=unit)


def in_chunks(evaluate: Callable[[jax.Array], jax.Array], points: jax.Array, title: str) -> jax.Array:
    """Returns `evaluate(points)`, computed in one call, or part by part if there is a progress bar.

    Args:
      evaluate: maps an array of points, along its first axis, to their losses.
      points: the points.
      title: of the progress bar; "" for none.
    """
    if not title:
        return evaluate(points)
    size = -(-len(points) // NUM_CHUNKS)
    count = -(-len(points) // size)
    # The last part is padded: another shape would be compiled again.
    indices = jnp.minimum(jnp.arange(count * size), len(points) - 1).reshape(count, size)
    losses = [jax.block_until_ready(evaluate(points[indices[i]])) for i in steps(count, title, unit="part")]
    return jnp.concatenate(losses)[: len(points)]
