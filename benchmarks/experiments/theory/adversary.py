"""Gradient noise turns SAM's adversary away from the worst point; infoSAM's weighting turns it back.

Zhang, Li and Giannakis, ICASSP 2025 (https://arxiv.org/abs/2501.06603), figure 4: the adversarial models
w + ε of SAM and infoSAM around one point. One statement, in two cases:

1. The rise of the true loss at infoSAM's adversary is larger than at SAM's. Compared, gradient by gradient:
   (L(w + ε) − L(w)) / max over the circle, infoSAM's minus SAM's.

The loss is a quadratic in two dimensions. The noise is ten times stronger in the second coordinate. In the
first case the gradient is mostly along the first coordinate, so noise and signal are apart, which is what
infoSAM assumes; in the second it is mostly along the second, so that the noisy coordinate has the signal.
InfoSAM is the library's, with its defaults: it estimates the variance from the gradients that it is given,
of which the first 200 are left out. (How the two compare by noise and in a network: `claims.info_sam`.)
"""

import dataclasses
import functools
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import optax_sam
from benchmarks import figures as plots
from benchmarks.claim import Comparison, judge, number
from benchmarks.experiment import Claim, Job, Report, SuiteResults, record_of, select
from benchmarks.records import Record
from benchmarks.tables import table

CURVATURES = (1.0, 2.0)
CASES = {
    "noise and signal apart": (1.0, 0.3),
    "noise where the signal is": (0.3, 1.0),
}
NOISE = (0.3, 3.0)
RHO = 0.5
WARM_UP = 200
ROWS = {"sam": plots.style("sam", "SAM"), "info_sam": plots.style("info_sam", "infoSAM")}


def rise(gradient: np.ndarray, epsilon: np.ndarray) -> np.ndarray:
    """L(w + ε) − L(w), from ∇L(w)."""
    return epsilon @ gradient + 0.5 * epsilon**2 @ np.array(CURVATURES)


def circle(num: int = 721) -> np.ndarray:
    """All perturbations of length ρ."""
    angles = np.linspace(0, 2 * np.pi, num)
    return RHO * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def perturbations(row: str, gradients: jax.Array) -> jax.Array:
    """ε for one gradient after another."""
    objective = optax_sam.gradient_noise() if row == "info_sam" else None
    stage = optax_sam.steepest_ascent(RHO, objective=objective)

    def step(state, gradient):
        epsilon, state = stage.update(gradient, state, gradient)
        return state, epsilon

    return jax.lax.scan(step, stage.init(gradients[0]), gradients)[1]


@dataclasses.dataclass(frozen=True)
class Adversary(Claim):
    """Adversarial models of SAM and infoSAM under gradient noise."""

    page: ClassVar[str] = "theory"
    name: ClassVar[str] = "adversary"
    num_gradients: int = 400
    """Noisy gradients that are measured."""

    def jobs(self, records: list[Record]) -> list[Job]:
        """All gradients of a method in a case."""
        settings = {"noise": list(NOISE), "rho": RHO, "num_gradients": self.num_gradients}
        return [
            {"case": case, "gradient": list(gradient), "row": row, **settings}
            for case, gradient in CASES.items()
            for row in ROWS
        ]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """The perturbations, and how much they raise the loss."""
        clean = np.array(job["gradient"])
        noise = np.random.default_rng(0).normal(size=(WARM_UP + job["num_gradients"], 2)) * NOISE
        noisy = jnp.asarray(clean + noise, jnp.float32)
        epsilon = np.asarray(perturbations(job["row"], noisy), float)[WARM_UP:]
        relative = rise(clean, epsilon) / rise(clean, circle()).max()
        return [record_of(job, perturbations=epsilon.round(4).tolist(), rises=relative.round(5).tolist())]

    def report(self, records: list[Record], suite: SuiteResults) -> Report:
        """Verdict and table."""
        found = {(r["case"], r["row"]): np.array(r["rises"]) for r in records}
        comparisons = [
            Comparison(case, (found[case, "info_sam"] - found[case, "sam"]).tolist(), scale=100)
            for case in CASES
            if (case, "info_sam") in found and (case, "sam") in found
        ]
        verdict = judge(
            "infoSAM's adversary raises the true loss more than SAM's (percent of the highest rise)",
            comparisons,
        )
        lines = [
            (style.label, *(number((100 * found[case, row]).tolist()) for case in CASES))
            for row, style in ROWS.items()
            if all((case, row) in found for case in CASES)
        ]
        return Report([verdict], [table(("Rise, % of the highest", *CASES), lines, numbers=False)])

    def draw(self, records: list[Record], suite: SuiteResults, path: Path) -> None:
        """The adversaries on the circle, for each case and method."""
        shown = [(case, row) for case in CASES for row in ROWS if select(records, case=case, row=row)]
        figure, axes = plots.grid(2, 2, "Adversarial models w + ε from noisy gradients; w at the centre")
        grid = np.linspace(-0.75, 0.75, 81)
        for each, (case, row) in zip(axes.flat, shown, strict=False):
            (record,) = select(records, case=case, row=row)
            clean = np.array(record["gradient"])
            places = np.stack(np.meshgrid(grid, grid), axis=-1)
            each.contourf(grid, grid, rise(clean, places), 14, cmap="Greys", alpha=0.7)
            around = circle()
            each.plot(*around.T, color="k", lw=0.6)
            epsilon = np.array(record["perturbations"])
            each.scatter(*epsilon.T, s=14, alpha=0.25, color=ROWS[row].colour, lw=0, label="adversaries")
            best = around[np.argmax(rise(clean, around))]
            each.plot(*best, "*", ms=16, color="#E69F00", mec="k", label="worst point of the circle", ls="")
            each.annotate(
                "", 0.5 * clean / np.linalg.norm(clean), (0, 0), arrowprops={"arrowstyle": "->", "lw": 1.5}
            )
            mean = 100 * np.mean(record["rises"])
            each.set(
                title=f"{ROWS[row].label}: {case}\nmean rise {mean:.0f} % of the highest",
                aspect="equal",
                xlabel="little noise",
                ylabel="ten times the noise",
            )
            each.grid(False)
        plots.legend_below(axes[0, 0])
        plots.save(figure, path)
