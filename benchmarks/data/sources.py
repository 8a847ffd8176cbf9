"""The sources of data sets: TensorFlow Datasets prepares each of them once, from raw files.

None of this needs TensorFlow: the prepared files are in the array_record format.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from benchmarks.data.cifar import CIFAR100, CIFAR10Subset
from benchmarks.data.digits import Digits
from benchmarks.data.mnist import MNIST, FashionMNIST
from benchmarks.data.sentences import SST2, Trec
from benchmarks.errors import UsageError

DEFAULT_DATA_DIR = Path("data")


class Source(NamedTuple):
    """The source of a data set."""

    builder: Callable[..., tfds.core.DatasetBuilder]  # TFDS builder class
    num_validation: int | None = None  # how many training images are held out for validation. None: a tenth
    files: tuple[str, ...] = ()  # names of the raw files; empty if there is nothing to download
    downloadable: bool = True  # whether TFDS can fetch them
    folder: str | None = None  # of the raw files. None: the name of the data set


IDX_FILES = tuple(
    f"{part}-{content}-ubyte.gz" for part in ("train", "t10k") for content in ("images-idx3", "labels-idx1")
)
SOURCES = {
    "digits": Source(Digits, num_validation=297),
    "mnist": Source(MNIST, num_validation=10_000, files=IDX_FILES),
    "fashion_mnist": Source(FashionMNIST, num_validation=10_000, files=IDX_FILES),
    "cifar10_subset": Source(CIFAR10Subset, files=(CIFAR10Subset.FILE,), downloadable=False),
    "cifar100": Source(CIFAR100, files=("cifar-100-binary.tar.gz",)),
}
TEXTS = {
    builder.name: Source(
        builder,
        num_validation=500,
        files=tuple(file for file, _ in builder.FILES.values()),
        downloadable=False,
        folder="text",
    )
    for builder in (Trec, SST2)
}


def prepare(
    name: str, data_dir: Path = DEFAULT_DATA_DIR, download_dir: Path | None = None, download: bool = False
) -> tfds.core.DatasetBuilder:
    """Prepares a data set in `data_dir`, unless it is already there.

    TFDS writes into a temporary folder and renames it at the end, so an interrupted call leaves no
    half-prepared data set behind.

    Args:
        name: one of `SOURCES` or `TEXTS`.
        data_dir: folder of prepared data sets, in `<data_dir>/<name>/<version>`.
        download_dir: folder of raw files, in `<download_dir>/<name>`, those of texts in `text`; they are only
            read, and their checksums are compared with TFDS's.
        download: let TFDS download raw files that are missing.

    Returns:
        The builder, ready for `as_data_source`.

    Raises:
        UsageError: if there is no data set of that name; or if it is not prepared, raw files are
            missing and `download` is False; or if a raw file has another checksum than in TFDS.
    """
    known = SOURCES | TEXTS
    if name not in known:
        raise UsageError(f"no data set {name!r}; choose one of: {', '.join(known)}")
    source = known[name]
    data_dir = Path(data_dir).expanduser()
    make_builder = partial(source.builder, data_dir=data_dir, file_format="array_record")
    builder = make_builder()
    if builder.data_path.exists():
        return builder

    folder = source.folder or name
    raw = Path(download_dir).expanduser() / folder if download_dir else data_dir / "downloads" / folder
    missing = [file for file in source.files if not (raw / file).is_file()]
    if missing and not (download and source.downloadable):
        # TFDS itself would retry the download for minutes if there is no network.
        fetch = (
            ", or add --download to fetch them"
            if source.downloadable
            else " (nobody offers them for download)"
        )
        raise UsageError(
            f"data set {name!r} is not prepared in {data_dir}, and its raw files are not in {raw} "
            f"(missing: {', '.join(missing)}). Either put them there, or name the folder that "
            f"holds {folder}/{missing[0]} with --download-dir{fetch}. "
            "Or use --dataset digits, which needs no files."
        )
    # TFDS always creates its download folders: temporary ones if nothing is downloaded.
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
            # Another process has prepared it in the meantime; its files are the same.
            if not builder.data_path.exists():
                raise
            builder = make_builder()
    return builder
