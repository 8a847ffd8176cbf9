"""Trains one network with one method. The whole loop, to be read from top to bottom.

    python -m benchmarks.train --method sam --rho 0.2 --label-noise 0.4
    python -m benchmarks.train --devices all --parallel fsdp
    python -m benchmarks.train --config benchmarks/configs/xsam_cifar100_resnet18.toml --seed 1
    python -m benchmarks.train --help

A run is a function of its configuration and seed: the batches and their augmentation depend on the seed and
the step alone, so a run that was stopped at any moment and resumed ends with the same bits as one
that was not. (Resumed on another number of devices, with the same numbers up to rounding.) Ctrl-C and
SIGTERM save a checkpoint of the step that they came in.

The step is compiled twice, with and without the occasional work of Eigen-SAM and XSAM, and the host
chooses: on CPUs, convolutions inside `lax.cond` or `lax.scan` would be far slower (`step_cost.py`).

What several devices need is in `parallel.py`; on one device the `layout` below does nothing.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from tqdm import tqdm

from benchmarks import methods
from benchmarks.data import label_noise
from benchmarks.data import sources as data
from benchmarks.data.augment import AUGMENTATIONS, augment
from benchmarks.errors import UsageError
from benchmarks.models import pretrained
from benchmarks.models import small as models
from benchmarks.training.config import Config, parse
from benchmarks.training.interrupt import ask_for_interrupt
from benchmarks.training.log import Log
from benchmarks.training.parallel import OneDevice, make_layout
from optax_sam import diagnostics
from optax_sam.diagnostics.monitor import QUANTITIES

# Independent streams of random numbers, each made from the run's seed.
NOISE_STREAM, ORDER_STREAM, AUGMENT_STREAM = 1, 2, 3


class TrainState(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        params: trainable variables.
        rest: all other variables of the model: BatchNorm statistics, random streams.
        opt_state: state of the method and of SGD.
    """

    params: nnx.State
    rest: nnx.State
    opt_state: optax.OptState


class Program(NamedTuple):
    """The compiled functions of a configuration; all its seeds share them.

    Attributes:
        init: seed -> state.
        loss: params, rest, batch -> (mean loss, rest after the batch), not compiled.
        step: state, training data, order, index of the batch, key of the epoch (if images are augmented),
            refresh, record -> state, mean loss.
        evaluate: state, batch -> sum of losses, number of right answers.
        steps_per_epoch: whole batches in the training data.
        num_steps: steps of the whole run.
        refresh_every: steps between refreshes; None where the method has nothing to refresh.
        record_every: steps between recordings of the monitor; None where there is none.
        layout: where the arrays live.
        like: the abstract state, to restore a checkpoint into.
    """

    init: Callable[..., TrainState]
    loss: Callable[..., tuple[jax.Array, nnx.State]]
    step: Callable[..., tuple[TrainState, jax.Array]]
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    steps_per_epoch: int
    num_steps: int
    refresh_every: int | None
    record_every: int | None
    layout: OneDevice
    like: TrainState


def monitored(
    method: optax.GradientTransformation, config: Config, axis_name: str | None
) -> optax.GradientTransformation:
    """Puts a monitor around the method, if one is asked for."""
    if config.monitor is None:
        return method
    if config.monitor < 1:
        raise UsageError(f"--monitor is a number of steps, at least 1, got {config.monitor}")
    quantities = ("gradient_norm", "top_eigenvalue") if config.method == "sgd" else QUANTITIES
    return diagnostics.monitor(method, interval=config.monitor, quantities=quantities, axis_name=axis_name)


