"""The third-order SDE follows SAM more closely than the second-order one, on a network.

Luo et al., NeurIPS 2024 (https://arxiv.org/abs/2501.12666), figure 2: a fully connected network on MNIST,
trained with SAM, beside the two SDEs, in six quantities: train loss, test loss, test accuracy, length of the
parameters, length of the gradient, and λ_max. Two statements for each ρ:

1. The third order is nearer to SAM than the second. Compared, for each quantity, path by path with the same
   random key: the distance from the mean of SAM's runs, averaged over the measured steps, of
   the second order minus the third's.
2. The third order stays within SAM's own spread. Compared, for each quantity, at each measured step: one
   standard deviation over SAM's runs minus the distance of the means.

All start from the same parameters. SAM draws its mini-batches with replacement, as in the SDE; the SDEs are
simulated with one Euler–Maruyama step per step of SAM (`optax_sam.sde.simulate`, substeps=1), so that the
error of the expansion in ρ is not mixed with the step length's. Plain SGD, no momentum. The paper's
network, ρ and learning rate are not known to us: ours are in `SDEPaths` and `network.py`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd

import optax_sam
from benchmarks import figures
from benchmarks.claim import Claim, Comparison, Report, judge
from benchmarks.experiment import Job
from benchmarks.experiments.theory import network
from benchmarks.records import Record
from benchmarks.tables import nested, where
from optax_sam import sde

QUANTITIES = {
    "train_loss": "train loss",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy (%)",
    "parameter_norm": "‖x‖",
    "gradient_norm": "‖∇f‖",
    "top_eigenvalue": "λ_max",
}
ROWS = {
    "sam": figures.style("sam"),
    "second": figures.style("vasso", "second-order SDE", ":"),
    "third": figures.style("random_direction", "third-order SDE", "--"),
}


@dataclasses.dataclass(frozen=True)
class SDEPaths(Claim):
    """SAM and its two SDEs along training."""

    name: str = "sde_paths"
    picture: str = "Train loss, ‖x‖ and λ_max along paths of SAM and of its two SDEs"
    page: str = "theory"
    seeds: tuple[int, ...] = tuple(range(8))
    datasets: tuple[str, ...] = ("mnist",)
    setting: Mapping[str, Any] = dataclasses.field(default_factory=lambda: network.DATA)  # data and network
    learning_rate: float = 0.2  # η
    radii: tuple[float, ...] = (0.2, 0.5, 1.0)  # values of ρ
    num_steps: int = 400  # of a run
    every: int = 25  # steps between two measurements
    num_paths: int = 4  # runs of each SDE, the first so many of the seeds

    def jobs(self, records: list[Record]) -> list[Job]:
        """One run each."""
        return [
            {
                "row": row,
                **self.setting,
                "learning_rate": self.learning_rate,
                "rho": rho,
                "num_steps": self.num_steps,
                "every": self.every,
                "seed": seed,
            }
            for rho in self.radii
            for row in ROWS
            for seed in (self.seeds if row == "sam" else self.seeds[: self.num_paths])
        ]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """A run; one record."""
        made = network.problem(self.setting, data_dir)
        advance = {"sam": advance_sam, "second": advance_sde, "third": advance_sde}[job["row"]]
        params, vector = made.params, None
        along: dict[str, list[float]] = {name: [] for name in QUANTITIES}
        for piece in range(self.num_steps // self.every):
            key = jax.random.fold_in(jax.random.key(1 + job["seed"]), piece)
            params = advance(job["row"], self.every)(
                params, made.batches, key, job["rho"], self.learning_rate
            )
            for name, value in network.measured(params, made.train, made.test).items():
                along[name].append(float(value))
            value, vector = network.top_eigenpair(params, made.train, 20 if vector is None else 8, vector)
            along["top_eigenvalue"].append(value)
        return [{"along": {name: [round(x, 6) for x in xs] for name, xs in along.items()}}]

    def report(self, frame: pd.DataFrame, results: Path) -> Report:
        """Verdicts, for each ρ."""
        nearer, within = [], []
        for rho, own in frame.groupby("rho"):
            paths = {row: {name: along(own, row, name) for name in QUANTITIES} for row in ROWS}
            centre = {name: values.mean(0) for name, values in paths["sam"].items()}
            spread = {name: values.std(0, ddof=1) for name, values in paths["sam"].items()}
            distance = {
                row: {name: np.abs(paths[row][name] - centre[name]).mean(1) for name in QUANTITIES}
                for row in ("second", "third")
            }
            nearer.append(
                judge(
                    f"ρ = {rho:g}: the third-order SDE is nearer to SAM than the second-order one",
                    [
                        Comparison(title, distance["second"][name] - distance["third"][name])
                        for name, title in QUANTITIES.items()
                    ],
                )
            )
            within.append(
                judge(
                    f"ρ = {rho:g}: the third-order SDE stays within one standard deviation of SAM's runs",
                    [
                        Comparison(title, spread[name] - np.abs(paths["third"][name].mean(0) - centre[name]))
                        for name, title in QUANTITIES.items()
                    ],
                )
            )
        return Report([*nearer, *within], [])

    def draw(self, frame: pd.DataFrame, results: Path, docs: Path) -> None:
        """Three of the quantities one below the other, a column of panels for each of the larger ρ."""
        shown = ("train_loss", "parameter_norm", "top_eigenvalue")
        long = frame.assign(**{name: nested(frame, "along", name) for name in shown})
        steps = list(range(self.every, self.num_steps + 1, self.every))
        long = long.assign(step=[steps] * len(long)).explode(["step", *shown])
        long = long.astype(dict.fromkeys(["step", *shown], float))
        groups = dict(list(long.groupby("rho"))[-2:])
        figure, axes = figures.panels(
            len(shown), len(groups), "SAM and its SDEs (mean of runs ± s.e.)", width=2.7, height=2.1
        )
        for column, (rho, own) in zip(axes.T, groups.items(), strict=True):
            for panel, name in zip(column, shown, strict=True):
                figures.lines(panel, own, "step", name, ROWS)
                panel.set_title(f"{QUANTITIES[name]}, ρ = {rho:g}")
            column[-1].set_xlabel("step")
        self.save(figure, docs)


@functools.cache
def advance_sde(row: str, num_steps: int) -> Any:
    """Params, batches, key, ρ, η -> the end of the path; compiled."""

    @jax.jit
    def advance(params, batches, key, rho, learning_rate):
        path = sde.simulate(
            network.loss,
            params,
            batches,
            learning_rate=learning_rate,
            rho=rho,
            order={"second": 2, "third": 3}[row],
            num_steps=num_steps,
            key=key,
        )
        return jax.tree.map(lambda x: x[-1], path)

    return advance


@functools.cache
def advance_sam(row: str, num_steps: int) -> Any:
    """The same for SAM, with mini-batches drawn with replacement."""

    @jax.jit
    def advance(params, batches, key, rho, learning_rate):
        tx = optax.chain(optax_sam.sam(lambda count: rho), optax.sgd(learning_rate))

        def step(carry, index):
            params, state = carry
            value_fn = lambda w: network.loss(w, jax.tree.map(lambda x: x[index], batches))
            gradient = jax.grad(value_fn)(params)
            updates, state = tx.update(gradient, state, params, value_fn=value_fn)
            return (optax.apply_updates(params, updates), state), None

        which = jax.random.randint(key, num_steps, 0, len(batches[1]))
        return jax.lax.scan(step, (params, tx.init(params)), which)[0][0]

    return advance


def along(frame: pd.DataFrame, row: str, name: str) -> np.ndarray:
    """A quantity as an array, runs by steps."""
    return np.array(nested(where(frame, row=row), "along", name).tolist())
