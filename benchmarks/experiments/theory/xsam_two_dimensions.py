"""XSAM on a function of two variables: g₂ at w points worse than g₁, and trajectories into the flat minimum.

Chen and Zhou, ICLR 2026 (https://arxiv.org/abs/2603.10048), figures 1(b) and 3(a). Two statements:

1. The gradient g₂ after two ascents, applied at w, points further from the worst point around w than g₁, that
   after one. Compared, for each ρ: the angle of g₂ minus that of g₁, in degrees, at each point of
   a grid, to the highest loss on the circle of radius ρ_m = 2ρ around it. The two ascents have the length ρ/2
   each, as in XSAM's code, or ρ each.
2. XSAM ends in the flat minimum from more starting points than SGD, SAM and SAM with three ascents. Compared,
   for each ρ: 1 if XSAM ends within 0.5 of it and 0 if not, minus the same of the other, start by start.

The papers' function is not known to us. Ours has a deep, sharp minimum near (−1, 0), where the largest
curvature is 11, and a flat one near (1, 0), 0.17 higher, with 1.2:

    f(x, y) = 1 + (x² + y²)/20 − exp(−((x + 1)² + y²)/0.18) − 0.9 exp(−((x − 1)² + y²)/1.6)

600 steps of gradient descent, learning rate 0.05, no noise; XSAM searches for α* in each step.
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

LEARNING_RATE = 0.05
FLAT = (1.0, 0.0)
FAR = "g₂, ascents of ρ each"
ROWS = {
    "sgd": plots.style("sgd", "SGD"),
    "sam": plots.style("sam", "SAM"),
    "sam3": plots.style("info_sam", "SAM, k = 3", "--"),
    "xsam": plots.style("xsam", "XSAM"),
}


def value(w: jax.Array) -> jax.Array:
    """The function."""
    x, y = w
    sharp = jnp.exp(-((x + 1) ** 2 + y**2) / 0.18)
    flat = jnp.exp(-((x - 1) ** 2 + y**2) / 1.6)
    return 1 + (x**2 + y**2) / 20 - sharp - 0.9 * flat


def method(row: str, rho: float) -> optax.GradientTransformationExtraArgs:
    """A row's method with gradient descent."""
    if row == "sgd":
        return optax.with_extra_args_support(optax.sgd(LEARNING_RATE))
    made = {
        "sam": lambda: optax_sam.sam(rho),
        "sam3": lambda: optax_sam.sam(rho, num_steps=3),
        "xsam": lambda: optax_sam.xsam(rho, 2 * rho),
    }[row]()
    return optax.chain(made, optax.sgd(LEARNING_RATE))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def paths(row: str, rho: float, num_steps: int, starts: jax.Array) -> jax.Array:
    """Places, (starts, steps, 2)."""
    tx = method(row, rho)

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jax.grad(value)(w), state, w, value_fn=value, refresh=True)
        w = w + updates
        return (w, state), w

    run = lambda w: jax.lax.scan(step, (w, tx.init(w)), length=num_steps)[1]
    return jax.vmap(run)(starts)


@functools.partial(jax.jit, static_argnums=0)
def arrows(rho: float, w: jax.Array) -> dict[str, jax.Array]:
    """Unit vectors of g₀, g₁ (one ascent), g₂ (two), and to the worst point of the circle, for one point."""
    unit = lambda v: v / jnp.maximum(jnp.linalg.norm(v), 1e-12)
    gradient = jax.grad(value)
    g_0 = gradient(w)
    g_1 = gradient(w + rho * unit(g_0))

    def second(length: float) -> jax.Array:
        first = w + length * unit(g_0)
        return gradient(first + length * unit(gradient(first)))

    angles = jnp.linspace(0, 2 * jnp.pi, 720, endpoint=False)
    around = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    worst = around[jnp.argmax(jax.vmap(value)(w + 2 * rho * around))]
    return {
        "g₀": unit(g_0),
        "g₁": unit(g_1),
        "g₂": unit(second(rho / 2)),
        FAR: unit(second(rho)),
        "worst": worst,
    }


