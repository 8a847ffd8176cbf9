"""How good is the top eigenvector after a few products? Lanczos and power iteration during a training.

The strided CNN is trained on 10,000 Fashion-MNIST images with SAM. Every 100 steps, where Eigen-SAM with its
defaults would refresh, both solvers estimate the top eigenvector of the Hessian of the current batch (128
images) with 1 to 10 products: cold, from a random vector, and warm, from what the same solver with the same
number of products found 100 steps before. The reference is SciPy's `eigsh` on the same batch. Alignment is
|⟨v, v₁⟩|, which is 1 for the right direction.

A second table: the error of λ_max of the training loss on 1,000 images, against the number of products.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

from benchmarks import figures
from benchmarks.experiment import Experiment, Job, Tables
from benchmarks.experiments.networks import batch_after, make_network, states_along_training
from benchmarks.records import Record
from benchmarks.tables import table, where
from benchmarks.training.config import Config
from benchmarks.training.program import TrainState
from optax_sam import tree_math
from optax_sam.curvature.krylov import SOLVERS
from optax_sam.tree_math import random_vector

INTERVAL = 100
NUM_FOR_EIGENVALUE = 1000
STARTS = ("cold", "warm")
SHOWN = (1, 2, 4, 5, 8, 10, 20)  # products in the tables
STYLES = {
    (solver, start): figures.style(method, f"{name}, {start}", line)
    for solver, method, name in (("lanczos", "sam", "Lanczos"), ("power", "xsam", "power iteration"))
    for start, line in (("cold", "--"), ("warm", "-"))
}


@dataclasses.dataclass(frozen=True)
class EigenvectorSolvers(Experiment):
    """The experiment."""

    name: str = "eigenvector_solvers"
    seeds: tuple[int, ...] = (0, 1, 2)
    datasets: tuple[str, ...] = ("fashion_mnist",)
    # network: data, network and length of the training
    network: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {
            "dataset": "fashion_mnist",
            "train_size": 10_000,
            "model": "strided_cnn",
            "epochs": 10,
        }
    )
    most_products: int = 10  # Hessian-vector products at a refresh: 1 to this many
    most_products_for_eigenvalue: int = 20  # the same, for the second table

    def jobs(self, records: list[Record]) -> list[Job]:
        """One network each."""
        return [{"seed": seed} for seed in self.seeds]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Trains a network and measures; one record per estimate."""
        seed = job["seed"]
        shared = {"method": "sam", "rho": 0.1, "batch_size": 128, "learning_rate": 0.05}
        network = make_network(Config(**shared, **self.network, seed=seed), data_dir)
        program = network.program

        def loss(params, rest, images, labels):
            return program.loss(params, rest, images, labels)[0]

        few = tuple(array[:NUM_FOR_EIGENVALUE] for array in network.noisy)
        records = list(self.eigenvalues(loss, program.init(seed), few, seed, step=0))
        found: dict[tuple[str, int], Any] = {}
        for step, state in states_along_training(network):
            if step % INTERVAL == 1:
                # The batch of this step, which a refresh would use; the parameters are those after the step.
                at = (state.params, state.rest, *batch_after(network, step - 1))
                records += self.alignments(loss, at, found, seed, step)
        return records + list(self.eigenvalues(loss, state, few, seed, step))

    def alignments(self, loss: Callable, at: tuple, found: dict, seed: int, step: int) -> Iterator[Record]:
        """Compares every solver, start and number of products with the exact top eigenvector of the batch."""
        params, *rest = at
        exact_value, exact = top_eigenpair(loss, params, *rest, tolerance=1e-4)
        cold = random_vector(jax.random.key(step + 1000 * seed), params)
        matvec = lambda vector: hessian_vector_product(loss, params, vector, *rest)
        for solver, start in ((solver, start) for solver in SOLVERS for start in STARTS):
            for num_iters in range(1, self.most_products + 1):
                begin = found.get((solver, num_iters), cold) if start == "warm" else cold
                value, vector = SOLVERS[solver](matvec, begin, num_iters)
                if start == "warm":
                    found[solver, num_iters] = vector
                yield {
                    "kind": "alignment",
                    "step": step,
                    "solver": solver,
                    "start": start,
                    "num_iters": num_iters,
                    "alignment": abs(float(tree_math.vdot(vector, exact))),
                    "relative_error": abs(float(value) / exact_value - 1),
                    "exact_eigenvalue": exact_value,
                }

    def eigenvalues(
        self, loss: Callable, state: TrainState, few: tuple, seed: int, step: int
    ) -> Iterator[Record]:
        """The error of λ_max on 1,000 images, from a random start, against the number of products."""
        exact, _ = top_eigenpair(loss, state.params, state.rest, *few, tolerance=1e-6)
        cold = random_vector(jax.random.key(seed), state.params)
        matvec = lambda vector: hessian_vector_product(loss, state.params, vector, state.rest, *few)
        for solver in SOLVERS:
            for num_iters in range(2, self.most_products_for_eigenvalue + 1, 2):
                value, _ = SOLVERS[solver](matvec, cold, num_iters)
                yield {
                    "kind": "eigenvalue",
                    "step": step,
                    "solver": solver,
                    "num_iters": num_iters,
                    "eigenvalue": float(value),
                    "exact_eigenvalue": exact,
                    "relative_error": abs(float(value) / exact - 1),
                }

    def tables(self, frame: pd.DataFrame, results: Path) -> Tables:
        """Mean alignments (and the lowest decile), errors of λ_max, and the products that they take."""
        aligned, values = (where(frame, kind=kind) for kind in ("alignment", "eigenvalue"))
        cells = (
            aligned.groupby(["num_iters", "start", "solver"])["alignment"]
            .agg(lambda own: f"{own.mean():.3f} ({own.quantile(0.1):.2f})")
            .unstack(["start", "solver"])
        )
        titles = ["products", *(f"{solver}, {start}" for start, solver in cells)]
        cells = cells[cells.index.isin(SHOWN)]
        lines = [[str(num_iters), *row] for num_iters, row in zip(cells.index, cells.values, strict=True)]
        made = {"alignment": table(titles, lines), "equal_quality": equal_quality(aligned)}

        values = values[values["step"].isin((0, values["step"].max()))]
        cells = (
            values.groupby(["num_iters", "step", "solver"])["relative_error"]
            .agg(lambda own: f"{100 * own.max():.2g} %")
            .unstack(["step", "solver"])
        )
        cells = cells[cells.index.isin(SHOWN)]
        titles = [f"{solver}, {'after training' if step else 'at the start'}" for step, solver in cells]
        lines = [[str(num_iters), *row] for num_iters, row in zip(cells.index, cells.values, strict=True)]
        return {"docs/evidence/eigenvectors.md": made | {"eigenvalue": table(["products", *titles], lines)}}

    def draw(self, frame: pd.DataFrame, results: Path, docs: Path) -> None:
        """Alignment against the number of products."""
        figure, ((axes,),) = figures.panels(1, 1, "", width=5.4, height=3.8)
        own = where(frame, kind="alignment")
        own = own.assign(row=list(zip(own["solver"], own["start"], strict=True)))
        figures.lines(axes, own, "num_iters", "alignment", STYLES)
        axes.set(
            xlabel="Hessian-vector products at a refresh",
            ylabel="alignment with the exact top eigenvector",
            xticks=sorted(own["num_iters"].unique()),
            ylim=(0, 1.02),
        )
        figures.save(figure, docs / "evidence" / "eigenvector_solvers.png")


def equal_quality(aligned: pd.DataFrame, num_iters: int = 5) -> str:
    """How many Lanczos products align at least as well as `num_iters` power iterations, both warm."""
    means = where(aligned, start="warm").groupby(["solver", "num_iters"])["alignment"].mean()
    power, lanczos = means["power"], means["lanczos"]
    enough = [count for count in lanczos.index if lanczos[count] >= power[num_iters]]
    if not enough:
        return (
            f"No number of Lanczos products up to {lanczos.index.max()} reaches {num_iters} power iterations."
        )
    return (
        f"{num_iters} warm power iterations, the paper's setting, reach an alignment of "
        f"{power[num_iters]:.3f}. "
        f"Lanczos reaches that with {enough[0]} products ({lanczos[enough[0]]:.3f}), "
        f"{100 * enough[0] / num_iters:.0f} % of the cost; with {num_iters} products it reaches "
        f"{lanczos[num_iters]:.3f}."
    )


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
