"""The third-order term of SAM's SDE regularises λ₁ the more, the better the perturbation is aligned with v₁.

Luo et al., NeurIPS 2024 (https://arxiv.org/abs/2501.12666). The drift of SAM is −E[∇f_γ + ρ ∇²f_γ u_γ + T_γ],
where T_γ = (ρ²/2) ∇³f_γ(u_γ, u_γ) and u_γ = ε/ρ is held constant. For u = ±v₁ of one batch T is (ρ²/2) ∇λ₁. A
drift −d changes λ₁ at the rate −⟨∇λ₁, d⟩. Measured along training, with λ₁, v₁ and ∇λ₁ = ∇³f(v₁, v₁) of the
whole training loss f, and the expectation over all mini-batches. Four statements:

1. SAM's third-order term lowers λ₁. Compared: ⟨∇λ₁, E T⟩, mean over training, seed by seed.
2. Eigen-SAM's lowers λ₁ more than SAM's. Compared, for two tilts α: the share
   ⟨∇λ₁, E T⟩ / ((ρ²/2) ‖∇λ₁‖²), which is 1 if u = ±v₁, minus SAM's; mean over training, seed by seed.
3. The same at equal length: with the share divided by the mean of ‖u‖², because a tilt makes u longer.
4. The third-order term is what regularises λ₁ in SAM. Compared: the rate at which the third-order
   term lowers λ₁ minus the second-order term's rate, seed by seed.

The perturbations are the methods' own, Eigen-SAM's with the eigenvector that it has tracked.
The network is defined in `network.py`, trained with plain SGD at equal ρ.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

import optax_sam
from benchmarks import figures
from benchmarks.claim import Claim, Comparison, Report, judge
from benchmarks.experiment import Job
from benchmarks.experiments.theory import network
from benchmarks.records import Record
from benchmarks.tables import number, paired, table, where
from optax_sam import curvature, tree_math
from optax_sam.curvature.products import derivatives_along

ROWS = {
    "sam": (0.0, figures.style("sam", "SAM")),
    "eigen_sam": (0.2, figures.style("eigen_sam", "Eigen-SAM, α = 0.2")),
    "strong": (1.0, figures.style("eigen_sam", "Eigen-SAM, α = 1", "--")._replace(marker="o")),
}
STYLES = {row: style for row, (_, style) in ROWS.items()}
RATES = {
    "rate_gradient": figures.style("sgd", "−∇f", ":"),
    "rate_second": figures.style("vasso", "second-order term", "--"),
    "rate_third": figures.style("random_direction", "third-order term", "-"),
}
FIELDS = {
    "alignment": "⟨u/‖u‖, v₁⟩², mean over batches",
    "share": "share of (ρ²/2) ∇λ₁",
    "share_at_equal_length": "the same at equal length",
    "rate_gradient": "rate of fall of λ₁ by the gradient",
    "rate_second": "by the second-order term",
    "rate_third": "by the third-order term",
    "top_eigenvalue": "λ₁",
}


@dataclasses.dataclass(frozen=True)
class ThirdOrder(Claim):
    """The parts of the drift of SAM and Eigen-SAM, and what they do to λ₁, along training."""

    name: str = "third_order"
    picture: str = "Alignment, third-order term, rates at which λ₁ falls, and λ₁, along training"
    page: str = "theory"
    seeds: tuple[int, ...] = (0, 1, 2)
    datasets: tuple[str, ...] = ("mnist",)
    setting: Mapping[str, Any] = dataclasses.field(default_factory=lambda: network.DATA)  # data and network
    learning_rate: float = 0.2  # of plain SGD
    rho: float = 0.5  # ρ
    interval: int = 20  # steps between two refreshes of Eigen-SAM's eigenvector, with 5 products each
    num_steps: int = 400  # of a run
    every: int = 40  # steps between two measurements

    def jobs(self, records: list[Record]) -> list[Job]:
        """One network each."""
        return [
            {
                "row": row,
                "alpha": alpha,
                **self.setting,
                "learning_rate": self.learning_rate,
                "rho": self.rho,
                "interval": self.interval,
                "num_steps": self.num_steps,
                "every": self.every,
                "seed": seed,
            }
            for row, (alpha, _) in ROWS.items()
            for seed in self.seeds
        ]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Trains a network; one record for each measurement."""
        made = network.problem(self.setting, data_dir, job["seed"])
        step, terms = compiled(job["alpha"], self.rho, self.learning_rate)
        params, state = made.params, method(job["alpha"], self.rho, self.learning_rate).init(made.params)
        order = jax.random.randint(jax.random.key(job["seed"]), self.num_steps, 0, len(made.batches[1]))
        records, vector = [], None
        for count, index in enumerate(np.asarray(order)):
            batch = jax.tree.map(lambda x, index=index: x[index], made.batches)
            params, state = step(params, state, batch, refresh=count % self.interval == 0)
            if (count + 1) % self.every:
                continue
            value, vector = network.top_eigenpair(params, made.train, 20 if vector is None else 10, vector)
            found = terms(params, state, made.batches, made.train, vector)
            found = jax.tree.map(float, found)
            records.append({"step": count + 1, "top_eigenvalue": value} | found)
        return records

    def report(self, frame: pd.DataFrame, results: Path) -> Report:
        """Verdicts and table."""
        means = frame.groupby(["row", "seed"], as_index=False)[[*FIELDS]].mean()

        def against_sam(field: str) -> list[Comparison]:
            return [
                Comparison(STYLES[row].label, paired(means, field, {"row": row}, {"row": "sam"}))
                for row in ("eigen_sam", "strong")
            ]

        sam = where(means, row="sam")
        verdicts = [
            judge("SAM's third-order term lowers λ₁", [Comparison("⟨∇λ₁, E T⟩", sam["rate_third"])]),
            judge("Eigen-SAM's third-order term lowers λ₁ more than SAM's", against_sam("share")),
            judge("It does so also at equal ‖ε‖", against_sam("share_at_equal_length")),
            judge(
                "SAM lowers λ₁ more by the third-order term than by the second-order term",
                [Comparison("difference of the rates", sam["rate_third"] - sam["rate_second"])],
            ),
        ]
        lines = [
            (title, *(number(where(means, row=row)[field]) for row in ROWS))
            for field, title in FIELDS.items()
        ]
        titles = ("Mean over training", *(style.label for style in STYLES.values()))
        return Report(verdicts, [table(titles, lines, numbers=False)])

    def draw(self, frame: pd.DataFrame, results: Path, docs: Path) -> None:
        """Alignment, share, SAM's rates, and λ₁ along training."""
        figure, axes = figures.panels(
            2, 2, f"Third-order term along training, ρ = {self.rho:g}", width=2.7, height=2.8
        )
        axes = axes.ravel()
        for panel, field in ((axes[0], "alignment"), (axes[1], "share"), (axes[3], "top_eigenvalue")):
            figures.lines(panel, frame, "step", field, STYLES)
        rates = where(frame, row="sam").melt(["seed", "step"], [*RATES], "rate")
        figures.lines(axes[2], rates, "step", "value", RATES, "rate")
        axes[0].set(title="Squared cosine\nof ε and v₁", ylim=(0, None))
        axes[1].set(title="Third-order term:\nshare of (ρ²/2) ∇λ₁")
        axes[2].set(title="SAM: how fast each\nterm lowers λ₁")
        axes[3].set(title="λ₁ of the\ntraining loss", ylim=(0, None))
        for panel in axes:
            panel.set_xlabel("step")
        for panel in axes[1:3]:
            panel.axhline(0, color="k", lw=0.8)
        self.save(figure, docs)


