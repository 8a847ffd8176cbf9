"""Data sets as arrays: prepared once by TensorFlow Datasets, read whole into memory, split, scaled.

Nothing here needs TensorFlow: the files are array_record, read by `tfds.data_source`.

What is held out:

- `test` is TFDS's test split. No choice is ever made by looking at it.
- `validation` is taken out of TFDS's training split by a fixed seed, the same for every run.
  Hyper-parameters are chosen on it. Its labels are right: label noise is put on the training labels
  alone, after the split. (Where wrong labels come with the data, validation labels are wrong too.
  Under symmetric noise that ranks hyper-parameters alike on average, with more variance.)
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tensorflow_datasets as tfds

from benchmarks.digits import Digits
from benchmarks.errors import UsageError
from benchmarks.mnist import MNIST, FashionMNIST

DEFAULT_DATA_DIR = Path("data")


class Source(NamedTuple):
    """Where a data set comes from.

    Attributes:
        builder: TFDS builder class.
        num_validation: how many training images are held out for validation.
        files: what the raw files are called; empty where there is nothing to download.
    """

    builder: Callable[..., tfds.core.DatasetBuilder]
    num_validation: int
    files: tuple[str, ...] = ()


IDX_FILES = tuple(
    f"{part}-{content}-ubyte.gz" for part in ("train", "t10k") for content in ("images-idx3", "labels-idx1")
)
SOURCES = {
    "digits": Source(Digits, num_validation=297),
    "mnist": Source(MNIST, num_validation=10_000, files=IDX_FILES),
    "fashion_mnist": Source(FashionMNIST, num_validation=10_000, files=IDX_FILES),
}


class Split(NamedTuple):
    """Images `[n, height, width, channels]` and integer labels `[n]`."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """Images in float32, standardised by the mean and deviation of the training pixels."""

    train: Split
    validation: Split
    test: Split
    num_classes: int


def prepare(
    name: str,
    data_dir: Path = DEFAULT_DATA_DIR,
    download_dir: Path | None = None,
    download: bool = False,
) -> tfds.core.DatasetBuilder:
    """Makes sure that a data set lies prepared in `data_dir`; a no-op where it does.

    TFDS writes into a temporary folder and renames it at the end, so an interrupted call leaves no
    half-prepared data set behind.

    Args:
        name: one of `SOURCES`.
        data_dir: where prepared data sets lie, `<data_dir>/<name>/<version>`.
        download_dir: where raw files lie, `<download_dir>/<name>`; they are only read, and their
            checksums compared with TFDS's.
        download: let TFDS download raw files that are missing.

    Returns:
        The builder, ready for `as_data_source`.

    Raises:
        UsageError: if there is no data set of that name; or it is not prepared, raw files are
            missing and `download` is False.
    """
    if name not in SOURCES:
        raise UsageError(f"no data set {name!r}; choose one of: {', '.join(SOURCES)}")
    source = SOURCES[name]
    data_dir = Path(data_dir).expanduser()
    builder = source.builder(data_dir=data_dir, file_format="array_record")
    if builder.data_path.exists():
        return builder

    raw = Path(download_dir).expanduser() / name if download_dir else data_dir / "downloads" / name
    missing = [file for file in source.files if not (raw / file).is_file()]
    if missing and not download:
        # TFDS by itself would retry the download for minutes where there is no network.
        raise UsageError(
            f"data set {name!r} is not prepared in {data_dir}, and its raw files are not in {raw} "
            f"(missing: {', '.join(missing)}). Either put them there, or name the folder that "
            f"holds {name}/{missing[0]} with --download-dir, or add --download to fetch them. "
            "Or use --dataset digits, which needs no files."
        )
    # TFDS makes its download folders in any case: where they stay empty, they go again.
    with tempfile.TemporaryDirectory() as scratch:
        try:
            builder.download_and_prepare(
                download_dir=data_dir / "downloads" if download else scratch,
                download_config=tfds.download.DownloadConfig(
                    manual_dir=raw,
                    extract_dir=scratch,
                    force_checksums_validation=True,
                    try_download_gcs=False,
                ),
                file_format="array_record",
            )
        except FileExistsError:
            # Another process has prepared it in the meantime; its files are as good.
            if not builder.data_path.exists():
                raise
            builder = source.builder(data_dir=data_dir, file_format="array_record")
    return builder


def read(builder: tfds.core.DatasetBuilder, split: str) -> Split:
    """Reads a prepared split whole into memory."""
    source = builder.as_data_source(split)
    examples = source.__getitems__(range(len(source)))
    return Split(
        np.stack([example["image"] for example in examples]),
        np.array([example["label"] for example in examples], np.int32),
    )


def load(
    name: str,
    data_dir: Path = DEFAULT_DATA_DIR,
    *,
    download_dir: Path | None = None,
    download: bool = False,
    train_size: int | None = None,
) -> Dataset:
    """Loads a data set, preparing it first where needed.

    Args:
        name: one of `SOURCES`.
        data_dir: see `prepare`.
        download_dir: see `prepare`.
        download: see `prepare`.
        train_size: keep only this many training images (a fixed random choice). None keeps all.

    Returns:
        Training, validation and test arrays.

    Raises:
        UsageError: as `prepare`, or if `train_size` is more than there is.
    """
    builder = prepare(name, data_dir, download_dir, download)
    whole, test = read(builder, "train"), read(builder, "test")
    order = np.random.default_rng(0).permutation(len(whole.labels))
    held_out, kept = np.split(order, [SOURCES[name].num_validation])
    if train_size is not None and not 0 < train_size <= len(kept):
        raise UsageError(
            f"train_size={train_size}, but {name!r} has {len(kept)} training images beside its "
            f"{len(held_out)} validation images; choose 1 to {len(kept)}, or leave it out for all"
        )
    kept = kept[:train_size]

    pixels = whole.images[kept].astype(np.float32)
    mean, deviation = pixels.mean(), pixels.std()

    def standardise(images: np.ndarray) -> np.ndarray:
        return (images.astype(np.float32) - mean) / deviation

    return Dataset(
        train=Split(standardise(whole.images[kept]), whole.labels[kept]),
        validation=Split(standardise(whole.images[held_out]), whole.labels[held_out]),
        test=Split(standardise(test.images), test.labels),
        num_classes=builder.info.features["label"].num_classes,
    )


def symmetric_label_noise(
    labels: jax.Array | np.ndarray, key: jax.Array, fraction: float, num_classes: int
) -> jax.Array:
    """Makes a fraction of the labels wrong, uniformly among the other classes.

    For training labels only. `round(fraction * n)` labels change, each to a class not its own.

    Args:
        labels: integers in `[0, num_classes)`.
        key: random key; the same key gives the same wrong labels.
        fraction: of the labels to make wrong, in `[0, 1]`.
        num_classes: at least 2.

    Returns:
        Labels of the same shape and type.

    Raises:
        UsageError: if `fraction` is not in `[0, 1]` or there is no other class.
    """
    if not 0 <= fraction <= 1:
        raise UsageError(f"the fraction of wrong labels is {fraction}; it must be in [0, 1]")
    if num_classes < 2:
        raise UsageError(f"with {num_classes} class no label can be wrong; use at least 2 classes")
    labels = jax.numpy.asarray(labels)
    which, shift = jax.random.split(key)
    chosen = jax.random.permutation(which, labels.size)[: round(fraction * labels.size)]
    shifts = jax.random.randint(shift, chosen.shape, 1, num_classes, labels.dtype)
    return labels.at[chosen].set((labels[chosen] + shifts) % num_classes)
