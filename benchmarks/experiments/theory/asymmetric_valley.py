"""SAM is drawn to the flat side of an asymmetric valley, and noise in its gradients takes that away.

Zhang, Li and Giannakis, ICASSP 2025 (https://arxiv.org/abs/2501.06603), figure 3: SGD, SAM without noise in
the gradient of its ascent, and SAM with noise, near an asymmetric valley. Three statements, at four levels of
noise:

1. SAM whose ε is from the noise-free gradient stays further on the flat side than SGD. Compared: the
   mean of x, in units of ρ, minus SGD's, run by run.
2. With the noise, SAM stays less far: noise-free SAM's mean of x minus noisy SAM's.
3. InfoSAM, with the true noise variance, stays further on the flat side than noisy SAM.

The function is ours: f(x, y) = a(x) x²/2 + 0.05 y² with a = 10 for x < 0 (steep) and 1 for x ≥ 0
(flat). All descend along a gradient with normal noise, of standard deviation σ in y and σ/10 in x. Noisy SAM
has the same noise in both of its gradients, as with a mini-batch. Means are taken over 20 runs of 4,000
steps without the first 1,000, learning rate 0.05, ρ = 0.5.
"""

import dataclasses
import functools
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from benchmarks import figures as plots
from benchmarks.claim import Comparison, judge, number
from benchmarks.experiment import Claim, Job, Report, SuiteResults, record_of, select
from benchmarks.records import Record
from benchmarks.tables import table

STEEP, FLAT, ALONG = 10.0, 1.0, 0.1
LEARNING_RATE, RHO = 0.05, 0.5
START = (-0.8, 6.0)
ROWS = {
    "sgd": plots.style("sgd", "SGD"),
    "noise_free": plots.style("sam", "SAM, noise-free ascent"),
    "noisy": plots.style("xsam", "SAM, noisy ascent"),
    "info_sam": plots.style("info_sam", "infoSAM, true variance"),
}


def value(w: jax.Array) -> jax.Array:
    """The valley."""
    x, y = w
    return jnp.where(x < 0, STEEP, FLAT) * x**2 / 2 + ALONG * y**2 / 2


def deviation(sigma: jax.Array) -> jax.Array:
    """Standard deviations of the noise in x and y."""
    return sigma * jnp.array([0.1, 1.0])