def recorded(state: TrainState) -> dict[str, float]:
    """What the monitor recorded last."""
    values = {name: float(optax.tree.get(state.opt_state, name)) for name in QUANTITIES}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def make_program(config: Config, dataset: data.Dataset) -> Program:
    """Builds the functions of a run; its seed plays no part here."""
    num_train = len(dataset.train.labels)
    steps_per_epoch = num_train // config.batch_size
    if steps_per_epoch == 0:
        raise UsageError(
            f"a batch of {config.batch_size} images cannot be drawn from {num_train} training "
            f"images; use --batch-size {num_train} or less"
        )
    num_steps = config.epochs * steps_per_epoch
    method = methods.METHODS[config.method]
    augmentation = AUGMENTATIONS[config.augment]
    if augmentation.cutout_size:
        augmentation = augmentation._replace(
            cutout_size=config.cutout_size, cutout_probability=config.cutout_probability
        )
    layout = make_layout(config.devices, config.parallel, config.batch_size)

    given = {} if config.rho is None else {"rho": config.rho}
    if layout.axis_name is not None and config.method != "sgd":
        given |= {"axis_name": layout.axis_name, "m_sharpness": False}  # the step averages its gradients
    tx = optax.chain(
        monitored(methods.build(config.method, config.options | given), config, layout.axis_name),
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(optax.cosine_decay_schedule(config.learning_rate, num_steps), momentum=config.momentum),
    )

    def make_model(seed: jax.Array | int) -> nnx.Module:
        shape = dataset.train.images.shape[1:]
        options = config.model_options | ({} if config.dtype == "float32" else {"dtype": config.dtype})
        rngs = nnx.Rngs(jax.random.key(seed))
        return models.build(config.model, shape, dataset.num_classes, options, rngs=rngs)

    graphdef, _, _ = nnx.split(nnx.eval_shape(lambda: make_model(0)), nnx.Param, ...)

    def init(seed: jax.Array | int, weights: nnx.State | None = None) -> TrainState:
        model = make_model(seed)
        if weights is not None:
            nnx.update(model, weights)
        _, params, rest = nnx.split(model, nnx.Param, ...)
        return TrainState(params, rest, tx.init(params))

    def loss(
        params: nnx.State, rest: nnx.State, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, nnx.State]:
        # copy=True: without it the second gradient would update BatchNorm and dropout keys again.
        model = nnx.merge(graphdef, params, rest, copy=True)
        model.train()
        losses = optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
        return losses.mean(), nnx.split(model, nnx.Param, ...)[2]

    def step(
        state: TrainState,
        train: data.Split,
        order: jax.Array,
        index: int,
        key: jax.Array | None = None,
        *,
        refresh: bool,
        record: bool = False,
    ) -> tuple[TrainState, jax.Array]:
        batch = jax.lax.dynamic_slice_in_dim(order, index * config.batch_size, config.batch_size)
        batch = layout.part(batch)
        images, labels = train.images[batch], train.labels[batch]
        if config.augment != "none":
            # Once, outside of the loss: all gradients of the step are of the same images.
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch)
            images = augment(images, keys, dataset.black, augmentation)
        (value, rest), grads = layout.average(
            jax.value_and_grad(loss, has_aux=True)(state.params, state.rest, images, labels)
        )
        updates, opt_state = tx.update(
            grads,
            state.opt_state,
            state.params,
            value_fn=lambda params: loss(params, state.rest, images, labels)[0],
            refresh=refresh,
            record=record,
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, rest, opt_state), value

    @jax.jit
    def evaluate(state: TrainState, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graphdef, state.params, state.rest, copy=True)
        model.eval()
        logits = model(images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.sum(), (logits.argmax(-1) == labels).sum()

    init, step, like = layout.compile(init, step, tx)
    if config.pretrained:
        init = partial(init, weights=pretrained.load(config.pretrained, like.params, dataset))
    return Program(
        init,
        loss,
        step,
        evaluate,
        steps_per_epoch,
        num_steps,
        refresh_every=config.refresh_every if method.occasional else None,
        record_every=config.monitor,
        layout=layout,
        like=like,
    )


def load_dataset(config: Config) -> data.Dataset:
    """Loads the data of a run, preparing it first where needed."""
    return data.load(
        config.dataset,
        config.data_dir,
        download_dir=config.download_dir,
        download=config.download,
        image_folder=config.image_folder,
        image_size=config.image_size,
        train_size=config.train_size,
        validation_size=config.validation_size,
    )


def add_label_noise(train: data.Split, config: Config, num_classes: int) -> data.Split:
    """Puts the training data on the device, with the wrong labels of this run's seed."""
    key = jax.random.fold_in(jax.random.key(config.seed), NOISE_STREAM)
    if config.noise_kind == "symmetric":
        labels = label_noise.symmetric(train.labels, key, config.label_noise, num_classes)
    else:
        wrong = label_noise.mistaken_for(config.dataset, num_classes)
        labels = label_noise.asymmetric(train.labels, key, config.label_noise, wrong)
    return data.Split(jnp.asarray(train.images), labels)


@partial(jax.jit, static_argnums=2)
def epoch_order(seed: int, epoch: int, num_train: int) -> jax.Array:
    """Order of the training images in an epoch."""
    key = jax.random.fold_in(jax.random.key(seed), ORDER_STREAM)
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_train)


