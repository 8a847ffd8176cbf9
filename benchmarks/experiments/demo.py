"""`make demo`: the effect of sharpness-aware training on real data with 40 % of the training labels wrong.

Trains the same network on 500 of scikit-learn's digits, with SGD and five sharpness-aware methods and several
seeds each, then prints a table and draws a picture.

- "Usual recipe" rows keep learning rate 0.05 and weight decay 5e-4, and differ only in the line that puts
  SAM in front of SGD (its rho is chosen). For "tuned" rows, learning rate and weight decay are chosen too, so
  that SGD can use its own remedy against wrong labels: strong weight decay.
- Test accuracy is measured after the last epoch, on 500 images with right labels that were not used for any
  choice.
- Settings come from `results/demo_tuning.jsonl`: sixteen trials for every tuned row, compared by
  accuracy on validation images, with seeds that the demonstration does not use. SGD spends its trials on
  learning rates and weight decays, the others on fewer of those and on four settings of their own.
  `python -m benchmarks.experiments.demo --tune` repeats this, with one process per core.
- "Over tuned SGD" is the mean of the differences seed by seed (rows share initial weights, wrong labels and
  the order of the batches) with its standard error.
- λ_max is the largest eigenvalue of the Hessian of the loss on the training data, wrong labels included.
- Time per step is measured in the same run, with the rows taking turns, and includes a share of the refreshes
  of Eigen-SAM and XSAM.
"""

import dataclasses
import itertools
import os
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import tyro
from tqdm import tqdm

from benchmarks import methods
from benchmarks.data import sources
from benchmarks.data.arrays import Dataset, load
from benchmarks.errors import UsageError
from benchmarks.experiments.networks import time_per_step, train_once, train_to_the_end, with_settings
from benchmarks.records import RESULTS, Record, read_records, versions, write_records
from benchmarks.reports.demo_report import draw, page_table, print_table
from benchmarks.tables import DOCS, fill_tables
from benchmarks.train import add_label_noise, evaluate
from benchmarks.training.config import Config
from benchmarks.training.program import Program, make_program
from benchmarks.training.sharpness import largest_hessian_eigenvalue
from benchmarks.workers import on_each_core, quiet

TUNING_FILE = RESULTS / "demo_tuning.jsonl"
RESULT_FILE = RESULTS / "demo.jsonl"  # a copy of the results.jsonl of the run that is reported
TUNING_SEEDS = (1000, 1001, 1002)  # the demonstration itself uses 0, 1, 2, ...
TRAIN_SIZE = 500  # of 1,000; validation and test keep their 297 and 500
BATCH_SIZE = 50
USUAL_RECIPE = {"learning_rate": 0.05, "weight_decay": 5e-4}
# Sixteen trials for every tuned row. SGD's weight decays are far larger than the usual 5e-4, because weight
# decay is its own remedy against wrong labels.
SGD_SEARCH = {"learning_rate": (0.005, 0.01, 0.02, 0.05), "weight_decay": (0.02, 0.03, 0.045, 0.06)}
SHARED_SEARCH = {"learning_rate": (0.02, 0.05), "weight_decay": (0.01, 0.02)}


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        method: its name in `methods.METHODS`.
        label: its name in table and picture.
        search: values to choose from on validation data.
    """

    method: str
    label: str
    search: Mapping[str, tuple[float, ...]]


def tuned(method: str) -> Row:
    """The row of a method whose learning rate and weight decay are chosen too."""
    label, own = methods.METHODS[method].label, methods.METHODS[method].search
    return Row(method, f"{label}, tuned", SHARED_SEARCH | own)


ROWS = {
    "sgd_usual": Row("sgd", "SGD, usual recipe", {}),
    "sam_usual": Row("sam", "SAM, usual recipe", methods.METHODS["sam"].search),
    "sgd": Row("sgd", "SGD, tuned", SGD_SEARCH),
    **{name: tuned(name) for name in ("sam", "asam", "info_sam", "eigen_sam", "xsam")},
}


@dataclasses.dataclass(frozen=True)
class Demo:
    """The demonstration."""

    seeds: int = 10
    """Networks trained for each method."""
    epochs: int = 60
    """Passes over the training data: enough for plain SGD to memorise the wrong labels."""
    output: Path = Path("runs/demo")
    """Folder of results and picture."""
    data_dir: Path = sources.DEFAULT_DATA_DIR
    """Folder of prepared data sets."""
    tune: bool = False
    """Choose every method's settings again, on validation data, instead of the demonstration."""
    report_only: bool = False
    """Train nothing: write the table and the picture of `docs/demo.md` from `results/demo.jsonl`."""
    processes: int = os.cpu_count() or 1
    """For --tune: number of trials at a time."""
    tuning_file: Path = TUNING_FILE
    """The file that --tune writes and the demonstration reads."""


