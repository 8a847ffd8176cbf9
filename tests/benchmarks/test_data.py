import gzip
import sys
from functools import partial

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks import data
from benchmarks.digits import Digits
from benchmarks.errors import UsageError


def as_set(images, labels):
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def test_digits_come_back_as_scikit_learn_has_them(data_dir):
    builder = data.prepare("digits", data_dir)
    train, test = data.read(builder, "train"), data.read(builder, "test")

    assert train.images.shape == (1297, 8, 8, 1)
    assert test.images.shape == (500, 8, 8, 1)
    assert train.images.dtype == np.uint8
    original = load_digits()
    together = [np.concatenate(pair) for pair in zip(train, test, strict=True)]
    assert as_set(*together) == as_set(original.images.astype(np.uint8), original.target)


def test_digits_split_is_stratified(data_dir):
    dataset = data.load("digits", data_dir)
    share = np.bincount(dataset.test.labels) / 500
    assert np.abs(share - np.bincount(load_digits().target) / 1797).max() < 0.002


def test_splits_are_disjoint_fixed_and_scaled_by_the_training_pixels(data_dir):
    dataset = data.load("digits", data_dir)
    again = data.load("digits", data_dir)
    jax.tree.map(np.testing.assert_array_equal, dataset, again)

    sizes = [len(split.labels) for split in dataset[:3]]
    assert sizes == [1000, 297, 500]
    assert abs(dataset.train.images.mean()) < 1e-4
    assert abs(dataset.train.images.std() - 1) < 1e-4

    whole = data.read(data.prepare("digits", data_dir), "train")
    order = np.concatenate([dataset.train.labels, dataset.validation.labels])
    assert np.array_equal(np.bincount(order), np.bincount(whole.labels))


def test_train_size_keeps_validation_and_test(data_dir):
    whole, small = data.load("digits", data_dir), data.load("digits", data_dir, train_size=100)
    assert len(small.train.labels) == 100
    assert np.array_equal(small.validation.labels, whole.validation.labels)
    assert np.array_equal(small.train.labels, whole.train.labels[:100])
    with pytest.raises(UsageError, match="choose 1 to 1000"):
        data.load("digits", data_dir, train_size=1001)


def test_nothing_imports_tensorflow(data_dir):
    data.load("digits", data_dir)
    assert "tensorflow" not in sys.modules


def test_missing_files_are_named_with_the_remedy_and_nothing_is_written(tmp_path):
    with pytest.raises(UsageError, match=r"train-images-idx3-ubyte.gz.*--download-dir.*--download "):
        data.load("fashion_mnist", tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_data_set_names_the_known_ones():
    with pytest.raises(UsageError, match="digits, mnist, fashion_mnist"):
        data.load("cifar1000")


def test_wrong_raw_files_are_refused_and_leave_no_data_set(tmp_path):
    raw = tmp_path / "raw" / "mnist"
    raw.mkdir(parents=True)
    for file in data.IDX_FILES:
        with gzip.open(raw / file, "wb") as stream:
            stream.write(b"not an idx file")
    with pytest.raises(Exception, match="wrong checksum"):
        data.load("mnist", tmp_path / "data", download_dir=tmp_path / "raw")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_interrupted_preparation_leaves_no_half_data_set(tmp_path, monkeypatch):
    def broken(self, indices):
        yield from list(Digits._generate_examples_whole(self, indices))[:10]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        whole = Digits._generate_examples
        patch.setattr(Digits, "_generate_examples_whole", whole, raising=False)
        patch.setattr(Digits, "_generate_examples", broken)
        with pytest.raises(KeyboardInterrupt):
            data.prepare("digits", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(data.load("digits", tmp_path).test.labels) == 500


def test_data_set_prepared_by_another_process_meanwhile_is_used(tmp_path, monkeypatch):
    def overtaken(self, indices):
        with monkeypatch.context() as patch:
            patch.setattr(Digits, "_generate_examples", whole)
            if not (tmp_path / "digits" / "1.0.0").exists():
                data.prepare("digits", tmp_path)
        yield from whole(self, indices)

    whole = Digits._generate_examples
    with monkeypatch.context() as patch:
        patch.setattr(Digits, "_generate_examples", overtaken)
        dataset = data.load("digits", tmp_path)
    assert len(dataset.test.labels) == 500


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_are_read_as_they_are(name, raw_files, tmp_path, monkeypatch):
    first = partial(data.tfds.download.DownloadConfig, max_examples_per_split=50)
    monkeypatch.setattr(data.tfds.download, "DownloadConfig", first)
    builder = data.prepare(name, tmp_path, download_dir=raw_files)

    with gzip.open(raw_files / name / "t10k-images-idx3-ubyte.gz") as stream:
        images = np.frombuffer(stream.read(16 + 50 * 784)[16:], np.uint8).reshape(50, 28, 28, 1)
    with gzip.open(raw_files / name / "t10k-labels-idx1-ubyte.gz") as stream:
        labels = np.frombuffer(stream.read(8 + 50)[8:], np.uint8)
    assert as_set(*data.read(builder, "test")) == as_set(images, labels)
    assert builder.info.full_name == f"{name}/3.0.1"


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4, 1.0])
def test_label_noise_changes_exactly_the_fraction(fraction):
    labels = np.arange(1000) % 10
    noisy = data.symmetric_label_noise(labels, jax.random.key(0), fraction, 10)
    assert (np.asarray(noisy) != labels).sum() == round(1000 * fraction)
    assert noisy.dtype == labels.dtype or noisy.dtype == np.int32
    assert noisy.min() >= 0
    assert noisy.max() < 10


def test_label_noise_is_uniform_over_the_other_classes():
    labels = np.zeros(90_000, np.int32)
    noisy = data.symmetric_label_noise(labels, jax.random.key(1), 1.0, 10)
    counts = np.bincount(noisy, minlength=10)
    assert counts[0] == 0
    # 9 classes, expected 10,000 each, standard deviation 94.
    assert np.abs(counts[1:] - 10_000).max() < 5 * 94


def test_label_noise_depends_on_the_key_alone():
    labels = np.arange(100) % 10
    noisy = [data.symmetric_label_noise(labels, jax.random.key(k), 0.4, 10) for k in (0, 0, 1)]
    assert np.array_equal(noisy[0], noisy[1])
    assert not np.array_equal(noisy[0], noisy[2])


def test_impossible_label_noise_is_refused():
    with pytest.raises(UsageError, match=r"must be in \[0, 1\]"):
        data.symmetric_label_noise(np.zeros(3, int), jax.random.key(0), 40, 10)
    with pytest.raises(UsageError, match="at least 2 classes"):
        data.symmetric_label_noise(np.zeros(3, int), jax.random.key(0), 0.4, 1)
