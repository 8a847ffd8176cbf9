import jax
import numpy as np
import pytest

from benchmarks.data.label_noise import add_noise
from benchmarks.errors import UsageError


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4, 1.0])
def test_label_noise_changes_exactly_the_fraction(fraction):
    labels = np.arange(1000) % 10
    noisy = add_noise(labels, jax.random.key(0), fraction, 10)
    assert (np.asarray(noisy) != labels).sum() == round(1000 * fraction)
    assert noisy.dtype == labels.dtype or noisy.dtype == np.int32
    assert noisy.min() >= 0
    assert noisy.max() < 10


def test_label_noise_is_uniform_over_the_other_classes():
    labels = np.zeros(90_000, np.int32)
    noisy = add_noise(labels, jax.random.key(1), 1.0, 10)
    counts = np.bincount(noisy, minlength=10)
    assert counts[0] == 0
    # 9 classes, expected 10,000 each, standard deviation 94.
    assert np.abs(counts[1:] - 10_000).max() < 5 * 94


def test_label_noise_depends_on_the_key_alone():
    labels = np.arange(100) % 10
    noisy = [add_noise(labels, jax.random.key(k), 0.4, 10) for k in (0, 0, 1)]
    assert np.array_equal(noisy[0], noisy[1])
    assert not np.array_equal(noisy[0], noisy[2])


def test_impossible_label_noise_is_refused():
    with pytest.raises(UsageError, match=r"must be in \[0, 1\]"):
        add_noise(np.zeros(3, int), jax.random.key(0), 40, 10)
    with pytest.raises(UsageError, match="at least 2 classes"):
        add_noise(np.zeros(3, int), jax.random.key(0), 0.4, 1)
    with pytest.raises(UsageError, match=r"must be in \[0, 1\]"):
        add_noise(np.zeros(3, int), jax.random.key(0), -0.1, 2)
