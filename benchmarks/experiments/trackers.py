"""How to spend Hessian-vector products along a training so that the tracked vector is the top eigenvector.

    python -m benchmarks.experiments.trackers --download-dir FOLDER    # with fashion_mnist/*.gz
    python -m benchmarks.experiments.trackers --report-only            # only page and picture

Eigen-SAM estimates the top eigenvector v₁ with five power iterations on one batch every 100 steps. Here other
trackers run beside the trainings of SAM and of Eigen-SAM, without acting on them: the strided CNN on 10,000
Fashion-MNIST images, with right labels and with 40 % wrong ones. All have the same budget, within a few
percent: products with the Hessian of 640 examples per 100 steps, on one batch or many, of all its images or
a few. Some keep a running mean of the products (`decay` of `tilt_to_top_eigenvector`).

Two trackers take no product at all, but what a step of SAM computes anyway: the gradient g, or the difference
z = g' − g, which is ρ H ĝ to first order. They are power iterations, with a running mean, on g gᵀ and z zᵀ.

The reference is the Hessian of 2,000 training images, with the labels of the training. Measured at steps
136, 236, ..., so 36 steps after a refresh of the paper's tracker: the alignment |⟨v, v₁⟩|; the length of the
projection of v onto the span of v₁, v₂ and v₃, which counts where λ₁ is near λ₂; and the error of the
tracked λ₁.

Protocol: `decay` is chosen for each tracker by its mean alignment with the span over the trainings of one
seed, which is not used again. (The span, because v₁ itself is hardly defined where λ₁ is near λ₂.) Reported
are means over training of the other seeds.

Writes `results/trackers.jsonl`, the tables between the marks in `docs/curvature.md`, and `docs/trackers.png`.
"""

import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.data import sources
from benchmarks.data.arrays import Dataset, Split, load
from benchmarks.errors import UsageError
from benchmarks.experiment import is_done
from benchmarks.records import RESULTS, Record, read_records, versions_and_device, write_records
from benchmarks.reports.tracker_report import TUNING_SEED, draw, tables
from benchmarks.tables import DOCS, fill_tables
from benchmarks.train import add_label_noise, epoch_order, train_steps
from benchmarks.training.config import Config
from benchmarks.training.program import Program, TrainState, make_program
from benchmarks.workers import on_each_core, quiet
from optax_sam import curvature, tree_math
from optax_sam.curvature.eigenpairs import start_vector, track_eigenpair

RESULT_FILE = RESULTS / "trackers.jsonl"
LABEL_NOISE = (0.0, 0.4)
NUM_VECTORS = 3
CHUNK = 500
RHO = 0.1
TRAININGS = {
    "sam": ("sam", {"rho": RHO}),
    "eigen_sam": ("eigen_sam", {"rho": RHO, "alpha": 0.2}),
}


class Tracker(NamedTuple):
    """A way to spend the budget.

    Attributes:
        label: in tables.
        examples: whose Hessian a product is with.
        num_iters: products per refresh.
        interval: steps from one refresh to the next.
        solver: of the refresh; "gradients" and "differences" use what SAM's step computes anyway.
        decays: values of `decay` to choose from; 0 keeps nothing of the products before.
    """

    label: str
    examples: int
    num_iters: int
    interval: int
    solver: str = "power"
    decays: tuple[float, ...] = (0.0,)

    def cost(self) -> float:
        """Examples times products in 100 steps."""
        return 0 if self.solver in FREE else 100 / self.interval * self.num_iters * self.examples


FREE = ("gradients", "differences")


