"""Data and compiled functions of the claims: Fashion-MNIST as in the accuracy suite, or the demo's digits."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from benchmarks import train
from benchmarks.data import sources as data
from benchmarks.errors import UsageError
from benchmarks.experiments.claims.claim import Job, Record
from benchmarks.experiments.suite import RECORDED, versions
from benchmarks.training.trials import train_once, with_settings
from optax_sam import curvature

FASHION_MNIST = {
    "dataset": "fashion_mnist",
    "train_size": 10_000,
    "model": "strided_cnn",
    "batch_size": 128,
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
}
DIGITS = {
    "dataset": "digits",
    "train_size": 500,
    "model": "mlp",
    "batch_size": 50,
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
}
CHUNK = 250  # on CPUs, gradients of many images at once are slower than in parts
NUM_FOR_SHARPNESS = 1000
SHARPNESS_ITERS = 15


class Setting(NamedTuple):
    """What the networks of a configuration share, whatever their seed and label noise.

    Attributes:
        dataset: arrays.
        program: compiled functions.
        loss: params, (images, labels) -> mean loss; compiled.
    """

    dataset: data.Dataset
    program: train.Program
    loss: Callable[[optax.Params, Any], jax.Array]


def config_of(job: Job) -> train.Config:
    """Configuration of a job: its data set's, changed by what the job names."""
    base = train.Config(**{"digits": DIGITS, "fashion_mnist": FASHION_MNIST}[job["data"]])
    own = {name: job[name] for name in ("method", "seed", "label_noise", "epochs")}
    return with_settings(base, own | job["settings"])


def setting_of(job: Job, data_dir: Path) -> Setting:
    """Data and compiled functions of a job, made once in each process."""
    shared = config_of(job | {"seed": 0, "label_noise": 0.0})
    key = (repr(shared), data_dir)
    if key not in settings:
        dataset = data.load(shared.dataset, data_dir, train_size=shared.train_size)
        program = train.make_program(shared, dataset)
        rest = program.init(0).rest
        loss = jax.jit(lambda params, batch: program.loss(params, rest, *batch)[0])
        settings[key] = Setting(dataset, program, loss)
    return settings[key]


settings: dict[tuple[str, Path], Setting] = {}  # of this process


def training_data(job: Job, setting: Setting) -> data.Split:
    """Training images with the labels of the job's seed."""
    return train.add_label_noise(setting.dataset.train, config_of(job), setting.dataset.num_classes)


def chunks(split: data.Split, num: int | None = None) -> curvature.Batches:
    """A split, or its first images, in parts."""
    return curvature.Batches((split.images[:num], split.labels[:num]), CHUNK)


def mean_loss(setting: Setting, params: optax.Params, parts: curvature.Batches) -> float:
    """Loss of a whole split."""
    losses = [(len(part[1]), setting.loss(params, part)) for part in parts]
    return float(sum(size * loss for size, loss in losses) / sum(size for size, _ in losses))


def batch_after(noisy: data.Split, job: Job, setting: Setting, step: int) -> tuple[jax.Array, jax.Array]:
    """The batch of the next training step, when `step` have been made."""
    epoch, index = divmod(step, setting.program.steps_per_epoch)
    size = config_of(job).batch_size
    order = train.epoch_order(job["seed"], epoch, len(noisy.labels))
    which = jax.lax.dynamic_slice_in_dim(order, index * size, size)
    return noisy.images[which], noisy.labels[which]


def train_steps(job: Job, setting: Setting, noisy: data.Split) -> Iterator[tuple[int, train.TrainState]]:
    """Yields (number of steps made, state) after every step."""
    start = setting.program.init(job["seed"])
    for step, state, _ in train.train_steps(setting.program, noisy, start, job["seed"]):
        yield step, state


def record_of(job: Job, **measured: Any) -> Record:
    """A line of a result file: the job, what was measured, and what the result depends on."""
    record = job | measured
    if "data" in job:
        config = config_of(job)
        record["config"] = {name: getattr(config, name) for name in RECORDED}
    return record | {"versions": versions()}


def final_accuracy(job: Job, data_dir: Path, *, sharpness: bool = False) -> Record:
    """Trains a network; accuracy on validation and test data after the last epoch.

    Args:
        job: what to train.
        data_dir: of prepared data sets.
        sharpness: whether to measure the largest eigenvalue of the Hessian, too, of the training loss on the
            first 1,000 images, wrong labels included.
    """
    setting = setting_of(job, data_dir)
    noisy = training_data(job, setting)
    try:
        for _, state in train_once(setting.program, config_of(job), noisy):  # noqa: B007 (the last one is used)
            pass
    except UsageError:
        # No better than guessing; part of the result, not an accident.
        guess = 1 / setting.dataset.num_classes
        return record_of(job, diverged=True, validation_accuracy=guess, test_accuracy=guess)
    measured = {
        f"{name}_accuracy": train.evaluate(setting.program, state, getattr(setting.dataset, name))["accuracy"]
        for name in ("validation", "test")
    }
    if sharpness:
        few = chunks(noisy, NUM_FOR_SHARPNESS)
        top = curvature.top_eigenpairs(setting.loss, state.params, num_iters=SHARPNESS_ITERS, batches=few)
        measured["largest_hessian_eigenvalue"] = float(top.eigenvalues[0])
    return record_of(job, **measured)