@jax.jit
def augment_key(seed: int, epoch: int) -> jax.Array:
    """Random key of an epoch's augmentation."""
    key = jax.random.fold_in(jax.random.key(seed), AUGMENT_STREAM)
    return jax.random.fold_in(key, epoch)


def train_steps(
    program: Program, train: data.Split, state: TrainState, seed: int, first_step: int = 0
) -> Iterator[tuple[int, TrainState, jax.Array]]:
    """Trains to the end of the run.

    Args:
        program: from `make_program`.
        train: training data, on the device.
        state: state after `first_step` steps. Its buffers are given away.
        seed: of the run.
        first_step: steps already made.

    Yields:
        After every step: number of steps made, state, loss of the batch. The state is valid until
        the next step only. Nothing waits for the device, unless several are simulated.
    """
    order, train = None, program.layout.everywhere(train)
    for step in range(first_step, program.num_steps):
        epoch, index = divmod(step, program.steps_per_epoch)
        if order is None or index == 0:
            order = program.layout.everywhere(epoch_order(seed, epoch, len(train.labels)))
            key = program.layout.everywhere(augment_key(seed, epoch))
        refresh = program.refresh_every is not None and step % program.refresh_every == 0
        record = program.record_every is not None and step % program.record_every == 0
        state, loss = program.step(state, train, order, index, key, refresh=refresh, record=record)
        yield step + 1, state, loss


def evaluate(program: Program, state: TrainState, split: data.Split) -> dict[str, float | None]:
    """Mean loss and accuracy on a whole split; None if it is empty."""
    if not len(split.labels):
        return {"loss": None, "accuracy": None}
    total_loss, total_right = 0.0, 0
    for start in range(0, len(split.labels), 1000):
        chunk = slice(start, start + 1000)
        loss, right = program.evaluate(state, split.images[chunk], split.labels[chunk])
        total_loss += float(loss)
        total_right += int(right)
    return {"loss": total_loss / len(split.labels), "accuracy": total_right / len(split.labels)}


def check_finite(losses: Sequence[jax.Array | float], last_step: int, config: Config) -> None:
    """Stops a run that has diverged.

    Args:
        losses: of the latest steps.
        last_step: number of the last of them.
        config: of the run.

    Raises:
        UsageError: if one of the losses is not finite.
    """
    finite = np.isfinite(np.asarray(losses, np.float32))
    if not finite.all():
        step = last_step - len(losses) + 1 + int(np.argmin(finite))
        raise UsageError(
            f"diverged: the training loss is not finite at step {step} "
            f"(method {config.method}, seed {config.seed}). "
            "Try a smaller --learning-rate (or --rho), in a new --output folder."
        )


def save(
    checkpoints: ocp.CheckpointManager, step: int, state: TrainState, losses: Sequence[jax.Array | float]
) -> None:
    """Writes a checkpoint, whole or not at all: the state, and the losses of the epoch so far."""
    so_far = ocp.args.JsonSave([float(loss) for loss in losses])
    checkpoints.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), losses=so_far))


