"""Random crops, flips and cutouts of a batch, on the device.

Every image has its own random key, derived from the run's seed, the epoch and the image's number in the
training data. So a resumed run uses the same images, and so does one on more devices.

The padding of a crop is black, and the hole of a cutout has the mean colour (0 after standardisation). This
is the result of padding before the standardisation and cutting after it, as in the authors' code.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Augmentation(NamedTuple):
    """How a batch is augmented."""

    # Pixels added around an image before it is cropped to its own size at random. 0: no crop.
    padding: int = 0
    flip: bool = False  # whether half of the images are mirrored left to right
    # Height and width of the square hole in pixels, an even number. Its centre is anywhere in the image, so
    # part of it may be outside. 0: none.
    cutout_size: int = 0
    cutout_probability: float = 0.5  # share of the images with a hole


AUGMENTATIONS = {
    "none": Augmentation(),
    "crop_flip": Augmentation(padding=4, flip=True),
    # XSAM's and VaSSO's.
    "crop_flip_cutout": Augmentation(padding=4, flip=True, cutout_size=16),
}


@partial(jax.jit, static_argnames="augmentation")
def augment(
    images: jax.Array, keys: jax.Array, black: jax.Array | np.ndarray | float, augmentation: Augmentation
) -> jax.Array:
    """Augments each image with its own random numbers.

    Args:
        images: `[n, height, width, channels]`, standardised.
        keys: random keys, `[n]`.
        black: the standardised value of a black pixel, `[channels]`.
        augmentation: what to do.

    Returns:
        Images of the same shape and type.
    """
    return jax.vmap(partial(augment_one, augmentation=augmentation), in_axes=(0, 0, None))(
        images, keys, black
    )


def augment_one(
    image: jax.Array, key: jax.Array, black: jax.Array | np.ndarray | float, augmentation: Augmentation
) -> jax.Array:
    """Augments one image, `[height, width, channels]`."""
    height, width, channels = image.shape
    crop_key, flip_key, chance_key, hole_key = jax.random.split(key, 4)

    if pad := augmentation.padding:
        padded = jnp.broadcast_to(black, (height + 2 * pad, width + 2 * pad, channels)).astype(image.dtype)
        padded = padded.at[pad : pad + height, pad : pad + width].set(image)
        top, left = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
        image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    if augmentation.flip:
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    if size := augmentation.cutout_size:
        row, column = jax.random.randint(hole_key, (2,), 0, jnp.array([height, width])) - size // 2
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
        hole = (row <= rows) & (rows < row + size) & (column <= columns) & (columns < column + size)
        hole &= jax.random.bernoulli(chance_key, augmentation.cutout_probability)
        image = jnp.where(hole[..., None], 0, image)
    return image
