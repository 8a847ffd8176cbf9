"""Makes training labels wrong, in one of two ways.

    symmetric     a label becomes any other with the same probability
    asymmetric    a label becomes the one for which its class is commonly mistaken

The asymmetric kind is that of Patrini et al., "Making deep neural networks robust to label noise", CVPR 2017.
"""

import jax
import numpy as np

from benchmarks.data.cifar import CIFAR10_CLASSES
from benchmarks.errors import UsageError

CIFAR10_MISTAKEN_FOR = {
    "truck": "automobile",
    "bird": "airplane",
    "deer": "horse",
    "cat": "dog",
    "dog": "cat",
}
CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": ["beaver", "dolphin", "otter", "seal", "whale"],
    "fish": ["aquarium_fish", "flatfish", "ray", "shark", "trout"],
    "flowers": ["orchid", "poppy", "rose", "sunflower", "tulip"],
    "food_containers": ["bottle", "bowl", "can", "cup", "plate"],
    "fruit_and_vegetables": ["apple", "mushroom", "orange", "pear", "sweet_pepper"],
    "household_electrical_devices": ["clock", "keyboard", "lamp", "telephone", "television"],
    "household_furniture": ["bed", "chair", "couch", "table", "wardrobe"],
    "insects": ["bee", "beetle", "butterfly", "caterpillar", "cockroach"],
    "large_carnivores": ["bear", "leopard", "lion", "tiger", "wolf"],
    "large_man-made_outdoor_things": ["bridge", "castle", "house", "road", "skyscraper"],
    "large_natural_outdoor_scenes": ["cloud", "forest", "mountain", "plain", "sea"],
    "large_omnivores_and_herbivores": ["camel", "cattle", "chimpanzee", "elephant", "kangaroo"],
    "medium_mammals": ["fox", "porcupine", "possum", "raccoon", "skunk"],
    "non-insect_invertebrates": ["crab", "lobster", "snail", "spider", "worm"],
    "people": ["baby", "boy", "girl", "man", "woman"],
    "reptiles": ["crocodile", "dinosaur", "lizard", "snake", "turtle"],
    "small_mammals": ["hamster", "mouse", "rabbit", "shrew", "squirrel"],
    "trees": ["maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"],
    "vehicles_1": ["bicycle", "bus", "motorcycle", "pickup_truck", "train"],
    "vehicles_2": ["lawn_mower", "rocket", "streetcar", "tank", "tractor"],
}


def mistaken_for(dataset: str, num_classes: int) -> np.ndarray:
    """The class for which each class is commonly mistaken; the class itself if there is none.

    Args:
        dataset: name of the data set. For CIFAR-10 there is a table of five classes; in CIFAR-100 it is the
            next class of the same superclass, cyclically; elsewhere the next class.
        num_classes: how many classes it has.

    Returns:
        Integers, `[num_classes]`.
    """
    if dataset in ("cifar10", "cifar10_subset"):
        names = CIFAR10_CLASSES
        table = CIFAR10_MISTAKEN_FOR
    elif dataset == "cifar100":
        names = sorted(name for group in CIFAR100_SUPERCLASSES.values() for name in group)
        table = {
            name: group[(i + 1) % len(group)]
            for group in CIFAR100_SUPERCLASSES.values()
            for i, name in enumerate(group)
        }
    else:
        return (np.arange(num_classes) + 1) % num_classes
    return np.array([names.index(table.get(name, name)) for name in names])


def symmetric(labels: jax.Array | np.ndarray, key: jax.Array, fraction: float, num_classes: int) -> jax.Array:
    """Makes a fraction of the labels wrong, uniformly among the other classes.

    For training labels only. `round(fraction * n)` labels change, each to another class.

    Args:
        labels: integers in `[0, num_classes)`.
        key: random key; the same key gives the same wrong labels.
        fraction: of the labels to make wrong, in `[0, 1]`.
        num_classes: at least 2.

    Returns:
        Labels of the same shape and type.

    Raises:
        UsageError: if `fraction` is not in `[0, 1]` or there is no other class.
    """
    check(fraction, num_classes)
    labels = jax.numpy.asarray(labels)
    which, shift = jax.random.split(key)
    chosen = jax.random.permutation(which, labels.size)[: round(fraction * labels.size)]
    shifts = jax.random.randint(shift, chosen.shape, 1, num_classes, labels.dtype)
    return labels.at[chosen].set((labels[chosen] + shifts) % num_classes)


def asymmetric(
    labels: jax.Array | np.ndarray, key: jax.Array, fraction: float, wrong: np.ndarray
) -> jax.Array:
    """Makes a fraction of the labels wrong, each changed to the class for which its own is commonly mistaken.

    For training labels only. Of the n labels whose class is mistaken for another one, `round(fraction * n)`
    change. In CIFAR-10 these are half of the classes, so half that fraction of all labels becomes wrong.

    Args:
        labels: integers in `[0, num_classes)`.
        key: random key; the same key gives the same wrong labels.
        fraction: of the labels of these classes to make wrong, in `[0, 1]`. Above ½ the wrong class has the
            majority, and the right one can no longer be learnt.
        wrong: from `mistaken_for`.

    Returns:
        Labels of the same shape and type.

    Raises:
        UsageError: if `fraction` is not in `[0, 1]` or there is no other class.
    """
    check(fraction, len(wrong))
    labels = jax.numpy.asarray(labels)
    candidates = np.flatnonzero(wrong[labels] != labels)
    chosen = jax.random.permutation(key, candidates)[: round(fraction * candidates.size)]
    return labels.at[chosen].set(jax.numpy.asarray(wrong, labels.dtype)[labels[chosen]])


def check(fraction: float, num_classes: int) -> None:
    """Raises if such noise is impossible."""
    if not 0 <= fraction <= 1:
        raise UsageError(f"the fraction of wrong labels is {fraction}; it must be in [0, 1]")
    if num_classes < 2:
        raise UsageError(f"with {num_classes} class no label can be wrong; use at least 2 classes")
