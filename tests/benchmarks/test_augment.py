import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.data.augment import AUGMENTATIONS, Augmentation, augment
from benchmarks.training.config import Config
from benchmarks.training.program import make_program
from tests.benchmarks.training import first_steps

BLACK = np.array([-1.0, -2.0], np.float32)


def images_and_keys(n, seed=0, size=6):
    images = np.random.default_rng(seed).standard_normal((n, size, size + 1, 2)).astype(np.float32)
    return images, jax.random.split(jax.random.key(seed), n)


def occurrences(images, augmented, candidates):
    """How often each of the candidates, functions of all images, is what an image has become."""
    matches = np.array([(candidate(images) == augmented).all((1, 2, 3)) for candidate in candidates])
    assert (matches.sum(0) == 1).all()
    return matches.sum(1)


def assert_uniform(counts):
    expected = counts.sum() / counts.size
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_holes_have_their_centre_anywhere_in_the_image():
    images, keys = images_and_keys(2000)

    def cut(row, column):
        def of(images):
            images = images.copy()
            images[:, max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = 0
            return images

        return of

    candidates = [cut(*centre) for centre in itertools.product(range(6), range(7))]
    augmented = augment(images, keys, BLACK, Augmentation(cutout_size=4, cutout_probability=1.0))
    assert_uniform(occurrences(images, augmented, candidates))


def test_crops_are_parts_of_the_image_in_a_black_frame_half_are_mirrored_and_a_share_has_a_hole():
    """All of them alike often, and each whatever the others are."""
    images, keys = images_and_keys(3000)

    def crop_and_flip(top, left, direction):
        def of(images):
            frame = np.tile(BLACK, (len(images), 10, 11, 1))
            frame[:, 2:8, 2:9] = images
            return frame[:, top : top + 6, left : left + 7][:, :, ::direction]

        return of

    candidates = [crop_and_flip(*what) for what in itertools.product(range(5), range(5), (1, -1))]
    whole = np.asarray(augment(images, keys, BLACK, Augmentation(padding=2, flip=True)))
    assert_uniform(occurrences(images, whole, candidates))

    # A hole changes nothing around it, and images of every kind have it.
    cut = np.asarray(augment(images, keys, BLACK, Augmentation(2, True, 2, cutout_probability=0.2)))
    assert np.array_equal(np.where(cut == 0, 0, whole), cut)
    cut_ones = (cut == 0).any((1, 2, 3))
    assert_uniform(occurrences(images[cut_ones], whole[cut_ones], candidates))
    assert abs(cut_ones.sum() - 600) < 5 * np.sqrt(3000 * 0.2 * 0.8)


def test_what_the_names_mean():
    assert AUGMENTATIONS["crop_flip_cutout"] == Augmentation(4, True, 16, 0.5)
    assert AUGMENTATIONS["crop_flip"] == Augmentation(padding=4, flip=True)
    images, keys = images_and_keys(3)
    assert np.array_equal(augment(images, keys, BLACK, AUGMENTATIONS["none"]), images)
    half = augment(jnp.asarray(images, jnp.bfloat16), keys, BLACK, AUGMENTATIONS["crop_flip"])
    assert half.dtype == jnp.bfloat16


@pytest.fixture
def losses_of(dataset):
    """Settings -> losses at w, and at w+ε, of two epochs. All seeds share a program."""
    programs = {}

    def losses(seed=0, **settings):
        config = Config(model="tiny", rho=0.0, epochs=2, seed=seed, **settings)
        name = repr(settings)
        if name not in programs:
            programs[name] = make_program(config, dataset)
        found = first_steps(config, dataset, program=programs[name])
        return np.array([found.losses, found.ascent])

    return losses


def test_both_gradients_see_the_same_images_and_every_epoch_others(losses_of):
    plain, _ = losses_of(learning_rate=0.0, batch_size=200)
    settings = {"learning_rate": 0.0, "augment": "crop_flip_cutout"}
    whole, ascent = losses_of(**settings, batch_size=200)
    np.testing.assert_allclose(ascent, whole, rtol=1e-6)
    # The weights stay, and both epochs are of all the images.
    assert plain[0] == pytest.approx(plain[1], rel=1e-5)
    assert abs(whole[0] - plain[0]) > 1e-2
    assert abs(whole[0] - whole[1]) > 1e-3
    # An image is changed alike whatever batch it is in.
    parts, _ = losses_of(**settings, batch_size=50)
    np.testing.assert_allclose(parts.reshape(2, 4).mean(1), whole, rtol=1e-5)


def test_augmentation_depends_on_the_seed(losses_of):
    settings = {"augment": "crop_flip", "batch_size": 100}
    one, again, other = (losses_of(**settings, seed=seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
