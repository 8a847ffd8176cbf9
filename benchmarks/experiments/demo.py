"""`make demo`: what sharpness-aware training does, on real data with 40 % of the training labels wrong.

Trains the same network on 500 of scikit-learn's digits, with SGD and five sharpness-aware methods,
several seeds each, then prints a table and draws a picture.

- "Usual recipe" rows keep learning rate 0.05 and weight decay 5e-4, and differ by the one line that
  puts SAM in front of SGD (its rho is chosen). "Tuned" rows choose learning rate and weight decay, too,
  so that SGD has its own remedy against wrong labels: strong weight decay.
- Test accuracy is that after the last epoch, on 500 images with right labels that no choice has seen.
- Settings come from `results/demo_tuning.jsonl`: sixteen trials for every tuned row, compared by
  accuracy on validation images, with seeds that the demonstration does not use. SGD spends its trials on
  learning rates and weight decays, the others on fewer of those and on four settings of their own.
  `python -m benchmarks.experiments.demo --tune` does it again, one process on each core.
- "Over tuned SGD" is the mean difference seed by seed (rows share initial weights, wrong labels and
  order of the batches) with its standard error.
- λ_max is the largest eigenvalue of the Hessian of the loss on the training data, wrong labels included.
- Time per step is measured in the same run, the rows taking turns, and contains the occasional
  work of Eigen-SAM and XSAM in its due share.
"""

import collections
import dataclasses
import importlib.metadata
import itertools
import os
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import tyro
from tqdm import tqdm

from benchmarks import methods, train
from benchmarks.data import sources as data
from benchmarks.errors import UsageError
from benchmarks.training.sharpness import largest_hessian_eigenvalue
from benchmarks.training.trials import (
    mean_and_error,
    on_each_core,
    quiet,
    read_records,
    time_per_step,
    train_once,
    with_settings,
    write_records,
)

mpl.use("agg")  # the picture goes to a file; no display needed
import matplotlib.pyplot as plt
from matplotlib import ticker

RESULTS = Path(__file__).parents[1] / "results"
TUNING_FILE = RESULTS / "demo_tuning.jsonl"
RESULT_FILE = RESULTS / "demo.jsonl"  # a copy of the results.jsonl of the run that is reported
TUNING_SEEDS = (1000, 1001, 1002)  # the demonstration itself uses 0, 1, 2, ...
TRAIN_SIZE = 500  # of 1,000; validation and test keep their 297 and 500
BATCH_SIZE = 50
USUAL_RECIPE = {"learning_rate": 0.05, "weight_decay": 5e-4}
# Sixteen trials for every tuned row. SGD's weight decays go far beyond the usual 5e-4: that is its own
# remedy against wrong labels.
SGD_SEARCH = {"learning_rate": (0.005, 0.01, 0.02, 0.05), "weight_decay": (0.02, 0.03, 0.045, 0.06)}
SHARED_SEARCH = {"learning_rate": (0.02, 0.05), "weight_decay": (0.01, 0.02)}


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        method: its name in `methods.METHODS`.
        label: how table and picture spell it.
        search: values to choose from on validation data.
        colour: in the picture.
        marker: in the picture.
    """

    method: str
    label: str
    search: Mapping[str, tuple[float, ...]]
    colour: str
    marker: str


def tuned(method: str, colour: str, marker: str) -> Row:
    """The row of a method whose learning rate and weight decay are chosen, too."""
    label, own = methods.METHODS[method].label, methods.METHODS[method].search
    return Row(method, f"{label}, tuned", SHARED_SEARCH | own, colour, marker)


# Colours: Wong, "Points of view: Color blindness", Nature Methods 2011.
ROWS = {
    "sgd_usual": Row("sgd", "SGD, usual recipe", {}, "#7F7F7F", "x"),
    "sam_usual": Row("sam", "SAM, usual recipe", methods.METHODS["sam"].search, "#56B4E9", "+"),
    "sgd": Row("sgd", "SGD, tuned", SGD_SEARCH, "#000000", "o"),
    "sam": tuned("sam", "#0072B2", "s"),
    "asam": tuned("asam", "#E69F00", "D"),
    "info_sam": tuned("info_sam", "#009E73", "^"),
    "eigen_sam": tuned("eigen_sam", "#CC79A7", "v"),
    "xsam": tuned("xsam", "#D55E00", "P"),
}


@dataclasses.dataclass(frozen=True)
class Demo:
    """The demonstration."""

    seeds: int = 10
    """Networks trained for each method."""
    epochs: int = 60
    """Passes over the training data: enough for plain SGD to learn the wrong labels by heart."""
    output: Path = Path("runs/demo")
    """Folder of results and picture."""
    data_dir: Path = data.DEFAULT_DATA_DIR
    """Folder of prepared data sets."""
    tune: bool = False
    """Choose every method's settings again, on validation data, instead of the demonstration."""
    processes: int = os.cpu_count() or 1
    """For --tune: trials at a time."""
    tuning_file: Path = TUNING_FILE
    """Where --tune writes, and the demonstration reads."""


