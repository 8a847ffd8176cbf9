import jax
import numpy as np
import pytest

from benchmarks.data import label_noise
from benchmarks.data.cifar import CIFAR10_CLASSES
from benchmarks.errors import UsageError


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4, 1.0])
def test_label_noise_changes_exactly_the_fraction(fraction):
    labels = np.arange(1000) % 10
    noisy = label_noise.symmetric(labels, jax.random.key(0), fraction, 10)
    assert (np.asarray(noisy) != labels).sum() == round(1000 * fraction)
    assert noisy.dtype == labels.dtype or noisy.dtype == np.int32
    assert noisy.min() >= 0
    assert noisy.max() < 10


def test_label_noise_is_uniform_over_the_other_classes():
    labels = np.zeros(90_000, np.int32)
    noisy = label_noise.symmetric(labels, jax.random.key(1), 1.0, 10)
    counts = np.bincount(noisy, minlength=10)
    assert counts[0] == 0
    # 9 classes, expected 10,000 each, standard deviation 94.
    assert np.abs(counts[1:] - 10_000).max() < 5 * 94


def test_label_noise_depends_on_the_key_alone():
    labels = np.arange(100) % 10
    noisy = [label_noise.symmetric(labels, jax.random.key(k), 0.4, 10) for k in (0, 0, 1)]
    assert np.array_equal(noisy[0], noisy[1])
    assert not np.array_equal(noisy[0], noisy[2])


def test_impossible_label_noise_is_refused():
    with pytest.raises(UsageError, match=r"must be in \[0, 1\]"):
        label_noise.symmetric(np.zeros(3, int), jax.random.key(0), 40, 10)
    with pytest.raises(UsageError, match="at least 2 classes"):
        label_noise.symmetric(np.zeros(3, int), jax.random.key(0), 0.4, 1)
    with pytest.raises(UsageError, match=r"must be in \[0, 1\]"):
        label_noise.asymmetric(np.zeros(3, int), jax.random.key(0), -0.1, np.array([1, 0]))


def test_asymmetric_noise_of_cifar10_is_that_of_the_paper():
    wrong = label_noise.mistaken_for("cifar10", 10)
    names = {CIFAR10_CLASSES[c]: CIFAR10_CLASSES[w] for c, w in enumerate(wrong) if c != w}
    assert names == {
        "truck": "automobile",
        "bird": "airplane",
        "deer": "horse",
        "cat": "dog",
        "dog": "cat",
    }


def test_asymmetric_noise_of_cifar100_goes_round_in_each_superclass():
    wrong = label_noise.mistaken_for("cifar100", 100)
    names = sorted(name for group in label_noise.CIFAR100_SUPERCLASSES.values() for name in group)
    assert len(set(names)) == 100
    superclass = {name: key for key, group in label_noise.CIFAR100_SUPERCLASSES.items() for name in group}
    assert [superclass[names[w]] for w in wrong] == [superclass[name] for name in names]
    assert (wrong != np.arange(100)).all()
    # The superclasses have five classes each, all of which the circle visits.
    visited = [np.arange(100)]
    for _ in range(5):
        visited.append(wrong[visited[-1]])
    assert np.array_equal(visited[0], visited[5])
    assert all(len(set(column)) == 5 for column in np.transpose(visited[:5]))


def test_asymmetric_noise_elsewhere_takes_the_next_class():
    assert np.array_equal(label_noise.mistaken_for("digits", 4), [1, 2, 3, 0])


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4, 1.0])
def test_asymmetric_noise_changes_the_fraction_of_the_classes_that_are_mistaken(fraction):
    labels = np.arange(1000) % 10
    wrong = label_noise.mistaken_for("cifar10", 10)
    noisy, again, other = (
        np.asarray(label_noise.asymmetric(labels, jax.random.key(k), fraction, wrong)) for k in (0, 0, 1)
    )
    changed = noisy != labels
    assert changed.sum() == round(500 * fraction)
    assert np.array_equal(noisy[changed], wrong[labels[changed]])
    assert np.array_equal(noisy, again)
    if 0 < fraction < 1:
        assert not np.array_equal(noisy, other)
        assert len(set(labels[changed])) == 5  # no class is favoured
