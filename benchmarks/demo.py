"""`make demo`: what sharpness-aware training does, on real data with 40 % of the training labels wrong.

Trains the same network on scikit-learn's digits with SGD and five sharpness-aware methods, several
seeds each, then prints a table and draws a picture.

- Test accuracy is that after the last epoch, on 500 images with right labels that no choice has seen.
- Settings come from `results/demo_tuning.jsonl`: twelve trials a method, compared by accuracy on
  validation images, with seeds that the demonstration does not use. SGD chooses among learning rates
  and weight decays (the range goes well beyond the usual 5e-4: strong weight decay is the baseline's
  own remedy against wrong labels), the others among two weight decays and six settings of their own.
  `python -m benchmarks.demo --tune` does it again, one process on each core.
- λ_max is the largest eigenvalue of the Hessian of the loss on the training data, wrong labels included.
- Time per step is measured in the same run, the methods taking turns, and contains the occasional
  work of Eigen-SAM and XSAM in its due share.
"""

import collections
import dataclasses
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import absl.logging
import jax
import matplotlib as mpl
import numpy as np
import tensorflow_datasets as tfds
import tyro
from tqdm import tqdm

from benchmarks import data, methods, train
from benchmarks.errors import UsageError
from benchmarks.sharpness import largest_hessian_eigenvalue

mpl.use("agg")  # the picture goes to a file; no display needed
import matplotlib.pyplot as plt

SHOWN = ("sgd", "sam", "asam", "info_sam", "eigen_sam", "xsam")
TUNING_FILE = Path(__file__).parent / "results" / "demo_tuning.jsonl"
TUNING_SEEDS = (1000, 1001, 1002)  # the demonstration itself uses 0, 1, 2, ...
LEARNING_RATE = 0.05
SGD_SEARCH = {"learning_rate": (0.01, 0.02, 0.05), "weight_decay": (5e-4, 8e-3, 0.02, 0.04)}
WEIGHT_DECAY_SEARCH = {"weight_decay": (5e-4, 5e-3)}
# Wong, "Points of view: Color blindness", Nature Methods 2011.
COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")
MARKERS = "osD^vP"


@dataclasses.dataclass(frozen=True)
class Demo:
    """The demonstration."""

    seeds: int = 5
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


def base_config(demo: Demo) -> train.Config:
    """What all runs share."""
    return train.Config(
        dataset="digits",
        model="strided_cnn",
        label_noise=0.4,
        epochs=demo.epochs,
        learning_rate=LEARNING_RATE,
    )


def with_settings(config: train.Config, settings: dict[str, float]) -> train.Config:
    """Replaces fields of the configuration, and options of its method, by name."""
    fields = {field.name for field in dataclasses.fields(config)}
    own = {key: value for key, value in settings.items() if key in fields}
    options = {key: value for key, value in settings.items() if key not in fields}
    return dataclasses.replace(config, **own, options=config.options | options)


def train_once(
    program: train.Program, config: train.Config, noisy: data.Split, bar: tqdm | None = None
) -> Iterator[tuple[int, train.TrainState]]:
    """Trains one network; yields (epoch, state) after every epoch."""
    losses = []
    start = program.init(config.seed)
    for step, state, loss in train.train_steps(program, noisy, start, config.seed):
        losses.append(loss)
        if bar is not None:
            bar.update()
        if step % program.steps_per_epoch == 0:
            train.check_finite(losses, step, config)
            losses = []
            yield step // program.steps_per_epoch, state


# --- Tuning -------------------------------------------------------------------------------------------


def searched(name: str) -> list[dict[str, float]]:
    """The settings that a method chooses from."""
    own = methods.METHODS[name].search
    return methods.combinations(SGD_SEARCH if name == "sgd" else WEIGHT_DECAY_SEARCH | own)


