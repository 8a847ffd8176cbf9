"""The table of models. Each takes images `[batch, height, width, channels]` and returns logits in float32.

Small networks for CPUs are in `small.py`; `resnets.py` and `vision_transformer.py` hold the published ones.
Two are made small enough for CPUs here: `resnet6`, the stages of ResNet-18 with 32 and 64 channels, one block
each, behind a stem of 16 with stride 2; and `tiny_vit`, two encoder blocks on 16 patches of 7x7 pixels.
`minilm`, in `encoder.py`, takes the tokens of texts in the place of images.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from flax import nnx

from benchmarks.errors import UsageError
from benchmarks.models.encoder import Encoder
from benchmarks.models.resnets import ResNet, WideResNet
from benchmarks.models.small import MLP, StridedCNN
from benchmarks.models.vision_transformer import VisionTransformer, ViTB16

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "mlp": MLP,
    "strided_cnn": StridedCNN,
    "resnet6": partial(ResNet, num_blocks=(0, 1, 1), width=16, stem_stride=2),
    "tiny_vit": partial(VisionTransformer, patch_size=7, hidden_size=48, num_layers=2, num_heads=4),
    "resnet18": ResNet,
    "wide_resnet28_10": WideResNet,
    "vit_b16": ViTB16,
    "minilm": Encoder,
}


def build(
    name: str, image_shape: Sequence[int], num_classes: int, options: Mapping[str, Any], *, rngs: nnx.Rngs
) -> nnx.Module:
    """Builds a network.

    Args:
        name: one of `MODELS`.
        image_shape: height, width, channels.
        num_classes: how many logits.
        options: further keyword arguments of the network.
        rngs: random keys.

    Raises:
        UsageError: if the network does not have an option, or does not fit images of this shape.
    """
    constructor = getattr(MODELS[name], "func", MODELS[name]).__init__  # of a class, or of a partial one
    known = {
        option: parameter.annotation
        for option, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and option != "rngs"
    }
    if unknown := sorted(set(options) - set(known)):
        numbers = (int, float, int | Sequence[int])  # types that the command line can pass
        offered = ", ".join(option for option, kind in known.items() if kind in numbers) or "none"
        raise UsageError(f"model {name!r} has no option {', '.join(unknown)}; its options are: {offered}")
    return MODELS[name](image_shape, num_classes, **options, rngs=rngs)
