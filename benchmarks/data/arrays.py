"""Data sets as arrays: read whole into memory, split into training, validation and test images, standardised.

What is held out:

- `test` is TFDS's test split. No choice is ever made by looking at it.
- `validation` is taken out of TFDS's training split with a fixed seed, the same for every run.
  Hyper-parameters are chosen on it. Its labels are right: label noise is added only to the training
  labels, after the split. (If noisy labels come with the data, validation labels are wrong too.
  Symmetric noise keeps the ranking of hyper-parameters on average, with more variance.)
  Published accuracies come from networks trained on the whole training split: once hyper-parameters are
  chosen, `validation_size=0` holds nothing out.

A data set has to fit into memory as float32: CIFAR takes 0.7 GB.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from benchmarks.data.sources import DEFAULT_DATA_DIR, SOURCES, prepare
from benchmarks.errors import UsageError


class Split(NamedTuple):
    """Images `[n, height, width, channels]` and integer labels `[n]`."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """Images in float32, standardised by mean and deviation of the training pixels, channel by channel."""

    train: Split  # for training
    validation: Split  # for choosing hyper-parameters; empty if nothing is held out
    test: Split  # for the results that are reported
    num_classes: int  # number of classes
    mean: np.ndarray | float = 0.0  # what was subtracted from the pixels (0 to 255), `[channels]`
    deviation: np.ndarray | float = 1.0  # what they were then divided by

    @property
    def black(self) -> np.ndarray | float:
        """The standardised value of a black pixel, `[channels]`."""
        return -self.mean / self.deviation


def read(builder: tfds.core.DatasetBuilder, split: str) -> Split:
    """Reads a whole prepared split into memory."""
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
    validation_size: int | None = None,
) -> Dataset:
    """Loads a data set, after preparing it if needed.

    Args:
        name: one of `SOURCES`.
        data_dir: see `prepare`.
        download_dir: see `prepare`.
        download: see `prepare`.
        train_size: keep only this many training images (a fixed random choice). None keeps all.
        validation_size: how many images are held out of the training split. None: the default in `SOURCES`.

    Returns:
        Training, validation and test arrays.

    Raises:
        UsageError: as in `prepare`, or if one of the sizes is too large.
    """
    builder = prepare(name, data_dir, download_dir, download)
    whole, test = read(builder, "train"), read(builder, "test")
    order = np.random.default_rng(0).permutation(len(whole.labels))
    if validation_size is None:
        validation_size = SOURCES[name].num_validation
    if validation_size is None:
        validation_size = len(order) // 10
    if not 0 <= validation_size < len(order):
        raise UsageError(
            f"validation_size={validation_size}, but {name!r} has {len(order)} training images; "
            f"choose 0 to {len(order) - 1}, or leave it out"
        )
    held_out, kept = np.split(order, [validation_size])
    validation = Split(whole.images[held_out], whole.labels[held_out])
    if train_size is not None and not 0 < train_size <= len(kept):
        raise UsageError(
            f"train_size={train_size}, but {name!r} has {len(kept)} training images beside its "
            f"{len(validation.labels)} validation images; choose 1 to {len(kept)}, or leave it out for all"
        )
    train = Split(whole.images[kept[:train_size]], whole.labels[kept[:train_size]])

    channels = np.moveaxis(train.images, -1, 0).astype(np.float32, order="C")
    mean = np.array([channel.mean() for channel in channels])
    deviation = np.array([channel.std() for channel in channels])

    def standardise(split: Split) -> Split:
        return split._replace(images=(split.images.astype(np.float32) - mean) / deviation)

    return Dataset(
        train=standardise(train),
        validation=standardise(validation),
        test=standardise(test),
        num_classes=builder.info.features["label"].num_classes,
        mean=mean,
        deviation=deviation,
    )
