"""Eigen-SAM turns SAM's perturbation towards the Hessian's top eigenvector, and finds flatter minima.

Luo et al., NeurIPS 2024 (https://arxiv.org/abs/2501.12666), figure 1. Two statements:

1. The alignment |⟨ε/‖ε‖, v₁⟩| of Eigen-SAM's perturbation with the top eigenvector of the Hessian is higher
   than SAM's, and than that of SGD's gradient, along training.
   Compared: the mean over all epochs, Eigen-SAM's minus each of the others', seed by seed.
2. Its λ₁, the top eigenvalue, is the lowest. Compared: the mean over all epochs, each of the others'
   minus Eigen-SAM's, seed by seed.

Measured on Fashion-MNIST with right labels, at equal ρ, after every epoch: v₁ and λ₁ of the loss on the first
1,000 training images by `top_eigenpairs`, and the perturbations of the next 16 mini-batches, Eigen-SAM's with
the eigenvector that it has then. Two further rows show what the alignment depends on: a tilt of 1 instead of
0.2, and an eigenvector from twice as many products every 10 steps.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import optax

import optax_sam
from benchmarks import figures as plots
from benchmarks.claim import Comparison, judge, number
from benchmarks.experiment import Job, Report, SuiteResults, paired, record_of, select
from benchmarks.experiments.claims.setting import (
    ClaimOnNetworks,
    batch_after,
    setting_of,
    states_along_training,
    training_data,
)
from benchmarks.records import Record
from benchmarks.tables import table
from benchmarks.train import evaluate
from benchmarks.training.program import TrainState
from benchmarks.training.sharpness import NUM_IMAGES, chunks
from optax_sam import curvature, diagnostics

RHO = 0.1
PAPERS = ("sgd", "sam", "eigen_sam")
ROWS = {
    "sgd": ("sgd", {}, plots.style("sgd", "SGD (its gradient)")),
    "sam": ("sam", {"rho": RHO}, plots.style("sam", "SAM")),
    "eigen_sam": ("eigen_sam", {"rho": RHO, "alpha": 0.2}, plots.style("eigen_sam", "Eigen-SAM, α = 0.2")),
    "strong": ("eigen_sam", {"rho": RHO, "alpha": 1.0}, plots.style("xsam", "Eigen-SAM, α = 1", "--")),
    "fresh": (
        "eigen_sam",
        {"rho": RHO, "alpha": 0.2, "num_iters": 10, "refresh_every": 10},
        plots.style("asam", "Eigen-SAM, α = 0.2, fresh eigenvector", "--"),
    ),
}


@dataclasses.dataclass(frozen=True)
class EigenSAM(ClaimOnNetworks):
    """Alignment with the top eigenvector, and the top eigenvalue, along training."""

    name: ClassVar[str] = "eigen_sam"
    rows: tuple[str, ...] = tuple(ROWS)
    """Names in `ROWS`."""
    epochs: int = 12
    """Passes over the training data."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Networks of each of the paper's rows; the other rows use only the first seed."""
    num_batches: int = 16
    """Mini-batches whose perturbations are measured after an epoch."""
    first_iters: int = 20
    """Hessian-vector products for the first top eigenvector."""
    later_iters: int = 8
    """Hessian-vector products for those that start from the eigenvector of the epoch before."""

    def own_rows(self) -> dict[str, tuple[str, dict[str, Any], plots.Style]]:
        """The rows of this measurement: method, settings and style."""
        return {row: ROWS[row] for row in self.rows}

    def jobs(self, records: list[Record]) -> list[Job]:
        """One network each."""
        return [
            {
                "row": row,
                "data": "fashion_mnist",
                "method": method,
                "settings": settings,
                "label_noise": 0.0,
                "epochs": self.epochs,
                "seed": seed,
            }
            for row, (method, settings, _) in self.own_rows().items()
            for seed in (self.seeds if row in PAPERS else self.seeds[:1])
        ]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Trains a network; one record per epoch."""
        setting = setting_of(job, self.recipes, data_dir)
        noisy = training_data(setting)
        few = chunks(noisy, NUM_IMAGES)
        options = {name: job["settings"][name] for name in ("rho", "alpha") if name in job["settings"]}
        alignment = alignment_of(setting.loss, job["method"], **options)
        records, start = [], None
        for step, state in states_along_training(setting, noisy):
            if step % setting.program.steps_per_epoch:
                continue
            top = curvature.top_eigenpairs(
                setting.loss,
                state.params,
                num_iters=self.first_iters if start is None else self.later_iters,
                start=start,
                batches=few,
            )
            start = jax.tree.map(lambda x: x[0], top.eigenvectors)
            alignments = [
                float(alignment(state, start, batch_after(setting, noisy, step + i)))
                for i in range(min(self.num_batches, setting.program.steps_per_epoch))
            ]
            tracked = optax.tree.get(state.opt_state, "eigenvector")
            records.append(
                record_of(
                    job,
                    setting.config,
                    epoch=step // setting.program.steps_per_epoch,
                    alignment=float(np.mean(alignments)),
                    alignment_of_the_tracked_eigenvector=None
                    if tracked is None
                    else float(diagnostics.alignment(tracked, start)),
                    top_eigenvalue=float(top.eigenvalues[0]),
                    residual=float(top.residuals[0]),
                    test_accuracy=evaluate(setting.program, state, setting.dataset.test)["accuracy"],
                )
            )
        return records

    def report(self, records: list[Record], suite: SuiteResults) -> Report:
        """Verdicts and table."""
        means = [
            {"row": row, "seed": seed}
            | {field: np.mean([record[field] for record in own]) for field in ("alignment", "top_eigenvalue")}
            for row in PAPERS
            for seed in self.seeds
            if (own := select(records, row=row, seed=seed))
        ]

        def comparisons(field: str, sign: int) -> list[Comparison]:
            found = [
                (name, paired(means, field, {"row": "eigen_sam"}, {"row": other}))
                for other, name in (("sgd", "against SGD"), ("sam", "against SAM"))
            ]
            return [Comparison(name, [sign * x for x in values]) for name, values in found if values]

        verdicts = [
            judge(
                "Eigen-SAM's perturbation is better aligned with the top eigenvector than SAM's, and than"
                " SGD's gradient",
                comparisons("alignment", 1),
            ),
            judge(
                "Eigen-SAM's λ₁ is lower than SAM's and SGD's along training",
                comparisons("top_eigenvalue", -1),
            ),
        ]
        lines = []
        for row, (_, _, style) in self.own_rows().items():
            if not select(records, row=row):
                continue
            tracked = along_training(records, row, "alignment_of_the_tracked_eigenvector")
            lines.append(
                (
                    style.label,
                    number(along_training(records, row, "alignment").mean(1)),
                    "–" if np.isnan(tracked).any() else number(tracked.mean(1)),
                    number(along_training(records, row, "top_eigenvalue").mean(1)),
                    number(along_training(records, row, "top_eigenvalue")[:, -1]),
                    number(100 * along_training(records, row, "test_accuracy")[:, -1]) + " %",
                    str(len(tracked)),
                )
            )
        titles = (
            "",
            "alignment of ε with v₁",
            "alignment of the tracked eigenvector with v₁",
            "λ₁, mean over the epochs",
            "λ₁ after the last",
            "test accuracy",
            "seeds",
        )
        return Report(verdicts, [table(titles, lines, numbers=False)])

    def draw(self, records: list[Record], suite: SuiteResults, path: Path) -> None:
        """Alignment, that of the tracked eigenvector, and λ₁ along training."""
        figure, axes = plots.panels(
            3, f"Fashion-MNIST, right labels, ρ = {RHO}: along training (mean of seeds ± s.e.)"
        )
        fields = ("alignment", "alignment_of_the_tracked_eigenvector", "top_eigenvalue")
        for each, field in zip(axes, fields, strict=True):
            for row, (_, _, style) in self.own_rows().items():
                values = along_training(records, row, field)
                if values.size and not np.isnan(values).any():
                    plots.curve(each, range(1, values.shape[1] + 1), values, style)
            each.set(xlabel="epoch")
        axes[0].set(title="Alignment of ε with v₁,\n|⟨ε/‖ε‖, v₁⟩|", ylim=(0, None))
        axes[1].set(title="Alignment of the tracked\neigenvector with v₁", ylim=(0, 1.02))
        axes[2].set(title="Top eigenvalue λ₁\nof the Hessian", ylim=(0, None))
        plots.legend_below(axes[0])
        plots.save(figure, path)


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


def along_training(records: list[Record], row: str, field: str) -> np.ndarray:
    """A field as an array, seeds by epochs."""
    own = select(records, row=row)
    seeds = sorted({record["seed"] for record in own})
    return np.array([[r[field] for r in own if r["seed"] == seed] for seed in seeds], float)
