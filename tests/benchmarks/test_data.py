import gzip
import hashlib
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks.data import arrays, cifar, sources
from benchmarks.data.digits import Digits
from benchmarks.errors import UsageError
from tests.benchmarks.archives import CIFAR100_CLASSES, accept, make_cifar
from tests.benchmarks.conftest import REPOSITORY


def as_set(images, labels):
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def test_digits_come_back_as_scikit_learn_has_them(data_dir):
    builder = sources.prepare("digits", data_dir)
    train, test = arrays.read(builder, "train"), arrays.read(builder, "test")

    assert train.images.shape == (1297, 8, 8, 1)
    assert test.images.shape == (500, 8, 8, 1)
    assert train.images.dtype == np.uint8
    original = load_digits()
    together = [np.concatenate(pair) for pair in zip(train, test, strict=True)]
    assert as_set(*together) == as_set(original.images.astype(np.uint8), original.target)


def test_digits_split_is_stratified(data_dir):
    dataset = arrays.load("digits", data_dir)
    share = np.bincount(dataset.test.labels) / 500
    assert np.abs(share - np.bincount(load_digits().target) / 1797).max() < 0.002


def test_splits_are_disjoint_fixed_and_scaled_by_the_training_pixels(data_dir):
    dataset = arrays.load("digits", data_dir)
    again = arrays.load("digits", data_dir)
    jax.tree.map(np.testing.assert_array_equal, dataset, again)

    sizes = [len(split.labels) for split in dataset[:3]]
    assert sizes == [1000, 297, 500]
    assert abs(dataset.train.images.mean()) < 1e-4
    assert abs(dataset.train.images.std() - 1) < 1e-4

    whole = arrays.read(sources.prepare("digits", data_dir), "train")
    order = np.concatenate([dataset.train.labels, dataset.validation.labels])
    assert np.array_equal(np.bincount(order), np.bincount(whole.labels))


def test_train_size_keeps_validation_and_test(data_dir):
    whole, small = arrays.load("digits", data_dir), arrays.load("digits", data_dir, train_size=100)
    assert len(small.train.labels) == 100
    assert np.array_equal(small.validation.labels, whole.validation.labels)
    assert np.array_equal(small.train.labels, whole.train.labels[:100])
    with pytest.raises(UsageError, match="choose 1 to 1000"):
        arrays.load("digits", data_dir, train_size=1001)


def test_validation_size(data_dir):
    nothing, some = (arrays.load("digits", data_dir, validation_size=n) for n in (0, 7))
    assert [len(split.labels) for split in nothing[:3]] == [1297, 0, 500]
    assert [len(split.labels) for split in some[:3]] == [1290, 7, 500]
    assert np.array_equal(
        np.sort(nothing.train.labels), np.sort(np.append(some.train.labels, some.validation.labels))
    )
    with pytest.raises(UsageError, match="choose 0 to 1296"):
        arrays.load("digits", data_dir, validation_size=1297)


