"""The accuracy suite: every method, four levels of wrong labels, several seeds, on Fashion-MNIST.

    python -m benchmarks.experiments.suite.suite tune    chooses each row's settings on validation data
    python -m benchmarks.experiments.suite.suite run  trains every row with every seed, measures on test data
    python -m benchmarks.experiments.suite.suite each  row after row, tunes it and runs it
    python -m benchmarks.experiments.suite.suite time  measures the time of a step, with the rows taking turns
    python -m benchmarks.experiments.suite.report  tables and figures from the result files, for RESULTS.md

`--setting cifar_resnet_fitted` and others are suites on right labels, with other data and networks; their
protocol is in `experiments/suite/settings.py`. That of the suite itself, with 10,000 training images, the
strided CNN and 20 epochs:

- The usual recipe is learning rate 0.05 and weight decay 5e-4, the same for every row.
- Whatever is chosen is chosen at each noise level from five trials. Sharpness-aware methods: four radii,
  then, with the best of these, another value of the method's own hyper-parameter (infoSAM's power,
  Eigen-SAM's alpha, eta of ASAM and Fisher SAM, XSAM's rho_max; SAM has no other and tries a fifth radius).
- "Decay tuned" rows: SGD tries four weight decays, its own remedy against wrong labels, then a larger
  learning rate; SAM and ASAM try four radii at weight decay 2e-3, then a stronger weight decay.
- Trials are compared by accuracy on 10,000 validation images after the last epoch, with one seed that
  `run` does not use.
- The reported accuracy is measured after the last epoch on the 10,000 test images. Nothing was chosen on it.
- Rows share seeds, and with them initial weights, wrong labels and the order of the batches, so that
  differences between rows can be taken seed by seed.
- "SGD, 40 epochs" costs as much as SAM, which needs two gradients where SGD needs one.

`tune` and `run` append to their files as trials end. If stopped, they continue where they were.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import tyro

from benchmarks.data import sources
from benchmarks.data.arrays import Dataset, Split, load
from benchmarks.errors import UsageError
from benchmarks.experiments.networks import settings_of, time_per_step, train_to_the_end, with_settings
from benchmarks.experiments.suite.rows import best, missing_trials
from benchmarks.experiments.suite.settings import SETTINGS, Setting
from benchmarks.records import RESULTS, Record, read_records, versions_and_device, write_records
from benchmarks.train import add_label_noise, evaluate
from benchmarks.training.config import Config
from benchmarks.training.program import Program, make_program
from benchmarks.training.sharpness import largest_hessian_eigenvalue
from benchmarks.workers import on_each_core, quiet

TUNING_SEED = 1000  # `run` uses 0, 1, 2, ...


@dataclasses.dataclass(frozen=True)
class Suite:
    """The accuracy suite."""

    action: tyro.conf.Positional[Literal["tune", "run", "each", "time"]]
    """One of the suite's parts."""
    setting: Literal[*SETTINGS] = "fashion_mnist"
    """Data, network and recipe."""
    seeds: int = 5
    """Networks trained for each row and noise level."""
    rows: tuple[str, ...] = ()
    """Which methods. Left out: all of the setting."""
    noise: tuple[float, ...] = ()
    """Fractions of the training labels made wrong. Left out: those of the setting."""
    train_size: int | None = None
    """Training images. Left out: those of the setting."""
    epochs: int | None = None
    """Passes over the training data. Left out: those of the row."""
    output: Path = RESULTS
    """Folder of the result files."""
    tuning_file: Path | None = None
    """The file that `tune` writes, and from which `run` reads the settings. Left out: that of results/."""
    data_dir: Path = sources.DEFAULT_DATA_DIR
    """Folder of prepared data sets."""
    download_dir: Path | None = None
    """Folder with the raw files of Fashion-MNIST, in fashion_mnist/."""
    download: bool = False
    """Let TensorFlow Datasets download them."""
    processes: int = os.cpu_count() or 1
    """Number of networks trained at a time, each on its own core."""


def setting_of(suite: Suite) -> Setting:
    """Data, network, recipe and rows."""
    return SETTINGS[suite.setting]


def rows_of(suite: Suite) -> tuple[str, ...]:
    """The names of the rows that are wanted."""
    known = setting_of(suite).rows
    if unknown := [name for name in suite.rows if name not in known]:
        raise UsageError(
            f"the setting {suite.setting!r} has no row {', '.join(unknown)}; its rows are: {', '.join(known)}"
        )
    return suite.rows or tuple(known)


