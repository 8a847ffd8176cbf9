"""Trains one network with one method. The whole loop, to be read from top to bottom.

    python -m benchmarks.train --method sam --rho 0.2 --label-noise 0.4
    python -m benchmarks.train --devices all --parallel fsdp
    python -m benchmarks.train --help

A run is a function of its configuration and seed: the batches and their augmentation depend on the seed and
the step alone, so a run that was stopped at any moment and resumed ends with the same bits as one
that was not. (Resumed on another number of devices, with the same numbers up to rounding.)

The step is compiled twice, with and without the occasional work of Eigen-SAM and XSAM, and the host
chooses: on CPUs, convolutions inside `lax.cond` or `lax.scan` would be far slower (`step_cost.py`).

What several devices need is in `parallel.py`; on one device the `layout` below does nothing.
"""

import dataclasses
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tyro
from flax import nnx
from tqdm import tqdm

from benchmarks import data, label_noise, methods, models, pretrained
from benchmarks.augment import AUGMENTATIONS, augment
from benchmarks.errors import UsageError
from benchmarks.models import MODELS
from benchmarks.parallel import LAYOUTS, OneDevice, make_layout
from optax_sam import diagnostics
from optax_sam.diagnostics.monitor import QUANTITIES

# Independent streams of random numbers, each made from the run's seed.
NOISE_STREAM, ORDER_STREAM, AUGMENT_STREAM = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run."""

    method: Literal[*methods.METHODS] = "sam"
    """What goes in front of SGD; sgd itself is the baseline."""
    rho: float | None = None
    """Length of the perturbation. Left out: the method's default."""
    options: dict[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    """Further options of the method, as pairs: --options alpha 0.2 solver lanczos"""
    refresh_every: int = 100
    """Steps from one eigenvector (Eigen-SAM) or alpha-search (XSAM) to the next."""
    monitor: int | None = None
    """Record norms, sharpness, alignment and curvature every so many steps. Left out: never."""

    dataset: Literal[*data.SOURCES] = "digits"
    """Data set; digits is bundled, the others need files (--download-dir, --download, --image-folder)."""
    image_folder: Path | None = None
    """Folder with train/<class>/*.jpg or .png, for the data set image_folder."""
    image_size: int = 64
    """Height and width that its images are given."""
    train_size: int | None = None
    """Train on this many images only."""
    validation_size: int | None = None
    """Training images held out to choose settings on. 0 trains on all. Left out: usually a tenth."""
    label_noise: float = 0.0
    """Fraction of the training labels made wrong. Validation and test labels stay right."""
    noise_kind: Literal["symmetric", "asymmetric"] = "symmetric"
    """symmetric: any other label; asymmetric: the one that the class is commonly mistaken for."""
    augment: Literal[*AUGMENTATIONS] = "none"
    """Random changes of the training images, the same in all gradients of a step."""
    cutout_size: int = 16
    """Height and width of the hole of crop_flip_cutout."""
    cutout_probability: float = 0.5
    """Share of the images that it is cut into."""
    model: Literal[*MODELS] = "mlp"
    """Network."""
    model_options: dict[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    """Options of the network, as pairs: --model-options width 32"""
    pretrained: Path | None = None
    """File of published weights for a Vision Transformer to start from, .npz or .safetensors."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in. Parameters, the loss and everything of the optimizer are float32."""

    epochs: int = 100
    """Passes over the training data."""
    batch_size: int = 100
    """Images a step; the last, smaller batch of an epoch is left out."""
    learning_rate: float = 0.1
    """Initial learning rate; it falls to 0 along a cosine."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay, added to the gradient after the method."""
    seed: int = 0
    """Seeds initial weights, wrong labels, the order of the batches and their augmentation."""

    devices: int | Literal["all"] = 1
    """How many devices share each batch. The result is that of one, up to rounding."""
    parallel: Literal[*LAYOUTS] = "data"
    """data: jit with a sharded batch; fsdp: parameters and optimizer state sharded too; pmap: jax.pmap."""

    output: Path | None = None
    """Folder of metrics and checkpoints. Left out: a folder under runs/ named after the run."""
    data_dir: Path = data.DEFAULT_DATA_DIR
    """Folder of prepared data sets."""
    download_dir: Path | None = None
    """Folder with raw files that are already there, in <download-dir>/<dataset>/."""
    download: bool = False
    """Let TensorFlow Datasets download raw files that are missing."""
    checkpoint_every: int = 10
    """Epochs from one checkpoint to the next."""
    resume: bool = False
    """Continue the run in the output folder from its last checkpoint, if any; on any number of devices."""


# What may differ between a run and its continuation.
NOT_PART_OF_THE_RUN = (
    "devices",
    "parallel",
    "output",
    "data_dir",
    "download_dir",
    "download",
    "checkpoint_every",
    "resume",
)


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


def check_finite(losses: list[jax.Array], last_step: int, config: Config) -> None:
    """Stops a run that has diverged.

    Args:
        losses: of the latest steps.
        last_step: number of the last of them.
        config: of the run.

    Raises:
        UsageError: if one of the losses is not finite.
    """
    finite = np.isfinite(np.asarray(jnp.stack(losses)))
    if not finite.all():
        step = last_step - len(losses) + 1 + int(np.argmin(finite))
        raise UsageError(
            f"diverged: the training loss is not finite at step {step} "
            f"(method {config.method}, seed {config.seed}). "
            "Try a smaller --learning-rate (or --rho), in a new --output folder."
        )


class Log:
    """The file `metrics.jsonl` of a run: one JSON object a line, the configuration first."""

    def __init__(self, folder: Path, config: Config):
        self.path = folder / "metrics.jsonl"
        identity = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(config).items()
            if name not in NOT_PART_OF_THE_RUN
        }
        packages = ("optax_sam", "jax", "jaxlib", "optax", "flax", "numpy")
        self.start = {
            "event": "start",
            "config": identity,
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "device": jax.devices()[0].device_kind,
        }

    def begin(self, step: int) -> None:
        """Starts the file, or cuts it back to the step from which a run goes on."""
        lines = [json.dumps(self.start)]
        if step:
            kept = [record for record in self.read() if record.get("step", step + 1) <= step]
            kept.append(self.start | {"event": "resume", "step": step})
            lines += map(json.dumps, kept)
        partial_file = self.path.with_suffix(".partial")
        partial_file.write_text("\n".join(lines) + "\n")
        os.replace(partial_file, self.path)

    def read(self) -> list[dict[str, Any]]:
        """The records so far; a last line cut short by a kill is left out."""
        records = []
        for line in self.path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def check_same_run(self, resume: bool) -> None:
        """Refuses to write over a run, or to continue another one.

        Args:
            resume: whether the user asked to continue.

        Raises:
            UsageError: with what to write instead.
        """
        if not self.path.exists():
            return
        if not resume:
            raise UsageError(
                f"{self.path.parent} already holds a run; add --resume to continue it, or choose "
                "another --output folder"
            )
        records = self.read()
        before, now = records[0]["config"] if records else {}, self.start["config"]
        changed = [f"{key}: {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        if changed:
            raise UsageError(
                f"{self.path.parent} holds a run with other settings ({'; '.join(changed)}); "
                "resume it with its own settings, or choose another --output folder"
            )


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
    with ocp.CheckpointManager(folder / "checkpoints", options=options) as checkpoints:
        first_step = checkpoints.latest_step() or 0
        if first_step:
            state = checkpoints.restore(first_step, args=ocp.args.StandardRestore(program.like))
        else:
            state = program.init(config.seed)
        log.start |= {"devices": program.layout.num_devices, "parallel": config.parallel}
        log.begin(first_step)

        losses, began = [], time.perf_counter()
        bar = tqdm(total=program.num_steps, initial=first_step, unit="step", desc=config.method)
        steps = train_steps(program, train, state, config.seed, first_step)
        with bar:
            for step, state, loss in steps:
                losses.append(loss)
                bar.update()
                if config.monitor is not None and (step - 1) % config.monitor == 0:
                    values = recorded(state)
                    log.write({"event": "monitor", "step": step} | values)
                    bar.set_postfix(values, refresh=False)
                if step % program.steps_per_epoch:
                    continue
                check_finite(losses, step, config)
                epoch = step // program.steps_per_epoch
                record = {
                    "event": "epoch",
                    "epoch": epoch,
                    "step": step,
                    "train_loss": float(jnp.stack(losses).mean()),
                    "validation": evaluate(program, state, dataset.validation),
                    "seconds": round(time.perf_counter() - began, 3),
                }
                log.write(record)
                bar.set_postfix(
                    loss=record["train_loss"], validation=record["validation"]["accuracy"], refresh=False
                )
                losses = []
                if epoch % config.checkpoint_every == 0 or epoch == config.epochs:
                    checkpoints.save(step, args=ocp.args.StandardSave(state))

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
    config = tyro.cli(Config, prog="python -m benchmarks.train", description=__doc__)
    try:
        end = run(config)
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
