"""Published weights of Vision Transformers, for fine-tuning, from local .npz and .safetensors files.

Three layouts are recognised, by the names of their arrays:

    google-research/vision_transformer   .npz of `gs://vit_models`, "How to train your ViT?" (augreg) included
    timm                                 .safetensors of `timm/vit_*_patch16_*`
    torchvision                          `vit_b_16`, once its .pth is saved as .safetensors

The head is not read: the new one, for other classes, starts at zero. Position embeddings are interpolated if
the images have another size. Our images (`data/arrays.py`) are standardised by their own mean and deviation,
and those on which the weights were trained by others. The weights of the first layer are adapted to this, so
that the network starts with the published features.
"""

from collections.abc import Callable, Mapping
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from benchmarks.data.arrays import Dataset
from benchmarks.errors import UsageError

Arrays = Mapping[str, np.ndarray]
Weights = dict[tuple[str | int, ...], np.ndarray]  # path in the network -> array


class Layout(NamedTuple):
    """How weights are stored.

    Attributes:
        sign: name of an array that only this layout has.
        block: beginning of the names of an encoder block.
        convert: arrays, number of encoder blocks, number of heads -> weights.
        mean: what was subtracted from pixels in [0, 1] before the network saw them.
        deviation: what they were divided by then.
    """

    sign: str
    block: str
    convert: Callable[[Arrays, int, int], Weights]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def load(path: Path, params: nnx.State, dataset: Dataset) -> nnx.State:
    """Reads weights for a `VisionTransformer`.

    Args:
        path: of the file.
        params: parameters of the network, abstract or not; their shapes are what is read.
        dataset: of the images on which it will be trained.

    Returns:
        All its parameters except those of the head.

    Raises:
        UsageError: if the layout of the file is unknown, or its network has other sizes.
    """
    shapes = {at: param.shape for at, param in nnx.to_flat_state(params) if at[0] != "head"}
    arrays = read(path)
    layout = next((layout for layout in LAYOUTS if layout.sign in arrays), None)
    if layout is None or ("class_token",) not in shapes:
        raise UsageError(
            f"{path} does not fit this model: only vit_s16 and vit_b16 can start from published "
            f"weights, in a file with one of the arrays {', '.join(layout.sign for layout in LAYOUTS)}"
        )
    num_blocks = 1 + max(at[1] for at in shapes if at[0] == "blocks")
    stored = sum(any(name.startswith(layout.block.format(i)) for name in arrays) for i in range(100))
    if stored != num_blocks:
        raise UsageError(
            f"{path} holds {stored} encoder blocks, the model has {num_blocks}; choose its --model"
        )
    num_heads = shapes["blocks", 0, "attention", "query", "bias"][0]
    try:
        weights = layout.convert(arrays, num_blocks, num_heads)
    except KeyError as error:
        raise UsageError(f"{path} has no array {error}; it is of another network") from error
    weights = {at: np.asarray(array, np.float32) for at, array in weights.items()}
    weights["positions",] = resize_positions(weights["positions",], shapes["positions",][1])
    for at, shape in shapes.items():
        if weights[at].shape != shape:
            raise UsageError(
                f"{path} is of a network of other sizes: {'.'.join(map(str, at))} is {weights[at].shape}, "
                f"the model's {shape}; choose its --model, and colour images"
            )
    restandardise(weights, layout, dataset)
    return nnx.from_flat_state([(at, nnx.Param(array)) for at, array in weights.items()])


def read(path: Path) -> Arrays:
    """The arrays of a file, by name."""
    if not path.is_file():
        raise UsageError(f"no file {path}; name the published weights with --pretrained")
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    if path.suffix == ".safetensors":
        return safetensors.numpy.load_file(path)
    raise UsageError(f"{path} is neither .npz nor .safetensors")


def from_jax(arrays: Arrays, num_blocks: int, num_heads: int) -> Weights:
    """The layout of google-research/vision_transformer: shapes as here."""
    del num_heads
    names = {
        ("class_token",): "cls",
        ("positions",): "Transformer/posembed_input/pos_embedding",
        **leaves("patches", "embedding", kernel="kernel"),
        **leaves("norm", "Transformer/encoder_norm", kernel="scale"),
    }
    for i in range(num_blocks):
        block = f"Transformer/encoderblock_{i}"
        names |= leaves(("blocks", i, "attention_norm"), f"{block}/LayerNorm_0", kernel="scale")
        names |= leaves(("blocks", i, "mlp_norm"), f"{block}/LayerNorm_2", kernel="scale")
        names |= leaves(("blocks", i, "mlp_in"), f"{block}/MlpBlock_3/Dense_0", kernel="kernel")
        names |= leaves(("blocks", i, "mlp_out"), f"{block}/MlpBlock_3/Dense_1", kernel="kernel")
        for part in ("query", "key", "value", "out"):
            attention = f"{block}/MultiHeadDotProductAttention_1/{part}"
            names |= leaves(("blocks", i, "attention", part), attention, kernel="kernel")
    return {at: arrays[name] for at, name in names.items()}


def leaves(at: str | tuple, name: str, *, kernel: str) -> dict[tuple, str]:
    """The two arrays of a layer: place in the network -> name in the file."""
    at = (at,) if isinstance(at, str) else at
    return {(*at, kernel): f"{name}/{kernel}", (*at, "bias"): f"{name}/bias"}