def restore(
    checkpoints: ocp.CheckpointManager, like: TrainState
) -> tuple[int, TrainState | None, list[float]]:
    """Reads the last checkpoint: its step, state and losses; step 0 where there is none."""
    step = checkpoints.latest_step()
    if step is None:
        return 0, None, []
    of = ocp.args.Composite(state=ocp.args.StandardRestore(like), losses=ocp.args.JsonRestore())
    saved = checkpoints.restore(step, args=of)
    return step, saved.state, saved.losses


def run(config: Config) -> dict[str, Any]:
    """Trains, with progress bar, metrics and checkpoints.

    Args:
        config: the run.

    Returns:
        The last record of `metrics.jsonl`: accuracies and losses at the end of the last epoch.

    Raises:
        UsageError: if the run cannot start, or diverges.
    """
    rho = () if config.rho is None else (config.rho,)
    name = (config.dataset, config.model, config.method, *rho, config.label_noise, config.seed)
    folder = (config.output or Path("runs") / "-".join(map(str, name))).absolute()
    log = Log(folder, config)
    log.check_same_run(config.resume)

    dataset = load_dataset(config)
    program = make_program(config, dataset)
    train = add_label_noise(dataset.train, config, dataset.num_classes)

    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder / "checkpoints", options=options) as checkpoints, log:
        first_step, state, losses = restore(checkpoints, program.like)
        if first_step == 0:
            state = program.init(config.seed)
        log.start |= {"devices": program.layout.num_devices, "parallel": config.parallel}
        log.begin(first_step)

        began = time.perf_counter()
        bar = tqdm(total=program.num_steps, initial=first_step, unit="step", desc=config.method)
        with bar, ask_for_interrupt() as interrupted:
            steps = train_steps(program, train, state, config.seed, first_step)
            for step, state, loss in steps:
                losses.append(loss)
                bar.update()
                if config.monitor is not None and (step - 1) % config.monitor == 0:
                    values = recorded(state)
                    log.write({"event": "monitor", "step": step} | values)
                    bar.set_postfix(values, refresh=False)
                epoch, inside = divmod(step, program.steps_per_epoch)
                if not inside:
                    check_finite(losses, step, config)
                    record = {
                        "event": "epoch",
                        "epoch": epoch,
                        "step": step,
                        "train_loss": float(np.mean(np.asarray(losses, np.float32))),
                        "validation": evaluate(program, state, dataset.validation),
                        "seconds": round(time.perf_counter() - began, 3),
                    }
                    log.write(record)
                    bar.set_postfix(
                        loss=record["train_loss"], validation=record["validation"]["accuracy"], refresh=False
                    )
                    losses = []
                    if epoch % config.checkpoint_every == 0 or epoch == config.epochs:
                        save(checkpoints, step, state, losses)
                if interrupted():
                    bar.write(f"saving step {step}; Ctrl-C again does not wait")
                    check_finite(losses, step, config)
                    if checkpoints.latest_step() != step:
                        save(checkpoints, step, state, losses)
                    raise KeyboardInterrupt

        end = {
            "event": "end",
            "step": program.num_steps,
            "seed": config.seed,
            "validation": evaluate(program, state, dataset.validation),
            "test": evaluate(program, state, dataset.test),
            "seconds": round(time.perf_counter() - began, 3),
        }
        log.write(end)
    return end


def main() -> None:
    """The command line."""
    absl.logging.set_verbosity(absl.logging.ERROR)  # TFDS would recommend OpenCV
    try:
        end = run(parse(description=__doc__))
    except UsageError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nstopped; the same command with --resume continues from the last checkpoint")
        sys.exit(130)
    if end["validation"]["accuracy"] is not None:
        print(f"validation accuracy {end['validation']['accuracy']:.4f}")
    print(f"test accuracy       {end['test']['accuracy']:.4f}")


if __name__ == "__main__":
    main()
