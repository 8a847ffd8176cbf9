"""A residual network and a transformer small enough for the cost table to run on a laptop's CPU.

Neither has state: the residual network normalises groups of channels, not batches, and there is no dropout.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx


class ResidualBlock(nnx.Module):
    """Two 3x3 convolutions, each with group normalisation, and a way around them."""

    def __init__(self, before: int, after: int, stride: int, *, rngs: nnx.Rngs):
        convolution = lambda channels, stride: nnx.Conv(
            channels, after, (3, 3), strides=stride, padding=1, use_bias=False, rngs=rngs
        )
        norm = lambda: nnx.GroupNorm(after, num_groups=8, epsilon=1e-5, rngs=rngs)
        self.conv1, self.norm1 = convolution(before, stride), norm()
        self.conv2, self.norm2 = convolution(after, 1), norm()
        self.shortcut = (
            nnx.Conv(before, after, (1, 1), strides=stride, padding=0, use_bias=False, rngs=rngs)
            if (before, stride) != (after, 1)
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[batch, height / stride, width / stride, channels]`."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet8(nnx.Module):
    """Three residual blocks of rising width between a convolution and a linear layer."""

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        *,
        widths: Sequence[int] = (16, 32, 64),
        rngs: nnx.Rngs,
    ):
        self.stem = nnx.Conv(image_shape[-1], widths[0], (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm = nnx.GroupNorm(widths[0], num_groups=8, epsilon=1e-5, rngs=rngs)
        self.blocks = nnx.List(
            ResidualBlock(before, after, 1 if i == 0 else 2, rngs=rngs)
            for i, (before, after) in enumerate(pairwise([widths[0], *widths]))
        )
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits `[batch, num_classes]`."""
        x = nnx.relu(self.norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class TransformerBlock(nnx.Module):
    """Causal self-attention and two dense layers, each behind a layer normalisation."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[batch, length, width]`."""
        heads = self.qkv(self.norm1(x)).reshape(*x.shape[:-1], 3, self.num_heads, -1)
        query, key, value = jnp.unstack(heads, axis=-3)
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.reshape(x.shape))
        return x + self.contract(nnx.gelu(self.expand(self.norm2(x))))


class Transformer(nnx.Module):
    """Language model: predicts the next token at each of `length` positions."""

    def __init__(
        self,
        length: int,
        num_tokens: int,
        *,
        width: int = 64,
        num_blocks: int = 2,
        num_heads: int = 4,
        rngs: nnx.Rngs,
    ):
        self.tokens = nnx.Embed(num_tokens, width, rngs=rngs)
        self.positions = nnx.Embed(length, width, rngs=rngs)
        self.blocks = nnx.List(TransformerBlock(width, num_heads, rngs=rngs) for _ in range(num_blocks))
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(width, num_tokens, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns logits `[batch, length, num_tokens]`."""
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[-1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
