"""Published weights of Vision Transformers, for fine-tuning, from a file of `timm/vit_*_patch16_*`.

The file is .safetensors, with transposed matrices and query, key and value in one array. The head is not
read: the new one, for other classes, starts at zero. Position embeddings are interpolated if the images have
another size. Our images (`data/arrays.py`) are standardised by their own mean and deviation, and those on
which the weights were trained by ½ and ½. The weights of the first layer are adapted to this, so that the
network starts with the published features.
"""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from benchmarks.data.arrays import Dataset
from benchmarks.errors import UsageError

Arrays = Mapping[str, np.ndarray]
Weights = dict[tuple[str | int, ...], np.ndarray]  # path in the network -> array
SIGN = "patch_embed.proj.weight"  # an array that only these files have
HALF = 0.5  # what was subtracted from pixels in [0, 1], and what they were divided by then
NORMS = {"attention_norm": "norm1", "mlp_norm": "norm2"}
LINEAR = {"mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2"}


def load(path: Path, params: nnx.State, dataset: Dataset) -> nnx.State:
    """Reads weights for a `VisionTransformer`.

    Args:
        path: of the file.
        params: parameters of the network, abstract or not; their shapes are what is read.
        dataset: of the images on which it will be trained.

    Returns:
        All its parameters except the head's.

    Raises:
        UsageError: if the file is of another kind, or its network has other sizes.
    """
    shapes = {at: param.shape for at, param in nnx.to_flat_state(params) if at[0] != "head"}
    if not path.is_file():
        raise UsageError(f"no file {path}; name the published weights with --pretrained")
    if path.suffix != ".safetensors":
        raise UsageError(f"{path} is not .safetensors; use the file of timm/vit_base_patch16_*")
    arrays = safetensors.numpy.load_file(path)
    if SIGN not in arrays or ("class_token",) not in shapes:
        raise UsageError(
            f"{path} does not fit this model: only vit_b16 can start from published weights, in a file "
            f"with the array {SIGN}"
        )
    num_blocks = 1 + max(at[1] for at in shapes if at[0] == "blocks")
    stored = sum(any(name.startswith(f"blocks.{i}.") for name in arrays) for i in range(100))
    if stored != num_blocks:
        raise UsageError(
            f"{path} holds {stored} encoder blocks, the model has {num_blocks}; choose its --model"
        )
    try:
        weights = convert(arrays, num_blocks, shapes["blocks", 0, "attention", "query", "bias"][0])
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
    restandardise(weights, dataset)
    return nnx.from_flat_state([(at, nnx.Param(array)) for at, array in weights.items()])


def convert(arrays: Arrays, num_blocks: int, num_heads: int) -> Weights:
    """The arrays of the file, in the places and shapes of the network."""

    def norm(at, name):
        return {(*at, "scale"): arrays[f"{name}.weight"], (*at, "bias"): arrays[f"{name}.bias"]}

    def linear(at, name):
        return {(*at, "kernel"): arrays[f"{name}.weight"].T, (*at, "bias"): arrays[f"{name}.bias"]}

    weights = {
        ("class_token",): arrays["cls_token"],
        ("positions",): arrays["pos_embed"],
        ("patches", "kernel"): arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        ("patches", "bias"): arrays["patch_embed.proj.bias"],
        **norm(("norm",), "norm"),
    }
    for i in range(num_blocks):
        at, block = ("blocks", i), f"blocks.{i}"
        for part, name in NORMS.items():
            weights |= norm((*at, part), f"{block}.{name}")
        for part, name in LINEAR.items():
            weights |= linear((*at, part), f"{block}.{name}")
        qkv_kernel, qkv_bias = (arrays[f"{block}.attn.qkv.{part}"] for part in ("weight", "bias"))
        size = qkv_kernel.shape[1]
        heads = (num_heads, size // num_heads)
        for part, kernel, bias in zip(
            ("query", "key", "value"), np.split(qkv_kernel, 3), np.split(qkv_bias, 3), strict=True
        ):
            weights[(*at, "attention", part, "kernel")] = kernel.T.reshape(size, *heads)
            weights[(*at, "attention", part, "bias")] = bias.reshape(heads)
        weights |= linear((*at, "attention", "out"), f"{block}.attn.proj")
        out = (*at, "attention", "out", "kernel")
        weights[out] = weights[out].reshape(*heads, size)
    return weights


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


def restandardise(weights: Weights, dataset: Dataset) -> None:
    """Adapts the first layer to the standardisation of our images, so that it gives the published features.

    A pixel that is x here was (x · scale + shift) there.
    """
    scale = np.asarray(dataset.deviation) / 255 / HALF
    shift = (np.asarray(dataset.mean) / 255 - HALF) / HALF
    kernel = weights[("patches", "kernel")]
    bias = weights[("patches", "bias")] + np.einsum("hwcf,c->f", kernel, shift)
    weights[("patches", "bias")] = bias.astype(np.float32)
    weights[("patches", "kernel")] = (kernel * scale[:, None]).astype(np.float32)