def row_config(demo: Demo, name: str) -> Config:
    """Configuration of a row before anything is chosen: the usual recipe, the method's defaults."""
    return Config(
        method=ROWS[name].method,
        dataset="digits",
        train_size=TRAIN_SIZE,
        batch_size=BATCH_SIZE,
        model="mlp",
        label_noise=0.4,
        epochs=demo.epochs,
        # As the authors do: XSAM searches at the start of every epoch, Eigen-SAM every 100 steps.
        refresh_every=TRAIN_SIZE // BATCH_SIZE if ROWS[name].method == "xsam" else 100,
        **USUAL_RECIPE,
    )


def dataset_of(demo: Demo) -> Dataset:
    """The data of all rows: few images, so that wrong labels matter."""
    return load("digits", demo.data_dir, train_size=TRAIN_SIZE)


# --- Tuning -------------------------------------------------------------------------------------------


def tune(demo: Demo) -> None:
    """Writes one line per trial; `chosen_configs` reads them."""
    jobs = [
        (demo, name, settings) for name, row in ROWS.items() for settings in methods.combinations(row.search)
    ]
    write_records(demo.tuning_file, on_each_core(trial, jobs, demo.processes))
    trials = read_records(demo.tuning_file)
    for name, row in ROWS.items():
        print(row.label, best(trials, name))


def trial(job: tuple[Demo, str, dict[str, float]]) -> Record:
    """Trains a row with one of its settings and every tuning seed; returns validation accuracies."""
    demo, name, settings = job
    dataset = dataset_of(demo)
    config = with_settings(row_config(demo, name), settings)
    program = make_program(config, dataset)
    accuracies = []
    for seed in TUNING_SEEDS:
        seeded = dataclasses.replace(config, seed=seed)
        noisy = add_label_noise(dataset.train, seeded, dataset.num_classes)
        try:
            state = train_to_the_end(program, seeded, noisy)
        except UsageError:  # diverged: no better than guessing
            accuracies.append(1 / dataset.num_classes)
        else:
            accuracies.append(evaluate(program, state, dataset.validation)["accuracy"])
    return {
        "row": name,
        "settings": settings,
        "model": config.model,
        "train_size": config.train_size,
        "batch_size": config.batch_size,
        "epochs": demo.epochs,
        "seeds": TUNING_SEEDS,
        "validation_accuracies": accuracies,
        "validation_accuracy": statistics.mean(accuracies),
    }


def best(trials: list[Record], name: str) -> dict[str, float]:
    """Settings of the row's trial with the highest validation accuracy; the first of equals."""
    own = [trial for trial in trials if trial["row"] == name]
    return max(own, key=lambda trial: trial["validation_accuracy"])["settings"]


