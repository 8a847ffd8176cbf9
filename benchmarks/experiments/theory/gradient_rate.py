"""PreSAM's Theorem 1: with ρ and η proportional to 1/√T, the mean squared gradient norm falls like 1/√T.

Zhang, Li and Giannakis, ICASSP 2025 (https://arxiv.org/abs/2501.06603). For an L-smooth loss, noise of
bounded variance and ‖D⁻¹‖ bounded, T steps of SGD with preSAM, ρ = ρ₀/√T and η = η₀/√T ≤ 2/(3L), give
(1/T) Σ_t E‖∇f(w_t)‖² = O(1/√T), for any preconditioners. One statement:

1. The mean squared gradient norm falls like 1/√T. Compared, for each preconditioner, seed by seed: 0.1 minus
   the distance from ½ of the fitted exponent p in T^(−p).

The loss is f(w) = Σ_i L_i (0.2 w_i² + 0.6 cos w_i) in 20 dimensions, with L_i from 0.1 to 1. It is not
convex: its second derivatives 0.4 L_i − 0.6 L_i cos w_i are between −0.2 L_i and L_i, so L = max L_i. The
stochastic gradient is ∇f + ξ with ξ normal; its standard deviation differs from one coordinate to another.
The same ξ is in both gradients of a step, as with a mini-batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

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

NUM_PARAMETERS = 20
CURVATURES = np.geomspace(0.1, 1.0, NUM_PARAMETERS)
SMOOTHNESS = CURVATURES.max()  # L
NOISE = np.geomspace(0.05, 1.0, NUM_PARAMETERS)[np.random.default_rng(0).permutation(NUM_PARAMETERS)]
RHO_0 = 3.0
ETA_0 = 5.0


class Row(NamedTuple):
    """A preconditioner.

    Attributes:
        style: in the picture.
        options: of `optax_sam.presam`.
    """

    style: plots.Style
    options: Callable[[], dict[str, Any]]


def fixed_diagonal() -> optax.GradientTransformation:
    """T = D⁻¹ with entries from ¼ to 4."""
    diagonal = jnp.asarray(np.geomspace(0.25, 4.0, NUM_PARAMETERS), jnp.float32)
    return optax.stateless(lambda gradient, params: diagonal)


ROWS = {
    "sam": Row(plots.style("sam", "none (SAM)"), dict),
    "info_sam": Row(
        plots.style("info_sam", "objective: inverse noise variance (infoSAM)"),
        lambda: {"objective": optax_sam.gradient_noise()},
    ),
    "asam": Row(
        plots.style("asam", "constraint: |w| (ASAM)"), lambda: {"constraint": optax_sam.weight_magnitude()}
    ),
    "fisher": Row(
        plots.style("fisher_sam", "constraint: Fisher information"),
        lambda: {"constraint": optax_sam.fisher_information()},
    ),
    "fixed": Row(
        plots.style("xsam", "constraint: fixed, ¼ to 4", "--"), lambda: {"constraint": fixed_diagonal()}
    ),
}


def theorem_1(num_steps: int, **preconditioners: Any) -> optax.GradientTransformationExtraArgs:
    """PreSAM with SGD in the regime of Theorem 1, for a run of `num_steps` steps."""
    rho = RHO_0 / num_steps**0.5
    learning_rate = min(ETA_0 / num_steps**0.5, 2 / (3 * SMOOTHNESS))
    return optax.chain(optax_sam.presam(rho, **preconditioners), optax.sgd(learning_rate))


def value(w: jax.Array) -> jax.Array:
    """The loss f."""
    return jnp.sum(jnp.asarray(CURVATURES, w.dtype) * (0.2 * w**2 + 0.6 * jnp.cos(w)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def mean_squared_gradient(row: str, num_steps: int, keys: jax.Array) -> jax.Array:
    """(1/T) Σ_t ‖∇f(w_t)‖² of a run for each random key."""
    tx = theorem_1(num_steps, **ROWS[row].options())

    def run(key: jax.Array) -> jax.Array:
        def step(carry, key):
            w, state = carry
            noise = jnp.asarray(NOISE, w.dtype) * jax.random.normal(key, w.shape, w.dtype)
            value_fn = lambda w: value(w) + noise @ w
            updates, state = tx.update(jax.grad(value_fn)(w), state, w, value_fn=value_fn)
            return (optax.apply_updates(w, updates), state), jnp.sum(jax.grad(value)(w) ** 2)

        start = jnp.full(NUM_PARAMETERS, 3.0)
        return jnp.mean(jax.lax.scan(step, (start, tx.init(start)), jax.random.split(key, num_steps))[1])

    return jax.vmap(run)(keys)


@dataclasses.dataclass(frozen=True)
class GradientRate(Claim):
    """Mean squared gradient norms for several T and preconditioners."""

    page: ClassVar[str] = "theory"
    name: ClassVar[str] = "gradient_rate"
    lengths: tuple[int, ...] = (100, 400, 1600, 6400)
    """Values of T."""
    num_seeds: int = 10
    """Runs of each."""

    def jobs(self, records: list[Record]) -> list[Job]:
        """All seeds of one preconditioner."""
        return [
            {"row": row, "lengths": list(self.lengths), "num_seeds": self.num_seeds, "rho_0": RHO_0}
            | {"eta_0": ETA_0, "smoothness": SMOOTHNESS, "num_parameters": NUM_PARAMETERS}
            for row in ROWS
        ]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """One record for each T and seed."""
        records = []
        for length in job["lengths"]:
            keys = jax.random.split(jax.random.key(length), job["num_seeds"])
            for seed, found in enumerate(mean_squared_gradient(job["row"], length, keys)):
                records.append(record_of(job, length=length, seed=seed, mean_squared_gradient=float(found)))
        return records

    def report(self, records: list[Record], suite: SuiteResults) -> Report:
        """Verdict and table."""
        rows = [row for row in ROWS if select(records, row=row)]
        found = {row: exponents(records, row) for row in rows}
        comparisons = [
            Comparison(ROWS[row].style.label, [0.1 - abs(p - 0.5) for p in found[row]]) for row in rows
        ]
        verdict = judge(
            "The mean squared gradient norm falls like 1/√T, for each preconditioner", comparisons
        )
        lines = [
            (
                ROWS[row].style.label,
                *(
                    number([r["mean_squared_gradient"] for r in select(records, row=row, length=length)])
                    for length in self.lengths
                ),
                number(found[row]),
            )
            for row in rows
        ]
        titles = ("Mean of ‖∇f‖²", *(f"T = {length}" for length in self.lengths), "exponent p in T^(−p)")
        return Report([verdict], [table(titles, lines, numbers=False)])

    def draw(self, records: list[Record], suite: SuiteResults, path: Path) -> None:
        """The mean squared gradient norm by T."""
        figure, axes = plots.plt.subplots(figsize=(6, 4.5), layout="constrained")
        figure.suptitle("preSAM in the regime of Theorem 1")
        plots.tidy(axes)
        for row, (style, _) in ROWS.items():
            plots.curve(axes, self.lengths, squares(records, row), style)
        line = squares(records, "sam").mean() * np.array(self.lengths) ** -0.5 * np.mean(self.lengths) ** 0.5
        axes.plot(self.lengths, 0.4 * line, color="k", ls=":", label="slope of 1/√T")
        axes.set(
            xscale="log", yscale="log", xlabel="T, steps of the run", ylabel="mean of ‖∇f(w_t)‖² over the run"
        )
        axes.legend(frameon=False, fontsize=8)
        plots.save(figure, path)


def squares(records: list[Record], row: str) -> np.ndarray:
    """Mean squared gradient norms, seeds by T."""
    own = select(records, row=row)
    seeds, lengths = (sorted({r[field] for r in own}) for field in ("seed", "length"))
    return np.array(
        [[select(own, seed=s, length=t)[0]["mean_squared_gradient"] for t in lengths] for s in seeds], float
    )


def exponents(records: list[Record], row: str) -> list[float]:
    """The exponent p fitted by least squares, seed by seed."""
    lengths = sorted({record["length"] for record in select(records, row=row)})
    return [float(-np.polyfit(np.log(lengths), np.log(values), 1)[0]) for values in squares(records, row)]
