"""Everything that an accelerator should measure, the most important first, for as long as there is one.

    python -m benchmarks.accelerator --minutes 25 --download-dir FOLDER
    python -m benchmarks.accelerator --tiny           # the same work in miniature, to try it on a CPU
    python -m benchmarks.accelerator --report-only    # the tables of docs/accelerator.md, from the files

After that many minutes it ends as on Ctrl-C. The same command continues where it was: what has been measured
is not repeated, and the long trainings of ResNet-18 continue from a checkpoint in `--work`. In this order:

1. Flops, memory, time to compile and time of a step of the methods in front of SGD, for ResNet-18 in bfloat16
   and for the transformer of `cost/step_cost.py`.
2. ResNet-18 in bfloat16 on all 60,000 images of Fashion-MNIST, one seed: SGD, SAM and Eigen-SAM with the
   settings of Eigen-SAM's authors on CIFAR-100 (`configs/eigen_sam_cifar100_resnet18.toml`), but fewer epochs
   unless `--epochs 200` says otherwise; XSAM with rho_max twice rho, as in its paper. Nothing is chosen here.
3. The setting `cifar_resnet18` of `training/suite_settings.py`, first its rows of SGD and SAM: does SAM beat
   tuned SGD on right labels?
4. The prices of the first suite's rows: the time of a step here; then, with the settings that were chosen for
   the suite, accuracies at 40 % wrong labels.
5. Other seeds of 2, the rest of 3, and the setting `fashion_vit_full`.

It writes several files into one folder for each kind of device, `results/accelerator/<device>/`, in the
format of the programs that do the work: copy that folder to bring the results home. In it are

    step_cost.jsonl                                                    1
    published.jsonl                                                    2, and its other seeds
    suite_cifar_resnet18_tuning.jsonl, suite_cifar_resnet18.jsonl      3, and the rest of it: trials, results
    suite_time.jsonl, suite.jsonl                                      4: time of a step, accuracies
    suite_fashion_vit_full_tuning.jsonl, suite_fashion_vit_full.jsonl  `fashion_vit_full`: trials, results
"""

import dataclasses
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tyro
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.cost import step_cost
from benchmarks.data import sources
from benchmarks.errors import UsageError
from benchmarks.experiments import suite
from benchmarks.reports import accelerator_report
from benchmarks.reports.records import read_records, versions_and_device, write_records
from benchmarks.train import run
from benchmarks.training.config import Config, parse
from benchmarks.training.interrupt import time_limit
from benchmarks.training.suite_settings import SETTINGS
from benchmarks.training.trials import settings_of
from benchmarks.training.workers import quiet