def degrees(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Angles between unit vectors."""
    return np.degrees(np.arccos(np.clip(np.sum(one * other, axis=-1), -1, 1)))


@dataclasses.dataclass(frozen=True)
class XSAMTwoDimensions(Claim):
    """Angles of g₁ and g₂ from the worst point, and where trajectories end."""

    page: ClassVar[str] = "theory"
    name: ClassVar[str] = "xsam_two_dimensions"
    radii: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    """Values of ρ; ρ_m is twice as large."""
    num_steps: int = 600
    """Steps of a trajectory."""
    size: tuple[int, int] = (20, 16)
    """Points of the grid of w and of starts, in x from −2 to 2 and in y from −1.5 to 1.5."""

    def grid(self) -> np.ndarray:
        """The points w, and starts."""
        x, y = np.linspace(-2, 2, self.size[0]), np.linspace(-1.5, 1.5, self.size[1])
        return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.float32)

    def jobs(self, records: list[Record]) -> list[Job]:
        """One ρ each."""
        settings = {"num_steps": self.num_steps, "size": list(self.size), "learning_rate": LEARNING_RATE}
        return [{"rho": rho, **settings} for rho in self.radii]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """All points and methods, one record."""
        grid = jnp.asarray(self.grid())
        found = jax.tree.map(np.asarray, jax.vmap(functools.partial(arrows, job["rho"]))(grid))
        angles = {
            name: degrees(found[name], found["worst"]).round(3).tolist() for name in found if name != "worst"
        }
        ends = {row: paths(row, job["rho"], self.num_steps, grid)[:, -1] for row in ROWS}
        flat = {row: [int(x) for x in np.hypot(*(end - np.array(FLAT)).T) < 0.5] for row, end in ends.items()}
        return [record_of(job, angles=angles, ends_flat=flat)]

    def report(self, records: list[Record], suite: SuiteResults) -> Report:
        """Verdicts and tables."""
        worse = [
            Comparison(
                f"{name}, ρ = {r['rho']:g}", np.subtract(r["angles"][name], r["angles"]["g₁"]).tolist()
            )
            for name in ("g₂", FAR)
            for r in records
        ]
        flatter = [
            Comparison(
                f"ρ = {r['rho']:g}, against {ROWS[row].label}",
                np.subtract(r["ends_flat"]["xsam"], r["ends_flat"][row]).tolist(),
                scale=100,
            )
            for r in records
            for row in ("sgd", "sam", "sam3")
        ]
        verdicts = [
            judge("g₂, applied at w, points further from the worst point than g₁ (degrees)", worse),
            judge(
                "XSAM ends in the flat minimum from more starting points than the others (percent)", flatter
            ),
        ]
        titles = ("", *(f"ρ = {r['rho']:g}" for r in records))
        lines = [
            (f"angle of {name} from the worst point, degrees", *(number(r["angles"][name]) for r in records))
            for name in ("g₀", "g₁", "g₂", FAR)
        ] + [
            (
                f"{style.label}: starts that end in the flat minimum, %",
                *(f"{100 * np.mean(r['ends_flat'][row]):.1f}" for r in records),
            )
            for row, style in ROWS.items()
        ]
        return Report(verdicts, [table(titles, lines, numbers=False)])

    def draw(self, records: list[Record], suite: SuiteResults, path: Path) -> None:
        """The arrows at one point, trajectories from one start, and where they end by ρ."""
        figure, axes = plots.grid(
            2, 2, "XSAM in two dimensions: a sharp minimum (left) and a flat one (right)"
        )
        axes = axes.ravel()
        rho = self.radii[min(2, len(self.radii) - 1)]
        x, y = np.linspace(-2.2, 2.2, 111), np.linspace(-1.7, 1.7, 91)
        places = jnp.asarray(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
        heights = np.asarray(jax.vmap(value)(places)).reshape(len(y), len(x))
        for each in axes[:2]:
            each.contourf(x, y, heights, 18, cmap="Greys_r", alpha=0.7)
            each.grid(False)
            each.set(aspect="equal", xlabel="x", ylabel="y")
        # Where g₂ is furthest behind g₁, among the points of the grid at which g₁ is within 20 degrees.
        grid = self.grid()
        found = jax.tree.map(np.asarray, jax.vmap(functools.partial(arrows, rho))(jnp.asarray(grid)))
        angles = {name: degrees(found[name], found["worst"]) for name in ("g₁", FAR)}
        which = int(np.argmax(np.where(angles["g₁"] < 20, angles[FAR] - angles["g₁"], -np.inf)))
        w, length = grid[which], 2 * rho
        around = np.linspace(0, 2 * np.pi, 200)
        axes[0].plot(w[0] + length * np.cos(around), w[1] + length * np.sin(around), "k--", lw=0.8)
        colours = {"g₀": "#009E73", "g₁": "#0072B2", "g₂": "#E69F00", FAR: "#D55E00"}
        for name, colour in colours.items():
            tip = w + length * found[name][which]
            axes[0].annotate(
                "", tip, w, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 5 if name == "g₁" else 2}
            )
            axes[0].plot([], [], color=colour, lw=2, label=name)
        axes[0].plot(
            *(w + length * found["worst"][which]),
            "*",
            ms=14,
            color="w",
            mec="k",
            label="worst point of the circle",
            ls="",
        )
        axes[0].plot(*w, "ko", ms=4)
        reach = 1.35 * length
        axes[0].set(xlim=(w[0] - reach, w[0] + reach), ylim=(w[1] - reach, w[1] + reach))
        axes[0].set_title(f"Gradients, circle of radius 2ρ, ρ = {rho:g}")
        axes[3].axis("off")
        handles = axes[0].get_legend_handles_labels()
        axes[3].legend(*handles, frameon=False, loc="upper left", title="First panel, applied at w:")
        start = self.start(records, rho)
        for row, style in ROWS.items():
            places = np.concatenate(
                [start[None], paths(row, rho, self.num_steps, jnp.asarray(start[None]))[0]]
            )
            axes[1].plot(*places.T, color=style.colour, ls=style.line, lw=1.4, label=style.label)
            axes[1].plot(*places[-1], style.marker, color=style.colour, ms=8, mec="k")
        axes[1].plot(*start, "*", color="w", mec="k", ms=13)
        axes[1].set_title(f"Paths from one start, ρ = {rho:g}")
        for row, style in ROWS.items():
            shares = [100 * np.mean(r["ends_flat"][row]) for r in records]
            axes[2].plot(
                [r["rho"] for r in records],
                shares,
                color=style.colour,
                marker=style.marker,
                ls=style.line,
                label=style.label,
            )
        plots.legend_below(axes[2])
        axes[2].set(title="Starts that end in the flat one, %", xlabel="ρ", ylim=(0, 100))
        plots.save(figure, path)

    def start(self, records: list[Record], rho: float) -> np.ndarray:
        """A start from which the methods end differently, if there is one: the first with XSAM alone flat."""
        (record,) = select(records, rho=rho)
        flat = {row: np.array(ends) for row, ends in record["ends_flat"].items()}
        others = sum(flat[row] for row in ROWS if row != "xsam")
        score = 10 * flat["xsam"] - others
        return self.grid()[int(np.argmax(score))]
