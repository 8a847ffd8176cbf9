"""In their plane, g₁ points nearer to the worst point around w than g₀, and XSAM's v(α*) still nearer.

Chen and Zhou, ICLR 2026 (https://arxiv.org/abs/2603.10048), figure 1(a): the loss of a batch in the plane
through w spanned by the gradients g₀ = ∇L(w) and g₁ = ∇L(w + ε), both applied at w, with the circle of radius
ρ_m and the highest loss on it. One statement:

1. The angle to the worst point of the circle is smaller for g₁ than for g₀, and for v(α*) than for g₁.
   Compared: differences of the angles in degrees, on 10 mini-batches at each of several steps of training.

v(α*) is from the search on the same batch. The network is defined in `network.py`, trained with SAM.
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
from benchmarks.tables import nested, number, table
from optax_sam import diagnostics, tree_math

DIRECTIONS = {"v0": "g₀", "v1": "g₁", "v_alpha": "v(α*)"}
NUM_ANGLES = 180
GRID = 31


@dataclasses.dataclass(frozen=True)
class XSAMPlane(Claim):
    """Angles from the worst point of the circle, and a picture of the plane."""

    name: str = "xsam_plane"
    picture: str = "Loss in the plane of two gradients, with XSAM's direction and a circle's worst point"
    page: str = "theory"
    datasets: tuple[str, ...] = ("mnist",)
    setting: Mapping[str, Any] = dataclasses.field(default_factory=lambda: network.DATA)  # data and network
    rho: float = 0.5  # ρ of the ascent, and of SAM's training
    rho_max: float = 1.0  # ρ_m
    learning_rate: float = 0.2  # of plain SGD
    steps: tuple[int, ...] = (0, 50, 150, 400)  # when to measure
    num_batches: int = 10  # mini-batches at each

    def jobs(self, records: list[Record]) -> list[Job]:
        """One network."""
        return [
            {**self.setting, "rho": self.rho, "rho_max": self.rho_max, "learning_rate": self.learning_rate}
            | {"steps": list(self.steps), "num_batches": self.num_batches, "seed": 0}
        ]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """One record for each batch; the first at each step has the grid of losses for the picture."""
        made = network.problem(self.setting, data_dir)
        tx = optax.chain(optax_sam.sam(self.rho), optax.sgd(self.learning_rate))
        params, state, records = made.params, tx.init(made.params), []
        order = np.random.default_rng(0).integers(len(made.batches[1]), size=max(self.steps) + 1)
        step = stepper(tx)
        for count, index in enumerate(order):
            if count in self.steps:
                for number_of_batch in range(self.num_batches):
                    batch = jax.tree.map(lambda x, i=number_of_batch: x[i], made.batches)
                    found = look(params, batch, self.rho, self.rho_max)
                    found = jax.tree.map(lambda x: np.round(np.asarray(x, float), 5).tolist(), found)
                    if number_of_batch:
                        del found["surface"]
                    records.append({"step": count, "batch": number_of_batch} | found)
            params, state = step(params, state, jax.tree.map(lambda x, i=index: x[i], made.batches))
        return records

    def report(self, frame: pd.DataFrame, results: Path) -> Report:
        """Verdict and table."""
        angles = {name: nested(frame, "angle_from_worst", name) for name in DIRECTIONS}
        values = frame[["step", "alpha"]].assign(**angles)
        comparisons = [
            Comparison(f"{DIRECTIONS[one]} over {DIRECTIONS[other]}, step {step}", own[other] - own[one])
            for one, other in (("v1", "v0"), ("v_alpha", "v1"))
            for step, own in values.groupby("step")
        ]
        verdict = judge(
            "g₁ points nearer to the worst point of the circle than g₀, and v(α*) nearer than g₁ (degrees)",
            comparisons,
        )
        cells = values.groupby("step")[[*angles, "alpha"]].agg(number)
        titles = (
            "",
            *(f"angle from the worst point, {name}" for name in DIRECTIONS.values()),
            "α*",
        )
        lines = [(f"step {step}", *row) for step, row in cells.iterrows()]
        return Report([verdict], [table(titles, lines, numbers=False)])

    def draw(self, frame: pd.DataFrame, results: Path, docs: Path) -> None:
        """The plane at each step, on the first batch."""
        from optax_sam.diagnostics import plotting

        title = "Loss of a batch around w;\nthe star is the worst point of the circle"
        figure, axes = figures.panels(2, 2, title, width=2.7, height=2.7)
        shown = frame.dropna(subset="surface").to_dict("records")
        for panel, record in zip(axes.flat, shown, strict=False):
            grid = grid_of(record["rho_max"])
            surface = diagnostics.LossSurface((jnp.asarray(grid),) * 2, jnp.asarray(record["surface"]))
            # All of the same length, short enough to leave the star visible.
            arrows = {name: 0.75 * np.array(record["place"][v]) for v, name in DIRECTIONS.items()}
            plotting.plot_loss_surface(
                surface, ax=panel, points={"w": (0, 0)}, arrows=arrows, circle=record["rho_max"]
            )
            panel.set(
                title=f"step {record['step']}, α* = {record['alpha']:.1f}",
                xlabel="orthogonal to g₀",
                ylabel="along g₀",
            )
            panel.grid(visible=False)
        self.save(figure, docs)


def grid_of(rho_max: float) -> np.ndarray:
    """Coordinates of the picture."""
    return np.linspace(-1.4 * rho_max, 1.4 * rho_max, GRID)


@functools.cache
def stepper(tx: optax.GradientTransformationExtraArgs) -> Any:
    """A step of training; compiled."""

    @jax.jit
    def step(params, state, batch):
        value_fn = lambda w: network.loss(w, batch)
        updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    return step


@functools.partial(jax.jit, static_argnums=(2, 3))
def look(params: optax.Params, batch: Any, rho: float, rho_max: float) -> dict[str, Any]:
    """Places of g₀, g₁ and v(α*) in their plane, angles from the worst point, rises, and the surface."""
    value_fn = lambda w: network.loss(w, batch)
    gradient = jax.grad(value_fn)(params)
    epsilon = tree_math.scale(rho / tree_math.norm(gradient), gradient)
    plane = diagnostics.gradient_plane(value_fn, params, epsilon)
    _, g_0, g_1 = plane.coordinates

    tx = optax_sam.xsam(rho, rho_max)
    direction, state = tx.update(gradient, tx.init(params), params, value_fn=value_fn, refresh=True)
    v_alpha = jnp.stack([tree_math.vdot(direction, e) for e in plane.directions])

    def at(place: jax.Array) -> jax.Array:
        return diagnostics.loss_surface(value_fn, params, plane.directions, [place[:1], place[1:]]).values[
            0, 0
        ]

    unit = lambda v: v / jnp.linalg.norm(v)
    places = {"v0": rho_max * unit(g_0), "v1": rho_max * unit(g_1), "v_alpha": rho_max * unit(v_alpha)}
    angles = jnp.linspace(0, 2 * jnp.pi, NUM_ANGLES, endpoint=False)
    around = rho_max * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    losses = jax.lax.map(at, around)
    worst, base = around[jnp.argmax(losses)], value_fn(params)
    degrees = lambda v: jnp.degrees(jnp.arccos(jnp.clip(v @ worst / rho_max**2, -1, 1)))
    grid = jnp.asarray(grid_of(rho_max), jnp.float32)
    return {
        "alpha": optax.tree.get(state, "alpha"),
        "place": places,
        "angle_from_worst": {name: degrees(v) for name, v in places.items()},
        "rise": {name: (at(v) - base) / (jnp.max(losses) - base) for name, v in places.items()},
        "surface": diagnostics.loss_surface(value_fn, params, plane.directions, [grid, grid]).values,
    }
