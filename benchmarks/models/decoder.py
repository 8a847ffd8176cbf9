"""A decoder for text, its layers in one loop, with or without rematerialisation.

The layers' parameters are stacked, `[layers, ...]`: the compiler sees one layer however many there are.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class DecoderLayer(nnx.Module):
    """Causal self-attention and an MLP, each behind a norm and with a residual connection; no biases."""

    def __init__(self, width: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        linear = lambda before, after: nnx.Linear(before, after, use_bias=False, dtype=dtype, rngs=rngs)
        self.num_heads = num_heads
        self.attention_norm = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.mlp_norm = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)
        self.mlp_in, self.mlp_out = linear(width, 4 * width), linear(4 * width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[batch, length, width]`."""
        heads = self.qkv(self.attention_norm(x)).reshape(*x.shape[:-1], 3, self.num_heads, -1)
        attended = jax.nn.dot_product_attention(*jnp.unstack(heads, axis=-3), is_causal=True)
        x = x + self.out(attended.reshape(x.shape))
        return x + self.mlp_out(nnx.gelu(self.mlp_in(self.mlp_norm(x))))


class Decoder(nnx.Module):
    """Predicts the next token at each position.

    Args:
        length: number of positions.
        num_tokens: size of the vocabulary.
        width: of the layers.
        num_layers: how many.
        num_heads: of the attention.
        remat: whether the backward pass computes each layer again, from its input.
        unroll: whether the program repeats the layer instead of a loop.
        dtype: in which to compute; parameters and logits are float32.
        rngs: random keys.
    """

    def __init__(
        self,
        length: int,
        num_tokens: int,
        *,
        width: int,
        num_layers: int,
        num_heads: int,
        remat: bool = False,
        unroll: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.remat, self.unroll = remat, unroll
        self.tokens = nnx.Embed(num_tokens, width, dtype=dtype, rngs=rngs)
        self.positions = nnx.Embed(length, width, dtype=dtype, rngs=rngs)
        make = lambda rngs: DecoderLayer(width, num_heads, dtype=dtype, rngs=rngs)
        self.layers = nnx.split_rngs(splits=num_layers)(nnx.vmap(make))(rngs)
        self.norm = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(width, num_tokens, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns logits `[batch, length, num_tokens]`."""
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[-1]))
        graphdef, stacked = nnx.split(self.layers)
        layer = lambda x, params: (nnx.merge(graphdef, params)(x), None)
        if self.remat:
            layer = jax.checkpoint(layer, prevent_cse=self.unroll)
        x, _ = jax.lax.scan(layer, x, stacked, unroll=self.unroll)
        return self.head(self.norm(x)).astype(jnp.float32)
