"""How the defaults of `gradient_noise` were chosen: accuracy on validation images, 40 % wrong labels.

    python -m benchmarks.experiments.info_sam_defaults --download-dir FOLDER    # the folder with mnist/*.gz

3,000 MNIST images and the MLP, each estimator with three radii, compared with SAM; the second line of the
table is the authors' early code (no averaging, no damping). No test images are used.
"""

import dataclasses
import itertools
import statistics
from pathlib import Path

import tyro
from tqdm import tqdm

from benchmarks.data import sources
from benchmarks.data.arrays import load
from benchmarks.records import RESULTS, write_records
from benchmarks.train import add_label_noise, evaluate, train_steps
from benchmarks.training.config import Config
from benchmarks.training.program import make_program

RADII = (0.1, 0.2, 0.4)
AUTHORS = {"decay": 0.9, "variance_decay": 0.0, "damping": 0.0, "power": 1.0}
ESTIMATORS = [
    {"decay": 0.9, "variance_decay": variance_decay, "relative_damping": damping, "power": power}
    for variance_decay, damping, power in itertools.product((0.9, 0.99), (0.1, 1.0), (0.5, 1.0))
] + [{"decay": 0.99, "variance_decay": 0.99, "relative_damping": 1.0, "power": power} for power in (0.5, 1.0)]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The experiment."""

    seeds: int = 2
    """Networks trained for each setting."""
    epochs: int = 30
    """Passes over the training images."""
    data_dir: Path = sources.DEFAULT_DATA_DIR
    """Folder of prepared data sets."""
    download_dir: Path | None = None
    """Folder with the raw files of MNIST, in mnist/."""
    output: Path = RESULTS / "info_sam_defaults.jsonl"
    """Result file, one line per setting."""


def main() -> None:
    """The command line."""
    experiment = tyro.cli(
        Experiment, prog="python -m benchmarks.experiments.info_sam_defaults", description=__doc__
    )
    dataset = load("mnist", experiment.data_dir, download_dir=experiment.download_dir, train_size=3000)
    settings = [("sam", {})] + [("info_sam", options) for options in [AUTHORS, *ESTIMATORS]]
    records = []
    for (method, options), rho in tqdm(list(itertools.product(settings, RADII)), unit="setting"):
        config = Config(
            method=method,
            rho=rho,
            options=options,
            dataset="mnist",
            label_noise=0.4,
            epochs=experiment.epochs,
        )
        program = make_program(config, dataset)
        accuracies = []
        for seed in range(experiment.seeds):
            seeded = dataclasses.replace(config, seed=seed)
            noisy = add_label_noise(dataset.train, seeded, dataset.num_classes)
            for _, state, _ in train_steps(program, noisy, program.init(seed), seed):  # noqa: B007
                pass
            accuracies.append(evaluate(program, state, dataset.validation)["accuracy"])
        records.append(
            {
                "method": method,
                "rho": rho,
                "options": options,
                "epochs": experiment.epochs,
                "validation_accuracies": accuracies,
            }
        )
    write_records(experiment.output, records)

    print(f"{'validation accuracy at rho':60s}" + "".join(f"{rho:8g}" for rho in RADII) + "    best")
    for method, options in settings:
        means = [
            statistics.mean(record["validation_accuracies"])
            for record in records
            if (record["method"], record["options"]) == (method, options)
        ]
        name = " ".join([method, *(f"{key} {value:g}" for key, value in options.items())])
        print(f"{name:60s}" + "".join(f"{mean:8.3f}" for mean in means) + f"{max(means):8.3f}")


if __name__ == "__main__":
    main()