def noise_of(suite: Suite) -> tuple[float, ...]:
    """The noise levels that are wanted."""
    return suite.noise or setting_of(suite).noise


def tuning_file_of(suite: Suite) -> Path:
    """The file of the trials."""
    return suite.tuning_file or RESULTS / f"{setting_of(suite).file}_tuning.jsonl"


def row_config(suite: Suite, name: str, noise: float) -> Config:
    """Configuration of a row before anything is chosen."""
    row = setting_of(suite).rows[name]
    config = Config(
        method=row.method,
        label_noise=noise,
        epochs=suite.epochs or row.epochs,
        refresh_every=row.refresh_every,
        **setting_of(suite).config,
    )
    if suite.train_size is not None:
        config = dataclasses.replace(config, train_size=suite.train_size)
    return with_settings(config, row.fixed)


def dataset_of(suite: Suite) -> Dataset:
    """The data of all rows."""
    # All that matters, so that it is read once for all rows.
    return read_dataset(
        dataclasses.replace(suite, action="run", rows=(), noise=(), output=Path(), tuning_file=None)
    )


@functools.cache
def read_dataset(suite: Suite) -> Dataset:
    """Reads the data of a suite."""
    setting = setting_of(suite)
    config = row_config(suite, next(iter(setting.rows)), 0.0)
    dataset = load(
        config.dataset,
        suite.data_dir,
        download_dir=suite.download_dir,
        download=suite.download,
        train_size=config.train_size,
        validation_size=config.validation_size,
    )
    return with_more_test_images(dataset, setting.more_test)


def with_more_test_images(dataset: Dataset, number: int) -> Dataset:
    """Makes test images of the last ones that were held out of the training split."""
    kept = len(dataset.validation.labels) - number
    parts = zip(dataset.validation, dataset.test, strict=True)
    return dataset._replace(
        validation=Split(*(array[:kept] for array in dataset.validation)),
        test=Split(*(np.concatenate([held_out[kept:], test]) for held_out, test in parts)),
    )


def program_of(suite: Suite, config: Config) -> Program:
    """The compiled functions of a configuration; noise levels and seeds share them."""
    shared = dataclasses.replace(config, label_noise=0.0, seed=0)
    key = repr(shared)
    if key not in programs:
        programs[key] = make_program(shared, dataset_of(suite))
    return programs[key]


programs: dict[str, Program] = {}  # of this process


class Job(NamedTuple):
    """One network."""

    suite: Suite
    row: str
    noise: float
    seed: int
    settings: Mapping[str, float]


def train_job(job: Job, *, test: bool) -> Record:
    """Trains a network; returns its validation accuracy, and with `test` what `run` reports."""
    setting, dataset = setting_of(job.suite), dataset_of(job.suite)
    config = with_settings(row_config(job.suite, job.row, job.noise), job.settings)
    config = dataclasses.replace(config, seed=job.seed)
    program = program_of(job.suite, config)
    noisy = add_label_noise(dataset.train, config, dataset.num_classes)
    record = {
        "row": job.row,
        "label_noise": job.noise,
        "seed": job.seed,
        "settings": dict(job.settings),
        "fixed": dict(setting.rows[job.row].fixed),
        "config": settings_of(config),
        "versions": versions_and_device(),
    }
    try:
        state = train_to_the_end(program, config, noisy)
    except UsageError:
        # A result like any other: no better than guessing.
        guess = 1 / dataset.num_classes
        record |= {"diverged": True, "validation_accuracy": guess}
        return record | ({"test_accuracy": guess} if test else {})
    record["validation_accuracy"] = evaluate(program, state, dataset.validation)["accuracy"]
    if test:
        evaluated = evaluate(program, state, dataset.test)
        fitted = evaluate(program, state, noisy)
        record |= {
            "test_accuracy": evaluated["accuracy"],
            "test_loss": evaluated["loss"],
            "training_accuracy_on_noisy_labels": fitted["accuracy"],
        }
        if setting.sharpness:
            sharpness = largest_hessian_eigenvalue(training_loss(job.suite), state.params, noisy)
            if sharpness > 0:  # the Hessian of a dead network is zero
                record["largest_hessian_eigenvalue"] = sharpness
    return record


