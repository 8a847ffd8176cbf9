"""Losses at many points: in one call of the compiled program, or in many where a progress bar is to move."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from optax_sam.curvature.progress import steps

NUM_CHUNKS = 50  # ticks of the progress bar


def in_chunks(evaluate: Callable[[jax.Array], jax.Array], points: jax.Array, title: str) -> jax.Array:
    """Returns `evaluate(points)`, called for equal parts of the points if there is a title to show.

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