TIMM = {
    "class": "cls_token",
    "positions": "pos_embed",
    "patches": "patch_embed.proj",
    "norm": "norm",
    "block": "blocks.{}",
    "attention_norm": "norm1",
    "qkv": "attn.qkv.",
    "out": "attn.proj",
    "mlp_norm": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
TORCHVISION = {
    "class": "class_token",
    "positions": "encoder.pos_embedding",
    "patches": "conv_proj",
    "norm": "encoder.ln",
    "block": "encoder.layers.encoder_layer_{}",
    "attention_norm": "ln_1",
    "qkv": "self_attention.in_proj_",
    "out": "self_attention.out_proj",
    "mlp_norm": "ln_2",
    "mlp_in": "mlp.0",
    "mlp_out": "mlp.3",
}


def from_torch(names: Mapping[str, str]) -> Callable[[Arrays, int, int], Weights]:
    """The layouts of timm and torchvision: transposed matrices, and query, key and value in one array."""

    def convert(arrays: Arrays, num_blocks: int, num_heads: int) -> Weights:
        # torchvision's first files have older names.
        arrays = {
            name.replace("mlp.linear_1", "mlp.0").replace("mlp.linear_2", "mlp.3"): array
            for name, array in arrays.items()
        }

        def norm(at, name):
            return {(*at, "scale"): arrays[f"{name}.weight"], (*at, "bias"): arrays[f"{name}.bias"]}

        def linear(at, name):
            return {(*at, "kernel"): arrays[f"{name}.weight"].T, (*at, "bias"): arrays[f"{name}.bias"]}

        weights = {
            ("class_token",): arrays[names["class"]],
            ("positions",): arrays[names["positions"]],
            ("patches", "kernel"): arrays[names["patches"] + ".weight"].transpose(2, 3, 1, 0),
            ("patches", "bias"): arrays[names["patches"] + ".bias"],
            **norm(("norm",), names["norm"]),
        }
        for i in range(num_blocks):
            at, block = ("blocks", i), names["block"].format(i)
            for part in ("attention_norm", "mlp_norm"):
                weights |= norm((*at, part), f"{block}.{names[part]}")
            for part in ("mlp_in", "mlp_out"):
                weights |= linear((*at, part), f"{block}.{names[part]}")
            qkv_kernel, qkv_bias = (arrays[f"{block}.{names['qkv']}{part}"] for part in ("weight", "bias"))
            size = qkv_kernel.shape[1]
            heads = (num_heads, size // num_heads)
            for part, kernel, bias in zip(
                ("query", "key", "value"), np.split(qkv_kernel, 3), np.split(qkv_bias, 3), strict=True
            ):
                weights[(*at, "attention", part, "kernel")] = kernel.T.reshape(size, *heads)
                weights[(*at, "attention", part, "bias")] = bias.reshape(heads)
            weights |= linear((*at, "attention", "out"), f"{block}.{names['out']}")
            out = (*at, "attention", "out", "kernel")
            weights[out] = weights[out].reshape(*heads, size)
        return weights

    return convert


HALF = (0.5, 0.5, 0.5)
LAYOUTS = (
    Layout("embedding/kernel", "Transformer/encoderblock_{}/", from_jax, HALF, HALF),
    Layout("patch_embed.proj.weight", "blocks.{}.", from_torch(TIMM), HALF, HALF),
    Layout(
        "conv_proj.weight",
        "encoder.layers.encoder_layer_{}.",
        from_torch(TORCHVISION),
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    ),
)


def resize_positions(positions: np.ndarray, num_tokens: int) -> np.ndarray:
    """Interpolates position embeddings `[1, 1 + old patches, size]` to another number of patches.

    The first token is the class's, which has no place in the image. Images are square.
    """
    if positions.shape[1] == num_tokens:
        return positions
    old, new = isqrt(positions.shape[1] - 1), isqrt(num_tokens - 1)
    if (old**2 + 1, new**2 + 1) != (positions.shape[1], num_tokens):
        raise UsageError(
            f"embeddings of {positions.shape[1] - 1} positions cannot be interpolated to {num_tokens - 1}: "
            "both images must be square; try --model-options image_size 224"
        )
    grid = positions[0, 1:].reshape(old, old, -1)
    grid = jax.image.resize(grid, (new, new, grid.shape[-1]), "bicubic")
    return np.concatenate([positions[:, :1], np.asarray(grid).reshape(1, new**2, -1)], axis=1)


def restandardise(weights: Weights, layout: Layout, dataset: Dataset) -> None:
    """Adapts the first layer to the standardisation of our images, so that it gives the published features.

    A pixel that is x here was (x · scale + shift) there.
    """
    scale = np.asarray(dataset.deviation) / 255 / np.array(layout.deviation)
    shift = (np.asarray(dataset.mean) / 255 - np.array(layout.mean)) / np.array(layout.deviation)
    kernel = weights[("patches", "kernel")]
    bias = weights[("patches", "bias")] + np.einsum("hwcf,c->f", kernel, shift)
    weights[("patches", "bias")] = bias.astype(np.float32)
    weights[("patches", "kernel")] = (kernel * scale[:, None]).astype(np.float32)
