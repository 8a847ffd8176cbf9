"""A small fully connected network with tanh units, and its data as a stack of mini-batches.

The activation is smooth, because the third derivative of a network with ReLU lacks what happens at the kinks.
Pixels are standardised and divided by 3, so that an image has a length of about 9 (as pixels from 0 to 1
have): the Taylor expansion in ρ converges only where ρ times that length is not large.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.data.arrays import Split, load
from optax_sam import curvature, tree_math

DATA = {"data": "mnist", "train_size": 2000, "batch_size": 100, "width": 32}
PIXEL_SCALE = 3.0


class Problem(NamedTuple):
    """A network to be trained."""

    params: optax.Params  # at the start
    # Images `[M, batch size, pixels]` and labels, all mini-batches of the training data.
    batches: tuple[jax.Array, jax.Array]
    train: tuple[jax.Array, jax.Array]  # the same in one batch
    test: tuple[jax.Array, jax.Array]  # test data


def logits(params: optax.Params, images: jax.Array) -> jax.Array:
    """The network: one hidden layer."""
    hidden = jnp.tanh(images @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


@jax.jit
def loss(params: optax.Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Mean cross-entropy."""
    return jnp.mean(
        optax.losses.softmax_cross_entropy_with_integer_labels(logits(params, batch[0]), batch[1])
    )


def problem(setting: Mapping[str, Any], data_dir: Path, seed: int = 0) -> Problem:
    """The problem of a setting such as `DATA`; the seed draws the initial parameters."""
    batches, train, test, num_classes = arrays(
        setting["data"], setting["train_size"], setting["batch_size"], data_dir
    )
    pixels, width = train[0].shape[1], setting["width"]
    keys = jax.random.split(jax.random.key(seed), 2)

    def layer(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
        kernel = jax.random.normal(key, (inputs, outputs)) / inputs**0.5
        return {"kernel": kernel, "bias": jnp.zeros(outputs)}

    params = {"hidden": layer(keys[0], pixels, width), "head": layer(keys[1], width, num_classes)}
    return Problem(params, batches, train, test)


@functools.cache
def arrays(name: str, train_size: int, batch_size: int, data_dir: Path) -> tuple[Any, Any, Any, int]:
    """Mini-batches, training data, test data, number of classes; read once per process."""
    dataset = load(name, data_dir, train_size=train_size)

    def flat(split: Split) -> tuple[jax.Array, jax.Array]:
        images = np.reshape(split.images, (len(split.images), -1)) / PIXEL_SCALE
        return jnp.asarray(images, jnp.float32), jnp.asarray(split.labels)

    train, test = flat(dataset.train), flat(dataset.test)
    stack = lambda x: x.reshape(-1, batch_size, *x.shape[1:])
    return jax.tree.map(stack, train), train, test, dataset.num_classes


@jax.jit
def measured(params: optax.Params, train: Any, test: Any) -> dict[str, jax.Array]:
    """Losses, accuracy in percent, and lengths of parameters and gradient."""
    train_loss, gradient = jax.value_and_grad(loss)(params, train)
    right = jnp.argmax(logits(params, test[0]), axis=-1) == test[1]
    return {
        "train_loss": train_loss,
        "test_loss": loss(params, test),
        "test_accuracy": 100 * jnp.mean(right),
        "parameter_norm": tree_math.norm(params),
        "gradient_norm": tree_math.norm(gradient),
    }


def top_eigenpair(
    params: optax.Params, train: Any, num_iters: int, start: optax.Params | None
) -> tuple[float, optax.Params]:
    """λ₁ and v₁ of the Hessian of the training loss."""
    pairs = curvature.top_eigenpairs(loss, params, num_iters=num_iters, start=start, batches=[train])
    return float(pairs.eigenvalues[0]), jax.tree.map(lambda x: x[0], pairs.eigenvectors)