def ascent(alpha: float, rho: float) -> optax.GradientTransformationExtraArgs:
    """The stage g -> ε."""
    steepest = optax_sam.steepest_ascent(rho)
    return optax.chain(steepest, optax_sam.tilt_to_top_eigenvector(alpha)) if alpha else steepest


@functools.cache
def method(alpha: float, rho: float, learning_rate: float) -> optax.GradientTransformationExtraArgs:
    """SAM, or Eigen-SAM with a tilt."""
    return optax.chain(optax_sam.sharpness_aware(ascent(alpha, rho)), optax.sgd(learning_rate))


@functools.cache
def compiled(alpha: float, rho: float, learning_rate: float) -> tuple[Any, Any]:
    """A step of training, and the measurement of the drift's terms."""
    tx, stage = method(alpha, rho, learning_rate), ascent(alpha, rho)

    @functools.partial(jax.jit, static_argnames="refresh")
    def step(params, state, batch, refresh):
        value_fn = lambda w: network.loss(w, batch)
        gradient = jax.grad(value_fn)(params)
        updates, state = tx.update(gradient, state, params, value_fn=value_fn, refresh=refresh)
        return optax.apply_updates(params, updates), state

    def of_batch(params, state, batch, vector):
        gradient_fn = lambda w: jax.grad(network.loss)(w, batch)
        epsilon, _ = stage.update(gradient_fn(params), state[0].ascent, params, refresh=False)
        gradient, second, third = derivatives_along(gradient_fn, params, epsilon)
        third = tree_math.scale(jnp.asarray(0.5), third)
        length = tree_math.norm(epsilon)
        alignment = (tree_math.vdot(epsilon, vector) / length) ** 2
        return (gradient, second, third), alignment, (length / rho) ** 2

    @jax.jit
    def terms(params, state, batches, train, vector):
        found = jax.vmap(of_batch, (None, None, 0, None))(params, state, batches, vector)
        (gradient, second, third), alignment, length = jax.tree.map(lambda x: jnp.mean(x, axis=0), found)
        slope = curvature.third_derivative(lambda w: network.loss(w, train), params, vector)
        rates = [tree_math.vdot(slope, x) for x in (gradient, second, third)]
        share = rates[2] / (rho**2 / 2 * tree_math.vdot(slope, slope))
        return {
            "alignment": alignment,
            "share": share,
            "share_at_equal_length": share / length,
            "rate_gradient": rates[0],
            "rate_second": rates[1],
            "rate_third": rates[2],
        }

    return step, terms
