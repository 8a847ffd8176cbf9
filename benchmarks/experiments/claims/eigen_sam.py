"""Eigen-SAM turns SAM's perturbation towards the Hessian's top eigenvector, and finds flatter minima.

Luo et al., NeurIPS 2024 (https://arxiv.org/abs/2501.12666), figure 1. Two statements:

1. The alignment |⟨ε/‖ε‖, v₁⟩| of Eigen-SAM's perturbation with the top eigenvector of the Hessian is higher
   than SAM's, and than SGD's gradient, along training.
   Compared: the mean over all epochs, Eigen-SAM's minus each of the others', seed by seed.
2. Its λ₁, the top eigenvalue, is the lowest. Compared: the mean over all epochs, each of the others'
   minus Eigen-SAM's, seed by seed.

Measured on Fashion-MNIST with clean labels, at equal ρ, after each of 12 epochs: v₁ and λ₁ of the loss on the
first 1,000 training images by `top_eigenpairs`, and the perturbations of the next 16 mini-batches,
Eigen-SAM's with the eigenvector that it has then. Two further rows show what the alignment depends on: a
tilt of 1 instead of 0.2, and an eigenvector from twice as many products every 10 steps. Two seeds were added
when three had not decided.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
import pandas as pd

import optax_sam
from benchmarks.claim import Claim, Comparison, Report, judge
from benchmarks.experiment import Job
from benchmarks.experiments.networks import (
    RECIPES,
    Recipes,
    accuracies,
    after_epochs,
    batch_after,
    config_of,
    make_network,
    recorded,
)
from benchmarks.records import Record
from benchmarks.tables import paired
from benchmarks.training.program import TrainState
from benchmarks.training.sharpness import NUM_IMAGES, chunks
from optax_sam import curvature, diagnostics

RHO = 0.1
PAPERS = ("sgd", "sam", "eigen_sam")
TRACKED = "alignment_of_the_tracked_eigenvector"
ROWS = {
    "sgd": ("sgd", {}),
    "sam": ("sam", {"rho": RHO}),
    "eigen_sam": ("eigen_sam", {"rho": RHO, "alpha": 0.2}),
    "strong": ("eigen_sam", {"rho": RHO, "alpha": 1.0}),
    "fresh": ("eigen_sam", {"rho": RHO, "alpha": 0.2, "num_iters": 10, "interval": 10}),
}


@dataclasses.dataclass(frozen=True)
class EigenSAM(Claim):
    """Alignment with the top eigenvector, and the top eigenvalue, along training."""

    name: str = "eigen_sam"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    datasets: tuple[str, ...] = ("fashion_mnist",)
    recipes: Recipes = dataclasses.field(default_factory=lambda: RECIPES)  # how the networks are trained
    # Names in `ROWS`. Those that are not the paper's have only the first seed.
    rows: tuple[str, ...] = tuple(ROWS)
    epochs: int = 12  # passes over the training data
    num_batches: int = 16  # mini-batches whose perturbations are measured after an epoch
    first_iters: int = 20  # Hessian-vector products for the first top eigenvector
    later_iters: int = 8  # those for the next ones, which start from the eigenvector of the epoch before

    def jobs(self, records: list[Record]) -> list[Job]:
        """One network each."""
        return [
            {
                "row": row,
                "data": "fashion_mnist",
                "method": ROWS[row][0],
                "settings": ROWS[row][1],
                "label_noise": 0.0,
                "epochs": self.epochs,
                "seed": seed,
            }
            for row in self.rows
            for seed in (self.seeds if row in PAPERS else self.seeds[:1])
        ]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Trains a network; one record per epoch."""
        network = make_network(config_of(job, self.recipes), data_dir)
        few = chunks(network.noisy, NUM_IMAGES)
        options = {name: job["settings"][name] for name in ("rho", "alpha") if name in job["settings"]}
        alignment = alignment_of(network.loss, job["method"], **options)
        records, start, steps = [], None, network.program.steps_per_epoch
        for epoch, state in after_epochs(network):
            top = curvature.top_eigenpairs(
                network.loss,
                state.params,
                num_iters=self.first_iters if start is None else self.later_iters,
                start=start,
                batches=few,
            )
            start = jax.tree.map(lambda x: x[0], top.eigenvectors)
            alignments = [
                float(alignment(state, start, batch_after(network, epoch * steps + i)))
                for i in range(min(self.num_batches, steps))
            ]
            vector = optax.tree.get(state.opt_state, "eigenvector")
            tracked = None if vector is None else float(diagnostics.alignment(vector, start))
            records.append(
                {"epoch": epoch, "alignment": float(np.mean(alignments)), TRACKED: tracked}
                | {"top_eigenvalue": float(top.eigenvalues[0]), "residual": float(top.residuals[0])}
                | accuracies(network, state, "test")
                | recorded(network.config)
            )
        return records

    def report(self, frame: pd.DataFrame, results: Path) -> Report:
        """Verdicts."""
        means = frame.groupby(["row", "seed"], as_index=False)[["alignment", "top_eigenvalue"]].mean()

        def comparisons(field: str, sign: int) -> list[Comparison]:
            pairs = {
                name: paired(means, field, {"row": "eigen_sam"}, {"row": name}) for name in ("sgd", "sam")
            }
            return [Comparison(f"against {name.upper()}", sign * gains) for name, gains in pairs.items()]

        verdicts = [
            judge(
                "Eigen-SAM's ε is better aligned with v₁ than SAM's, and than SGD's gradient",
                comparisons("alignment", 1),
            ),
            judge(
                "Eigen-SAM's λ₁ is lower than SAM's and SGD's along training",
                comparisons("top_eigenvalue", -1),
            ),
        ]
        return Report(verdicts, [])


def perturbation_of(
    method: str, rho: float = 0.0, alpha: float = 0.0
) -> Callable[[optax.Updates, TrainState], optax.Updates]:
    """Gradient, state -> the method's perturbation; for SGD and SAM, any vector along the gradient."""
    if method != "eigen_sam":
        return lambda gradient, state: gradient
    ascent = optax.chain(optax_sam.steepest_ascent(rho), optax_sam.tilt_to_top_eigenvector(alpha))

    def perturbation(gradient: optax.Updates, state: TrainState) -> optax.Updates:
        method_state = state.opt_state[0]
        return ascent.update(gradient, method_state.ascent, state.params, refresh=False)[0]

    return perturbation


@functools.cache
def alignment_of(loss: Callable[..., jax.Array], method: str, **options: float) -> Callable[..., jax.Array]:
    """State, vector, batch -> |⟨ε/‖ε‖, v⟩|; compiled."""
    perturbation = perturbation_of(method, **options)

    @jax.jit
    def alignment(state: TrainState, vector: optax.Params, batch: tuple[jax.Array, jax.Array]):
        gradient = jax.grad(loss)(state.params, batch)
        return diagnostics.alignment(perturbation(gradient, state), vector)

    return alignment