@functools.cache
def training_loss(suite: Suite) -> Callable[..., jax.Array]:
    """Params, batch -> loss of the network, whichever method trained it: one function, compiled once."""
    program = program_of(suite, row_config(suite, "sgd", 0.0))
    rest = program.init(0).rest  # of a network without BatchNorm and dropout
    return jax.jit(lambda params, batch: program.loss(params, rest, *batch)[0])


# --- Tuning -------------------------------------------------------------------------------------------


def tune_job(job: Job) -> Record:
    """Trains a network to compare settings."""
    return train_job(job, test=False)


def next_trials(suite: Suite, trials: list[Record]) -> list[Job]:
    """The trials that can be made now; others depend on their results."""
    jobs: list[Job] = []
    for name in rows_of(suite):
        for noise in noise_of(suite):
            for row, settings in missing_trials(trials, name, noise, setting_of(suite).rows):
                job = Job(suite, row, noise, TUNING_SEED, settings)
                if job not in jobs:
                    jobs.append(job)
    return jobs


def tune(suite: Suite) -> None:
    """Appends the trials that are missing from the tuning file."""
    file = tuning_file_of(suite)
    trials = read_records(file)
    while jobs := next_trials(suite, trials):
        for trial in on_each_core(tune_job, jobs, suite.processes):
            trials.append(trial)
            write_records(file, trials)


# --- The runs that are reported -----------------------------------------------------------------------


def run_job(job: Job) -> Record:
    """Trains a network for the tables."""
    return train_job(job, test=True)


def run(suite: Suite) -> None:
    """Appends the networks that are missing from the result file, all rows of one seed after another."""
    trials, rows = read_records(tuning_file_of(suite)), setting_of(suite).rows
    if jobs := next_trials(suite, trials):
        missing = list(dict.fromkeys((job.row, job.noise) for job in jobs))
        raise UsageError(
            f"{tuning_file_of(suite)} lacks trials of {missing}, so the settings are not known; make them "
            "with python -m benchmarks.experiments.suite.suite tune"
        )
    file = suite.output / f"{setting_of(suite).file}.jsonl"
    records = read_records(file)
    done = {}
    for record in records:
        done[record["row"], record["label_noise"], record["seed"]] = record["settings"]
    jobs = []
    for seed in range(suite.seeds):
        for noise in noise_of(suite):
            for name in rows_of(suite):
                job = Job(suite, name, noise, seed, best(trials, name, noise, rows))
                before = done.get((name, noise, seed))
                if before is not None and before != job.settings:
                    raise UsageError(
                        f"{file} has {name} with noise {noise} and other settings ({before}) than those "
                        f"that the tuning file selects now ({job.settings}); move that file away, or choose "
                        "another --output folder"
                    )
                if before is None:
                    jobs.append(job)
    write_records(file, records)
    for record in on_each_core(run_job, jobs, suite.processes):
        records.append(record)
        write_records(file, records)


def each(suite: Suite) -> None:
    """Tunes and runs one row after another, so that what is there at any time is complete."""
    for name in rows_of(suite):
        row = dataclasses.replace(suite, rows=(name,))
        tune(row)
        run(row)


def time_rows(suite: Suite) -> None:
    """Seconds per step of every row at 40 % noise, on this machine, with all its cores."""
    trials, names = read_records(tuning_file_of(suite)), rows_of(suite)
    noise = 0.4 if 0.4 in noise_of(suite) else noise_of(suite)[0]
    configs = {
        name: with_settings(row_config(suite, name, noise), best(trials, name, noise, setting_of(suite).rows))
        for name in names
    }
    each = {name: program_of(suite, config) for name, config in configs.items()}
    noisy = add_label_noise(dataset_of(suite).train, configs[names[0]], 10)
    seconds = time_per_step(configs, each, noisy)
    write_records(
        suite.output / f"{setting_of(suite).file}_time.jsonl",
        [
            {
                "row": name,
                "seconds_per_step": seconds[name],
                "steps": each[name].num_steps,
                "versions": versions_and_device() | {"cores": os.cpu_count()},
            }
            for name in names
        ],
    )


def main() -> None:
    """The command line."""
    suite = tyro.cli(Suite, prog="python -m benchmarks.experiments.suite.suite", description=__doc__)
    quiet()
    try:
        dataset_of(suite)  # prepared once, before the workers start
        {"tune": tune, "run": run, "each": each, "time": time_rows}[suite.action](suite)
    except UsageError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command continues with what is missing")


if __name__ == "__main__":
    main()
