"""A raw file in the format of CIFAR-100, with a few random images."""

import io
import tarfile

import numpy as np
from tensorflow_datasets.core.download.checksums import compute_url_info

from benchmarks.data import cifar

CIFAR100_CLASSES = [f"class_{i:02d}" for i in range(100)]
SUPERCLASSES = ["aquatic_mammals", *(f"superclass_{i:02d}" for i in range(1, 20))]


def make_cifar(folder, num_train=20, num_test=5):
    """Writes the archive of CIFAR-100; returns the images and the labels of its splits."""
    splits, contents = {}, {}
    for split, n in (("train", num_train), ("test", num_test)):
        images = np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), np.uint8)
        labels = np.stack([np.arange(n) % size for size in (20, 100)], axis=1).astype(np.uint8)
        splits[split] = images, labels[:, -1]
        records = np.concatenate([labels, images.transpose(0, 3, 1, 2).reshape(n, -1)], axis=1)
        contents[f"{split}.bin"] = records.tobytes()
    names = {"coarse_label_names.txt": SUPERCLASSES, "fine_label_names.txt": CIFAR100_CLASSES}
    contents |= {file: "\n".join([*labels, "", ""]).encode() for file, labels in names.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "cifar-100-binary.tar.gz", "w:gz") as tar:
        for file, content in contents.items():
            member = tarfile.TarInfo(f"cifar-100-binary/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return splits


def accept(monkeypatch, folder):
    """Lets the builder accept the files of a folder instead of the official ones."""
    base = "https://www.cs.toronto.edu/~kriz/"
    infos = {base + path.name: compute_url_info(path) for path in folder.iterdir()}
    monkeypatch.setattr(cifar.CIFAR100, "url_infos", infos)