def row_config(demo: Demo, name: str) -> train.Config:
    """Configuration of a row before anything is chosen: the usual recipe, the method's defaults."""
    return train.Config(
        method=ROWS[name].method,
        dataset="digits",
        train_size=TRAIN_SIZE,
        batch_size=BATCH_SIZE,
        model="mlp",
        label_noise=0.4,
        epochs=demo.epochs,
        # Each as its authors do: XSAM searches at the start of every epoch, Eigen-SAM every 100 steps.
        refresh_every=TRAIN_SIZE // BATCH_SIZE if ROWS[name].method == "xsam" else 100,
        **USUAL_RECIPE,
    )


def load(demo: Demo) -> data.Dataset:
    """The data of all rows: few images, so that wrong labels matter."""
    return data.load("digits", demo.data_dir, train_size=TRAIN_SIZE)


# --- Tuning -------------------------------------------------------------------------------------------


def tune(demo: Demo) -> None:
    """Writes one line a trial; `chosen_configs` reads them."""
    jobs = [
        (demo, name, settings) for name, row in ROWS.items() for settings in methods.combinations(row.search)
    ]
    write_records(demo.tuning_file, on_each_core(trial, jobs, demo.processes))
    trials = read_records(demo.tuning_file)
    for name, row in ROWS.items():
        print(row.label, best(trials, name))


def trial(job: tuple[Demo, str, dict[str, float]]) -> dict[str, Any]:
    """Trains a row with one of its settings, every tuning seed; validation accuracy at the end."""
    demo, name, settings = job
    dataset = load(demo)
    config = with_settings(row_config(demo, name), settings)
    program = train.make_program(config, dataset)
    accuracies = []
    for seed in TUNING_SEEDS:
        seeded = dataclasses.replace(config, seed=seed)
        noisy = train.add_label_noise(dataset.train, seeded, dataset.num_classes)
        run = train_once(program, seeded, noisy)
        try:
            _, state = collections.deque(run, maxlen=1).pop()  # the last epoch
        except UsageError:  # diverged: no better than guessing
            accuracies.append(1 / dataset.num_classes)
        else:
            accuracies.append(train.evaluate(program, state, dataset.validation)["accuracy"])
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