def chosen_configs(demo: Demo) -> dict[str, Config]:
    """Configuration of every row, from the tuning file.

    Args:
        demo: contains the name of the file.

    Returns:
        Row name -> configuration, complete except for the seed.

    Raises:
        UsageError: if the file is missing.
    """
    if not demo.tuning_file.exists():
        raise UsageError(
            f"{demo.tuning_file} is missing, so the settings are not known; make it with "
            "python -m benchmarks.experiments.demo --tune"
        )
    trials = read_records(demo.tuning_file)
    return {name: with_settings(row_config(demo, name), best(trials, name)) for name in ROWS}


# --- The demonstration --------------------------------------------------------------------------------


def train_all(
    demo: Demo,
    dataset: Dataset,
    configs: dict[str, Config],
    programs: dict[str, Program],
) -> list[Record]:
    """Trains every row with every seed; one record per network."""
    sgd = programs["sgd"]
    rest = sgd.init(0).rest  # the MLP has no BatchNorm and no dropout
    training_loss = jax.jit(lambda params, batch: sgd.loss(params, rest, *batch)[0])
    records = []
    total = sum(program.num_steps for program in programs.values()) * demo.seeds
    with tqdm(total=total, unit="step") as bar:
        for seed, name in itertools.product(range(demo.seeds), configs):
            bar.set_description(f"{ROWS[name].label:17s} seed {seed}")
            config = dataclasses.replace(configs[name], seed=seed)
            program = programs[name]
            curve = []
            noisy = add_label_noise(dataset.train, config, dataset.num_classes)
            for epoch, state in train_once(program, config, noisy, bar):
                if epoch % max(1, demo.epochs // 25) == 0 or epoch == demo.epochs:
                    accuracy = evaluate(program, state, dataset.test)["accuracy"]
                    curve.append((epoch, accuracy))
            records.append(
                {
                    "row": name,
                    "method": config.method,
                    "model": config.model,
                    "train_size": config.train_size,
                    "batch_size": config.batch_size,
                    "seed": seed,
                    "settings": {
                        "learning_rate": config.learning_rate,
                        "weight_decay": config.weight_decay,
                        **({} if config.rho is None else {"rho": config.rho}),
                        **config.options,
                    },
                    "epochs": demo.epochs,
                    "test_accuracy": curve[-1][1],
                    "test_accuracy_by_epoch": curve,
                    "training_accuracy_on_noisy_labels": evaluate(program, state, noisy)["accuracy"],
                    "largest_hessian_eigenvalue": largest_hessian_eigenvalue(
                        training_loss, state.params, noisy
                    ),
                }
            )
    return records


def demonstrate(demo: Demo, dataset: Dataset) -> None:
    """Trains, measures, prints the table, draws the picture."""
    configs = chosen_configs(demo)
    programs = {name: make_program(config, dataset) for name, config in configs.items()}
    began = time.perf_counter()
    records = train_all(demo, dataset, configs, programs)
    trained = time.perf_counter() - began
    noisy = add_label_noise(dataset.train, configs["sgd"], dataset.num_classes)
    seconds = time_per_step(configs, programs, noisy)
    labels = {name: row.label for name, row in ROWS.items()}
    print_table(records, seconds, labels)
    write_records(
        demo.output / "results.jsonl",
        (record | {"seconds_per_step": seconds[record["row"]], "versions": versions()} for record in records),
    )
    draw(records, labels, demo.output / "demo.png")
    print(
        f"\n{len(records)} networks trained and measured in {trained:.0f} s. "
        f"Picture: {demo.output / 'demo.png'}; every number: {demo.output / 'results.jsonl'}"
    )


def main() -> None:
    """The command line."""
    demo = tyro.cli(Demo, prog="python -m benchmarks.experiments.demo", description=__doc__)
    quiet()
    try:
        if demo.report_only:
            records, labels = read_records(RESULT_FILE), {name: row.label for name, row in ROWS.items()}
            fill_tables(DOCS / "demo.md", {"demo": page_table(records, labels)})
            draw(records, labels, DOCS / "demo.png")
            return
        dataset = dataset_of(demo)
        if demo.tune:
            tune(demo)
        else:
            demonstrate(demo, dataset)
    except UsageError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
