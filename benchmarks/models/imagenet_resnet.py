"""ResNet-50 for images of 224 x 224 (He et al., 2016), with the stride in the 3x3 convolution.

BatchNorm and initial values are those of `resnets.py`.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from benchmarks.models.resnets import BatchNorm, Shortcut, convolution


class Bottleneck(nnx.Module):
    """Convolutions of 1x1, 3x3 and 1x1, each with its norm, beside a shortcut; four times as wide outside."""

    def __init__(self, before: int, width: int, stride: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        make = partial(convolution, dtype=dtype, rngs=rngs)
        after = 4 * width
        self.convolutions = nnx.List(
            [make(before, width, 1), make(width, width, 3, stride=stride), make(width, after, 1)]
        )
        self.norms = nnx.List(BatchNorm(size, dtype=dtype, rngs=rngs) for size in (width, width, after))
        self.shortcut = Shortcut(before, after, stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns features `[batch, height / stride, width / stride, channels]`."""
        y = nnx.relu(self.norms[0](self.convolutions[0](x)))
        y = nnx.relu(self.norms[1](self.convolutions[1](y)))
        return nnx.relu(self.norms[2](self.convolutions[2](y)) + self.shortcut(x))


class ResNet50(nnx.Module):
    """A 7x7 convolution and a pool, both with stride 2, then 3, 4, 6 and 3 blocks.

    Args:
        image_shape: height, width, channels.
        num_classes: how many logits.
        dtype: in which to compute; parameters, statistics and logits are float32.
        rngs: random keys.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.convolution = convolution(image_shape[-1], 64, 7, stride=2, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(64, dtype=dtype, rngs=rngs)
        self.blocks, channels = nnx.List(), 64
        for stage, number in enumerate((3, 4, 6, 3)):
            for i in range(number):
                stride, width = (2 if stage > 0 and i == 0 else 1), 64 * 2**stage
                self.blocks.append(Bottleneck(channels, width, stride, dtype=dtype, rngs=rngs))
                channels = 4 * width
        self.head = nnx.Linear(channels, num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits `[batch, num_classes]`."""
        x = nnx.relu(self.norm(self.convolution(images)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))
