"""The training steps that are compiled for TPUs, from shapes alone: networks, layouts, methods.

layout      parameters and state        gradients passed to `update`
data        replicated (jit)            of the whole batch
fsdp        sharded (jit)               of the whole batch
local       replicated (shard_map)      of the device's own part: m_sharpness=True
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.cost.by_hand import BY_HAND
from benchmarks.methods import METHODS
from benchmarks.models.decoder import Decoder
from benchmarks.models.imagenet_resnet import ResNet50
from benchmarks.models.resnets import ResNet, WideResNet
from benchmarks.models.vision_transformer import ViTB16
from benchmarks.training.parallel import AXIS, fsdp_sharding

LAYOUTS = ("data", "fsdp", "local")
HAND = " by hand"
SGD = optax.sgd(0.1, momentum=0.9)
ADAMW = optax.adamw(1e-3)


class Network(NamedTuple):
    """A network and its batch.

    Attributes:
        title: for the tables.
        make: constructor: shape of an example, number of classes or tokens, random keys.
        shape: of an image; or the length of a sequence.
        num_classes: or of tokens.
        batch_size: examples a chip.
        base: the base optimizer.
    """

    title: str
    make: Callable[..., nnx.Module]
    shape: tuple[int, ...] | int
    num_classes: int
    batch_size: int
    base: optax.GradientTransformation


def decoder(width: int, num_layers: int, *, head: int = 64, **options: Any) -> Callable[..., nnx.Module]:
    """A decoder in bfloat16 with heads of one size."""
    return functools.partial(
        Decoder, width=width, num_layers=num_layers, num_heads=width // head, dtype=jnp.bfloat16, **options
    )


def in_bfloat16(network: Callable[..., nnx.Module], **options: Any) -> Callable[..., nnx.Module]:
    """The network, computing in bfloat16."""
    return functools.partial(network, dtype=jnp.bfloat16, **options)


LARGE = decoder(2048, 18, head=128, remat=True)
NETWORKS = {
    "tiny_decoder": Network(
        *("Decoder of one layer and 0.3 M parameters", decoder(128, 1, remat=True), 128, 512, 2, ADAMW)
    ),
    "tiny_cnn": Network(
        "ResNet with three blocks",
        *(in_bfloat16(ResNet, num_blocks=(1, 1, 1), width=16), (32, 32, 3), 10, 16, SGD),
    ),
    "decoder_6m": Network(
        "Decoder of 6 M parameters: 2 layers in a loop, rematerialised; 8 sequences of 256 per chip",
        *(decoder(256, 2, remat=True), 256, 8192, 8, ADAMW),
    ),
    "decoder_18m": Network(
        "Decoder of 18 M parameters: 1 layer of width 256, 32,768 tokens; 8 sequences of 512 per chip",
        *(decoder(256, 1, remat=True), 512, 32768, 8, ADAMW),
    ),
    "decoder_40m": Network(
        "Decoder of 40 M parameters: 2 layers of width 512, 32,768 tokens; 8 sequences of 512 per chip",
        *(decoder(512, 2, unroll=True), 512, 32768, 8, ADAMW),
    ),
    "resnet18": Network(
        "ResNet-18 with BatchNorm, 32 x 32 x 3; 128 images per chip",
        *(in_bfloat16(ResNet), (32, 32, 3), 10, 128, SGD),
    ),
    "vit_b16": Network(
        "ViT-B/16, 224 x 224 x 3; 16 images per chip",
        *(in_bfloat16(ViTB16), (224, 224, 3), 1000, 16, ADAMW),
    ),
    "decoder_100m": Network(
        "Decoder of 110 M parameters: 12 layers in a loop, rematerialised; 8 sequences of 1,024 per chip",
        *(decoder(768, 12, remat=True), 1024, 16384, 8, ADAMW),
    ),
    "resnet50": Network(
        "ResNet-50 with BatchNorm, 224 x 224 x 3; 64 images per chip",
        *(in_bfloat16(ResNet50), (224, 224, 3), 1000, 64, SGD),
    ),
    "wide_resnet28_10": Network(
        "WRN-28-10 with BatchNorm, 32 x 32 x 3; 64 images per chip",
        *(in_bfloat16(WideResNet), (32, 32, 3), 10, 64, SGD),
    ),
    "decoder_1b": Network(
        "Decoder of 1 B parameters: 18 layers in a loop, rematerialised; 2 sequences of 2,048 per chip",
        *(LARGE, 2048, 16384, 2, ADAMW),
    ),
}


class Program(NamedTuple):
    """A step to be compiled, and what it is given."""

    step: Callable[..., Any]
    arguments: tuple[Any, ...]  # shapes with shardings
    donated: tuple[int, ...]  # arguments that the step replaces
    results: Any  # shardings; None: the compiler's choice
    batch_size: int  # examples a chip
    parameter_bytes: int  # of the whole network


def make_program(network: Network, mesh: Mesh, layout: str, row: str, refresh: bool | None) -> Program:
    """Returns the training step of a row.

    The step returns no loss, so that a loss that nobody reads need not be computed.

    Args:
        network: what is trained.
        mesh: the chips, along one axis.
        layout: one of `LAYOUTS`.
        row: "base", the base optimizer alone; a name in `METHODS`; or one in `BY_HAND` with " by hand".
        refresh: whether the method's occasional work is done.
    """
    build = lambda: network.make(network.shape, network.num_classes, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(nnx.eval_shape(build), nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def loss(params: Any, rest: Any, batch: Any) -> tuple[jax.Array, Any]:
        # The second pass must not change BatchNorm's statistics.
        model = nnx.merge(graphdef, params, rest, copy=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1])
        return losses.mean(), nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[2])

    method, state = make_method(network.base, row, params, refresh)

    def step(params: Any, state: Any, rest: Any, batch: Any) -> tuple[Any, Any, Any]:
        value_fn = lambda params: loss(params, rest, batch)[0]
        seen = jax.lax.pcast(params, AXIS, to="varying") if layout == "local" else params
        grads, after = jax.grad(loss, has_aux=True)(seen, rest, batch)
        updates, state = method(grads, value_fn, params, state, layout == "local")
        if layout == "local":
            after = jax.lax.pmean(after, AXIS)
        return optax.apply_updates(params, updates), state, after

    if layout == "local":
        specs = PartitionSpec(), PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS)
        step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    place = lambda x: fsdp_sharding(x.shape, mesh) if layout == "fsdp" else replicated
    replicated = NamedSharding(mesh, PartitionSpec())
    placed = lambda tree, sharding: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x)), tree
    )
    number = network.batch_size * mesh.size
    shapes = placed(examples(network, number), lambda x: NamedSharding(mesh, PartitionSpec(AXIS)))
    replaced = placed(params, place), placed(state, place), placed(rest, lambda x: replicated)
    return Program(
        step,  # (parameters, optimizer's state, other variables, batch) -> the first three
        (*replaced, shapes),
        donated=(0, 1, 2),
        results=jax.tree.map(lambda x: x.sharding, replaced),
        batch_size=network.batch_size,
        parameter_bytes=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params)),
    )


def examples(network: Network, number: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Inputs and labels."""
    if isinstance(network.shape, int):
        tokens = jax.ShapeDtypeStruct((number, network.shape), jnp.int32)
        return tokens, tokens
    images = jax.ShapeDtypeStruct((number, *network.shape), jnp.float32)
    return images, jax.ShapeDtypeStruct((number,), jnp.int32)


