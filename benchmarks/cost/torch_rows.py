"""The networks of the cost table in PyTorch, and the SAM variants of the package pytorch_optimizer.

Networks get the parameters of the networks in JAX, and both must have the same loss. Each optimizer is used
as its documentation says, in eager mode, with the base optimizer `torch.optim.SGD`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytorch_optimizer
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

PARAMETERS = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the optimizers have in common with those of JAX."""

    rho: float
    learning_rate: float
    momentum: float
    platform: str


class MLP(nn.Module):
    """Fully connected ReLU network on the flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(784, 256), nn.Linear(256, 256)])
        self.head = nn.Linear(256, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        x = images.flatten(1)
        for layer in self.hidden:
            x = functional.relu(layer(x))
        return self.head(x)


class StridedCNN(nn.Module):
    """Three 3x3 convolutions, each halving the image by its stride."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise([1, 16, 32, 32])
        )
        self.head = nn.Linear(4 * 4 * 32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        x = images
        for convolution in self.convolutions:
            x = functional.relu(convolution(x))
        return self.head(x.flatten(1))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each with group normalisation, and a way around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, after)
        self.shortcut = (
            nn.Conv2d(before, after, 1, stride=stride, bias=False) if (before, stride) != (after, 1) else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the features."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet8(nn.Module):
    """Three residual blocks between a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, 16)
        self.blocks = nn.Sequential(
            ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 64, 2)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        x = functional.relu(self.norm(self.stem(images)))
        return self.head(self.blocks(x).mean((2, 3)))


class TransformerBlock(nn.Module):
    """Causal self-attention and two dense layers, each behind a layer normalisation."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the features."""
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.contract(functional.gelu(self.expand(self.norm2(x)), approximate="tanh"))


class Transformer(nn.Module):
    """Language model: predicts the next token at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(256, 64)
        self.positions = nn.Embedding(64, 64)
        self.blocks = nn.Sequential(TransformerBlock(64, 4), TransformerBlock(64, 4))
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        positions = torch.arange(tokens.shape[-1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(positions))))


NETWORKS = {"mlp": MLP, "strided_cnn": StridedCNN, "resnet8": ResNet8, "transformer": Transformer}


def has_device(platform: str) -> bool:
    """Whether this PyTorch can compute on the same device as JAX."""
    return platform == "cpu" or (platform in ("gpu", "cuda") and torch.cuda.is_available())


def convert(model: str, name: str, x: np.ndarray) -> np.ndarray:
    """Returns a parameter as PyTorch stores it: outputs first, channels before pixels.

    Where the two sides are padded differently, XLA's "SAME" pads on the right and PyTorch on the left. So in
    PyTorch the strided CNN gets mirrored images and mirrored kernels, and computes the same.
    """
    if model == "strided_cnn" and name == "head.weight":
        return x.reshape(4, 4, 32, 10)[::-1, ::-1].transpose(3, 2, 0, 1).reshape(10, -1)
    if x.ndim == 4:
        return (x[::-1, ::-1] if model == "strided_cnn" else x).transpose(3, 2, 0, 1)
    is_embedding = name in ("tokens.weight", "positions.weight")
    return x.T if x.ndim == 2 and not is_embedding else x


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Returns name in PyTorch -> parameter."""
    found: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[prefix + PARAMETERS[key]] = value
    return found


def make_network(model: str, params: Mapping[Any, Any], device: str) -> nn.Module:
    """Returns the network with these parameters."""
    network = NETWORKS[model]()
    arrays = {name: np.array(convert(model, name, x)) for name, x in flatten(params).items()}
    network.load_state_dict({name: torch.from_numpy(x) for name, x in arrays.items()})
    return network.to(device)


def make_batch(model: str, batch: tuple[np.ndarray, np.ndarray], device: str) -> tuple[Any, Any]:
    """Returns the same batch, of images with channels before pixels."""
    inputs, labels = batch
    if inputs.ndim == 4:
        inputs = (inputs[:, ::-1, ::-1] if model == "strided_cnn" else inputs).transpose(0, 3, 1, 2)
    labels = torch.from_numpy(np.array(labels, np.int64)).to(device)
    kind = np.float32 if inputs.ndim == 4 else np.int64
    return torch.from_numpy(np.array(inputs, kind, order="C")).to(device), labels


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over all examples and positions."""
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


class ConstantRadius:
    """The schedule that `GSAM` asks for."""

    def __init__(self, rho: float) -> None:
        self.rho = rho

    def step(self) -> float:
        """Returns the radius of the next step."""
        return self.rho


def step_makers(
    network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, settings: Settings
) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Name -> function that makes the optimizer and returns a training step; each needs its own network."""
    base = {"lr": settings.learning_rate, "momentum": settings.momentum}
    own = {"rho": settings.rho, **base}
    loss = lambda: cross_entropy(network(inputs), labels)

    def closure_of(optimizer: torch.optim.Optimizer) -> Callable[[], torch.Tensor]:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        return closure

    def sgd() -> Callable[[], Any]:
        optimizer = torch.optim.SGD(network.parameters(), **base)
        closure = closure_of(optimizer)
        return lambda: (closure(), optimizer.step())

    def after_gradient(method: str, **options: Any) -> Callable[[], Any]:
        make = getattr(pytorch_optimizer, method)
        optimizer = make(network.parameters(), torch.optim.SGD, **own, **options)
        closure = closure_of(optimizer)
        return lambda: (closure(), optimizer.step(closure))

    def wsam() -> Callable[[], Any]:
        optimizer = pytorch_optimizer.WSAM(network, network.parameters(), torch.optim.SGD, **own)
        closure = closure_of(optimizer)
        return lambda: optimizer.step(closure)

    def gsam() -> Callable[[], Any]:
        sgd = torch.optim.SGD(network.parameters(), **base)
        optimizer = pytorch_optimizer.GSAM(network.parameters(), sgd, network, ConstantRadius(settings.rho))
        optimizer.set_closure(cross_entropy, inputs, labels)
        return optimizer.step

    return {
        "torch.optim.SGD": sgd,
        "pytorch_optimizer.SAM": lambda: after_gradient("SAM"),
        "pytorch_optimizer.SAM, adaptive": lambda: after_gradient("SAM", adaptive=True),
        "pytorch_optimizer.FriendlySAM": lambda: after_gradient("FriendlySAM"),
        "pytorch_optimizer.LookSAM": lambda: after_gradient("LookSAM"),
        "pytorch_optimizer.WSAM": wsam,
        "pytorch_optimizer.GSAM": gsam,
    }


def make_rows(
    model: str,
    params: Mapping[Any, Any],
    batch: tuple[np.ndarray, np.ndarray],
    loss: float,
    settings: Settings,
) -> dict[str, tuple[Callable[[int], None], dict[str, float]]]:
    """Name -> (function that makes steps and waits for them, counts).

    Args:
        model: name of the network.
        params: its parameters in JAX, as NumPy arrays.
        batch: the batch in JAX.
        loss: the loss in JAX at these parameters.
        settings: what the optimizers have in common with those of JAX.

    Raises:
        RuntimeError: if the loss here is different, so the networks are not the same.
    """
    device = "cpu" if settings.platform == "cpu" else "cuda"
    inputs, labels = make_batch(model, batch, device)
    rows = {}
    for name in step_makers(nn.Linear(1, 1), inputs, labels, settings):
        network = make_network(model, params, device)
        with torch.no_grad():
            own = cross_entropy(network(inputs), labels).item()
        if abs(own - loss) > 1e-4 * abs(loss):
            raise RuntimeError(f"{model}: the loss is {loss} in JAX and {own} in PyTorch.")
        step = step_makers(network, inputs, labels, settings)[name]()
        with FlopCounterMode(display=False) as counter:
            step()
        rows[name] = (functools.partial(run, step, device), {"flops": counter.get_total_flops()})
    return rows


def run(step: Callable[[], Any], device: str, steps: int) -> None:
    """Makes steps and waits for them."""
    for _ in range(steps):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