def tune(demo: Demo) -> None:
    """Writes one line a trial; `chosen_configs` reads them."""
    jobs = [(demo, name, settings) for name in SHOWN for settings in searched(name)]
    if demo.processes == 1:
        trials = [trial(job) for job in tqdm(jobs, unit="trial")]
    else:
        # A process on each core gets more done than one process with as many threads.
        context = multiprocessing.get_context("spawn")
        cores = context.Queue()
        for core in range(demo.processes):
            cores.put(core)
        with context.Pool(demo.processes, initializer=stay_on_core, initargs=(cores,)) as pool:
            trials = list(tqdm(pool.imap(trial, jobs), total=len(jobs), unit="trial"))

    demo.tuning_file.parent.mkdir(parents=True, exist_ok=True)
    partial_file = demo.tuning_file.with_suffix(".partial")
    partial_file.write_text("".join(json.dumps(trial) + "\n" for trial in trials))
    os.replace(partial_file, demo.tuning_file)
    for name in SHOWN:
        print(methods.METHODS[name].label, best(trials, name))


def stay_on_core(cores: multiprocessing.Queue) -> None:
    """Pins this process to a core of its own, where the system can."""
    core = cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})
    quiet()


def trial(job: tuple[Demo, str, dict[str, float]]) -> dict[str, Any]:
    """Trains a method with one of its settings, every tuning seed; validation accuracy at the end."""
    demo, name, settings = job
    dataset = data.load("digits", demo.data_dir)
    config = with_settings(dataclasses.replace(base_config(demo), method=name), settings)
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
        "method": name,
        "settings": settings,
        "epochs": demo.epochs,
        "seeds": TUNING_SEEDS,
        "validation_accuracies": accuracies,
        "validation_accuracy": statistics.mean(accuracies),
    }