TRACKERS = {
    "paper": Tracker("5 power iterations, the paper's", 128, 5, 100),
    "lanczos": Tracker("5 Lanczos products", 128, 5, 100, "lanczos"),
    "large": Tracker("5 power iterations on a large batch", 640, 5, 500),
    "large_lanczos": Tracker("5 Lanczos products on a large batch", 640, 5, 500, "lanczos"),
    "spread": Tracker("one product", 128, 1, 20),
    "spread_mean": Tracker("one product, running mean", 128, 1, 20, decays=(0.3, 0.5, 0.7, 0.8)),
    "part_32": Tracker(
        "on a quarter of the batch, running mean", 32, 1, 5, decays=(0.5, 0.7, 0.8, 0.9, 0.95)
    ),
    "part_13": Tracker("on a tenth of the batch, running mean", 13, 1, 2, decays=(0.9, 0.95, 0.98)),
    "gradients": Tracker("no product: gradients g", 128, 1, 1, "gradients", (0.95, 0.98, 0.99)),
    "differences": Tracker("no product: g' − g", 128, 1, 1, "differences", (0.95, 0.98, 0.99)),
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The experiment."""

    seeds: tuple[int, ...] = (TUNING_SEED, 0, 1, 2)
    """Networks of each training. The first chooses `decay`, the others are reported."""
    epochs: int = 8
    """Passes over the training images."""
    first: int = 136
    """Step of the first measurement."""
    every: int = 100
    """Steps from one measurement to the next."""
    num_images: int = 2000
    """Training images of the reference."""
    num_iters: int = 14
    """Most Hessian-vector products for the reference."""
    model: str = "strided_cnn"
    """Network."""
    dataset: str = "fashion_mnist"
    """Data set."""
    train_size: int | None = 10_000
    """Training images."""
    batch_size: int = 128
    """Images per step. Trackers scale with it."""
    data_dir: Path = sources.DEFAULT_DATA_DIR
    """Folder of prepared data sets."""
    download_dir: Path | None = None
    """Folder with the raw files, in fashion_mnist/."""
    processes: int = os.cpu_count() or 1
    """Number of networks at a time, each on its own core."""
    output: Path = RESULT_FILE
    """Result file."""
    report_only: bool = False
    """Only write page and picture from the result file."""


def jobs(experiment: Experiment) -> list[dict[str, Any]]:
    """The trainings."""
    return [
        {"training": training, "label_noise": noise, "epochs": experiment.epochs, "seed": seed}
        for seed in experiment.seeds
        for noise in LABEL_NOISE
        for training in TRAININGS
    ]


def measure_all(experiment: Experiment) -> None:
    """Adds the trainings that are missing from the result file."""
    dataset_of(experiment)  # prepared once, before the workers start
    records = read_records(experiment.output)
    missing = [job for job in jobs(experiment) if not is_done(job, records)]
    for own in on_each_core(functools.partial(measure, experiment), missing, experiment.processes):
        records += own
        write_records(experiment.output, records)


def measure(experiment: Experiment, job: dict[str, Any]) -> list[Record]:
    """Trains a network; one record for the reference, and one for each tracker and `decay`."""
    program, loss, dataset = compiled(experiment, job["training"])
    config = dataclasses.replace(config_of(experiment, job["training"]), **settings_of(job))
    train = add_label_noise(dataset.train, config, dataset.num_classes)
    few = curvature.Batches(jax.tree.map(lambda x: x[: experiment.num_images], train), CHUNK)
    choices = [(name, decay) for name, tracker in TRACKERS.items() for decay in tracker.decays]

    found, start, steps, exact = {}, None, [], []
    measured = {choice: {"alignment": [], "span": [], "eigenvalue": []} for choice in choices}
    for step, state in states(program, train, config.seed):
        if step >= experiment.first and (step - experiment.first) % experiment.every == 0:
            top = curvature.top_eigenpairs(
                loss,
                state.params,
                k=NUM_VECTORS,
                num_iters=experiment.num_iters,
                tolerance=0.05,
                start=start,
                batches=few,
            )
            start = jax.tree.map(lambda x: x.sum(0), top.eigenvectors)
            steps.append(step)
            exact.append([rounded(x) for x in (top.eigenvalues, top.residuals)])
            for choice, (value, vector) in found.items():
                along = np.asarray(coordinates(top.eigenvectors, vector))
                measured[choice]["alignment"].append(rounded(abs(along[0])))
                measured[choice]["span"].append(rounded(np.linalg.norm(along)))
                measured[choice]["eigenvalue"].append(rounded(value))
        if step == program.num_steps:
            break
        batch = examples(program, train, config, step, config.batch_size)
        free = dict(zip(FREE, of_sam(loss, state.params, batch), strict=True))
        for name, decay in choices:
            tracker = TRACKERS[name]
            if step % tracker.interval == 0:
                size = max(1, experiment.batch_size * tracker.examples // 128)
                last = found.get((name, decay)) or random_start(state)
                batch = examples(program, train, config, step, size)
                found[name, decay] = (
                    track_free(free[tracker.solver], last, decay)
                    if tracker.solver in FREE
                    else track(loss, tracker.solver, tracker.num_iters, state.params, batch, last, decay)
                )
    values, residuals = zip(*exact, strict=True)
    reference = {"tracker": "exact", "steps": steps, "eigenvalues": values, "residuals": residuals}
    own = [{"tracker": name, "decay": decay} | measured[name, decay] for name, decay in choices]
    return [job | record | {"versions": versions_and_device()} for record in (reference, *own)]


def rounded(x: Any) -> Any:
    """With four digits after the point, as a list or number."""
    return np.round(np.asarray(x, float), 4).tolist()


def settings_of(job: dict[str, Any]) -> dict[str, Any]:
    """What a job changes of the configuration."""
    return {name: job[name] for name in ("label_noise", "seed")}


def config_of(experiment: Experiment, training: str) -> Config:
    """Configuration of a training, of any seed."""
    method, settings = TRAININGS[training]
    return Config(
        method=method,
        rho=settings["rho"],
        options={name: value for name, value in settings.items() if name != "rho"},
        model=experiment.model,
        epochs=experiment.epochs,
        batch_size=experiment.batch_size,
        learning_rate=0.05,
    )


def dataset_of(experiment: Experiment) -> Dataset:
    """The data."""
    return load(
        experiment.dataset,
        experiment.data_dir,
        download_dir=experiment.download_dir,
        train_size=experiment.train_size,
    )


@functools.cache
def data_and_loss(experiment: Experiment) -> tuple[Dataset, Callable[..., jax.Array]]:
    """The data, and params, (images, labels) -> mean loss: one object, so that all share programs."""
    dataset = dataset_of(experiment)
    program = make_program(config_of(experiment, "sam"), dataset)
    rest = program.init(0).rest
    return dataset, jax.jit(lambda params, batch: program.loss(params, rest, *batch)[0])


@functools.cache
def compiled(experiment: Experiment, training: str) -> tuple[Program, Callable[..., jax.Array], Dataset]:
    """Program, loss and data, made once per process."""
    dataset, loss = data_and_loss(experiment)
    return make_program(config_of(experiment, training), dataset), loss, dataset


def states(program: Program, train: Split, seed: int) -> Iterator[tuple[int, TrainState]]:
    """Yields (number of steps made, state), from 0 steps on."""
    after = train_steps(program, train, program.init(seed), seed)
    return itertools.chain([(0, program.init(seed))], ((step, state) for step, state, _ in after))


def examples(
    program: Program, train: Split, config: Config, step: int, size: int
) -> tuple[jax.Array, jax.Array]:
    """The first images of the batch of the next step, and if there are not enough also of those after it."""
    epoch, index = divmod(step, program.steps_per_epoch)
    order = epoch_order(config.seed, epoch, len(train.labels))
    which = jax.lax.dynamic_slice_in_dim(order, index * config.batch_size, size)
    return train.images[which], train.labels[which]


def random_start(state: TrainState) -> tuple[jax.Array, Any]:
    """The eigenpair before the first refresh."""
    return jnp.zeros(()), start_vector(state.params, 0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def track(
    loss: Callable[..., jax.Array],
    solver: str,
    num_iters: int,
    params: Any,
    batch: tuple[jax.Array, jax.Array],
    last: tuple[jax.Array, Any],
    decay: float,
) -> tuple[jax.Array, Any]:
    """A refresh, as in `tilt_to_top_eigenvector`."""
    gradient_fn = lambda w: jax.grad(loss)(w, batch)
    return track_eigenpair(last, gradient_fn, params, solver=solver, num_iters=num_iters, decay=decay)


@functools.partial(jax.jit, static_argnums=0)
def of_sam(
    loss: Callable[..., jax.Array], params: Any, batch: tuple[jax.Array, jax.Array]
) -> tuple[Any, Any]:
    """The vectors g and g' − g of SAM's step."""
    gradient = jax.grad(loss)(params, batch)
    epsilon = tree_math.scale(jnp.asarray(RHO), tree_math.unit(gradient))
    ahead = jax.grad(loss)(tree_math.add(params, epsilon), batch)
    return gradient, jax.tree.map(jnp.subtract, ahead, gradient)


@jax.jit
def track_free(vector: Any, last: tuple[jax.Array, Any], decay: float) -> tuple[jax.Array, Any]:
    """A refresh with z zᵀ in place of the Hessian: the gradient of ½ ⟨z, w⟩²."""
    gradient_fn = lambda w: tree_math.scale(tree_math.vdot(vector, w), vector)
    return track_eigenpair(last, gradient_fn, last[1], solver="power", num_iters=1, decay=decay)


@jax.jit
def coordinates(vectors: Any, vector: Any) -> jax.Array:
    """Inner products of a vector with several, which are stacked."""
    return jax.vmap(lambda other: tree_math.vdot(other, vector))(vectors)


def main() -> None:
    """The command line."""
    experiment = tyro.cli(Experiment, prog="python -m benchmarks.experiments.trackers", description=__doc__)
    quiet()
    try:
        if not experiment.report_only:
            measure_all(experiment)
        records = read_records(experiment.output)
        if not records:
            raise UsageError(f"{experiment.output} is missing; leave out --report-only to make it")
    except UsageError as error:
        sys.exit(f"error: {error}")
    print(*tables(records, TRACKERS).values(), sep="\n\n")
    if experiment.output == RESULT_FILE:
        fill_tables(DOCS / "curvature.md", tables(records, TRACKERS))
        draw(records, TRACKERS, DOCS / "trackers.png")


if __name__ == "__main__":
    main()
