"""Raw files in the formats of CIFAR and SVHN, a few random images each."""

import io
import tarfile

import numpy as np
import scipy.io
from tensorflow_datasets.core.download.checksums import compute_url_info

from benchmarks.data import cifar, svhn
from benchmarks.data.label_noise import CIFAR100_SUPERCLASSES

CIFAR100_CLASSES = sorted(name for names in CIFAR100_SUPERCLASSES.values() for name in names)


def random_images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)


def make_cifar(folder, builder, num_train=20, num_test=5):
    """Writes the archive of CIFAR-10 or CIFAR-100; returns the images and the labels of its splits."""
    if builder is cifar.CIFAR10:
        prefix, archive = "cifar-10-batches-bin/", "cifar-10-binary.tar.gz"
        train_files, test_file = [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"
        names = {"batches.meta.txt": cifar.CIFAR10_CLASSES}
        sizes = [10]
    else:
        prefix, archive = "cifar-100-binary/", "cifar-100-binary.tar.gz"
        train_files, test_file = ["train.bin"], "test.bin"
        names = {
            "coarse_label_names.txt": sorted(CIFAR100_SUPERCLASSES),
            "fine_label_names.txt": CIFAR100_CLASSES,
        }
        sizes = [20, 100]

    splits, contents = {}, {}
    for split, n, files in (("train", num_train, train_files), ("test", num_test, [test_file])):
        images = random_images(n, seed=n)
        labels = np.stack([np.arange(n) % size for size in sizes], axis=1).astype(np.uint8)
        splits[split] = images, labels[:, -1]
        records = np.concatenate([labels, images.transpose(0, 3, 1, 2).reshape(n, -1)], axis=1)
        contents |= {
            file: part.tobytes()
            for file, part in zip(files, np.array_split(records, len(files)), strict=True)
        }
    contents |= {file: "\n".join([*labels, "", ""]).encode() for file, labels in names.items()}

    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / archive, "w:gz") as tar:
        for file, content in contents.items():
            member = tarfile.TarInfo(prefix + file)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return splits


def make_svhn(folder, num_train=20, num_test=5):
    """Writes the .mat files; returns the images and the digits of the splits."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, n in (("train", num_train), ("test", num_test)):
        images, digits = random_images(n, seed=n), np.arange(n) % 10
        stored = {"X": np.moveaxis(images, 0, -1), "y": np.where(digits == 0, 10, digits)[:, None]}
        scipy.io.savemat(folder / f"{split}_32x32.mat", stored)
        splits[split] = images, digits
    return splits


def accept(monkeypatch, builder, folder):
    """Lets a builder accept the files of a folder instead of the official ones."""
    base = svhn.original.URL if builder is svhn.SVHNCropped else "https://www.cs.toronto.edu/~kriz/"
    infos = {base + path.name: compute_url_info(path) for path in folder.iterdir()}
    monkeypatch.setattr(builder, "url_infos", infos)
