"""Every method at its own best number of epochs, so that what is compared has a price.

    python -m benchmarks equal_budgets
    python -m benchmarks equal_budgets --where row=sgd,sam label_noise=0.4

The protocol, written before the numbers, is on the page `docs/evidence/equal_budgets.md`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pandas as pd

from benchmarks.data.label_noise import add_noise
from benchmarks.errors import DivergenceError
from benchmarks.experiment import Experiment, Job, Tables
from benchmarks.experiments import networks
from benchmarks.experiments.budgets import figures, tables
from benchmarks.experiments.budgets.search import Settings, Walk, walk
from benchmarks.experiments.networks import Network
from benchmarks.figures import Style
from benchmarks.methods import GREEN, GREY, METHODS, ORANGE, PINK
from benchmarks.records import Record
from benchmarks.tables import where
from benchmarks.train import evaluate
from benchmarks.training.config import Config
from benchmarks.training.program import TrainState

TUNING_SEEDS = (1000, 1001)  # reported networks have 0, 1, 2, ...
CLEAN, NOISY = "validation_accuracy", "noisy_validation_accuracy"
START = {0.0: 20}  # epochs with which a search begins; with noisy labels 10


class Row(NamedTuple):
    """One row: what is put in front of SGD, and where its search begins."""

    method: str  # its name in `methods.METHODS`
    label: str
    start: Mapping[str, float] = {}  # besides the epochs; all of it is searched
    fixed: Mapping[str, Any] = {}  # settings that are not searched
    draws: bool = False  # whether the method draws numbers: its key is then the seed of the run
    stops: bool = False  # whether the epoch with the best validation accuracy is kept instead of the last one
    looks: Mapping[str, str] = {}  # what differs from the method's colour and marker

    def style(self) -> Style:
        """How it is drawn."""
        method = METHODS[self.method]
        return Style(self.label, method.colour, method.marker)._replace(**self.looks)

    def price(self, batch_size: int) -> float:
        """Gradients of a batch in a step."""
        part = self.fixed.get("ascent_batch")
        return METHODS[self.method].price if part is None else 1 + part / batch_size


ROWS = {
    "sgd": Row("sgd", "SGD"),
    "sgd_tuned": Row(
        *("sgd", "SGD, tuned", {"learning_rate": 0.05, "weight_decay": 5e-3}),
        looks={"colour": GREY},
    ),
    "sam": Row("sam", "SAM", {"rho": 0.1}),
    "asam": Row("asam", "ASAM", {"rho": 1.0}),
    "random": Row(
        *("random_direction", "Random direction", {"rho": 5.0}),
        draws=True,
        looks={"colour": GREEN, "marker": "d"},
    ),
    "rwp": Row("rwp", "RWP", {"sigma": 0.015}, draws=True),
    "momentum_sam": Row("momentum_sam", "Momentum-SAM", {"rho": 1.0}),
    "sgd_smoothed": Row(
        "sgd", "SGD, smoothed", {"label_smoothing": 0.2}, looks={"colour": PINK, "marker": "^"}
    ),
    "sgd_averaged": Row("sgd", "SGD, averaged", {"ema": 0.98}, looks={"colour": PINK, "marker": "v"}),
    "outside_16": Row(
        *("sam", "Ascent on 16 others", {"rho": 0.2}),
        fixed={"ascent_batch": 16, "ascent_outside": True},
        looks={"colour": ORANGE, "marker": "h"},
    ),
    "mixed_rwp": Row("mixed_rwp", "Mixed RWP", {"sigma": 0.015}, draws=True),
    "sam_tuned": Row("sam", "SAM, tuned", {"rho": 0.1, "learning_rate": 0.05, "weight_decay": 2e-3}),
    "sgd_stopped": Row("sgd", "SGD, stopped", stops=True),
    "sam_stopped": Row("sam", "SAM, stopped", {"rho": 0.1}, stops=True),
    "groups_32": Row("sam", "SAM in groups of 32", {"rho": 0.1}, fixed={"groups": 4}),
    "groups_16": Row("sam", "SAM in groups of 16", {"rho": 0.1}, fixed={"groups": 8}),
    "sgd_1024": Row("sgd", "SGD, batches of 1,024", {"learning_rate": 0.2}, fixed={"batch_size": 1024}),
    "sam_1024": Row(
        *("sam", "SAM, batches of 1,024", {"rho": 0.1, "learning_rate": 0.2}), fixed={"batch_size": 1024}
    ),
    **{
        name: Row(name, METHODS[name].label, start)
        for name, start in (
            ("eigen_sam", {"rho": 0.1, "alpha": 0.2}),
            ("xsam", {"rho": 0.1, "rho_max": 0.2}),
            ("info_sam", {"rho": 0.1}),
        )
    },
}


@dataclasses.dataclass(frozen=True)
class EqualBudgets(Experiment):
    """Rows whose epochs are chosen like their other settings, at several levels of noisy labels."""

    name: str = "equal_budgets"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    datasets: tuple[str, ...] = ("fashion_mnist",)
    config: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: dict(networks.RECIPES["fashion_mnist"])
    )
    rows: Mapping[str, Row] = dataclasses.field(default_factory=lambda: ROWS)
    noise: tuple[float, ...] = (0.4, 0.0, 0.2, 0.6)  # fractions of noisy training labels
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS
    epochs: int | None = None  # where all searches begin; left out: `START`, or 10

    @property
    def files(self) -> Mapping[str, str]:
        """One file for the trials, one for the networks that are reported."""
        return {"trial": "equal_budgets_tuning", "network": self.name}

    def walk(self, records: list[Record], name: str, noise: float, field: str = CLEAN) -> Walk:
        """The search of a row at a noise level."""
        own = [r for r in records if (r["part"], r["row"], r["label_noise"]) == ("trial", name, noise)]
        start = {"epochs": self.epochs or START.get(noise, 10), **self.rows[name].start}
        return walk(own, start, self.tuning_seeds, field)

    def jobs(self, records: list[Record]) -> list[Job]:
        """Of each row at each noise level its trials, as far as they are known, then its networks."""
        jobs: list[Job] = []
        for noise in self.noise:
            for name in self.rows:
                at, found = {"row": name, "label_noise": noise}, self.walk(records, name, noise)
                jobs += [
                    {"part": "trial", **at, "seed": seed, "settings": settings}
                    for settings in found.tried
                    for seed in self.tuning_seeds
                ]
                if found.chosen is not None:
                    jobs += self.networks(at, found.chosen)
        return jobs

    def networks(self, at: Job, chosen: Settings) -> list[Job]:
        """The networks of a row whose settings are known."""
        return [{"part": "network", **at, "seed": seed, "settings": chosen} for seed in self.seeds]

    def network(self, job: Job, data_dir: Path) -> Network:
        """The network of a job."""
        row = self.rows[job["row"]]
        searched = {name: value for name, value in job["settings"].items() if name != "ema"}
        key = {"key": job["seed"]} if row.draws else {}
        config = Config(method=row.method, label_noise=job["label_noise"], seed=job["seed"])
        for settings in (self.config, row.fixed, searched, key):
            config = networks.with_settings(config, settings)
        return networks.make_network(config, data_dir)

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Trains a network; its validation accuracies, and if it is no trial all that is reported."""
        network = self.network(job, data_dir)
        row, batch_size = self.rows[job["row"]], network.config.batch_size
        state = stopped(network) if row.stops else trained(network, job["settings"].get("ema"))
        record = {"fixed": dict(row.fixed)} | networks.recorded(network.config)
        record |= validated(network, state)
        images = row.price(batch_size) * network.program.num_steps * batch_size
        record["gradients"] = round(images / self.config["batch_size"])
        return [record | (self.tested(network, state) if job["part"] == "network" else {})]

    def tested(self, network: Network, state: TrainState) -> Record:
        """What is reported of a network."""
        test = evaluate(network.program, state, network.dataset.test)
        fitted = evaluate(network.program, state, network.noisy)
        return {
            "test_accuracy": test["accuracy"],
            "test_loss": test["loss"],
            "training_accuracy_on_noisy_labels": fitted["accuracy"],
        }

    def diverged(self, job: Job) -> Record:
        """No better than guessing; trials have no test accuracy."""
        record = super().diverged(job) | {NOISY: 0.1}
        if job["part"] == "trial":
            del record["test_accuracy"]
        return record

    def tables(self, frame: pd.DataFrame, results: Path) -> Tables:
        """The tables of the page."""
        return {"docs/evidence/equal_budgets.md": tables.tables(frame, self)}

    def draw(self, frame: pd.DataFrame, results: Path, docs: Path) -> None:
        """Test accuracy against gradients: two levels for the page, noisy labels alone for the README."""
        made = where(frame, part="network")
        levels = [noise for noise in self.noise if (made["label_noise"] == noise).any()] if len(made) else []
        if levels:
            figures.draw(made, self.rows, levels[:2], docs / "evidence" / "equal_budgets.png")
            figures.draw(made, self.rows, levels[:1], docs / "evidence" / "equal_budgets_readme.png")


