"""How good is the top eigenvector after a few products? Lanczos and power iteration during a training.

    python -m benchmarks.experiments.eigenvector_solvers --download-dir FOLDER    # with fashion_mnist/*.gz
    python -m benchmarks.experiments.eigenvector_solvers --report-only            # only page and picture

The strided CNN is trained on 10,000 Fashion-MNIST images with SAM. Every 100 steps, where Eigen-SAM with its
defaults would refresh, both solvers estimate the top eigenvector of the Hessian of the current batch (128
images) with 1 to 10 products: cold, from a random vector, and warm, from what the same solver with the same
number of products found 100 steps before. The reference is SciPy's `eigsh` on the same batch. Alignment is
|⟨v, v₁⟩|, which is 1 for the right direction.

A second table: the error of λ_max of the training loss on 1,000 images, against the number of products.

Writes `results/eigenvector_solvers.jsonl`, the tables between the marks in `docs/curvature.md`, and
`docs/eigenvector_solvers.png`.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

from benchmarks.data import sources
from benchmarks.data.arrays import Dataset, Split, load
from benchmarks.errors import UsageError
from benchmarks.records import RESULTS, Record, read_records, versions_and_device, write_records
from benchmarks.reports.eigenvector_report import STARTS, draw, tables
from benchmarks.tables import DOCS, fill_tables
from benchmarks.train import add_label_noise, epoch_order, train_steps
from benchmarks.training.config import Config
from benchmarks.training.program import TrainState, make_program
from benchmarks.workers import on_each_core, quiet
from optax_sam import tree_math
from optax_sam.curvature.krylov import SOLVERS
from optax_sam.tree_math import random_vector

RESULT_FILE = RESULTS / "eigenvector_solvers.jsonl"
INTERVAL = 100
NUM_FOR_EIGENVALUE = 1000


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The experiment."""

    seeds: int = 3
    """Networks trained."""
    epochs: int = 10
    """Passes over the training images."""
    most_products: int = 10
    """Hessian-vector products at a refresh: 1 to this many."""
    most_products_for_eigenvalue: int = 20
    """The same, for the second table."""
    model: str = "strided_cnn"
    """Network."""
    dataset: str = "fashion_mnist"
    """Data set."""
    train_size: int | None = 10_000
    """Training images."""
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


