"""Vision Transformers (Dosovitskiy et al., 2021): ViT-S/16 and ViT-B/16.

Layer norms before attention and before the MLP with ε = 1e-6, exact GELU, a class token, learned position
embeddings, and a head that starts at zero. Published weights are read by `pretrained.py`.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from benchmarks.errors import UsageError

LayerNorm = partial(nnx.LayerNorm, epsilon=1e-6)


class EncoderBlock(nnx.Module):
    """Self-attention and an MLP, each with a residual connection."""

    def __init__(self, hidden_size: int, num_heads: int, *, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs):
        uniform = nnx.initializers.xavier_uniform()
        self.attention_norm = LayerNorm(hidden_size, dtype=dtype, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads, hidden_size, kernel_init=uniform, decode=False, dtype=dtype, rngs=rngs
        )
        self.mlp_norm = LayerNorm(hidden_size, dtype=dtype, rngs=rngs)
        self.mlp_in = nnx.Linear(hidden_size, 4 * hidden_size, kernel_init=uniform, dtype=dtype, rngs=rngs)
        self.mlp_out = nnx.Linear(4 * hidden_size, hidden_size, kernel_init=uniform, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns tokens `[batch, tokens, hidden_size]`."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        y = nnx.gelu(self.mlp_in(self.mlp_norm(x)), approximate=False)
        return x + self.dropout(self.mlp_out(self.dropout(y)))


class VisionTransformer(nnx.Module):
    """Transformer encoder on the patches of an image.

    Args:
        image_shape: height, width, channels of the input images.
        num_classes: how many logits.
        image_size: height and width to which the network first scales its input. 0: no scaling.
        patch_size: height and width of a patch, in pixels.
        hidden_size: size of a token.
        num_layers: encoder blocks.
        num_heads: of the attention.
        dropout: probability of dropping a unit after each layer; not in the attention weights.
        dtype: in which to compute; parameters and logits are float32.
        rngs: random keys.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        *,
        image_size: int = 0,
        patch_size: int = 16,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        height, width = (image_size, image_size) if image_size else image_shape[:2]
        if height % patch_size or width % patch_size:
            raise UsageError(
                f"images of {height}x{width} pixels cannot be cut into patches of {patch_size}x{patch_size}; "
                f"scale them first, for example with --model-options image_size {14 * patch_size}"
            )
        self.size = (height, width)
        num_patches = (height // patch_size) * (width // patch_size)
        self.patches = nnx.Conv(
            image_shape[-1],
            hidden_size,
            (patch_size, patch_size),
            strides=patch_size,
            padding="VALID",
            dtype=dtype,
            rngs=rngs,
        )
        self.class_token = nnx.Param(jnp.zeros((1, 1, hidden_size)))
        positions = nnx.initializers.normal(0.02)(rngs.params(), (1, 1 + num_patches, hidden_size))
        self.positions = nnx.Param(positions)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.blocks = nnx.List(
            EncoderBlock(hidden_size, num_heads, dropout=dropout, dtype=dtype, rngs=rngs)
            for _ in range(num_layers)
        )
        self.norm = LayerNorm(hidden_size, dtype=dtype, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.head = nnx.Linear(hidden_size, num_classes, kernel_init=zeros, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits `[batch, num_classes]`."""
        if images.shape[1:3] != self.size:
            images = jax.image.resize(images, (len(images), *self.size, images.shape[-1]), "bicubic")
        x = self.patches(images)
        x = x.reshape(len(x), -1, x.shape[-1])
        class_token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([class_token, x], axis=1) + self.positions[...].astype(x.dtype)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


ViTB16 = partial(VisionTransformer, hidden_size=768, num_layers=12, num_heads=12)