def make_method(
    base: optax.GradientTransformation, row: str, params: Any, refresh: bool | None
) -> tuple[Callable[..., tuple[Any, Any]], Any]:
    """Returns ((grads, value_fn, params, state, is_local) -> (updates, state), the state's shapes)."""
    if row.endswith(HAND):
        hand = BY_HAND[row.removesuffix(HAND)]

        def by_hand(
            grads: Any, value_fn: Callable, params: Any, state: Any, is_local: bool
        ) -> tuple[Any, Any]:
            own, of_base = state
            seen = jax.lax.pcast(params, AXIS, to="varying") if is_local else params
            direction, own = hand.direction(grads, jax.grad(value_fn), seen, own)
            direction = jax.lax.pmean(direction, AXIS) if is_local else direction
            updates, of_base = base.update(direction, of_base, params)
            return updates, (own, of_base)

        return by_hand, jax.eval_shape(lambda params: (hand.init(params), base.init(params)), params)

    method = METHODS["sgd" if row == "base" else row]
    tx = base if row == "base" else optax.chain(method.make(**method.options), base)

    def packaged(grads: Any, value_fn: Callable, params: Any, state: Any, is_local: bool) -> tuple[Any, Any]:
        several = {"axis_name": AXIS, "m_sharpness": True} if is_local else {}
        if row == "base":
            grads = jax.lax.pmean(grads, AXIS) if is_local else grads
            return tx.update(grads, state, params)
        return tx.update(grads, state, params, value_fn=value_fn, refresh=refresh, **several)

    return packaged, jax.eval_shape(tx.init, params)


def compile_program(program: Program) -> jax.stages.Compiled:
    """Compiles a step that donates what it replaces."""
    step = jax.jit(program.step, donate_argnums=program.donated, out_shardings=program.results)
    return step.lower(*program.arguments).compile()


def mesh_of(devices: Any) -> Mesh:
    """Chips along one axis."""
    return Mesh(np.array(devices), (AXIS,))
