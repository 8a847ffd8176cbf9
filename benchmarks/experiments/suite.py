"""The accuracy suite: every method, four levels of wrong labels, several seeds, on Fashion-MNIST.

    python -m benchmarks.experiments.suite tune      chooses each row's settings on validation data
    python -m benchmarks.experiments.suite run       trains every row with every seed, measures on test data
    python -m benchmarks.experiments.suite time      measures the cost of a step, the rows taking turns
    python -m benchmarks.reports.suite_report          tables and figures from the result files, into RESULTS.md

10,000 training images, the strided CNN, 20 epochs. The protocol:

- The usual recipe is learning rate 0.05 and weight decay 5e-4, the same for every row.
- Whatever is chosen is chosen at each noise level from five trials. Sharpness-aware methods: four radii, then
  another value of what the method has of its own (infoSAM's power, Eigen-SAM's alpha, eta of ASAM and Fisher
  SAM, XSAM's rho_max; SAM has nothing else, and tries a fifth radius), at the best of the radii.
- "Decay tuned" rows: SGD four weight decays, its own remedy against wrong labels, then a larger learning
  rate; SAM and ASAM four radii at weight decay 2e-3, then a stronger one.
- Trials are compared by accuracy on 10,000 validation images after the last epoch, with one seed that
  `run` does not use.
- The reported accuracy is that after the last epoch on the 10,000 test images. Nothing was chosen on it.
- Rows share seeds, and with them initial weights, wrong labels and order of the batches, so that
  differences between rows can be taken seed by seed.
- "SGD, 40 epochs" costs as much as SAM: two gradients where SGD has one.

`tune` and `run` append to their files as trials end: stopped, they go on where they were.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro
from scipy.sparse.linalg import ArpackError

from benchmarks import train
from benchmarks.data import sources as data
from benchmarks.errors import UsageError
from benchmarks.training.sharpness import largest_hessian_eigenvalue
from benchmarks.training.trials import (
    on_each_core,
    quiet,
    read_records,
    time_per_step,
    train_once,
    versions,
    with_settings,
    write_records,
)

RESULTS = Path(__file__).parents[1] / "results"
NOISE_LEVELS = (0.0, 0.2, 0.4, 0.6)
TUNING_SEED = 1000  # `run` uses 0, 1, 2, ...
BATCH_SIZE = 128
NUM_FOR_SHARPNESS = 1000
RECORDED = (
    *("dataset", "train_size", "model", "epochs", "batch_size"),
    *("learning_rate", "momentum", "weight_decay", "refresh_every"),
)


class Row(NamedTuple):
    """One row of the tables.

    Attributes:
        method: its name in `methods.METHODS`.
        label: how tables and figures spell it.
        first: four settings, of which the best on validation data is kept; empty where nothing is chosen.
        then: a fifth trial, on top of the best of the four.
        epochs: passes over the training data.
        refresh_every: steps between refreshes, as the method's authors have it.
    """

    method: str
    label: str
    first: Sequence[Mapping[str, float]] = ()
    then: Mapping[str, float] | None = None
    epochs: int = 20
    refresh_every: int = 100


def radii(*factors: float, **units: float) -> list[dict[str, float]]:
    """Multiples of the units."""
    return [{name: round(factor * unit, 6) for name, unit in units.items()} for factor in factors]


FOUR = (0.5, 1, 2, 3)
SGD_DECAYS = [{"weight_decay": decay} for decay in (5e-4, 2e-3, 5e-3, 1e-2)]
SAM_DECAYS = [settings | {"weight_decay": 2e-3} for settings in radii(0.5, 1, 2, 4, rho=0.1)]
ASAM_DECAYS = [settings | {"weight_decay": 2e-3} for settings in radii(0.5, 1, 2, 4, rho=1.0)]
STRONGER = {"weight_decay": 5e-3}
FASTER = {"learning_rate": 0.1}
# rho_max is twice rho, as XSAM's authors have it; the fifth trial is another.
XSAM_RADII = radii(*FOUR, rho=0.1, rho_max=0.2)
OTHER_RHO_MAX = {"rho_max": 0.15}
EPOCH = 10_000 // BATCH_SIZE

ROWS = {
    "sgd": Row("sgd", "SGD"),
    "sgd_40": Row("sgd", "SGD, 40 epochs", epochs=40),
    "sam": Row("sam", "SAM", radii(*FOUR, rho=0.1), {"rho": 0.15}),
    "asam": Row("asam", "ASAM", radii(*FOUR, rho=1.0), {"eta": 0.1}),
    "fisher_sam": Row("fisher_sam", "Fisher SAM", radii(*FOUR, rho=0.1), {"eta": 0.1}),
    "info_sam": Row("info_sam", "infoSAM", radii(*FOUR, rho=0.1), {"power": 0.5}),
    "eigen_sam": Row("eigen_sam", "Eigen-SAM", radii(*FOUR, rho=0.1), {"alpha": 0.5}),
    "xsam": Row("xsam", "XSAM", XSAM_RADII, OTHER_RHO_MAX, refresh_every=EPOCH),
    "xsam3": Row("xsam3", "XSAM, 3 steps", XSAM_RADII, OTHER_RHO_MAX, refresh_every=EPOCH),
    "asam_xsam": Row(
        "asam_xsam",
        "ASAM with XSAM's search",
        radii(*FOUR, rho=1.0, rho_max=0.2),
        OTHER_RHO_MAX,
        refresh_every=EPOCH,
    ),
    "sgd_decay": Row("sgd", "SGD, decay tuned", SGD_DECAYS, FASTER),
    "sgd_40_decay": Row("sgd", "SGD, 40 epochs, decay tuned", SGD_DECAYS, FASTER, epochs=40),
    "sam_decay": Row("sam", "SAM, decay tuned", SAM_DECAYS, STRONGER),
    "asam_decay": Row("asam", "ASAM, decay tuned", ASAM_DECAYS, STRONGER),
}


@dataclasses.dataclass(frozen=True)
class Suite:
    """What to do."""

    action: tyro.conf.Positional[Literal["tune", "run", "time"]]
    """One of the suite's three parts."""
    seeds: int = 5
    """Networks trained for each row and noise level."""
    rows: tuple[Literal[*ROWS], ...] = tuple(ROWS)
    """Which methods."""
    noise: tuple[float, ...] = NOISE_LEVELS
    """Fractions of the training labels made wrong."""
    train_size: int = 10_000
    """Training images."""
    epochs: int | None = None
    """Passes over the training data. Left out: 20, or as the row's label says."""
    output: Path = RESULTS
    """Folder of the result files."""
    tuning_file: Path = RESULTS / "suite_tuning.jsonl"
    """Where `tune` writes, and `run` finds the settings."""
    data_dir: Path = data.DEFAULT_DATA_DIR
    """Folder of prepared data sets."""
    download_dir: Path | None = None
    """Folder with the raw files of Fashion-MNIST, in fashion_mnist/."""
    download: bool = False
    """Let TensorFlow Datasets download them."""
    processes: int = os.cpu_count() or 1
    """Networks trained at a time, each on a core of its own."""