def trained(network: Network, decay: float | None) -> TrainState:
    """The state after the last epoch; with a decay, the running mean of the weights in its place."""
    if decay is None:
        return networks.trained(network)
    mean = None
    for _, state in networks.states_along_training(network):
        # A copy, because the step takes the buffers of its argument.
        mean = jax.tree.map(jnp.copy, state.params) if mean is None else follow(mean, state.params, decay)
    return state._replace(params=mean)


def stopped(network: Network) -> TrainState:
    """The state after the epoch with the best validation accuracy; the first of equals.

    Raises:
        DivergenceError: if the first epoch diverges. Later epochs may.
    """
    best, found = -1.0, None
    try:
        for _, state in networks.after_epochs(network):
            accuracy = evaluate(network.program, state, network.dataset.validation)["accuracy"]
            if accuracy > best:
                best, found = accuracy, jax.tree.map(jnp.copy, state)
    except DivergenceError:
        if found is None:
            raise
    return found


@jax.jit
def follow(mean: optax.Params, params: optax.Params, decay: float) -> optax.Params:
    """The running mean after one more step."""
    return optax.incremental_update(params, mean, 1 - decay)


def validated(network: Network, state: TrainState) -> Record:
    """Accuracy on validation images, with clean labels and with labels as noisy as in training."""
    right = network.dataset.validation
    wrong = right._replace(
        labels=add_noise(
            right.labels, jax.random.key(0), network.config.label_noise, network.dataset.num_classes
        )
    )
    return {
        CLEAN: evaluate(network.program, state, right)["accuracy"],
        NOISY: evaluate(network.program, state, wrong)["accuracy"],
    }
