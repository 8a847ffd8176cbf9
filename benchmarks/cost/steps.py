"""Networks with their losses, and a training step of every method in front of SGD, to be compiled."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.methods import METHODS
from benchmarks.models.cost_networks import ResNet8, Transformer
from benchmarks.models.resnets import ResNet
from benchmarks.models.small import MLP, StridedCNN

RHO, LEARNING_RATE, MOMENTUM = 0.1, 0.01, 0.9
NETWORKS: dict[str, tuple[Callable[..., nnx.Module], Any, int]] = {
    # name -> (network, shape of an example, number of classes)
    "mlp": (MLP, (28, 28, 1), 10),
    "strided_cnn": (StridedCNN, (28, 28, 1), 10),
    "resnet8": (ResNet8, (32, 32, 3), 10),
    "transformer": (Transformer, 64, 256),  # length of a sequence, number of tokens
    "resnet18": (functools.partial(ResNet, dtype=jnp.bfloat16), (32, 32, 3), 10),
}
FOR_ACCELERATORS = ("resnet18",)
# The refresh inside a `cond`, where gradients of convolutions are slow on CPU.
SLOW = "eigen_sam, automatic refresh"
PART = "ascent on this fraction of the batch"
GENERATOR = "generator of random numbers"
TRACED = "a refresh that is true, which the compiler cannot know"


# What a row of the table has beside its method: options of the method, arguments of `update`.
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sam, 3 steps": ("sam", {"num_steps": 3}, {}),
    "eigen_sam, refresh": ("eigen_sam", {}, {"refresh": True}),
    "eigen_sam, refresh by lanczos": ("eigen_sam", {"solver": "lanczos"}, {"refresh": True}),
    "eigen_sam, automatic": ("eigen_sam", {}, {"refresh": None}),
    SLOW: ("eigen_sam", {}, {"refresh": TRACED}),
    "xsam, refresh": ("xsam", {}, {"refresh": True}),
    "xsam, automatic": ("xsam", {}, {"refresh": None}),
    "sparse_sam, refresh": ("sparse_sam", {}, {"refresh": True}),
    "sam, ascent on 1/4": ("sam", {}, {PART: 4}),
    "sam, ascent on 1/8": ("sam", {}, {PART: 8}),
    "sam, ascent on 1/16": ("sam", {}, {PART: 16}),
    "look_sam, refresh": ("look_sam", {}, {"refresh": True}),
    "rwp, adaptive": ("rwp", {"eta": 0.1}, {}),
    "rwp, unsafe_rbg": ("rwp", {GENERATOR: "unsafe_rbg"}, {}),
}
LEFT_OUT = ("presam", "asam_xsam", "xsam3", "one_gradient", "random_direction", "reflected_sam")
LEFT_OUT += ("relative_sam", "held_rise_sam")
# "reverse_sam" is SAM with another sign.
MEASURED = tuple(name for name in METHODS if name not in (*LEFT_OUT, "reverse_sam"))


def rows(num_iters: int, num_alphas: int) -> dict[str, tuple[optax.GradientTransformation, dict[str, Any]]]:
    """Name -> (what goes in front of SGD, further arguments of `update`)."""
    special = {"eigen_sam": {"num_iters": num_iters}, "xsam": {"num_alphas": num_alphas}}
    found = {}
    for name, (method, options, arguments) in (
        {name: (name, {}, {}) for name in MEASURED} | VARIANTS
    ).items():
        row = METHODS[method]
        refresh = {"refresh": False} if row.occasional else {}
        options = {**row.options, **special.get(method, {}), **options}
        if method in ONE_RADIUS:
            options["rho"] = RHO
        if generator := options.pop(GENERATOR, None):
            options["key"] = jax.random.key(0, impl=generator)
        found[name] = (row.make(**options), refresh | arguments)
    return found


# Their radius does not matter for what a step costs.
ONE_RADIUS = ("wsam", "lookbehind_sam", "momentum_sam")


def make_loss(model: str, batch_size: int) -> tuple[Callable[..., jax.Array], Any, tuple[Any, Any]]:
    """Returns (loss(params, batch), parameters, a batch of random images or tokens)."""
    network, shape, num_classes = NETWORKS[model]
    graphdef, state, rest = nnx.split(network(shape, num_classes, rngs=nnx.Rngs(0)), nnx.Param, ...)
    # A plain dictionary: JAX flattens an `nnx.State` in Python, which takes 0.1 ms per call.
    params = nnx.to_pure_dict(state)
    rng = np.random.default_rng(0)
    if isinstance(shape, int):
        inputs = jnp.asarray(rng.integers(num_classes, size=(batch_size, shape)))
        labels = jnp.asarray(rng.integers(num_classes, size=(batch_size, shape)))
    else:
        inputs = jnp.asarray(rng.normal(size=(batch_size, *shape)), jnp.float32)
        labels = jnp.asarray(rng.integers(num_classes, size=batch_size))

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        # A copy, because BatchNorm writes its statistics, which nothing here reads, into `rest`.
        logits = nnx.merge(graphdef, params, rest, copy=True)(batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    return loss, params, (inputs, labels)


def make_steps(
    loss: Callable[..., jax.Array], params: Any, *, num_iters: int = 5, num_alphas: int = 21
) -> dict[str, tuple[Callable[..., Any], Any]]:
    """Returns every row of the cost table.

    Args:
        loss: of parameters and batch.
        params: the parameters.
        num_iters: Hessian-vector products in a refresh of Eigen-SAM.
        num_alphas: losses in a refresh of XSAM.

    Returns:
        Name -> (step, its first carry): every step maps (carry, batch) to a carry.
    """
    base = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)

    def by_hand(carry: Any, batch: Any) -> Any:
        params, state = carry
        grads = jax.grad(loss)(params, batch)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        perturbed = jax.tree.map(lambda w, g: w + RHO / norm * g, params, grads)
        updates, state = base.update(jax.grad(loss)(perturbed, batch), state, params)
        return optax.apply_updates(params, updates), state

    def with_method(tx: optax.GradientTransformation, kwargs: Any, carry: Any, batch: Any) -> Any:
        params, state = carry
        value_fn = functools.partial(loss, batch=batch)
        fraction = kwargs.get(PART, 1)
        part = jax.tree.map(lambda x: x[: len(x) // fraction], batch)
        kwargs = {name: value for name, value in kwargs.items() if name != PART}
        if kwargs.get("refresh") == TRACED:
            kwargs = {"refresh": jnp.isfinite(jax.tree.leaves(params)[0]).all()}
        updates, state = optax.with_extra_args_support(tx).update(
            jax.grad(loss)(params, part), state, params, value_fn=value_fn, **kwargs
        )
        return optax.apply_updates(params, updates), state

    def with_contrib(tx: optax.GradientTransformation, carry: Any, batch: Any) -> Any:
        params, state = carry
        grad_fn = lambda params, _: jax.grad(loss)(params, batch)
        updates, state = tx.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    contrib = optax.contrib.sam(
        base, optax.chain(optax.contrib.normalize(), optax.sgd(RHO)), sync_period=2, opaque_mode=True
    )
    steps: dict[str, tuple[Callable[..., Any], Any]] = {
        "forward pass": (lambda carry, batch: (carry[0], loss(carry[0], batch)), (params, jnp.zeros(()))),
        "gradient": (lambda carry, batch: (carry[0], jax.grad(loss)(carry[0], batch)), (params, params)),
        "sam by hand": (by_hand, (params, base.init(params))),
        "optax.contrib.sam": (functools.partial(with_contrib, contrib), (params, contrib.init(params))),
    }
    for name, (method, kwargs) in rows(num_iters, num_alphas).items():
        tx = optax.chain(method, base)
        steps[name] = functools.partial(with_method, tx, kwargs), (params, tx.init(params))
    return steps


def compile_step(step: Callable[..., Any], carry: Any, batch: Any) -> jax.stages.Compiled:
    """Compiles a step that donates its carry."""
    return jax.jit(step, donate_argnums=0).lower(carry, batch).compile()


def counts(compiled: jax.stages.Compiled) -> dict[str, float]:
    """The compiler's counts for a program."""
    text, costs = compiled.as_text(), compiled.cost_analysis()
    return {
        "flops": costs["flops"],
        "bytes_accessed": costs["bytes accessed"],
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "control_flow": sum(text.count(f" {op}(") for op in ("while", "conditional")),
    }