def row_config(suite: Suite, name: str, noise: float) -> train.Config:
    """Configuration of a row before anything is chosen."""
    row = ROWS[name]
    return train.Config(
        method=row.method,
        dataset="fashion_mnist",
        train_size=suite.train_size,
        label_noise=noise,
        model="strided_cnn",
        epochs=suite.epochs or row.epochs,
        batch_size=BATCH_SIZE,
        learning_rate=0.05,
        refresh_every=row.refresh_every,
    )


@functools.cache
def load(suite: Suite) -> data.Dataset:
    """The data of all rows."""
    return data.load(
        "fashion_mnist",
        suite.data_dir,
        download_dir=suite.download_dir,
        download=suite.download,
        train_size=suite.train_size,
    )


def make_program(suite: Suite, config: train.Config) -> train.Program:
    """The compiled functions of a configuration; noise levels and seeds share them."""
    shared = dataclasses.replace(config, label_noise=0.0, seed=0)
    key = repr(shared)
    if key not in programs:
        programs[key] = train.make_program(shared, load(suite))
    return programs[key]


programs: dict[str, train.Program] = {}  # of this process


class Job(NamedTuple):
    """One network."""

    suite: Suite
    row: str
    noise: float
    seed: int
    settings: Mapping[str, float]


def train_job(job: Job, *, test: bool) -> dict[str, Any]:
    """Trains a network; validation accuracy, and with `test` what `run` reports."""
    dataset = load(job.suite)
    config = with_settings(row_config(job.suite, job.row, job.noise), job.settings)
    config = dataclasses.replace(config, seed=job.seed)
    program = make_program(job.suite, config)
    noisy = train.add_label_noise(dataset.train, config, dataset.num_classes)
    record = {
        "row": job.row,
        "label_noise": job.noise,
        "seed": job.seed,
        "settings": dict(job.settings),
        "config": {name: getattr(config, name) for name in RECORDED},
        "versions": versions(),
    }
    try:
        for _, state in train_once(program, config, noisy):  # noqa: B007 (the last one is used)
            pass
    except UsageError:
        # No better than guessing; part of the result, not an accident.
        guess = 1 / dataset.num_classes
        record |= {"diverged": True, "validation_accuracy": guess}
        return record | ({"test_accuracy": guess} if test else {})
    record["validation_accuracy"] = train.evaluate(program, state, dataset.validation)["accuracy"]
    if test:
        evaluated = train.evaluate(program, state, dataset.test)
        fitted = train.evaluate(program, state, noisy)
        record |= {
            "test_accuracy": evaluated["accuracy"],
            "test_loss": evaluated["loss"],
            "training_accuracy_on_noisy_labels": fitted["accuracy"],
        }
        few = data.Split(noisy.images[:NUM_FOR_SHARPNESS], noisy.labels[:NUM_FOR_SHARPNESS])
        with contextlib.suppress(ArpackError):  # the Hessian of a dead network is zero
            record["largest_hessian_eigenvalue"] = largest_hessian_eigenvalue(
                training_loss(job.suite), state.params, state.rest, *few
            )
    return record


