"""Small networks for CPUs, for images `[batch, height, width, channels]`; logits are float32.

`dtype` is the precision of a network's computations. Its parameters are always float32, so that SAM's
perturbations are not rounded away.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class MLP(nnx.Module):
    """Fully connected ReLU network on the flattened image."""

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        *,
        widths: Sequence[int] = (256, 256),
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        height, width, channels = image_shape
        sizes = [height * width * channels, *widths]
        self.hidden = nnx.List(
            nnx.Linear(before, after, dtype=dtype, rngs=rngs) for before, after in pairwise(sizes)
        )
        self.head = nnx.Linear(sizes[-1], num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits `[batch, num_classes]`."""
        x = images.reshape(len(images), -1)
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.head(x)


class StridedCNN(nnx.Module):
    """Three 3x3 convolutions, each halving the image by its stride.

    It uses strides rather than pooling, because the gradient of max pooling is slow on CPUs.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        *,
        widths: Sequence[int] = (16, 32, 32),
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        height, width, channels = image_shape
        sizes = [channels, *widths]
        self.convolutions = nnx.List(
            nnx.Conv(before, after, (3, 3), strides=2, dtype=dtype, rngs=rngs)
            for before, after in pairwise(sizes)
        )
        for _ in widths:  # padding "SAME": each stride rounds up
            height, width = -(-height // 2), -(-width // 2)
        self.head = nnx.Linear(height * width * sizes[-1], num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits `[batch, num_classes]`."""
        x = images
        for convolution in self.convolutions:
            x = nnx.relu(convolution(x))
        return self.head(x.reshape(len(x), -1))
