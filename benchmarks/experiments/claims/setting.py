"""Data and compiled functions of the claims: Fashion-MNIST as in the accuracy suite, or the demo's digits."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from benchmarks.data.arrays import Dataset, Split, load
from benchmarks.errors import UsageError
from benchmarks.experiment import Claim, Job, record_of
from benchmarks.experiments.networks import train_to_the_end, with_settings
from benchmarks.records import Record
from benchmarks.train import add_label_noise, epoch_order, evaluate, train_steps
from benchmarks.training.config import Config
from benchmarks.training.program import Program, TrainState, make_program
from benchmarks.training.sharpness import largest_hessian_eigenvalue
from optax_sam import curvature

Recipes = Mapping[str, Mapping[str, Any]]

USUAL = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
RECIPES: Recipes = {
    "fashion_mnist": {
        "dataset": "fashion_mnist",
        "train_size": 10_000,
        "model": "strided_cnn",
        "batch_size": 128,
        **USUAL,
    },
    "digits": {"dataset": "digits", "train_size": 500, "model": "mlp", "batch_size": 50, **USUAL},
}


@dataclasses.dataclass(frozen=True)
class ClaimOnNetworks(Claim):
    """A claim that is tested on networks trained by these recipes."""

    recipes: Recipes = dataclasses.field(default_factory=lambda: RECIPES)
    """How the networks on each data set are trained."""


class Setting(NamedTuple):
    """A network to be trained. Seeds and levels of label noise share all but the configuration.

    Attributes:
        config: of the network.
        dataset: arrays.
        program: compiled functions.
        loss: params, (images, labels) -> mean loss; compiled.
    """

    config: Config
    dataset: Dataset
    program: Program
    loss: Callable[[optax.Params, Any], jax.Array]


def config_of(job: Job, recipes: Recipes) -> Config:
    """Configuration of a job: that of its data set, with the job's own settings."""
    base = Config(**recipes[job["data"]])
    own = {name: job[name] for name in ("method", "seed", "label_noise", "epochs")}
    return with_settings(base, own | job["settings"])


def setting_of(job: Job, recipes: Recipes, data_dir: Path) -> Setting:
    """Data and compiled functions of a job, made once per process."""
    config = config_of(job, recipes)
    shared = dataclasses.replace(config, seed=0, label_noise=0.0)
    key = (repr(shared), data_dir)
    if key not in made:
        dataset = load(shared.dataset, data_dir, train_size=shared.train_size)
        program = make_program(shared, dataset)
        rest = program.init(0).rest
        loss = jax.jit(lambda params, batch: program.loss(params, rest, *batch)[0])
        made[key] = Setting(shared, dataset, program, loss)
    return made[key]._replace(config=config)


made: dict[tuple[str, Path], Setting] = {}  # of this process


def training_data(setting: Setting) -> Split:
    """Training images with the labels of the network's seed."""
    return add_label_noise(setting.dataset.train, setting.config, setting.dataset.num_classes)


def mean_loss(setting: Setting, params: optax.Params, parts: curvature.Batches) -> float:
    """Loss of a whole split."""
    losses = [(len(part[1]), setting.loss(params, part)) for part in parts]
    return float(sum(size * loss for size, loss in losses) / sum(size for size, _ in losses))


def batch_after(setting: Setting, noisy: Split, step: int) -> tuple[jax.Array, jax.Array]:
    """The batch of the next training step, after `step` steps."""
    epoch, index = divmod(step, setting.program.steps_per_epoch)
    size = setting.config.batch_size
    order = epoch_order(setting.config.seed, epoch, len(noisy.labels))
    which = jax.lax.dynamic_slice_in_dim(order, index * size, size)
    return noisy.images[which], noisy.labels[which]


def states_along_training(setting: Setting, noisy: Split) -> Iterator[tuple[int, TrainState]]:
    """Yields (number of steps made, state) after every step."""
    seed = setting.config.seed
    for step, state, _ in train_steps(setting.program, noisy, setting.program.init(seed), seed):
        yield step, state


def final_accuracy(job: Job, recipes: Recipes, data_dir: Path, *, sharpness: bool = False) -> Record:
    """Trains a network; returns its accuracy on validation and test data after the last epoch.

    Args:
        job: what to train.
        recipes: the settings for each data set.
        data_dir: folder of prepared data sets.
        sharpness: whether to measure the largest eigenvalue of the Hessian too, for the training loss on the
            first 1,000 images, wrong labels included.
    """
    setting = setting_of(job, recipes, data_dir)
    noisy = training_data(setting)
    try:
        state = train_to_the_end(setting.program, setting.config, noisy)
    except UsageError:
        # A result like any other: no better than guessing.
        guess = 1 / setting.dataset.num_classes
        return record_of(job, setting.config, diverged=True, validation_accuracy=guess, test_accuracy=guess)
    measured = {
        f"{name}_accuracy": evaluate(setting.program, state, getattr(setting.dataset, name))["accuracy"]
        for name in ("validation", "test")
    }
    if sharpness:
        measured["largest_hessian_eigenvalue"] = largest_hessian_eigenvalue(setting.loss, state.params, noisy)
    return record_of(job, setting.config, **measured)