@functools.cache
def training_loss(suite: Suite):
    """The loss of the network, whatever method trained it: one function, so that it is compiled once."""
    loss = make_program(suite, row_config(suite, "sgd", 0.0)).loss
    return lambda params, rest, images, labels: loss(params, rest, images, labels)[0]


# --- Tuning -------------------------------------------------------------------------------------------


def tune_job(job: tuple[Suite, str, float, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The trials of a row at a noise level that are missing among those there are."""
    suite, name, noise, before = job
    trials = list(before)
    while (settings := next_trial(trials, name, noise)) is not None:
        trials.append(train_job(Job(suite, name, noise, TUNING_SEED, settings), test=False))
    return trials[len(before) :]


def next_trial(trials: list[dict[str, Any]], name: str, noise: float) -> dict[str, float] | None:
    """Settings of the first trial of a row at a noise level that is missing; None if none is."""
    row = ROWS[name]
    own = [trial for trial in trials if (trial["row"], trial["label_noise"]) == (name, noise)]
    wanted = [*row.first]
    first = [trial for trial in own if trial["settings"] in wanted]
    if first and row.then:
        wanted.append({**best(first, name, noise), **row.then})
    made = [trial["settings"] for trial in own]
    return next((settings for settings in wanted if settings not in made), None)


def best(trials: list[dict[str, Any]], name: str, noise: float) -> dict[str, float]:
    """Settings with the highest validation accuracy of a row at a noise level; the first of equals."""
    if not ROWS[name].first:
        return {}
    own = [trial for trial in trials if (trial["row"], trial["label_noise"]) == (name, noise)]
    return max(own, key=lambda trial: trial["validation_accuracy"])["settings"]


def tune(suite: Suite) -> None:
    """Appends the trials that are missing in the tuning file."""
    trials = read_records(suite.tuning_file)
    jobs = []
    for name in suite.rows:
        for noise in suite.noise:
            if next_trial(trials, name, noise) is not None:
                jobs.append((suite, name, noise, trials))
    write_records(suite.tuning_file, trials)  # without a last line that a kill cut short
    for own in on_each_core(tune_job, jobs, suite.processes):
        trials += own
        write_records(suite.tuning_file, trials)


# --- The runs that are reported -----------------------------------------------------------------------


def run_job(job: Job) -> dict[str, Any]:
    """A network of the tables."""
    return train_job(job, test=True)


def run(suite: Suite) -> None:
    """Appends the networks that are missing in the result file, one seed of all rows after another."""
    trials = read_records(suite.tuning_file)
    missing = [
        (name, noise)
        for name in suite.rows
        for noise in suite.noise
        if next_trial(trials, name, noise) is not None
    ]
    if missing:
        raise UsageError(
            f"{suite.tuning_file} lacks trials of {missing}, so the settings are not known; make them with "
            "python -m benchmarks.experiments.suite tune"
        )
    file = suite.output / "suite.jsonl"
    records = read_records(file)
    done = {}
    for record in records:
        done[record["row"], record["label_noise"], record["seed"]] = record["settings"]
    jobs = []
    for seed in range(suite.seeds):
        for noise in suite.noise:
            for name in suite.rows:
                job = Job(suite, name, noise, seed, best(trials, name, noise))
                before = done.get((name, noise, seed))
                if before is not None and before != job.settings:
                    raise UsageError(
                        f"{file} holds {name} with noise {noise} and other settings ({before}) than the "
                        f"tuning file chooses now ({job.settings}); move that file away, or choose "
                        "another --output folder"
                    )
                if before is None:
                    jobs.append(job)
    write_records(file, records)
    for record in on_each_core(run_job, jobs, suite.processes):
        records.append(record)
        write_records(file, records)


def time_rows(suite: Suite) -> None:
    """Seconds a step of every row at 40 % noise, on this machine, with all its cores."""
    trials = read_records(suite.tuning_file)
    noise = 0.4 if 0.4 in suite.noise else suite.noise[0]
    configs = {
        name: with_settings(row_config(suite, name, noise), best(trials, name, noise)) for name in suite.rows
    }
    each = {name: make_program(suite, config) for name, config in configs.items()}
    noisy = train.add_label_noise(load(suite).train, configs[suite.rows[0]], 10)
    seconds = time_per_step(configs, each, noisy)
    write_records(
        suite.output / "suite_time.jsonl",
        [
            {
                "row": name,
                "seconds_per_step": seconds[name],
                "steps": each[name].num_steps,
                "versions": versions() | {"cores": os.cpu_count()},
            }
            for name in suite.rows
        ],
    )


def main() -> None:
    """The command line."""
    suite = tyro.cli(Suite, prog="python -m benchmarks.experiments.suite", description=__doc__)
    quiet()
    try:
        load(suite)  # prepared once, before the workers start
        {"tune": tune, "run": run, "time": time_rows}[suite.action](suite)
    except UsageError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on with what is missing")


if __name__ == "__main__":
    main()