def best(trials: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Settings of the method's trial with the highest validation accuracy; the first of equals."""
    own = [trial for trial in trials if trial["method"] == name]
    return max(own, key=lambda trial: trial["validation_accuracy"])["settings"]


def chosen_configs(demo: Demo) -> dict[str, train.Config]:
    """Configuration of every method, from the tuning file.

    Args:
        demo: names the file.

    Returns:
        Method name -> configuration; only the seed is open.

    Raises:
        UsageError: if the file is missing.
    """
    if not demo.tuning_file.exists():
        raise UsageError(
            f"{demo.tuning_file} is missing, so the settings are not known; make it with "
            "python -m benchmarks.demo --tune"
        )
    trials = [json.loads(line) for line in demo.tuning_file.read_text().splitlines()]
    return {
        name: with_settings(dataclasses.replace(base_config(demo), method=name), best(trials, name))
        for name in SHOWN
    }


# --- The demonstration --------------------------------------------------------------------------------


def train_all(
    demo: Demo,
    dataset: data.Dataset,
    configs: dict[str, train.Config],
    programs: dict[str, train.Program],
) -> list[dict[str, Any]]:
    """Trains every method with every seed; one record a network."""
    sgd = programs["sgd"]

    def training_loss(params, rest, images, labels):
        return sgd.loss(params, rest, images, labels)[0]

    records = []
    total = sum(program.num_steps for program in programs.values()) * demo.seeds
    with tqdm(total=total, unit="step") as bar:
        for seed, name in itertools.product(range(demo.seeds), configs):
            bar.set_description(f"{methods.METHODS[name].label:9s} seed {seed}")
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
                    "method": name,
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


def time_per_step(
    dataset: data.Dataset,
    configs: dict[str, train.Config],
    programs: dict[str, train.Program],
    rounds: int = 40,
    steps: int = 10,
) -> dict[str, float]:
    """Seconds a step, in each of `rounds` rounds the methods take turns; medians over the rounds."""
    noisy = train.add_label_noise(dataset.train, configs["sgd"], dataset.num_classes)
    order = train.epoch_order(0, 0, len(noisy.labels))
    states = {name: program.init(0) for name, program in programs.items()}
    times: dict[tuple[str, bool], list[float]] = {}

    def run(name: str, refresh: bool, steps: int) -> None:
        began = time.perf_counter()
        for _ in range(steps):
            states[name], loss = programs[name].step(states[name], noisy, order, 0, refresh=refresh)
        jax.block_until_ready((states[name], loss))
        times.setdefault((name, refresh), []).append((time.perf_counter() - began) / steps)

    for _ in range(rounds + 1):
        for name, program in programs.items():
            run(name, False, steps)
            if program.refresh_every is not None:
                run(name, True, 1)

    # The first round compiles.
    median = {key: statistics.median(values[1:]) for key, values in times.items()}
    seconds = {}
    for name, program in programs.items():
        seconds[name] = median[name, False]
        if program.refresh_every is not None:
            seconds[name] += (median[name, True] - median[name, False]) / program.refresh_every
    return seconds


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.mean(values), error


def print_table(records: list[dict[str, Any]], seconds: dict[str, float]) -> None:
    """One row a method."""
    print(f"\n{'method':10s} {'test accuracy':>18s} {'λ_max':>16s} {'time per step':>14s}  settings")
    for name in seconds:
        own = [record for record in records if record["method"] == name]
        accuracy, error = mean_and_error([100 * record["test_accuracy"] for record in own])
        sharpness, spread = mean_and_error([r["largest_hessian_eigenvalue"] for r in own])
        settings = ", ".join(f"{key} {value:g}" for key, value in own[0]["settings"].items())
        print(
            f"{methods.METHODS[name].label:10s} {accuracy:10.1f} ± {error:3.1f} % "
            f"{sharpness:9.2f} ± {spread:4.2f} {seconds[name] / seconds['sgd']:9.2f} x SGD"
            f"  {settings}"
        )


def draw(records: list[dict[str, Any]], num_seeds: int, path: Path) -> None:
    """Test accuracy along training, and at its end against sharpness."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for name, colour, marker in zip(SHOWN, COLOURS, MARKERS, strict=False):
        own = [record for record in records if record["method"] == name]
        label = methods.METHODS[name].label
        epochs = [epoch for epoch, _ in own[0]["test_accuracy_by_epoch"]]
        curves = np.array([[a for _, a in record["test_accuracy_by_epoch"]] for record in own])
        curves = 100 * curves
        mean = curves.mean(0)
        left.plot(epochs, mean, color=colour, label=label, marker=marker, markevery=4, markersize=5)
        if len(own) > 1:
            error = curves.std(0, ddof=1) / len(own) ** 0.5
            left.fill_between(epochs, mean - error, mean + error, color=colour, alpha=0.15, lw=0)
        right.scatter(
            [record["largest_hessian_eigenvalue"] for record in own],
            [100 * record["test_accuracy"] for record in own],
            color=colour,
            marker=marker,
            label=label,
            alpha=0.8,
        )
    left.set(
        xlabel="epoch",
        ylabel="test accuracy (%)",
        title=f"During training (mean of {num_seeds} seeds ± standard error)",
    )
    right.set(
        xlabel="largest eigenvalue of the Hessian of the training loss",
        ylabel="test accuracy (%)",
        title="After the last epoch (each point a network)",
        xscale="log",
    )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    right.legend(frameon=False)
    figure.suptitle("Digits with 40 % of the training labels wrong")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def quiet() -> None:
    """Leaves the terminal to our own progress bar."""
    absl.logging.set_verbosity(absl.logging.ERROR)  # TFDS would recommend OpenCV
    tfds.disable_progress_bar()


def main() -> None:
    """The command line."""
    demo = tyro.cli(Demo, prog="python -m benchmarks.demo", description=__doc__)
    quiet()
    try:
        dataset = data.load("digits", demo.data_dir)
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
    seconds = time_per_step(dataset, configs, programs)
    print_table(records, seconds)

    demo.output.mkdir(parents=True, exist_ok=True)
    packages = ("optax_sam", "jax", "optax", "flax")
    versions = {name: importlib.metadata.version(name) for name in packages}
    lines = [
        json.dumps(record | {"seconds_per_step": seconds[record["method"]], "versions": versions})
        for record in records
    ]
    (demo.output / "results.jsonl").write_text("\n".join(lines) + "\n")
    draw(records, demo.seeds, demo.output / "demo.png")
    print(
        f"\n{len(records)} networks trained and measured in {trained:.0f} s. "
        f"Picture: {demo.output / 'demo.png'}; every number: {demo.output / 'results.jsonl'}"
    )


if __name__ == "__main__":
    main()
