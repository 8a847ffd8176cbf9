"""The SDE of third order follows SAM more closely than that of second order, on a network.

Luo et al., NeurIPS 2024 (https://arxiv.org/abs/2501.12666), figure 2: a fully connected network on MNIST,
trained with SAM, beside the two SDEs, in six quantities: train loss, test loss, test accuracy, length of the
parameters, length of the gradient, and λ_max. Two statements for each ρ:

1. The third order is nearer to SAM than the second. Compared, for each quantity, path by path with the same
   random key: the distance from the mean of SAM's runs, averaged over the measured steps, of
   the second order minus that of the third.
2. The third order stays within SAM's own spread. Compared, for each quantity, at each measured step: one
   standard deviation over SAM's runs minus the distance of the means.

All start from the same parameters. SAM draws its mini-batches with replacement, as in the SDE; the SDEs are
simulated with one Euler–Maruyama step per step of SAM (`optax_sam.sde.simulate`, substeps=1), so that the
error of the expansion in ρ is not mixed with that of the step length. Plain SGD, no momentum. The paper's
network, ρ and learning rate are not known to us: ours are in `SDEPaths` and `network.py`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import optax

import optax_sam
from benchmarks import figures as plots
from benchmarks.claim import Comparison, judge, number
from benchmarks.experiment import Claim, Job, Report, SuiteResults, record_of, select
from benchmarks.experiments.theory import network
from benchmarks.records import Record
from benchmarks.tables import table
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
    "sam": plots.style("sgd", "SAM, discrete"),
    "second": plots.style("xsam", "SDE of second order", "--"),
    "third": plots.style("sam", "SDE of third order", "--"),
}


@dataclasses.dataclass(frozen=True)
class SDEPaths(Claim):
    """SAM and its two SDEs along training."""

    page: ClassVar[str] = "theory"
    name: ClassVar[str] = "sde_paths"
    setting: Mapping[str, Any] = dataclasses.field(default_factory=lambda: network.DATA)
    """Data and network."""
    learning_rate: float = 0.2
    """η."""
    radii: tuple[float, ...] = (0.2, 0.5, 1.0)
    """Values of ρ."""
    num_steps: int = 400
    """Steps of a run."""
    every: int = 25
    """Steps between two measurements."""
    seeds: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"sam": 8, "second": 4, "third": 4})
    """Number of runs of each row."""

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
            for row, num in self.seeds.items()
            for seed in range(num)
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
        return [record_of(job, along={name: [round(x, 6) for x in xs] for name, xs in along.items()})]

    def report(self, records: list[Record], suite: SuiteResults) -> Report:
        """Verdicts and, for each ρ, the distances."""
        verdicts, lines = [], []
        groups = {rho: own for rho in self.radii if (own := select(records, rho=rho))}
        for rho, own in groups.items():
            verdicts.append(
                judge(
                    f"ρ = {rho:g}: the SDE of third order is nearer to SAM than that of second order",
                    nearer(own),
                )
            )
        for rho, own in groups.items():
            verdicts.append(
                judge(
                    f"ρ = {rho:g}: the SDE of third order stays within one standard deviation of SAM's runs",
                    within(own, "third"),
                )
            )
            for row in ("second", "third"):
                cells = [number(distances(own, row, name)) for name in QUANTITIES]
                lines.append((f"ρ = {rho:g}, {ROWS[row].label}", *cells))
            spreads = [f"{along(own, 'sam', name).std(0, ddof=1).mean():.2g}" for name in QUANTITIES]
            lines.append((f"ρ = {rho:g}, standard deviation of SAM's runs", *spreads))
        titles = ("Distance from the mean of SAM's runs", *QUANTITIES.values())
        return Report(verdicts, [table(titles, lines, numbers=False)])

    def draw(self, records: list[Record], suite: SuiteResults, path: Path) -> None:
        """The six quantities one below the other, a column of panels for each ρ."""
        radii = [rho for rho in self.radii if select(records, rho=rho)]
        title = "SAM and its SDEs on MNIST, fully connected network (mean of runs ± s.e.)"
        figure, axes = plots.grid(6, len(radii), title, width=3.2, height=2.1)
        steps = range(self.every, self.num_steps + 1, self.every)
        for column, rho in zip(axes.T, radii, strict=True):
            for each, (name, title) in zip(column, QUANTITIES.items(), strict=True):
                for row, style in ROWS.items():
                    plots.curve(each, steps, along(select(records, rho=rho), row, name), style)
                each.set_title(f"{title}, ρ = {rho:g}")
            column[-1].set_xlabel("step")
        plots.legend_below(axes[0, 0])
        plots.save(figure, path)


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


def along(records: list[Record], row: str, name: str) -> np.ndarray:
    """A quantity as an array, seeds by steps."""
    return np.array([record["along"][name] for record in select(records, row=row)])


def distances(records: list[Record], row: str, name: str) -> Sequence[float]:
    """Mean distance of each path from the mean of SAM's runs."""
    centre = along(records, "sam", name).mean(0)
    return [float(np.abs(path - centre).mean()) for path in along(records, row, name)]


def nearer(records: list[Record]) -> list[Comparison]:
    """Distances, the second order's minus the third's, path by path."""
    return [
        Comparison(
            title,
            np.subtract(distances(records, "second", name), distances(records, "third", name)).tolist(),
        )
        for name, title in QUANTITIES.items()
        if select(records, row="sam") and select(records, row="third")
    ]


def within(records: list[Record], row: str) -> list[Comparison]:
    """Standard deviation of SAM's runs minus the distance of the means, step by step."""
    found = []
    for name, title in QUANTITIES.items():
        sam, own = along(records, "sam", name), along(records, row, name)
        if len(sam) and len(own):
            distance = np.abs(own.mean(0) - sam.mean(0))
            found.append(Comparison(title, (sam.std(0, ddof=1) - distance).tolist()))
    return found