def best(trials: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Settings of the row's trial with the highest validation accuracy; the first of equals."""
    own = [trial for trial in trials if trial["row"] == name]
    return max(own, key=lambda trial: trial["validation_accuracy"])["settings"]


def chosen_configs(demo: Demo) -> dict[str, train.Config]:
    """Configuration of every row, from the tuning file.

    Args:
        demo: names the file.

    Returns:
        Row name -> configuration; only the seed is open.

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
    dataset: data.Dataset,
    configs: dict[str, train.Config],
    programs: dict[str, train.Program],
) -> list[dict[str, Any]]:
    """Trains every row with every seed; one record a network."""
    sgd = programs["sgd"]

    def training_loss(params, rest, images, labels):
        return sgd.loss(params, rest, images, labels)[0]

    records = []
    total = sum(program.num_steps for program in programs.values()) * demo.seeds
    with tqdm(total=total, unit="step") as bar:
        for seed, name in itertools.product(range(demo.seeds), configs):
            bar.set_description(f"{ROWS[name].label:17s} seed {seed}")
            config = dataclasses.replace(configs[name], seed=seed)
            program = programs[name]
            curve = []
            noisy = train.add_label_noise(dataset.train, config, dataset.num_classes)
            for epoch, state in train_once(program, config, noisy, bar):
                if epoch % max(1, demo.epochs // 25) == 0 or epoch == demo.epochs:
                    accuracy = train.evaluate(program, state, dataset.test)["accuracy"]
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
                    "training_accuracy_on_noisy_labels": train.evaluate(program, state, noisy)["accuracy"],
                    "largest_hessian_eigenvalue": largest_hessian_eigenvalue(
                        training_loss, state.params, state.rest, *noisy
                    ),
                }
            )
    return records


def summarise(records: list[dict[str, Any]], seconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """The numbers of the table, by row.

    Rows share seeds, and with them initial weights, wrong labels and order of the batches: gains over
    tuned SGD are differences seed by seed, which vary less than the accuracies themselves.
    """
    numbers = {}
    accuracies = {
        name: [100 * record["test_accuracy"] for record in records if record["row"] == name]
        for name in seconds
    }
    for name, own in accuracies.items():
        gains = [one - other for one, other in zip(own, accuracies["sgd"], strict=True)]
        sharpness = [r["largest_hessian_eigenvalue"] for r in records if r["row"] == name]
        columns = {"accuracy": own, "gain": gains, "sharpness": sharpness}
        numbers[name] = {"time": seconds[name] / seconds["sgd"]}
        for column, values in columns.items():
            numbers[name][column], numbers[name][column + "_error"] = mean_and_error(values)
    return numbers


def print_table(records: list[dict[str, Any]], seconds: dict[str, float]) -> None:
    """One line a row."""
    titles = ("", "test accuracy", "over tuned SGD", "λ_max", "time per step")
    print("\n{:18s} {:>14s} {:>16s} {:>14s} {:>14s}  settings".format(*titles))
    for name, row in summarise(records, seconds).items():
        settings = next(record["settings"] for record in records if record["row"] == name)
        gain = f"{row['gain']:+.1f} ± {row['gain_error']:.1f} %" if name != "sgd" else "-"
        print(
            f"{ROWS[name].label:18s} {row['accuracy']:6.1f} ± {row['accuracy_error']:.1f} % {gain:>16s} "
            f"{row['sharpness']:7.2f} ± {row['sharpness_error']:4.2f} {row['time']:8.2f} x SGD  "
            + ", ".join(f"{key} {value:g}" for key, value in settings.items())
        )


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Test accuracy along training, and at its end against sharpness."""
    figure = plt.figure(figsize=(12, 5), layout="constrained")
    # The left axis is broken: the unrescued baseline falls far below where the others differ.
    grid = figure.add_gridspec(4, 2)
    upper, lower = figure.add_subplot(grid[:3, 0]), figure.add_subplot(grid[3, 0])
    right = figure.add_subplot(grid[:, 1])
    ends = {}
    for name, row in ROWS.items():
        own = [record for record in records if record["row"] == name]
        if not own:
            continue
        epochs = [epoch for epoch, _ in own[0]["test_accuracy_by_epoch"]]
        curves = 100 * np.array([[a for _, a in record["test_accuracy_by_epoch"]] for record in own])
        mean = curves.mean(0)
        ends[name] = mean[-1]
        style = {"color": row.colour, "marker": row.marker}
        for axes in (upper, lower):
            axes.plot(epochs, mean, label=row.label, markevery=4, markersize=5, **style)
            if len(own) > 1:
                error = curves.std(0, ddof=1) / len(own) ** 0.5
                axes.fill_between(epochs, mean - error, mean + error, color=row.colour, alpha=0.15, lw=0)
        right.scatter(
            [record["largest_hessian_eigenvalue"] for record in own],
            [100 * record["test_accuracy"] for record in own],
            label=row.label,
            alpha=0.8,
            **style,
        )
    lowest = min(ends.values())
    others = [end for end in ends.values() if end > lowest] or [lowest]
    break_at = min(others) - 4
    upper.set(
        ylim=(break_at, max(others) + 1.5),
        title=f"During training (mean of {len(own)} seeds ± standard error)",
        ylabel="test accuracy (%)",
    )
    upper.tick_params(labelbottom=False, bottom=False)
    lower.set(ylim=(min(lowest - 5, break_at - 5), break_at), xlabel="epoch")
    upper.sharex(lower)
    slant = {"marker": [(-1, -0.6), (1, 0.6)], "markersize": 9, "color": "k", "clip_on": False, "ls": "none"}
    upper.plot([0], [0], transform=upper.transAxes, **slant)
    lower.plot([0], [1], transform=lower.transAxes, **slant)
    right.set(
        xlabel="largest eigenvalue of the Hessian of the training loss (log scale)",
        ylabel="test accuracy (%)",
        title="After the last epoch (each point a network)",
        xscale="log",
    )
    right.xaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7)))
    right.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    right.xaxis.set_minor_locator(ticker.NullLocator())
    for axes in (upper, lower, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    upper.spines["bottom"].set_visible(False)
    right.legend(frameon=False)
    figure.suptitle("Digits with 40 % of the training labels wrong")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """The command line."""
    demo = tyro.cli(Demo, prog="python -m benchmarks.experiments.demo", description=__doc__)
    quiet()
    try:
        dataset = load(demo)
        if demo.tune:
            tune(demo)
        else:
            demonstrate(demo, dataset)
    except UsageError as error:
        sys.exit(f"error: {error}")


def demonstrate(demo: Demo, dataset: data.Dataset) -> None:
    """Trains, measures, prints the table, draws the picture."""
    configs = chosen_configs(demo)
    programs = {name: train.make_program(config, dataset) for name, config in configs.items()}
    began = time.perf_counter()
    records = train_all(demo, dataset, configs, programs)
    trained = time.perf_counter() - began
    noisy = train.add_label_noise(dataset.train, configs["sgd"], dataset.num_classes)
    seconds = time_per_step(configs, programs, noisy)
    print_table(records, seconds)

    packages = ("optax_sam", "jax", "optax", "flax")
    versions = {name: importlib.metadata.version(name) for name in packages}
    write_records(
        demo.output / "results.jsonl",
        (record | {"seconds_per_step": seconds[record["row"]], "versions": versions} for record in records),
    )
    draw(records, demo.output / "demo.png")
    print(
        f"\n{len(records)} networks trained and measured in {trained:.0f} s. "
        f"Picture: {demo.output / 'demo.png'}; every number: {demo.output / 'results.jsonl'}"
    )


if __name__ == "__main__":
    main()