def measure(job: tuple[Experiment, int]) -> list[Record]:
    """Trains a network and measures; one record per estimate."""
    experiment, seed = job
    dataset = dataset_of(experiment)
    config = Config(
        method="sam",
        rho=0.1,
        model=experiment.model,
        epochs=experiment.epochs,
        batch_size=128,
        learning_rate=0.05,
        seed=seed,
    )
    program = make_program(config, dataset)

    def loss(params, rest, images, labels):
        return program.loss(params, rest, images, labels)[0]

    images, labels = add_label_noise(dataset.train, config, dataset.num_classes)
    few = (images[:NUM_FOR_EIGENVALUE], labels[:NUM_FOR_EIGENVALUE])
    state = program.init(seed)
    records = list(eigenvalues(experiment, loss, state, few, seed, step=0))

    found: dict[tuple[str, int], Any] = {}
    steps = train_steps(program, Split(images, labels), state, seed)
    for step, state, _ in steps:
        if step % INTERVAL == 1:
            # The batch of this step, which a refresh would use; the parameters are those after the step.
            order = epoch_order(seed, (step - 1) // program.steps_per_epoch, len(labels))
            start = (step - 1) % program.steps_per_epoch * config.batch_size
            batch = order[start : start + config.batch_size]
            at = (state.params, state.rest, images[batch], labels[batch])
            records += alignments(experiment, loss, at, found, seed, step)
    return records + list(eigenvalues(experiment, loss, state, few, seed, step))


def dataset_of(experiment: Experiment) -> Dataset:
    """The data."""
    return load(
        experiment.dataset,
        experiment.data_dir,
        download_dir=experiment.download_dir,
        train_size=experiment.train_size,
    )


def measure_all(experiment: Experiment) -> None:
    """Adds the seeds that are missing from the result file."""
    dataset_of(experiment)  # prepared once, before the workers start
    records = read_records(experiment.output)
    done = {record["seed"] for record in records}
    jobs = [(experiment, seed) for seed in range(experiment.seeds) if seed not in done]
    for own in on_each_core(measure, jobs, experiment.processes):
        records += own
        write_records(experiment.output, records)


def alignments(
    experiment: Experiment, loss: Callable, at: tuple, found: dict, seed: int, step: int
) -> Iterator[Record]:
    """Compares every solver, start and number of products with the exact top eigenvector of the batch."""
    params, *rest = at
    exact_value, exact = top_eigenpair(loss, params, *rest, tolerance=1e-4)
    cold = random_vector(jax.random.key(step + 1000 * seed), params)
    matvec = lambda vector: hessian_vector_product(loss, params, vector, *rest)
    for solver, start in ((solver, start) for solver in SOLVERS for start in STARTS):
        for num_iters in range(1, experiment.most_products + 1):
            begin = found.get((solver, num_iters), cold) if start == "warm" else cold
            value, vector = SOLVERS[solver](matvec, begin, num_iters)
            if start == "warm":
                found[solver, num_iters] = vector
            yield {
                "kind": "alignment",
                "seed": seed,
                "step": step,
                "solver": solver,
                "start": start,
                "num_iters": num_iters,
                "alignment": abs(float(tree_math.vdot(vector, exact))),
                "relative_error": abs(float(value) / exact_value - 1),
                "exact_eigenvalue": exact_value,
                "versions": versions_and_device(),
            }


def eigenvalues(
    experiment: Experiment, loss: Callable, state: TrainState, few: tuple, seed: int, step: int
) -> Iterator[Record]:
    """The error of λ_max on 1,000 images, from a random start, against the number of products."""
    exact, _ = top_eigenpair(loss, state.params, state.rest, *few, tolerance=1e-6)
    cold = random_vector(jax.random.key(seed), state.params)
    matvec = lambda vector: hessian_vector_product(loss, state.params, vector, state.rest, *few)
    for solver in SOLVERS:
        for num_iters in range(2, experiment.most_products_for_eigenvalue + 1, 2):
            value, _ = SOLVERS[solver](matvec, cold, num_iters)
            yield {
                "kind": "eigenvalue",
                "seed": seed,
                "step": step,
                "solver": solver,
                "num_iters": num_iters,
                "eigenvalue": float(value),
                "exact_eigenvalue": exact,
                "relative_error": abs(float(value) / exact - 1),
                "versions": versions_and_device(),
            }


def top_eigenpair(
    value_fn: Callable[..., jax.Array], params: object, *args: object, tolerance: float = 1e-3
) -> tuple[float, object]:
    """The algebraically largest eigenvalue of the Hessian of `value_fn(params, *args)`, and its eigenvector.

    It uses SciPy rather than one of the solvers under test: ARPACK's restarted Lanczos, with Hessian-vector
    products in the precision of the parameters.

    Args:
        value_fn: scalar function. Compiled once per function object, whatever the parameters.
        params: the point, a pytree.
        *args: further arguments of `value_fn`.
        tolerance: relative accuracy of the eigenvalue.

    Returns:
        (eigenvalue, unit eigenvector like `params`).
    """
    flat, unravel = ravel_pytree(params)

    def product(vector: np.ndarray) -> np.ndarray:
        tangent = unravel(np.asarray(vector, flat.dtype).ravel())
        return np.asarray(ravel_pytree(hessian_vector_product(value_fn, params, tangent, *args))[0])

    operator = LinearOperator((flat.size, flat.size), matvec=product, dtype=flat.dtype)
    start = np.random.default_rng(0).standard_normal(flat.size)  # ARPACK's own varies between calls
    values, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=tolerance)
    return float(values[0]), unravel(np.asarray(vectors[:, 0], flat.dtype))


@partial(jax.jit, static_argnums=0)
def hessian_vector_product(
    value_fn: Callable[..., jax.Array], params: object, tangent: object, *args: object
) -> object:
    """H v, by forward over reverse differentiation."""
    return jax.jvp(lambda w: jax.grad(value_fn)(w, *args), (params,), (tangent,))[1]


def main() -> None:
    """The command line."""
    experiment = tyro.cli(
        Experiment, prog="python -m benchmarks.experiments.eigenvector_solvers", description=__doc__
    )
    quiet()
    try:
        if not experiment.report_only:
            measure_all(experiment)
        records = read_records(experiment.output)
        if not records:
            raise UsageError(f"{experiment.output} is missing; leave out --report-only to make it")
    except UsageError as error:
        sys.exit(f"error: {error}")
    print(*tables(records).values(), sep="\n\n")
    if experiment.output == RESULT_FILE:
        fill_tables(DOCS / "curvature.md", tables(records))
        draw(records, DOCS / "eigenvector_solvers.png")


if __name__ == "__main__":
    main()
