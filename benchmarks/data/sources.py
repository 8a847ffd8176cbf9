"""Data sets as arrays: prepared once by TensorFlow Datasets, read whole into memory, split, scaled.

Nothing here needs TensorFlow: the files are array_record, read by `tfds.data_source`.

What is held out:

- `test` is TFDS's test split. No choice is ever made by looking at it.
- `validation` is taken out of TFDS's training split by a fixed seed, the same for every run.
  Hyper-parameters are chosen on it. Its labels are right: label noise is put on the training labels
  alone, after the split. (Where wrong labels come with the data, validation labels are wrong too.
  Under symmetric noise that ranks hyper-parameters alike on average, with more variance.)
  Published accuracies are of networks trained on the whole training split: with hyper-parameters already
  chosen, `validation_size=0` holds nothing out.

A data set has to fit into memory as float32: CIFAR takes 0.7 GB, Tiny-ImageNet 5 GB.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from benchmarks.data import svhn
from benchmarks.data.cifar import CIFAR10, CIFAR100, CIFAR10Subset
from benchmarks.data.digits import Digits
from benchmarks.data.image_folder import ImageFolder
from benchmarks.data.mnist import MNIST, FashionMNIST
from benchmarks.errors import UsageError

DEFAULT_DATA_DIR = Path("data")


class Source(NamedTuple):
    """Where a data set comes from.

    Attributes:
        builder: TFDS builder class.
        num_validation: how many training images are held out for validation. None: a tenth.
        files: what the raw files are called; empty where there is nothing to download.
        downloadable: whether TFDS can fetch them.
    """

    builder: Callable[..., tfds.core.DatasetBuilder]
    num_validation: int | None = None
    files: tuple[str, ...] = ()
    downloadable: bool = True


IDX_FILES = tuple(
    f"{part}-{content}-ubyte.gz" for part in ("train", "t10k") for content in ("images-idx3", "labels-idx1")
)
SOURCES = {
    "digits": Source(Digits, num_validation=297),
    "mnist": Source(MNIST, num_validation=10_000, files=IDX_FILES),
    "fashion_mnist": Source(FashionMNIST, num_validation=10_000, files=IDX_FILES),
    "cifar10": Source(CIFAR10, files=("cifar-10-binary.tar.gz",)),
    "cifar10_subset": Source(CIFAR10Subset, files=(CIFAR10Subset.FILE,), downloadable=False),
    "cifar100": Source(CIFAR100, files=("cifar-100-binary.tar.gz",)),
    "svhn_cropped": Source(svhn.SVHNCropped, files=svhn.FILES),
    "image_folder": Source(ImageFolder),
}


class Split(NamedTuple):
    """Images `[n, height, width, channels]` and integer labels `[n]`."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """Images in float32, standardised by the mean and deviation of the training pixels, channel by channel.

    Attributes:
        train: what is trained on.
        validation: what choices are made on; empty if nothing is held out.
        test: what is reported.
        num_classes: how many labels there are.
        mean: what was subtracted from the pixels (0 to 255), `[channels]`.
        deviation: what they were divided by then.
    """

    train: Split
    validation: Split
    test: Split
    num_classes: int
    mean: np.ndarray | float = 0.0
    deviation: np.ndarray | float = 1.0

    @property
    def black(self) -> np.ndarray | float:
        """What a black pixel has become, `[channels]`."""
        return -self.mean / self.deviation


def prepare(
    name: str,
    data_dir: Path = DEFAULT_DATA_DIR,
    download_dir: Path | None = None,
    download: bool = False,
    image_folder: Path | None = None,
    image_size: int = 64,
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
        image_folder: what the data set `image_folder` is made of, see `image_folder.py`.
        image_size: height and width of its images, in pixels.

    Returns:
        The builder, ready for `as_data_source`.

    Raises:
        UsageError: if there is no data set of that name; or it is not prepared, raw files are
            missing and `download` is False; or a raw file is not what TFDS knows.
    """
    if name not in SOURCES:
        raise UsageError(f"no data set {name!r}; choose one of: {', '.join(SOURCES)}")
    source = SOURCES[name]
    data_dir = Path(data_dir).expanduser()
    make_builder = partial(source.builder, data_dir=data_dir, file_format="array_record")
    if name == "image_folder":
        if image_folder is None:
            raise UsageError("which folder? Name the one that holds train/<class>/ with --image-folder")
        make_builder = partial(make_builder, Path(image_folder).expanduser().absolute(), image_size)
    builder = make_builder()
    if builder.data_path.exists():
        return builder

    raw = Path(download_dir).expanduser() / name if download_dir else data_dir / "downloads" / name
    missing = [file for file in source.files if not (raw / file).is_file()]
    if missing and not (download and source.downloadable):
        # TFDS by itself would retry the download for minutes where there is no network.
        fetch = (
            ", or add --download to fetch them"
            if source.downloadable
            else " (nobody offers them for download)"
        )
        raise UsageError(
            f"data set {name!r} is not prepared in {data_dir}, and its raw files are not in {raw} "
            f"(missing: {', '.join(missing)}). Either put them there, or name the folder that "
            f"holds {name}/{missing[0]} with --download-dir{fetch}. "
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
        except NonMatchingChecksumError as error:
            raise UsageError(
                f"a raw file of {name!r} is damaged or another version; remove it and fetch it again. {error}"
            ) from error
        except FileExistsError:
            # Another process has prepared it in the meantime; its files are as good.
            if not builder.data_path.exists():
                raise
            builder = make_builder()
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
    image_folder: Path | None = None,
    image_size: int = 64,
    train_size: int | None = None,
    validation_size: int | None = None,
) -> Dataset:
    """Loads a data set, preparing it first where needed.

    Args:
        name: one of `SOURCES`.
        data_dir: see `prepare`.
        download_dir: see `prepare`.
        download: see `prepare`.
        image_folder: see `prepare`.
        image_size: see `prepare`.
        train_size: keep only this many training images (a fixed random choice). None keeps all.
        validation_size: how many images are held out of the training split. None: as many as `SOURCES` says.

    Returns:
        Training, validation and test arrays.

    Raises:
        UsageError: as `prepare`, or if one of the sizes is more than there is.
    """
    builder = prepare(name, data_dir, download_dir, download, image_folder, image_size)
    whole, test = read(builder, "train"), read(builder, "test")
    order = np.random.default_rng(0).permutation(len(whole.labels))
    if "validation" in builder.info.splits:
        if validation_size is not None:
            raise UsageError(f"{name!r} has a validation split of its own; leave out validation_size")
        kept, validation = order, read(builder, "validation")
    else:
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
