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

from benchmarks.errors import UsageError


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


class SixLayerCNN(nnx.Module):
    """Four 3x3 convolutions and two linear layers, with 2x2 max pooling after every second convolution.

    Figure 1 of Eigen-SAM shows "a 6-layer CNN" on CIFAR-10. Its layers are not in the authors' code, so these
    are ours. There is no normalisation, because then the curvature would depend on the scale of the weights.

    Args:
        image_shape: height and width, both divisible by four, and channels.
        num_classes: how many logits.
        width: channels of the first two convolutions; twice in the next two, eight times in the linear layer.
        dtype: in which to compute.
        rngs: random keys.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        *,
        width: int = 32,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        height, image_width, channels = image_shape
        if height % 4 or image_width % 4:
            raise UsageError(
                f"images of {height}x{image_width} pixels cannot be halved twice; use --model mlp"
            )
        sizes = [channels, width, width, 2 * width, 2 * width]
        he = nnx.initializers.he_normal()
        self.convolutions = nnx.List(
            nnx.Conv(before, after, (3, 3), kernel_init=he, dtype=dtype, rngs=rngs)
            for before, after in pairwise(sizes)
        )
        flat = height // 4 * (image_width // 4) * sizes[-1]
        self.hidden = nnx.Linear(flat, 8 * width, kernel_init=he, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(8 * width, num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits `[batch, num_classes]`."""
        x = images
        for i, convolution in enumerate(self.convolutions):
            x = nnx.relu(convolution(x))
            if i % 2:
                # The gradient of a reshaped maximum is faster than that of max_pool on CPUs.
                n, height, width, channels = x.shape
                x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
        return self.head(nnx.relu(self.hidden(x.reshape(len(x), -1))))
