"""XSAM's search finds a direction nearer to the worst point nearby than SAM's, even if it is rare.

Chen and Zhou, ICLR 2026 (https://arxiv.org/abs/2603.10048). SAM's ε has the direction v(0), its gradient
v(1); v(α) is on the arc through both, and α* where the loss at distance ρ_max is largest (figure 1,
proposition 1, figure 2). Three statements:

1. On a sphere of radius ρ_max around w, v(1) points nearer to the maximum than v(0), and v(α*) nearer still.
   On the batch of the search itself the latter is true by construction (α = 1 is among the values
   searched), so here α* is the one that training keeps from the start of the epoch, tested on later batches.
   Compared, for clean labels and for 40 % noisy ones: the loss at v(1) minus that at v(0), and at v(α*) minus
   that at v(1); means over training, seed by seed. The worst point found by projected ascent on the sphere,
   20 steps from v(α*), is recorded too.
2. Proposition 1: on positive definite quadratics, α* > 1 if ρ_max is large, and α* < 1 if it is small. The
   claim holds if this is true for each of 100 random quadratics, at ρ_max = 100 ρ and at ρ_max = 0.1 ρ; in
   part if only at one of the two. (The same, drawn by Hypothesis: `test_positive_definite_quadratics` in
   `tests/descent/test_spherical_search.py`.) A first version of this measurement used ρ_max = ρ as
   the small value, where α* is 1.
3. α* varies slowly in training, so that one search per epoch is enough. Compared, for both fractions of noisy
   labels: 0.2, a tenth of the range that is searched, minus the mean absolute change of α* from a batch to
   the one an epoch later, seed by seed. The table also shows the change from one batch to another at the
   same w, which one search per epoch cannot follow, and the standard deviation without it.

Measured on Fashion-MNIST during a training with XSAM, with one search per epoch, ρ = 0.1 and ρ_max = 0.2, six
times per epoch, on two batches each time.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.claim import Claim, Comparison, Report, Verdict, judge, outcome
from benchmarks.experiment import Job
from benchmarks.experiments.claims import sphere
from benchmarks.experiments.claims.sphere import RADII
from benchmarks.experiments.networks import RECIPES, Recipes, config_of, make_network
from benchmarks.records import Record
from benchmarks.tables import nested, number, table, where

RHO, RHO_MAX = 0.1, 0.2
NOISE_LEVELS = (0.0, 0.4)
QUADRATIC_RHO = 0.01  # in units of ‖w‖
LABELS = {0.0: "clean labels", 0.4: "40 % noisy labels"}
DIRECTIONS = ("v(0)", "v(1)", "v(kept)", "v(alpha*)")


@dataclasses.dataclass(frozen=True)
class XSAMDirection(Claim):
    """Losses along XSAM's arc, and how α* varies."""

    name: str = "xsam_direction"
    seeds: tuple[int, ...] = (0, 1, 2)
    datasets: tuple[str, ...] = ("fashion_mnist",)
    recipes: Recipes = dataclasses.field(default_factory=lambda: RECIPES)  # how the networks are trained
    num_quadratics: int = 100  # random quadratics
    epochs: int = 10  # passes over the training data
    steps_per_epoch: int = 78  # steps between two searches
    per_epoch: int = 6  # measurements in an epoch, of two batches each
    ascent_steps: int = 20  # steps of the ascent on the sphere to the worst point found

    def jobs(self, records: list[Record]) -> list[Job]:
        """Quadratics, then networks."""
        networks = [
            {
                "experiment": "network",
                "data": "fashion_mnist",
                "method": "xsam",
                "settings": {"rho": RHO, "rho_max": RHO_MAX, "interval": self.steps_per_epoch},
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
        network = make_network(config_of(job, self.recipes), data_dir)
        return sphere.network(job, network, self.per_epoch, self.ascent_steps)

    def report(self, frame: pd.DataFrame, results: Path) -> Report:
        """Verdicts and tables."""
        variation = self.variation(frame)
        losses = along_arc(frame).groupby(["label_noise", "seed"]).mean()
        nearer, slow = [], []
        for noise, own in losses.groupby("label_noise"):
            label = LABELS[noise]
            nearer.append(Comparison(f"{label}: v(1) over v(0)", own["v(1)"] - own["v(0)"]))
            nearer.append(Comparison(f"{label}: v(α*) over v(1)", own["v(kept)"] - own["v(1)"]))
            slow.append(Comparison(label, 0.2 - variation.loc[noise]["change"]))

        quadratics = where(frame, experiment="quadratic").set_index("radius")["alphas"].map(np.array)
        ends = []
        if len(quadratics):
            ends = [quadratics[quadratics.index.max()] > 1, quadratics[quadratics.index.min()] < 1]
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
        titles = ("α*", "mean", "standard deviation", "change in an epoch", "change of batch, same w")
        lines = [(LABELS[noise], *own.agg(number)) for noise, own in variation.groupby("label_noise")]
        return Report(verdicts, [table(titles, lines, numbers=False)])

    def variation(self, frame: pd.DataFrame) -> pd.DataFrame:
        """How α* at distance ρ_max varies along training, by label noise and seed."""
        lag, found = self.per_epoch, {}
        own = where(frame, experiment="network")
        own = own.assign(alpha=own["alphas"].str[RADII.index(1.0)])
        for at, network in own.groupby(["label_noise", "seed"]):
            one, other = (where(network, batch=batch)["alpha"].to_numpy(float) for batch in (0, 1))
            found[at] = {
                "mean": one.mean(),
                "deviation": one.std(),
                "change": np.abs(one[lag:] - one[:-lag]).mean(),
                "of_batch": np.abs(one - other).mean(),
            }
        return pd.DataFrame.from_dict(found, orient="index").rename_axis(["label_noise", "seed"])


def along_arc(frame: pd.DataFrame) -> pd.DataFrame:
    """Losses along the directions, batch by batch."""
    own = where(frame, experiment="network")
    losses = {name: nested(own, "loss_at", name) for name in DIRECTIONS}
    return own[["label_noise", "seed"]].assign(**losses)
