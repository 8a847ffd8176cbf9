"""How to spend Hessian-vector products along a training so that the tracked vector is the top eigenvector.

Eigen-SAM estimates the top eigenvector v₁ with five power iterations on one batch every 100 steps. Here other
trackers run beside the trainings of SAM and of Eigen-SAM, without acting on them: the strided CNN on 10,000
Fashion-MNIST images, with clean labels and with 40 % noisy ones. All have the same budget, within a few
percent: products with the Hessian of 640 examples per 100 steps, on one batch or many, of all its images or
a few. Some keep a running mean of the products (`decay` of `tilt_to_top_eigenvector`).

Two trackers take no product at all, but what a step of SAM computes anyway: the gradient g, or the difference
z = g' − g, which is ρ H ĝ to first order. They are power iterations, with a running mean, on g gᵀ and z zᵀ.

The reference is the Hessian of 2,000 training images, with the labels of the training. Measured at steps
136, 236, ..., so 36 steps after a refresh of the paper's tracker: the alignment |⟨v, v₁⟩|; the length of the
projection of v onto the span of v₁, v₂ and v₃, which counts where λ₁ is near λ₂; and the error of the
tracked λ₁.

Protocol: `decay` is chosen for each tracker by its mean alignment with the span over the trainings of one
seed, which is not used again. (The span, because v₁ itself is hardly defined where λ₁ is near λ₂.) Reported
are means over training of the other seeds.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from benchmarks import figures
from benchmarks.experiment import Experiment, Job, Tables
from benchmarks.experiments.networks import batch_after, make_network, states_along_training
from benchmarks.records import Record
from benchmarks.tables import number, table, where
from benchmarks.training.config import Config
from benchmarks.training.program import TrainState
from optax_sam import curvature, tree_math
from optax_sam.curvature.eigenpairs import start_vector, track_eigenpair

TUNING_SEED = 1000
LABEL_NOISE = (0.0, 0.4)
NUM_VECTORS = 3
CHUNK = 500
RHO = 0.1
TRAININGS = {"sam": ("sam", {"rho": RHO}), "eigen_sam": ("eigen_sam", {"rho": RHO, "alpha": 0.2})}
CELLS = {
    "SAM, clean labels": {"training": "sam", "label_noise": 0.0},
    "SAM, 40 % noisy": {"training": "sam", "label_noise": 0.4},
    "Eigen-SAM, clean labels": {"training": "eigen_sam", "label_noise": 0.0},
    "Eigen-SAM, 40 % noisy": {"training": "eigen_sam", "label_noise": 0.4},
}
IN_THE_TABLE = {name: cell for name, cell in CELLS.items() if cell["training"] == "sam"}
STYLES = {
    "paper": figures.style("eigen_sam", "5 power iterations every 100 steps (the paper's)"),
    "lanczos": figures.style("asam", "5 Lanczos products every 100 steps"),
    "spread": figures.style("info_sam", "1 product every 20 steps"),
    "part_32": figures.style("sam", "1 on a quarter of the batch every 5 steps, running mean"),
    "differences": figures.style("xsam", "no product: g' − g, running mean", "--"),
}


class Tracker(NamedTuple):
    """A way to spend the budget."""

    label: str  # in tables
    examples: int  # whose Hessian a product is with
    num_iters: int  # products per refresh
    interval: int  # steps from one refresh to the next
    solver: str = "power"  # of the refresh; "gradients" and "differences" use what SAM's step computes anyway
    # Values of `decay` to choose from; 0 keeps nothing of the products before.
    decays: tuple[float, ...] = (0.0,)

    def cost(self) -> float:
        """Examples times products in 100 steps."""
        return 0 if self.solver in FREE else 100 / self.interval * self.num_iters * self.examples


FREE = ("gradients", "differences")


TRACKERS = {
    "paper": Tracker("5 power iterations, the paper's", 128, 5, 100),
    "lanczos": Tracker("5 Lanczos products", 128, 5, 100, "lanczos"),
    "large": Tracker("5 power iterations on a large batch", 640, 5, 500),
    "large_lanczos": Tracker("5 Lanczos products on a large batch", 640, 5, 500, "lanczos"),
    "spread": Tracker("one product", 128, 1, 20),
    "spread_mean": Tracker("one product, running mean", 128, 1, 20, decays=(0.3, 0.5, 0.7, 0.8)),
    "part_32": Tracker(
        "on a quarter of the batch, running mean", 32, 1, 5, decays=(0.5, 0.7, 0.8, 0.9, 0.95)
    ),
    "part_13": Tracker("on a tenth of the batch, running mean", 13, 1, 2, decays=(0.9, 0.95, 0.98)),
    "gradients": Tracker("no product: gradients g", 128, 1, 1, "gradients", (0.95, 0.98, 0.99)),
    "differences": Tracker("no product: g' − g", 128, 1, 1, "differences", (0.95, 0.98, 0.99)),
}


@dataclasses.dataclass(frozen=True)
class Trackers(Experiment):
    """The experiment. The first seed chooses `decay`, the others are reported."""

    name: str = "trackers"
    seeds: tuple[int, ...] = (TUNING_SEED, 0, 1, 2)
    datasets: tuple[str, ...] = ("fashion_mnist",)
    # network: data, network and length of the training. Trackers scale with the batch size
    network: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {
            "dataset": "fashion_mnist",
            "train_size": 10_000,
            "model": "strided_cnn",
            "batch_size": 128,
            "epochs": 8,
        }
    )
    trackers: Mapping[str, Tracker] = dataclasses.field(default_factory=lambda: TRACKERS)  # what is compared
    first: int = 136  # step of the first measurement
    every: int = 100  # steps from one measurement to the next
    num_images: int = 2000  # training images of the reference
    num_iters: int = 14  # most Hessian-vector products for the reference

    def jobs(self, records: list[Record]) -> list[Job]:
        """The trainings."""
        return [
            {"training": training, "label_noise": noise, "epochs": self.network["epochs"], "seed": seed}
            for seed in self.seeds
            for noise in LABEL_NOISE
            for training in TRAININGS
        ]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Trains a network; one record for the reference, and one for each tracker and `decay`."""
        method, settings = TRAININGS[job["training"]]
        options = {name: value for name, value in settings.items() if name != "rho"}
        config = Config(
            method=method,
            rho=settings["rho"],
            options=options,
            learning_rate=0.05,
            label_noise=job["label_noise"],
            seed=job["seed"],
            **self.network,
        )
        network = make_network(config, data_dir)
        loss, batch_size = network.loss, config.batch_size
        few = curvature.Batches(jax.tree.map(lambda x: x[: self.num_images], network.noisy), CHUNK)
        choices = [(name, decay) for name, tracker in self.trackers.items() for decay in tracker.decays]

        found, start, steps, exact = {}, None, [], []
        measured = {choice: {"alignment": [], "span": [], "eigenvalue": []} for choice in choices}
        begin = (0, network.program.init(job["seed"]))
        for step, state in itertools.chain([begin], states_along_training(network)):
            if step >= self.first and (step - self.first) % self.every == 0:
                top = curvature.top_eigenpairs(
                    loss,
                    state.params,
                    k=NUM_VECTORS,
                    num_iters=self.num_iters,
                    tolerance=0.05,
                    start=start,
                    batches=few,
                )
                start = jax.tree.map(lambda x: x.sum(0), top.eigenvectors)
                steps.append(step)
                exact.append([rounded(x) for x in (top.eigenvalues, top.residuals)])
                for choice, (value, vector) in found.items():
                    along = np.asarray(coordinates(top.eigenvectors, vector))
                    measured[choice]["alignment"].append(rounded(abs(along[0])))
                    measured[choice]["span"].append(rounded(np.linalg.norm(along)))
                    measured[choice]["eigenvalue"].append(rounded(value))
            if step == network.program.num_steps:
                break
            free = dict(zip(FREE, of_sam(loss, state.params, batch_after(network, step)), strict=True))
            for name, decay in choices:
                tracker = self.trackers[name]
                if step % tracker.interval == 0:
                    # If the batch has not enough images, also those after it.
                    batch = batch_after(network, step, max(1, batch_size * tracker.examples // 128))
                    last = found.get((name, decay)) or random_start(state)
                    found[name, decay] = (
                        track_free(free[tracker.solver], last, decay)
                        if tracker.solver in FREE
                        else track(loss, tracker.solver, tracker.num_iters, state.params, batch, last, decay)
                    )
        values, residuals = zip(*exact, strict=True)
        reference = {"tracker": "exact", "steps": steps, "eigenvalues": values, "residuals": residuals}
        own = [{"tracker": name, "decay": decay} | measured[name, decay] for name, decay in choices]
        return [reference, *own]

    def chosen(self, frame: pd.DataFrame) -> dict[str, float]:
        """Tracker -> the `decay` with the best mean alignment with the span for the tuning seed."""
        tuning = where(frame, seed=TUNING_SEED)
        span = tuning.assign(span=tuning["span"].map(np.mean)).groupby(["tracker", "decay"])["span"].mean()
        return {
            name: max(tracker.decays, key=lambda decay, name=name: span.get((name, decay), 0.0))
            for name, tracker in self.trackers.items()
        }

    def tables(self, frame: pd.DataFrame, results: Path) -> Tables:
        """The trackers at their best decay, and the gaps of the spectrum."""
        means, exact = summaries(frame)
        decays = self.chosen(frame)
        lines = []
        for name, tracker in self.trackers.items():
            own = where(means, tracker=name, decay=decays[name])
            errors = own["error"]
            cells = [both(where(own, **cell), number) for cell in IN_THE_TABLE.values()]
            products = f"{tracker.num_iters} every {tracker.interval}" if tracker.cost() else "none"
            error = f"{errors.mean():.0f} %" if len(errors) and tracker.cost() else "–"
            lines.append((tracker.label, str(tracker.examples), products, f"{decays[name]:g}", *cells, error))
        gaps = [
            (label, *(number(own[field]) for field in ("first", "second", "third")))
            for label, cell in IN_THE_TABLE.items()
            if len(own := where(exact, **cell))
        ]
        titles = ("", "examples", "products, steps", "decay", *IN_THE_TABLE, "error of λ₁")
        picture = "![Alignment with v₁ along trainings of SAM](trackers.png)"
        made = {
            "trackers": f"{table(titles, lines)}\n\n{picture}",
            "tracker_gaps": table(("", "λ₁", "λ₂/λ₁", "λ₃/λ₁"), gaps),
        }
        return {"docs/evidence/eigenvectors.md": made}

    def draw(self, frame: pd.DataFrame, results: Path, docs: Path) -> None:
        """Alignment with v₁ along trainings of SAM."""
        decays = self.chosen(frame)
        frame = frame[frame["seed"] != TUNING_SEED]
        steps = where(frame, tracker="exact")["steps"].iloc[0]
        own = frame[frame["tracker"].map(decays) == frame["decay"]]
        long = own.assign(step=[steps] * len(own)).explode(["step", "alignment"])
        long = long.astype({"step": float, "alignment": float})
        figure, (axes,) = figures.panels(1, 2, "", width=2.7, height=3.6)
        for panel, noise in zip(axes, (0.0, 0.4), strict=True):
            cell = {"training": "sam", "label_noise": noise}
            figures.lines(panel, where(long, **cell), "step", "alignment", STYLES, by="tracker")
            label = next(name for name, own in CELLS.items() if own == cell)
            panel.set(title=label, xlabel="step", ylim=(0, 1.02))
        axes[0].set(ylabel="alignment with v₁")
        figures.legend_below(figure, 1)
        figures.save(figure, docs / "evidence" / "trackers.png")


def summaries(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means over training for the reported seeds: of the trackers (errors in percent), of the reference."""
    frame = frame[frame["seed"] != TUNING_SEED]
    exact = where(frame, tracker="exact")
    values = [np.array(values) for values in exact["eigenvalues"]]
    exact = exact[["training", "label_noise", "seed"]].assign(
        along=[own[:, 0] for own in values],
        first=[own[:, 0].mean() for own in values],
        second=[np.mean(own[:, 1] / own[:, 0]) for own in values],
        third=[np.mean(own[:, 2] / own[:, 0]) for own in values],
    )
    own = frame[frame["tracker"] != "exact"]
    own = own[["training", "label_noise", "seed", "tracker", "decay", "alignment", "span", "eigenvalue"]]
    own = own.merge(exact, on=["training", "label_noise", "seed"])
    errors = [
        100 * np.mean(np.abs(np.array(value) / top - 1))
        for value, top in zip(own["eigenvalue"], own["along"], strict=True)
    ]
    return own.assign(
        alignment=own["alignment"].map(np.mean), span=own["span"].map(np.mean), error=errors
    ), exact


def both(own: pd.DataFrame, form: Callable[[pd.Series], str]) -> str:
    """Alignment with v₁ (and with the span)."""
    return f"{form(own['alignment'])} ({own['span'].mean():.2f})" if len(own) else "–"


def rounded(x: Any) -> Any:
    """With four digits after the point, as a list or number."""
    return np.round(np.asarray(x, float), 4).tolist()


def random_start(state: TrainState) -> tuple[jax.Array, Any]:
    """The eigenpair before the first refresh."""
    return jnp.zeros(()), start_vector(state.params, 0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def track(
    loss: Callable[..., jax.Array],
    solver: str,
    num_iters: int,
    params: Any,
    batch: tuple[jax.Array, jax.Array],
    last: tuple[jax.Array, Any],
    decay: float,
) -> tuple[jax.Array, Any]:
    """A refresh, as in `tilt_to_top_eigenvector`."""
    gradient_fn = lambda w: jax.grad(loss)(w, batch)
    return track_eigenpair(last, gradient_fn, params, solver=solver, num_iters=num_iters, decay=decay)


@functools.partial(jax.jit, static_argnums=0)
def of_sam(
    loss: Callable[..., jax.Array], params: Any, batch: tuple[jax.Array, jax.Array]
) -> tuple[Any, Any]:
    """The vectors g and g' − g of SAM's step."""
    gradient = jax.grad(loss)(params, batch)
    epsilon = tree_math.scale(jnp.asarray(RHO), tree_math.unit(gradient))
    ahead = jax.grad(loss)(tree_math.add(params, epsilon), batch)
    return gradient, jax.tree.map(jnp.subtract, ahead, gradient)


@jax.jit
def track_free(vector: Any, last: tuple[jax.Array, Any], decay: float) -> tuple[jax.Array, Any]:
    """A refresh with z zᵀ in place of the Hessian: the gradient of ½ ⟨z, w⟩²."""
    gradient_fn = lambda w: tree_math.scale(tree_math.vdot(vector, w), vector)
    return track_eigenpair(last, gradient_fn, last[1], solver="power", num_iters=1, decay=decay)


@jax.jit
def coordinates(vectors: Any, vector: Any) -> jax.Array:
    """Inner products of a vector with several, which are stacked."""
    return jax.vmap(lambda other: tree_math.vdot(other, vector))(vectors)
