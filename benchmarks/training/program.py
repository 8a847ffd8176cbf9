"""The compiled functions of a training run: network and loss, optimizer, one step, evaluation.

The step is compiled twice, with and without the refresh of Eigen-SAM and XSAM, and the host chooses: on CPUs,
convolutions inside `lax.cond` or `lax.scan` would be far slower (`cost/step_cost.py`).

Code for several devices is in `parallel.py`; on one device the `layout` below does nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks import methods
from benchmarks.data.arrays import Dataset, Split
from benchmarks.data.augment import AUGMENTATIONS, augment
from benchmarks.errors import UsageError
from benchmarks.models import encoder, pretrained, table
from benchmarks.training.config import Config
from benchmarks.training.parallel import OneDevice, make_layout
from optax_sam import diagnostics
from optax_sam.diagnostics.monitor import QUANTITIES


class TrainState(NamedTuple):
    """What a checkpoint contains."""

    params: nnx.State  # trainable variables
    rest: nnx.State  # all other variables of the model: BatchNorm statistics, random streams
    opt_state: optax.OptState  # state of the method and of SGD


class Program(NamedTuple):
    """The compiled functions of a configuration; all its seeds share them."""

    init: Callable[..., TrainState]  # seed -> state
    # Params, rest, images, labels -> (mean loss, rest after the batch); not compiled.
    loss: Callable[..., tuple[jax.Array, nnx.State]]
    # State, training data, order, index of the batch, key of the epoch (if images are augmented), refresh,
    # record -> state, mean loss: of the clean pass, so of `ascent_batch` images, or at w + ε for a method
    # that needs no clean pass.
    step: Callable[..., tuple[TrainState, jax.Array]]
    predict: Callable[..., jax.Array]  # state, images -> logits
    # State, images, labels -> sum of losses, number of correct predictions.
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    steps_per_epoch: int  # whole batches in the training data
    num_steps: int  # steps of the whole run
    interval: int | None  # steps between refreshes; None if the method has nothing to refresh
    record_every: int | None  # steps between recordings of the monitor; None if there is none
    layout: OneDevice  # how the arrays are placed
    like: TrainState  # the abstract state, to restore a checkpoint into


def make_program(config: Config, dataset: Dataset) -> Program:
    """Builds the functions of a run; they do not depend on its seed."""
    steps_per_epoch = whole_batches(config, len(dataset.train.labels))
    num_steps = config.epochs * steps_per_epoch
    augmentation = AUGMENTATIONS[config.augment]
    layout = make_layout(config.devices, config.parallel, config.batch_size, config.groups)
    check_part("ascent-batch", config.ascent_batch, config, layout.num_programs)
    check_part("curvature-batch", config.curvature_batch, config, layout.num_programs)
    if config.functional and (config.ascent_batch is not None or config.ascent_outside):
        raise UsageError(
            "--functional keeps the outputs of the clean pass, so that this must see the whole batch; leave "
            "out --ascent-batch and --ascent-outside"
        )
    tx = make_optimizer(config, num_steps)
    graphdef, _, _ = nnx.split(nnx.eval_shape(lambda: make_model(config, dataset, 0)), nnx.Param, ...)

    def init(seed: jax.Array | int, weights: nnx.State | None = None) -> TrainState:
        model = make_model(config, dataset, seed)
        if weights is not None:
            nnx.update(model, weights)
        _, params, rest = nnx.split(model, nnx.Param, ...)
        return TrainState(params, rest, tx.init(params))

    def outputs(params: nnx.State, rest: nnx.State, images: jax.Array) -> tuple[jax.Array, nnx.State]:
        # copy=True: without it the second gradient would update BatchNorm and dropout keys again.
        model = nnx.merge(graphdef, params, rest, copy=True)
        model.train()
        logits = model(images)
        return logits, nnx.split(model, nnx.Param, ...)[2]

    def criterion(logits: jax.Array, labels: jax.Array) -> jax.Array:
        if config.label_smoothing:
            spread = optax.smooth_labels(jax.nn.one_hot(labels, dataset.num_classes), config.label_smoothing)
            return optax.softmax_cross_entropy(logits, spread).mean()
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def loss_and_logits(
        params: nnx.State, rest: nnx.State, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, tuple[nnx.State, jax.Array]]:
        logits, rest = outputs(params, rest, images)
        return criterion(logits, labels), (rest, logits)

    def loss(
        params: nnx.State, rest: nnx.State, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, nnx.State]:
        value, (rest, _) = loss_and_logits(params, rest, images, labels)
        return value, rest

    def step(
        state: TrainState,
        train: Split,
        order: jax.Array,
        index: int,
        key: jax.Array | None = None,
        *,
        refresh: bool,
        record: bool = False,
    ) -> tuple[TrainState, jax.Array]:
        def examples(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            batch = jax.lax.dynamic_slice_in_dim(order, index * config.batch_size, config.batch_size)
            batch = layout.part(batch)
            images = train.images[batch]
            if config.augment != "none":
                # Once, outside of the loss: all gradients of the step use the same images.
                keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch)
                images = augment(images, keys, dataset.black, augmentation)
            return images, train.labels[batch]

        images, labels = examples(index)
        ascent_images, ascent_labels = images, labels
        if config.ascent_outside:
            ascent_images, ascent_labels = examples((index + 1) % steps_per_epoch)
        if config.ascent_batch is not None:
            part = slice(0, config.ascent_batch // layout.num_programs)
            ascent_images, ascent_labels = ascent_images[part], ascent_labels[part]
        (value, (rest, logits)), grads = jax.value_and_grad(loss_and_logits, has_aux=True)(
            state.params, state.rest, ascent_images, ascent_labels
        )
        value, rest = layout.average((value, rest))
        # Each group's own for a method, which averages in the end.
        m_sharpness = layout.m_sharpness and config.method != "sgd"
        if not m_sharpness:
            grads = layout.average(grads)
        curvature_fn = None
        if config.curvature_batch is not None:
            seen = slice(0, config.curvature_batch // layout.num_programs)
            curvature_fn = lambda params: loss(params, state.rest, images[seen], labels[seen])[0]
        value_fn = lambda params: loss(params, state.rest, images, labels)[0]
        if config.functional:
            # arXiv 2502.02407: the gradient of this is J(w + ε)ᵀ times the derivative by the outputs at w.
            clean = jax.grad(criterion)(logits, labels)
            value_fn = lambda params: jnp.vdot(clean, outputs(params, state.rest, images)[0])
        updates, opt_state = tx.update(
            grads,
            state.opt_state,
            state.params,
            value_fn=value_fn,
            curvature_fn=curvature_fn,
            refresh=refresh,
            record=record,
            axis_name=layout.axis_name,
            m_sharpness=m_sharpness,
            keep_ascent_value=methods.METHODS[config.method].one_gradient or None,
        )
        params = optax.apply_updates(state.params, updates)
        if methods.METHODS[config.method].one_gradient:
            # Nothing needs the clean pass, so none is made.
            value = optax.tree.get(opt_state, "ascent_value")
        return TrainState(params, rest, opt_state), value

    @jax.jit
    def predict(state: TrainState, images: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, state.params, state.rest, copy=True)
        model.eval()
        return model(images)

    @jax.jit
    def evaluate(state: TrainState, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = predict(state, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.sum(), (logits.argmax(-1) == labels).sum()

    init, step, like = layout.compile(init, step, tx)
    if config.pretrained:
        init = partial(init, weights=load_weights(config, like, dataset))
    return Program(
        init,
        loss,
        step,
        predict,
        evaluate,
        steps_per_epoch,
        num_steps,
        interval=config.interval if methods.METHODS[config.method].occasional else None,
        record_every=config.monitor,
        layout=layout,
        like=like,
    )


def load_weights(config: Config, like: TrainState, dataset: Dataset) -> nnx.State:
    """The published weights from which the network starts."""
    if config.model == "minilm":
        return encoder.load(config.pretrained, nnx.merge_state(like.params, like.rest))
    return pretrained.load(config.pretrained, like.params, dataset)


def whole_batches(config: Config, num_train: int) -> int:
    """Number of batches in an epoch; the last, smaller one is left out."""
    if num_train < config.batch_size:
        raise UsageError(
            f"a batch of {config.batch_size} images cannot be drawn from {num_train} training "
            f"images; use --batch-size {num_train} or less"
        )
    return num_train // config.batch_size


def check_part(name: str, size: int | None, config: Config, num_programs: int) -> None:
    """Raises unless so many images of the batch can be taken."""
    if size is None:
        return
    if not 1 <= size <= config.batch_size or size % num_programs:
        raise UsageError(
            f"--{name} is a part of the batch, from 1 to {config.batch_size} images, and a multiple of "
            f"the number of devices' programs, {num_programs}; got {size}"
        )


def make_model(config: Config, dataset: Dataset, seed: jax.Array | int) -> nnx.Module:
    """Builds the network."""
    shape = dataset.train.images.shape[1:]
    options = config.model_options | ({} if config.dtype == "float32" else {"dtype": config.dtype})
    rngs = nnx.Rngs(jax.random.key(seed))
    return table.build(config.model, shape, dataset.num_classes, options, rngs=rngs)


def make_optimizer(config: Config, num_steps: int) -> optax.GradientTransformation:
    """The method, then the base optimizer with its weight decay; the learning rate falls along a cosine."""
    given = {} if config.rho is None else {"rho": config.rho}
    method = monitored(methods.build(config.method, config.options | given), config)
    learning_rate = optax.cosine_decay_schedule(config.learning_rate, num_steps)
    if config.optimizer == "adamw":
        return optax.chain(method, optax.adamw(learning_rate, weight_decay=config.weight_decay))
    return optax.chain(
        method,
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(learning_rate, momentum=config.momentum),
    )


def monitored(method: optax.GradientTransformation, config: Config) -> optax.GradientTransformation:
    """Wraps the method in a monitor, if one is asked for."""
    if config.monitor is None:
        return method
    if config.monitor < 1:
        raise UsageError(f"--monitor is a number of steps, at least 1, got {config.monitor}")
    quantities = ("gradient_norm", "top_eigenvalue") if config.method == "sgd" else QUANTITIES
    return diagnostics.monitor(method, interval=config.monitor, quantities=quantities)


def recorded(state: TrainState) -> dict[str, float]:
    """The latest values of the monitor."""
    values = {name: optax.tree.get(state.opt_state, name) for name in QUANTITIES}
    return {name: float(value) for name, value in values.items() if not isinstance(value, optax.EmptyState)}
