"""ResNets for small images (He et al., 2016) and WideResNets (Zagoruyko and Komodakis, 2016).

As in the code of Eigen-SAM, XSAM and VaSSO: a first convolution of 3x3 that keeps the size, no pooling after
it, strides in the second and later stages, and the mean over the last feature maps. Convolutions have no
biases and always pad by one pixel on each side, even with a stride. BatchNorm is PyTorch's: ε = 1e-5, and
each step keeps 0.9 of the running statistics. Convolutions are initialised as in He et al. (normal, fan out)
and VaSSO; Eigen-SAM and XSAM use PyTorch's defaults.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from benchmarks.errors import UsageError

BatchNorm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)


def convolution(
    before: int, after: int, size: int, *, stride: int = 1, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Conv:
    """A convolution without biases that keeps the size of the image, divided by the stride."""
    return nnx.Conv(
        before,
        after,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        rngs=rngs,
    )


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions, each with its norm, ReLU between them and after the sum with a shortcut."""

    def __init__(self, before: int, width: int, stride: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        make = partial(convolution, dtype=dtype, rngs=rngs)
        self.convolutions = nnx.List([make(before, width, 3, stride=stride), make(width, width, 3)])
        self.norms = nnx.List(BatchNorm(width, dtype=dtype, rngs=rngs) for _ in range(2))
        self.shortcut = Shortcut(before, width, stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns features `[batch, height / stride, width / stride, channels]`."""
        y = self.norms[0](self.convolutions[0](x))
        y = self.norms[1](self.convolutions[1](nnx.relu(y)))
        return nnx.relu(y + self.shortcut(x))


class Shortcut(nnx.Module):
    """The identity, or a 1x1 convolution if the shape changes."""

    def __init__(self, before: int, after: int, stride: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.changes = stride != 1 or before != after
        if self.changes:
            self.convolution = convolution(before, after, 1, stride=stride, dtype=dtype, rngs=rngs)
            self.norm = BatchNorm(after, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns features of the shape that the block's convolutions return."""
        return self.norm(self.convolution(x)) if self.changes else x


class ResNet(nnx.Module):
    """Stages of residual blocks, each twice as wide as the one before it; published ones have four.

    Args:
        image_shape: height, width, channels.
        num_classes: how many logits.
        num_blocks: how many in each stage; one number for the same in all of four.
        width: channels of the first convolution and of the first stage.
        stem_stride: stride of the first convolution; 2 makes all later ones four times cheaper.
        dtype: in which to compute; parameters, statistics and logits are float32.
        rngs: random keys.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        *,
        num_blocks: int | Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        stem_stride: int = 1,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if isinstance(num_blocks, int):
            num_blocks = (num_blocks,) * 4
        self.convolution = convolution(image_shape[-1], width, 3, stride=stem_stride, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(width, dtype=dtype, rngs=rngs)
        self.blocks, channels = nnx.List(), width
        for stage, number in enumerate(num_blocks):
            for i in range(number):
                stride = 2 if stage > 0 and i == 0 else 1
                self.blocks.append(BasicBlock(channels, width * 2**stage, stride, dtype=dtype, rngs=rngs))
                channels = width * 2**stage
        self.head = nnx.Linear(channels, num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits `[batch, num_classes]`."""
        x = nnx.relu(self.norm(self.convolution(images)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class PreactivationBlock(nnx.Module):
    """Norm and ReLU before each of two 3x3 convolutions, dropout between them, beside a shortcut."""

    def __init__(
        self, before: int, after: int, stride: int, *, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        make = partial(convolution, dtype=dtype, rngs=rngs)
        self.norms = nnx.List(BatchNorm(size, dtype=dtype, rngs=rngs) for size in (before, after))
        self.convolutions = nnx.List([make(before, after, 3, stride=stride), make(after, after, 3)])
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.changes = stride != 1 or before != after
        if self.changes:
            self.shortcut = make(before, after, 1, stride=stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns features `[batch, height / stride, width / stride, channels]`."""
        y = nnx.relu(self.norms[0](x))
        shortcut = self.shortcut(y) if self.changes else x
        y = nnx.relu(self.norms[1](self.convolutions[0](y)))
        return shortcut + self.convolutions[1](self.dropout(y))


class WideResNet(nnx.Module):
    """Three stages of pre-activation blocks, of 16, 32 and 64 channels times a factor.

    Args:
        image_shape: height, width, channels.
        num_classes: how many logits.
        depth: number of layers as their paper counts them, 6n + 4 for n blocks a stage.
        width: the factor.
        dropout: probability that a unit between the two convolutions of a block is dropped.
        dtype: in which to compute; parameters, statistics and logits are float32.
        rngs: random keys.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        *,
        depth: int = 28,
        width: int = 10,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if depth < 10 or (depth - 4) % 6:
            raise UsageError(f"depth={depth} is not 6n + 4; WideResNets have 10, 16, 22, 28, 40, ... layers")
        self.convolution = convolution(image_shape[-1], 16, 3, dtype=dtype, rngs=rngs)
        self.blocks, channels = nnx.List(), 16
        for stage in range(3):
            for i in range((depth - 4) // 6):
                stride, after = (2 if stage > 0 and i == 0 else 1), 16 * 2**stage * width
                self.blocks.append(
                    PreactivationBlock(channels, after, stride, dropout=dropout, dtype=dtype, rngs=rngs)
                )
                channels = after
        self.norm = BatchNorm(channels, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(channels, num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits `[batch, num_classes]`."""
        x = self.convolution(images)
        for block in self.blocks:
            x = block(x)
        return self.head(nnx.relu(self.norm(x)).mean((1, 2)))