EIGEN_SAM = Path(__file__).parent / "configs" / "eigen_sam_cifar100_resnet18.toml"
METHODS: dict[str, dict[str, Any]] = {
    "sgd": {"method": "sgd", "rho": None, "options": {}},
    "sam": {"method": "sam", "options": {}},
    "eigen_sam": {},
    "xsam": {"method": "xsam", "options": {"rho_max": 0.2}, "refresh_every": 60_000 // 256},  # every epoch
}
FIRST_ROWS = ("sgd", "sgd_tuned", "sam", "sgd_long", "sam_tuned")


class Sizes(NamedTuple):
    """What is measured.

    Attributes:
        cost: of steps, one for each network.
        network: changes to Eigen-SAM's configuration.
        settings: suites on right labels, the first of them before the others.
        prices: setting, noise level and rows whose prices are measured.
    """

    cost: tuple[step_cost.Config, ...]
    network: dict[str, Any]
    settings: tuple[str, ...]
    prices: tuple[str, float, tuple[str, ...]]


COST_ROWS = (
    *("sgd", "sam by hand", "sam", "asam", "info_sam", "sam, ascent on 1/8", "momentum_sam"),
    *("eigen_sam", "eigen_sam, refresh", "eigen_sam, automatic", "xsam", "xsam, refresh", "xsam, automatic"),
)
PRICED = ("sgd", "sam", "part_32", "part_16", "part_8", "look_sam", "momentum_sam", "xsam", "eigen_sam")
FULL = Sizes(
    cost=tuple(
        step_cost.Config(models=(model,), batch_sizes=(128,), rows=COST_ROWS, torch=False)
        for model in ("resnet18", "transformer")
    ),
    network={"dataset": "fashion_mnist", "dtype": "bfloat16", "epochs": 30},
    settings=("cifar_resnet18", "fashion_vit_full"),
    prices=("fashion_mnist", 0.4, PRICED),
)
TINY = Sizes(
    cost=(step_cost.Config(models=("mlp",), batch_sizes=(32,), rows=("sgd", "sam"), rounds=1, torch=False),),
    network={"dataset": "digits", "model": "mlp", "augment": "none", "epochs": 1, "refresh_every": 2},
    settings=("digits",),
    prices=("digits", 0.0, ("sgd", "sam")),
)


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """The work."""

    minutes: float | None = None
    """End after this time. Left out: when all is done."""
    seeds: int = 3
    """Networks trained for each row."""
    epochs: int | None = None
    """Passes of ResNet-18 over the 60,000 images. Left out: 30; their authors made 200."""
    tiny: bool = False
    """The same work in miniature, into the folder of --work; no page is written."""
    report_only: bool = False
    """Measure nothing: write the tables of the page from the files."""
    output: Path | None = None
    """Folder of the result files. Left out: benchmarks/results/accelerator/<device>."""
    work: Path = Path("runs/accelerator")
    """Folder of checkpoints and compiled programs."""
    data_dir: Path = sources.DEFAULT_DATA_DIR
    """Folder of prepared data sets."""
    download_dir: Path | None = None
    """Folder with the raw files, in fashion_mnist/ and cifar10_subset/."""
    download: bool = False
    """Let TensorFlow Datasets download them."""


def folder_of(config: Accelerator) -> Path:
    """Where the result files are."""
    device = re.sub("[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower()).strip("-")
    home = config.work / "tiny" if config.tiny else accelerator_report.FOLDER
    return config.output or home / device


def jobs(config: Accelerator) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yields (what it is, what does it) in the order of importance; each skips what has been measured."""
    sizes, folder = TINY if config.tiny else FULL, folder_of(config)
    common = {"data_dir": config.data_dir, "download_dir": config.download_dir, "download": config.download}

    def rows(setting: str, *names: str) -> Callable[[], None]:
        wanted = suite.Suite(
            "each",
            setting,
            seeds=config.seeds,
            rows=names,
            output=folder,
            tuning_file=folder / f"{SETTINGS[setting].file}_tuning.jsonl",
            processes=1,
            **common,
        )
        return partial(suite.each, wanted)

    def networks(seed: int) -> Iterator[tuple[str, Callable[[], None]]]:
        for row in METHODS:
            job = dataclasses.replace(
                network_config(config, row, seed), resume=True, checkpoint_every=5, **common
            )
            yield f"{job.model}, {row}, seed {seed}", partial(train_network, row, job, folder)

    setting, noise, priced = sizes.prices
    prices = suite.Suite(
        "run",
        setting,
        seeds=config.seeds,
        rows=priced,
        noise=(noise,),
        output=folder,
        # The first suite's were chosen on CPUs.
        tuning_file=folder / f"{SETTINGS[setting].file}_tuning.jsonl" if config.tiny else None,
        processes=1,
        **common,
    )

    for cost in sizes.cost:
        yield f"cost of a step, {cost.models[0]}", partial(measure_cost, cost, folder / "step_cost.jsonl")
    keep_programs(config.work / "programs")  # only now: before, the time to compile is measured
    yield from networks(0)
    yield f"{sizes.settings[0]}, first rows", rows(sizes.settings[0], *FIRST_ROWS)
    if not (folder / f"{SETTINGS[setting].file}_time.jsonl").exists():
        yield f"{setting}, time of a step", partial(suite.time_rows, prices)
    yield f"{setting}, accuracies", partial(suite.run, prices)
    for seed in range(1, config.seeds):
        yield from networks(seed)
    yield f"{sizes.settings[0]}, other rows", rows(sizes.settings[0])
    for name in sizes.settings[1:]:
        yield name, rows(name)


def keep_programs(folder: Path) -> None:
    """Lets the next call find what this one compiles."""
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    compilation_cache.reset_cache()  # JAX looks at the folder once


def measure_cost(config: step_cost.Config, file: Path) -> None:
    """Measures the steps of a network, unless that has been done."""
    (model,), (batch_size,) = config.models, config.batch_sizes
    if not step_cost.is_stored(model, batch_size, file):
        step_cost.write(step_cost.measure(config, model, batch_size), file)


def network_config(config: Accelerator, row: str, seed: int) -> Config:
    """Eigen-SAM's configuration with another data set, and another method."""
    changes = (TINY if config.tiny else FULL).network | METHODS[row]
    if config.epochs is not None:
        changes["epochs"] = config.epochs
    published = dataclasses.replace(parse(["--config", str(EIGEN_SAM)]), seed=seed, **changes)
    name = f"{published.dataset}-{published.model}-{published.epochs}-{row}-{seed}"
    return dataclasses.replace(published, output=config.work / name)


def train_network(row: str, config: Config, folder: Path) -> None:
    """Trains a network, or continues its training, unless its result is there."""
    file = folder / "published.jsonl"
    records = read_records(file)
    wanted = {
        "row": row,
        "label_noise": config.label_noise,
        "seed": config.seed,
        "config": settings_of(config),
    }
    if any(wanted.items() <= record.items() for record in records):
        return
    settings = {"rho": config.rho, "options": config.options, "dtype": config.dtype}
    try:
        end = run(config)
        measured = {"test_accuracy": end["test"]["accuracy"], "test_loss": end["test"]["loss"]}
    except UsageError as error:
        if not str(error).startswith("diverged"):
            raise
        measured = {"diverged": True, "test_accuracy": 0.1}  # guessing
    write_records(file, [*records, wanted | settings | measured | {"versions": versions_and_device()}])


def main() -> None:
    """The command line."""
    config = tyro.cli(Accelerator, prog="python -m benchmarks.accelerator", description=__doc__)
    quiet()
    failure = None
    try:
        if not config.report_only:
            work(config)
    except UsageError as error:
        failure = f"error: {error}"
    except KeyboardInterrupt:
        print("\nstopped; the same command continues with what is missing")
    if not config.tiny:
        accelerator_report.write_page()
        print(f"tables in {accelerator_report.PAGE}, from the files in {accelerator_report.FOLDER}")
    sys.exit(failure)


def work(config: Accelerator) -> None:
    """Does what is missing.

    Raises:
        KeyboardInterrupt: when the time is over.
        UsageError: at the end, if something could not be done, for example for lack of its data.
    """
    began, errors = time.monotonic(), {}
    with time_limit(60 * config.minutes if config.minutes is not None else 0):
        for description, job in jobs(config):
            print(f"[{(time.monotonic() - began) / 60:5.1f} min] {description}", flush=True)
            try:
                job()
            except UsageError as error:
                errors[str(error)] = description
    if errors:
        raise UsageError("; ".join(f"left out: {what}: {error}" for error, what in errors.items()))


if __name__ == "__main__":
    main()
