"""XSAM's search finds a direction nearer to the worst point nearby than SAM's, even if it is rare.

Chen and Zhou, ICLR 2026 (https://arxiv.org/abs/2603.10048). SAM's ε has the direction v(0), its gradient
v(1); v(α) is on the arc through both, and α* where the loss at distance ρ_max is largest (figure 1,
proposition 1, figure 2). Three statements:

1. On a sphere of radius ρ_max around w, v(1) points nearer to the maximum than v(0), and v(α*) nearer still.
   On the batch of the search itself the latter is true by construction (α = 1 is among the values
   searched), so here α* is the one that training keeps from the start of the epoch, tested on later batches.
   Compared, for right labels and for 40 % wrong ones: the loss at v(1) minus that at v(0), and at v(α*) minus
   that at v(1); means over training, seed by seed. The worst point found by projected ascent on the sphere,
   20 steps from v(α*), shows how large the rise can be.
2. Proposition 1: on positive definite quadratics, α* > 1 if ρ_max is large, and α* < 1 if it is small. The
   claim holds if this is true for each of 100 random quadratics, at ρ_max = 100 ρ and at ρ_max = 0.1 ρ; in
   part if only at one of the two. (The same, drawn by Hypothesis: `test_positive_definite_quadratics` in
   `tests/descent/test_spherical_search.py`.) A first version of this measurement used ρ_max = ρ as
   the small value, where α* is 1.
3. α* varies slowly in training, so that one search per epoch is enough. Compared, for both fractions of wrong
   labels: 0.2, a tenth of the range that is searched, minus the mean absolute change of α* from a batch to
   the one an epoch later, seed by seed. The table also shows the change from one batch to another at the
   same w, which one search per epoch cannot follow, and the standard deviation without it.

Measured on Fashion-MNIST during a training with XSAM, with one search per epoch, ρ = 0.1 and ρ_max = 0.2, six
times per epoch, on two batches each time.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np

from benchmarks import figures as plots
from benchmarks.claim import Comparison, Verdict, judge, number, outcome
from benchmarks.experiment import Job, Report, SuiteResults, select
from benchmarks.experiments.claims import sphere
from benchmarks.experiments.claims.setting import ClaimOnNetworks, setting_of
from benchmarks.experiments.claims.sphere import RADII
from benchmarks.records import Record
from benchmarks.tables import table

RHO, RHO_MAX = 0.1, 0.2
NOISE_LEVELS = (0.0, 0.4)
QUADRATIC_RHO = 0.01  # in units of ‖w‖
WRONG = {
    0.0: plots.style("sam", "right labels"),
    0.4: plots.style("xsam", "40 % wrong labels"),
}


@dataclasses.dataclass(frozen=True)
class XSAMDirection(ClaimOnNetworks):
    """Losses along XSAM's arc, and how α* varies."""

    name: ClassVar[str] = "xsam_direction"
    num_quadratics: int = 100
    """Random quadratics."""
    epochs: int = 10
    """Passes over the training data."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Networks of each level of label noise."""
    steps_per_epoch: int = 78
    """Steps between two searches."""
    per_epoch: int = 6
    """Measurements in an epoch, of two batches each."""
    ascent_steps: int = 20
    """Steps of the ascent on the sphere to the worst point found."""

    def jobs(self, records: list[Record]) -> list[Job]:
        """Quadratics, then networks."""
        networks = [
            {
                "experiment": "network",
                "data": "fashion_mnist",
                "method": "xsam",
                "settings": {"rho": RHO, "rho_max": RHO_MAX, "refresh_every": self.steps_per_epoch},
                "label_noise": noise,
                "epochs": self.epochs,
                "seed": seed,
            }
            for noise in NOISE_LEVELS
            for seed in self.seeds
        ]
        quadratic = {"experiment": "quadratic", "num_quadratics": self.num_quadratics, "rho": QUADRATIC_RHO}
        return [quadratic, *networks]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Random quadratics, or a network."""
        if job["experiment"] == "quadratic":
            return sphere.quadratics(job)
        setting = setting_of(job, self.recipes, data_dir)
        return sphere.network(job, setting, self.per_epoch, self.ascent_steps)

    def report(self, records: list[Record], suite: SuiteResults) -> Report:
        """Verdicts and tables."""
        networks = {noise: select(records, experiment="network", label_noise=noise) for noise in NOISE_LEVELS}
        networks = {noise: own for noise, own in networks.items() if own}
        nearer, slow = [], []
        for noise, own in networks.items():
            for one, other in (("v(1)", "v(0)"), ("v(kept)", "v(1)")):
                gains = by_seed(own, lambda r, one=one, other=other: r["loss_at"][one] - r["loss_at"][other])
                name = one.replace("kept", "α*")
                nearer.append(Comparison(f"{WRONG[noise].label}: {name} over {other}", gains))
            slow.append(Comparison(WRONG[noise].label, [0.2 - x for x in changes(own, self.per_epoch)]))

        quadratic = {r["radius"]: np.array(r["alphas"]) for r in select(records, experiment="quadratic")}
        ends = []
        if quadratic:
            ends = [(quadratic[max(quadratic)] > 1), (quadratic[min(quadratic)] < 1)]
        verdicts = [
            judge(
                "At distance ρ_max the loss is larger along v(1) than along v(0), and larger still along"
                " v(α*), α* kept from the start of the epoch",
                nearer,
            ),
            Verdict(
                "On positive definite quadratics, α* > 1 for large ρ_max and α* < 1 for small",
                outcome([bool(end.all()) for end in ends]),
                "; ".join(
                    f"{name} for {int(end.sum())} of {len(end)} quadratics"
                    for name, end in zip(("α* > 1 at ρ_max = 100 ρ", "α* < 1 at 0.1 ρ"), ends, strict=False)
                )
                or "–",
            ),
            judge("α* changes by less than a tenth of its range from one epoch to the next", slow),
        ]
        directions = [
            (
                WRONG[noise].label,
                *(number(by_seed(own, share(name))) for name in ("v(0)", "v(1)", "v(kept)", "v(alpha*)")),
            )
            for noise, own in networks.items()
        ]
        variation = [
            (
                WRONG[noise].label,
                number([float(series(own, s).mean()) for s in sorted({r["seed"] for r in own})]),
                number([float(series(own, s).std()) for s in sorted({r["seed"] for r in own})]),
                number(slow_part(own)),
                number(changes(own, self.per_epoch)),
                number(changes_of_batch(own)),
                number(autocorrelation(own, self.per_epoch)),
            )
            for noise, own in networks.items()
        ]
        tables = []
        if networks:
            tables = [
                table(
                    (
                        "Increase of the batch loss at ρ_max, % of the worst found",
                        "v(0)",
                        "v(1)",
                        "v(α*), kept",
                        "v(α*), fresh",
                    ),
                    directions,
                    numbers=False,
                ),
                table(
                    (
                        "α*",
                        "mean",
                        "standard deviation",
                        "the same without the differences between batches",
                        "change in an epoch",
                        "change of batch, same w",
                        "autocorrelation at an epoch",
                    ),
                    variation,
                    numbers=False,
                ),
            ]
        return Report(verdicts, tables)

    def draw(self, records: list[Record], suite: SuiteResults, path: Path) -> None:
        """Losses on the sphere, α* during training, α* by distance."""
        figure, axes = plots.panels(3, "XSAM: the worst direction on the arc, Fashion-MNIST")
        directions = {"v(0)": "v(0):\nε's", "v(1)": "v(1):\nSAM's", "v(kept)": "v(α*),\nkept"}
        directions["v(alpha*)"] = "v(α*),\nfresh"
        for shift, (noise, style) in zip((-0.08, 0.08), WRONG.items(), strict=True):
            group = select(records, experiment="network", label_noise=noise)
            if not group:
                continue
            for x, name in enumerate(directions):
                values = by_seed(group, share(name))
                label = style.label if x == 0 else None
                axes[0].scatter(
                    [x + shift] * len(values), values, color=style.colour, marker=style.marker, label=label
                )
            steps = sorted({record["step"] for record in group})
            seeds = sorted({record["seed"] for record in group})
            axes[1].plot(steps, series(group, seeds[0]), color=style.colour, marker=style.marker, ms=4, lw=1)
            multiples = np.array(
                [np.mean([r["alphas"] for r in select(group, seed=seed)], axis=0) for seed in seeds]
            )
            plots.curve(axes[2], [multiple * RHO_MAX / RHO for multiple in RADII], multiples, style)
        axes[0].set(
            title="Batch loss at ρ_max\n(each point a network)",
            ylabel="increase (% of the worst found)",
            xticks=range(len(directions)),
        )
        axes[0].set_xticklabels(directions.values())
        axes[1].set(
            title="α* along training,\none network, batch by batch",
            xlabel="step",
            ylabel="α*",
            ylim=(0, 2.05),
        )
        quadratic = select(records, experiment="quadratic")
        if quadratic:
            values = np.array([record["alphas"] for record in quadratic]).T
            radii = [record["radius"] for record in quadratic]
            axes[2].plot(radii, values.mean(0), color="k", ls=":", label="100 random quadratics")
            axes[2].fill_between(radii, values.min(0), values.max(0), color="k", alpha=0.08, lw=0)
        axes[2].axhline(1, color="k", lw=0.8)
        axes[2].set(title="α* by distance", xlabel="ρ_max / ρ", ylabel="α*", xscale="log", ylim=(0, 2.05))
        plots.legend_below(axes[2])
        plots.save(figure, path)


def by_seed(records: list[Record], values) -> list[float]:
    """Means of `values(record)` over training, seed by seed."""
    seeds = sorted({record["seed"] for record in records})
    return [float(np.mean([values(record) for record in select(records, seed=seed)])) for seed in seeds]


def series(records: list[Record], seed: int, batch: int = 0) -> np.ndarray:
    """α* at distance ρ_max during the training of a network."""
    return np.array(
        [record["alphas"][RADII.index(1.0)] for record in select(records, seed=seed, batch=batch)]
    )


def changes(records: list[Record], lag: int) -> list[float]:
    """Mean absolute change of α* from a measurement to the `lag`-th next one, seed by seed."""
    seeds = sorted({record["seed"] for record in records})
    return [float(np.abs(series(records, s)[lag:] - series(records, s)[:-lag]).mean()) for s in seeds]


def changes_of_batch(records: list[Record]) -> list[float]:
    """Mean absolute difference of α* between two batches at the same w, seed by seed."""
    seeds = sorted({record["seed"] for record in records})
    return [float(np.abs(series(records, s, 0) - series(records, s, 1)).mean()) for s in seeds]


def slow_part(records: list[Record]) -> list[float]:
    """Standard deviation of α* during training, without differences between batches at the same w."""
    found = []
    for seed in sorted({record["seed"] for record in records}):
        one, other = series(records, seed, 0), series(records, seed, 1)
        of_batches = np.mean((one - other) ** 2) / 2
        found.append(float(max(0.0, np.var(np.concatenate([one, other])) - of_batches) ** 0.5))
    return found


def autocorrelation(records: list[Record], lag: int) -> list[float]:
    """Autocorrelation of α* at a lag, seed by seed; 0 if α* does not vary at all."""
    found = []
    for seed in sorted({record["seed"] for record in records}):
        values = series(records, seed) - series(records, seed).mean()
        variance = float(values @ values)
        found.append(float(values[lag:] @ values[:-lag]) / variance if variance else 0.0)
    return found


def share(name: str) -> Callable[[Record], float]:
    """Increase along a direction, in percent of the worst found."""
    return lambda r: 100 * (r["loss_at"][name] - r["loss"]) / (r["loss_at"]["worst found"] - r["loss"])