def test_nothing_imports_tensorflow(data_dir):
    # In a process of its own: other tests may have imported what imports it.
    program = f"""
import sys
from pathlib import Path
from benchmarks.data import arrays
arrays.load("digits", Path({str(data_dir)!r}))
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize(
    ("name", "download", "message"),
    [
        ("fashion_mnist", False, r"missing: .*train-images-idx3-ubyte.gz.*--download-dir.*--download "),
        ("cifar100", False, r"missing: .*cifar-100-binary.tar.gz.*--download-dir.*--download "),
        ("cifar10_subset", True, r"cifar10_subset.npz.*--download-dir \(nobody offers"),
    ],
)
def test_missing_files_are_named_with_the_remedy_and_nothing_is_written(name, download, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        arrays.load(name, tmp_path, download=download)
    assert not list(tmp_path.iterdir())


def test_unknown_data_set_names_the_known_ones():
    with pytest.raises(UsageError, match=r"digits, mnist, fashion_mnist, cifar10_subset, cifar100"):
        arrays.load("cifar1000")


def test_interrupted_preparation_leaves_no_half_data_set(tmp_path, monkeypatch):
    def broken(self, indices):
        yield from list(Digits._generate_examples_whole(self, indices))[:10]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        whole = Digits._generate_examples
        patch.setattr(Digits, "_generate_examples_whole", whole, raising=False)
        patch.setattr(Digits, "_generate_examples", broken)
        with pytest.raises(KeyboardInterrupt):
            sources.prepare("digits", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(arrays.load("digits", tmp_path).test.labels) == 500


def test_data_set_prepared_by_another_process_meanwhile_is_used(tmp_path, monkeypatch):
    def overtaken(self, indices):
        with monkeypatch.context() as patch:
            patch.setattr(Digits, "_generate_examples", whole)
            if not (tmp_path / "digits" / "1.0.0").exists():
                sources.prepare("digits", tmp_path)
        yield from whole(self, indices)

    whole = Digits._generate_examples
    with monkeypatch.context() as patch:
        patch.setattr(Digits, "_generate_examples", overtaken)
        dataset = arrays.load("digits", tmp_path)
    assert len(dataset.test.labels) == 500


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_are_read_as_they_are(name, raw_files, tmp_path, monkeypatch):
    first = partial(sources.tfds.download.DownloadConfig, max_examples_per_split=50)
    monkeypatch.setattr(sources.tfds.download, "DownloadConfig", first)
    builder = sources.prepare(name, tmp_path, download_dir=raw_files)

    with gzip.open(raw_files / name / "t10k-images-idx3-ubyte.gz") as stream:
        images = np.frombuffer(stream.read(16 + 50 * 784)[16:], np.uint8).reshape(50, 28, 28, 1)
    with gzip.open(raw_files / name / "t10k-labels-idx1-ubyte.gz") as stream:
        labels = np.frombuffer(stream.read(8 + 50)[8:], np.uint8)
    assert as_set(*arrays.read(builder, "test")) == as_set(images, labels)
    assert builder.info.full_name == f"{name}/3.0.1"


def test_the_archive_is_read_as_it_is(tmp_path, monkeypatch):
    raw = tmp_path / "raw" / "cifar100"
    expected = make_cifar(raw)
    with pytest.raises(UsageError, match=r"damaged or another version; remove it.* wrong checksum"):
        sources.prepare("cifar100", tmp_path / "data", download_dir=tmp_path / "raw")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]

    accept(monkeypatch, raw)
    prepared = sources.prepare("cifar100", tmp_path / "data", download_dir=tmp_path / "raw")
    assert prepared.info.full_name == "cifar100/3.0.2"
    assert prepared.info.features["label"].names == CIFAR100_CLASSES
    assert prepared.info.features["coarse_label"].names[0] == "aquatic_mammals"
    for split in ("train", "test"):
        assert as_set(*arrays.read(prepared, split)) == as_set(*expected[split])
    assert "tensorflow" not in sys.modules
    assert arrays.load("cifar100", tmp_path / "data").num_classes == 100


def test_the_builder_is_that_of_tfds():
    """Same features, URLs and checksums, so what one of them has prepared the other one reads."""
    ours, theirs = cifar.CIFAR100(data_dir="nowhere"), cifar.cifar.Cifar100(data_dir="nowhere")
    assert repr(ours.info.features) == repr(theirs.info.features)
    assert ours.info.full_name == theirs.info.full_name
    assert ours.url_infos == theirs.url_infos is not None


def test_colours_are_standardised_one_by_one(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, [[[50, 150, 250]]], (100, 32, 32, 3)).astype(np.uint8)
    images[0, 0, 0] = 0
    labels = np.arange(100) % 10
    raw = tmp_path / "cifar10_subset"
    raw.mkdir()
    np.savez(raw / "cifar10_subset.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(UsageError, match="wrong checksum"):
        arrays.load("cifar10_subset", tmp_path / "data", download_dir=tmp_path)
    digest = hashlib.sha256((raw / "cifar10_subset.npz").read_bytes()).hexdigest()
    monkeypatch.setattr(cifar.CIFAR10Subset, "SHA256", digest)

    dataset = arrays.load("cifar10_subset", tmp_path / "data", download_dir=tmp_path, validation_size=0)
    pixels = dataset.train.images.astype(np.float64)
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), 1, atol=1e-6)
    np.testing.assert_allclose(pixels.min((0, 1, 2)), dataset.black, atol=1e-6)


def test_subset_of_cifar10_is_read_as_it_is(raw_files, tmp_path, monkeypatch):
    if not (raw_files / "cifar10_subset").is_dir():
        pytest.skip(f"no subset of CIFAR-10 in {raw_files}")
    first = partial(sources.tfds.download.DownloadConfig, max_examples_per_split=50)
    monkeypatch.setattr(sources.tfds.download, "DownloadConfig", first)
    builder = sources.prepare("cifar10_subset", tmp_path, download_dir=raw_files)
    with np.load(raw_files / "cifar10_subset" / "cifar10_subset.npz") as stored:
        expected = as_set(stored["x_train"][:50], stored["y_train"][:50])
    assert as_set(*arrays.read(builder, "train")) == expected
    assert builder.info.features["label"].names[3] == "cat"
