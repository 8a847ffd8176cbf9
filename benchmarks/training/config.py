"""The settings of a training run, their defaults, and files that contain some of them.

    python -m benchmarks.train --config benchmarks/configs/eigen_sam_cifar100_resnet18.toml --seed 1

A file gives settings by name, in TOML; the command line overrides it.
"""

import argparse
import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from benchmarks import methods
from benchmarks.data import sources
from benchmarks.data.augment import AUGMENTATIONS
from benchmarks.errors import UsageError
from benchmarks.models.table import MODELS
from benchmarks.records import RENAMED
from benchmarks.training.parallel import LAYOUTS


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run."""

    method: Literal[*methods.METHODS] = "sam"
    """What goes in front of SGD; sgd itself is the baseline."""
    rho: float | None = None
    """Length of the perturbation. Left out: the method's default."""
    options: dict[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    """Further options of the method, as pairs: --options alpha 0.2 solver lanczos"""
    interval: int = 100
    """Steps from one eigenvector (Eigen-SAM) or alpha-search (XSAM) to the next."""
    ascent_batch: int | None = None
    """Take the clean gradient, which the ascent follows, of this many images of the batch. Left out: all."""
    curvature_batch: int | None = None
    """Take the Hessian, for an eigenvector, of this many images of the batch. Left out: all."""
    ascent_outside: bool = False
    """A control: take it of images of the next batch."""
    groups: int | None = None
    """Give each of so many groups of the batch its own perturbation (m-sharpness). Methods that follow a
    remembered gradient have the same in all. Left out: one group."""
    functional: bool = False
    """Keep the loss's derivative by the outputs of the clean pass in the second one (Functional SAM)."""
    monitor: int | None = None
    """Record norms, sharpness, alignment and curvature every this many steps. Left out: never."""

    dataset: Literal[*sources.SOURCES] = "digits"
    """Data set; digits is bundled, the others need files (--download-dir, --download)."""
    train_size: int | None = None
    """Train on this many images only."""
    validation_size: int | None = None
    """Training images held out for choosing settings. 0 trains on all images. Left out: usually a tenth."""
    label_noise: float = 0.0
    """Fraction of the training labels made wrong. Validation and test labels stay right."""
    augment: Literal[*AUGMENTATIONS] = "none"
    """Random changes of the training images, the same in all gradients of a step."""
    model: Literal[*MODELS] = "mlp"
    """Network."""
    model_options: dict[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    """Options of the network, as pairs: --model-options width 32"""
    pretrained: Path | None = None
    """File of published weights for vit_b16 or minilm to start from, .safetensors."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network's computations. Parameters, loss and optimizer use float32."""

    epochs: int = 100
    """Passes over the training data."""
    batch_size: int = 100
    """Images per step; the last, smaller batch of an epoch is left out."""
    learning_rate: float = 0.1
    """Initial learning rate; it falls to 0 along a cosine."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The base optimizer, to which the method passes its gradient."""
    momentum: float = 0.9
    """Momentum of SGD."""
    label_smoothing: float = 0.0
    """Share of each training label that is spread evenly over all classes."""
    weight_decay: float = 5e-4
    """Weight decay after the method: added to the gradient (sgd), or decoupled from it (adamw)."""
    seed: int = 0
    """Seeds initial weights, noisy labels, the order of the batches and their augmentation."""

    devices: int | Literal["all"] = 1
    """How many devices share each batch. The result is the same as on one device, up to rounding."""
    parallel: Literal[*LAYOUTS] = "data"
    """data: jit with a sharded batch; fsdp: parameters and optimizer state sharded too; pmap: jax.pmap."""

    output: Path | None = None
    """Folder of metrics and checkpoints. Left out: a folder under runs/ named after the run."""
    data_dir: Path = sources.DEFAULT_DATA_DIR
    """Folder of prepared data sets."""
    download_dir: Path | None = None
    """Folder with raw files that you already have, in <download-dir>/<dataset>/."""
    download: bool = False
    """Let TensorFlow Datasets download raw files that are missing."""
    checkpoint_every: int = 10
    """Epochs from one checkpoint to the next."""
    resume: bool = False
    """Continue the run in the output folder from its last checkpoint, if any; on any number of devices."""


# What may differ between a run and its continuation.
NOT_PART_OF_THE_RUN = (
    "devices",
    "parallel",
    "output",
    "data_dir",
    "download_dir",
    "download",
    "checkpoint_every",
    "resume",
)


def parse(arguments: Sequence[str] | None = None, description: str | None = None) -> Config:
    """Reads a command line.

    Args:
        arguments: its words. Left out: this process's.
        description: for `--help`.

    Raises:
        UsageError: if the file that `--config` names cannot be used.
    """
    program = "python -m benchmarks.train"
    before = argparse.ArgumentParser(prog=program, add_help=False, allow_abbrev=False)
    before.add_argument("--config", type=Path)
    file, words = before.parse_known_args(arguments)
    in_file = [] if file.config is None else read(file.config)
    # The file alone first, so that its errors are not reported as errors of the command line.
    tyro.cli(Config, args=in_file, prog=f"{program} --config {file.config}")
    return tyro.cli(Config, args=[*in_file, *words], prog=program, description=description)


def read(file: Path) -> list[str]:
    """Reads a file of settings, as words of a command line.

    Raises:
        UsageError: if it cannot be read, or names an unknown setting.
    """
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {file} is not TOML: {error}") from error
    settings = {RENAMED.get(name, name): value for name, value in settings.items()}
    known = [field.name for field in dataclasses.fields(Config)]
    if unknown := sorted(set(settings) - set(known)):
        raise UsageError(
            f"--config {file}: no setting is called {', '.join(unknown)}; there are {', '.join(known)}"
        )
    words = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, dict):
            words += [f"--{option}", *(str(word) for pair in value.items() for word in pair)]
        else:
            words += [f"--{option}", str(value)]
    return words
