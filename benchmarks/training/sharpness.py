"""The sharpness of a trained network: the largest eigenvalue λ_max of the Hessian of its training loss."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from benchmarks.data.arrays import Split
from optax_sam import curvature

NUM_IMAGES = 1000
CHUNK = 250  # on CPUs, gradients of many images at once are slower than part by part
NUM_ITERS = 20


def chunks(split: Split, num: int | None = None) -> curvature.Batches:
    """A split, or its first images, as batches."""
    return curvature.Batches((split.images[:num], split.labels[:num]), CHUNK)


def largest_hessian_eigenvalue(
    loss: Callable[[optax.Params, Any], jax.Array], params: optax.Params, split: Split
) -> float:
    """The algebraically largest eigenvalue on the first 1,000 images.

    Args:
        loss: params, (images, labels) -> mean loss. Compiled once if it is wrapped in `jax.jit`.
        params: of the network.
        split: images and labels.
    """
    top = curvature.top_eigenpairs(loss, params, num_iters=NUM_ITERS, batches=chunks(split, NUM_IMAGES))
    return float(top.eigenvalues[0])
