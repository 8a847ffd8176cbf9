"""Makes training labels wrong: a label becomes any other with the same probability."""

import jax
import numpy as np

from benchmarks.errors import UsageError


def add_noise(labels: jax.Array | np.ndarray, key: jax.Array, fraction: float, num_classes: int) -> jax.Array:
    """Makes a fraction of the labels wrong, uniformly among the other classes.

    For training labels only. `round(fraction * n)` labels change, each to another class.

    Args:
        labels: integers in `[0, num_classes)`.
        key: random key; the same key gives the same noisy labels.
        fraction: of the labels to make wrong, in `[0, 1]`.
        num_classes: at least 2.

    Returns:
        Labels of the same shape and type.

    Raises:
        UsageError: if `fraction` is not in `[0, 1]` or there is no other class.
    """
    if not 0 <= fraction <= 1:
        raise UsageError(f"the fraction of noisy labels is {fraction}; it must be in [0, 1]")
    if num_classes < 2:
        raise UsageError(f"with {num_classes} class no label can be wrong; use at least 2 classes")
    labels = jax.numpy.asarray(labels)
    which, shift = jax.random.split(key)
    chosen = jax.random.permutation(which, labels.size)[: round(fraction * labels.size)]
    shifts = jax.random.randint(shift, chosen.shape, 1, num_classes, labels.dtype)
    return labels.at[chosen].set((labels[chosen] + shifts) % num_classes)
