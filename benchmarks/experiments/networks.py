"""Networks for experiments of many short trainings: made once per process, trained, evaluated, timed."""

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from benchmarks.data.arrays import Dataset, Split, load
from benchmarks.experiment import Job
from benchmarks.records import Record
from benchmarks.train import add_label_noise, check_finite, epoch_order, evaluate, train_steps
from benchmarks.training.config import Config
from benchmarks.training.program import Program, TrainState, make_program
from benchmarks.training.sharpness import largest_hessian_eigenvalue
from optax_sam import curvature

RECORDED = (
    *("dataset", "train_size", "augment", "model", "epochs", "batch_size"),
    *("optimizer", "learning_rate", "momentum", "weight_decay", "interval"),
)
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


class Network(NamedTuple):
    """A network to be trained. Seeds and levels of label noise share all but configuration and labels."""

    config: Config  # of the network
    dataset: Dataset  # arrays
    program: Program  # compiled functions
    # Params, (images, labels) -> mean loss; compiled. The same for all methods.
    loss: Callable[[optax.Params, Any], jax.Array]
    noisy: Split  # training images with the labels of the network's seed


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Replaces fields of the configuration, and options of its method, by name."""
    fields = {field.name for field in dataclasses.fields(config)}
    own = {key: value for key, value in settings.items() if key in fields}
    options = {key: value for key, value in settings.items() if key not in fields}
    return dataclasses.replace(config, **own, options=config.options | options)


def config_of(job: Job, recipes: Recipes) -> Config:
    """Configuration of a job: its data set's, with the job's own settings."""
    own = {name: job[name] for name in ("method", "seed", "label_noise", "epochs") if name in job}
    return with_settings(Config(**recipes[job["data"]]), own | job["settings"])


def make_network(
    config: Config, data_dir: Path, change: Callable[[Dataset], Dataset] = lambda data: data
) -> Network:
    """Data and compiled functions of a network, made once per process.

    Args:
        config: of the network.
        data_dir: folder of prepared data sets.
        change: what is done to the data after it is read.
    """
    shared = dataclasses.replace(config, seed=0, label_noise=0.0)
    key = (repr(shared), data_dir)
    if key not in made:
        sizes = {"train_size": shared.train_size, "validation_size": shared.validation_size}
        read = (shared.dataset, data_dir, *sizes.values())
        if read not in datasets:
            datasets[read] = change(load(shared.dataset, data_dir, **sizes))
        program = make_program(shared, datasets[read])
        network = (*read, shared.model, repr(shared.model_options), shared.dtype, shared.label_smoothing)
        if network not in losses:
            rest = program.init(0).rest
            losses[network] = jax.jit(lambda params, batch: program.loss(params, rest, *batch)[0])
        made[key] = (datasets[read], program, losses[network])
    dataset, program, loss = made[key]
    return Network(
        config, dataset, program, loss, add_label_noise(dataset.train, config, dataset.num_classes)
    )


# Of this process.
datasets: dict[Any, Dataset] = {}
losses: dict[Any, Callable[..., jax.Array]] = {}
made: dict[Any, tuple[Dataset, Program, Callable[..., jax.Array]]] = {}


def recorded(config: Config) -> dict[str, Any]:
    """The part of a configuration that result files contain."""
    return {"config": {name: getattr(config, name) for name in RECORDED}}


def states_along_training(network: Network) -> Iterator[tuple[int, TrainState]]:
    """Yields (number of steps made, state) after every step.

    Raises:
        DivergenceError: at the end of an epoch, if a loss is not finite.
    """
    program, config, losses = network.program, network.config, []
    start = program.init(config.seed)
    for step, state, loss in train_steps(program, network.noisy, start, config.seed):
        losses.append(loss)
        if step % program.steps_per_epoch == 0:
            check_finite(losses, step, config)
            losses = []
        yield step, state


def after_epochs(network: Network) -> Iterator[tuple[int, TrainState]]:
    """Yields (epoch, state) after every epoch."""
    for step, state in states_along_training(network):
        epoch, inside = divmod(step, network.program.steps_per_epoch)
        if not inside:
            yield epoch, state


def trained(network: Network) -> TrainState:
    """The state after the last epoch."""
    return collections.deque(states_along_training(network), maxlen=1).pop()[1]


def accuracies(network: Network, state: TrainState, *splits: str) -> Record:
    """Accuracy on splits, by default on validation and test data."""
    return {
        f"{split}_accuracy": evaluate(network.program, state, getattr(network.dataset, split))["accuracy"]
        for split in splits or ("validation", "test")
    }


def train_and_evaluate(network: Network, *, sharpness: bool = False) -> Record:
    """Trains a network; returns its accuracy on validation and test data after the last epoch.

    Args:
        network: to train.
        sharpness: whether to measure the largest eigenvalue of the Hessian too, for the training loss on the
            first 1,000 images, noisy labels included.
    """
    state = trained(network)
    measured = accuracies(network, state)
    if sharpness:
        measured["largest_hessian_eigenvalue"] = largest_hessian_eigenvalue(
            network.loss, state.params, network.noisy
        )
    return measured | recorded(network.config)


def mean_loss(network: Network, params: optax.Params, parts: curvature.Batches) -> float:
    """Loss of a whole split."""
    losses = [(len(part[1]), network.loss(params, part)) for part in parts]
    return float(sum(size * loss for size, loss in losses) / sum(size for size, _ in losses))


def batch_after(network: Network, step: int, size: int | None = None) -> tuple[jax.Array, jax.Array]:
    """The batch of the next training step, after `step` steps; or so many images from its first one on."""
    epoch, index = divmod(step, network.program.steps_per_epoch)
    batch_size = network.config.batch_size
    order = epoch_order(network.config.seed, epoch, len(network.noisy.labels))
    which = jax.lax.dynamic_slice_in_dim(order, index * batch_size, size or batch_size)
    return network.noisy.images[which], network.noisy.labels[which]


def time_per_step(networks: Mapping[str, Network], rounds: int = 40, steps: int = 10) -> dict[str, float]:
    """Seconds per step, with its share of the refreshes: medians over rounds in which rows take turns."""
    noisy = next(iter(networks.values())).noisy
    order = epoch_order(0, 0, len(noisy.labels))
    programs = {name: network.program for name, network in networks.items()}
    states = {name: program.init(0) for name, program in programs.items()}
    times: dict[tuple[str, bool], list[float]] = {}

    def run(name: str, refresh: bool, steps: int) -> None:
        began = time.perf_counter()
        for _ in range(steps):
            states[name], loss = programs[name].step(states[name], noisy, order, 0, refresh=refresh)
        jax.block_until_ready((states[name], loss))
        times.setdefault((name, refresh), []).append((time.perf_counter() - began) / steps)

    for _ in range(rounds + 1):
        for name, program in programs.items():
            run(name, False, steps)
            if program.interval is not None:
                run(name, True, 1)

    # The first round compiles.
    median = {key: statistics.median(values[1:]) for key, values in times.items()}
    seconds = {}
    for name, program in programs.items():
        seconds[name] = median[name, False]
        if program.interval is not None:
            seconds[name] += (median[name, True] - median[name, False]) / program.interval
    return seconds