def perturbation(row: str, clean: jax.Array, noise: jax.Array, sigma: jax.Array) -> jax.Array:
    """ε of a method."""
    if row == "sgd":
        return jnp.zeros_like(clean)
    inverse_variance = optax.stateless(lambda gradient, params: deviation(sigma) ** -2)
    stage = optax_sam.steepest_ascent(RHO, objective=inverse_variance if row == "info_sam" else None)
    gradient = clean if row == "noise_free" else clean + noise
    return stage.update(gradient, stage.init(clean), clean)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def paths(row: str, num_steps: int, sigma: jax.Array, keys: jax.Array) -> jax.Array:
    """Places of runs, (runs, steps, 2)."""

    def step(w: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        noise = deviation(sigma) * jax.random.normal(key, w.shape)
        epsilon = perturbation(row, jax.grad(value)(w), noise, sigma)
        w = w - LEARNING_RATE * (jax.grad(value)(w + epsilon) + noise)
        return w, w

    run = lambda key: jax.lax.scan(step, jnp.array(START), jax.random.split(key, num_steps))[1]
    return jax.vmap(run)(keys)


@dataclasses.dataclass(frozen=True)
class AsymmetricValley(Claim):
    """Where SGD and SAM stay in an asymmetric valley."""

    page: ClassVar[str] = "theory"
    name: ClassVar[str] = "asymmetric_valley"
    sigmas: tuple[float, ...] = (0.5, 1.5, 5.0, 15.0)
    """Levels of noise."""
    num_runs: int = 20
    """Runs of each."""
    num_steps: int = 4000
    """Steps of a run; the first quarter is left out."""

    def jobs(self, records: list[Record]) -> list[Job]:
        """All runs of a method."""
        settings = {"sigmas": list(self.sigmas), "num_runs": self.num_runs, "num_steps": self.num_steps}
        return [{"row": row, **settings, "rho": RHO, "learning_rate": LEARNING_RATE} for row in ROWS]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """One record for each level of noise and run, with the first steps of the first run."""
        records = []
        for sigma in job["sigmas"]:
            keys = jax.random.split(jax.random.key(0), job["num_runs"])
            places = np.asarray(paths(job["row"], job["num_steps"], jnp.asarray(sigma), keys))
            for seed, path in enumerate(places):
                kept = path[job["num_steps"] // 4 :, 0]
                measured = {"mean_x": float(kept.mean()), "steep": float((kept < 0).mean())}
                if seed == 0:
                    measured["path"] = np.round([START, *path[:150]], 3).tolist()
                records.append(record_of(job, sigma=sigma, seed=seed, **measured))
        return records

    def report(self, records: list[Record], suite: SuiteResults) -> Report:
        """Verdicts and table."""

        def comparisons(one: str, other: str) -> list[Comparison]:
            found = [(s, means(records, one, s), means(records, other, s)) for s in self.sigmas]
            return [
                Comparison(f"σ = {s:g}", ((a - b) / RHO).tolist()) for s, a, b in found if len(a) and len(b)
            ]

        verdicts = [
            judge(
                "SAM with a noise-free ascent stays further on the flat side than SGD",
                comparisons("noise_free", "sgd"),
            ),
            judge("With noise in its ascent it stays less far", comparisons("noise_free", "noisy")),
            judge("infoSAM stays further on the flat side than noisy SAM", comparisons("info_sam", "noisy")),
        ]
        lines = [
            (style.label, *(number((means(records, row, s) / RHO).tolist()) for s in self.sigmas))
            for row, style in ROWS.items()
        ]
        titles = ("Mean of x / ρ (flat side: positive)", *(f"σ = {s:g}" for s in self.sigmas))
        shares = [
            (
                style.label,
                *(number([100 * r["steep"] for r in select(records, row=row, sigma=s)]) for s in self.sigmas),
            )
            for row, style in ROWS.items()
        ]
        again = ("Steps on the steep side, %", *titles[1:])
        return Report(verdicts, [table(titles, lines, numbers=False), table(again, shares, numbers=False)])

    def draw(self, records: list[Record], suite: SuiteResults, path: Path) -> None:
        """First steps of a run of each method, and the mean of x by noise."""
        figure, axes = plots.panels(3, "An asymmetric valley: steep for x < 0, flat for x > 0")
        x, y = np.linspace(-1.5, 3, 91), np.linspace(-7, 9, 81)
        grid = jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(-1, 2)
        heights = np.asarray(jax.vmap(value)(grid)).reshape(len(y), len(x))
        sigma = self.sigmas[min(2, len(self.sigmas) - 1)]
        for each in axes[:1]:
            each.contourf(x, y, heights, np.geomspace(0.02, 14, 12), cmap="Greys", alpha=0.6, extend="both")
        for row, style in ROWS.items():
            own = [r for r in select(records, row=row, sigma=sigma) if "path" in r]
            for record in own:
                axes[0].plot(
                    *np.transpose(record["path"]), color=style.colour, lw=0.8, alpha=0.9, label=style.label
                )
        axes[0].plot(*START, "k*", ms=11, label="start")
        axes[0].axvline(0, color="k", lw=0.6, ls=":")
        axes[0].set(
            title=f"150 steps of a run, σ = {sigma:g}",
            xlabel="x",
            ylabel="y",
            xlim=(-1, 1.2),
            ylim=(-7, 9),
        )
        for each, field, scale in ((axes[1], "mean_x", 1 / RHO), (axes[2], "steep", 100)):
            for row, style in ROWS.items():
                values = [scale * means(records, row, s, field) for s in self.sigmas]
                plots.curve(each, self.sigmas, np.transpose(values), style)
            each.set(xlabel="deviation σ of the noise in y", xscale="log")
        axes[1].set(title="Mean of x / ρ", yscale="log")
        axes[2].set(title="Steps on the steep side, %")
        plots.legend_below(axes[0])
        plots.save(figure, path)


def means(records: list[Record], row: str, sigma: float, field: str = "mean_x") -> np.ndarray:
    """Means of x, run by run."""
    return np.array([record[field] for record in select(records, row=row, sigma=sigma)])
