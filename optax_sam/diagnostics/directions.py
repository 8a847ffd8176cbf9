"""Random directions for slices of the loss.

They are filter-normalised, which makes them comparable between networks:

    d_f ← d_f ‖w_f‖ / ‖d_f‖  for every filter f,        d ← 0  for biases and normalisation layers

Two networks that compute the same function and differ only in the scale of their layers have the same
slices. A filter is the part of a weight array that computes one output: its slice at one index of the output
axis. Arrays with one axis or none (biases, scales and shifts of normalisation layers) keep their values at w,
as in the authors' published figures (`biasbn` in their code, tomgoldstein/loss-landscape). The number of axes
tells this only if each layer has arrays of its own: where layers are stacked, or heads have an axis, say
which axes count the filters.

References:
  Li et al., `Visualizing the loss landscape of neural nets <https://arxiv.org/abs/1712.09913>`_, 2018
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, filters, keys, tree_math


def filter_normalised(
    direction: optax.Params, params: optax.Params, *, filter_axis: filters.FilterAxis = -1
) -> optax.Params:
    """Scales every filter of a direction to the length of that filter of the parameters; 0 for biases.

    Args:
      direction: d, a pytree like `params`.
      params: parameters w, a pytree.
      filter_axis: the axis of weight arrays that counts the filters, the outputs: −1, the last, in Flax and
        Haiku; 0 in Equinox and PyTorch. Arrays with one axis or none then are biases. Or a function
        `filter_axis(name, array)` of the path of an array, such as "layer/kernel", and the array, which
        returns an axis or several, or None for one that keeps its values. For stacked layers (`nn.scan`,
        `nnx.vmap`), `lambda name, w: (0, -1) if "kernel" in name else None`; for kernels of attention with
        the axes (inputs, heads, outputs), (1, 2).

    Returns:
      A pytree like `params`, float32 or wider: 0 in arrays that are not weights, and where d is 0.

    Raises:
      ValueError: if `direction` is not like `params`, or if an array has no such axis.

    Cost: one pass over both.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import diagnostics
      >>> w = {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]]), "bias": jnp.ones(2)}
      >>> d = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> found = diagnostics.filter_normalised(d, w)
      >>> jnp.sum(found["kernel"] ** 2, axis=0).round(2).tolist(), found["bias"].tolist()
      ([25.0, 1.0], [0.0, 0.0])
    """
    checks.check_params(params, params)
    checks.check_vector("`direction`", direction, params)

    def normalised(path: Any, d: jax.Array, w: jax.Array) -> jax.Array:
        kept = filters.axes_that_count(filter_axis, path, w)
        if kept is None:
            return jnp.zeros_like(d)
        axes = tuple(axis for axis in range(w.ndim) if axis not in kept)
        length = lambda x: jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))
        return d * (length(w) * tree_math.reciprocal_or_zero(length(d)))

    trees = tree_math.full_precision(direction), tree_math.full_precision(params)
    return jax.tree_util.tree_map_with_path(normalised, *trees)


def random_directions(
    params: optax.Params, num: int = 2, *, key: jax.Array | int = 0, filter_axis: filters.FilterAxis = -1
) -> tuple[optax.Params, ...]:
    """Returns random, filter-normalised directions, for `loss_surface`.

    In many dimensions two of them are nearly orthogonal; as in the paper, they are not made exactly so.

    Args:
      params: parameters w, a pytree.
      num: number of directions.
      key: of the normal entries before the normalisation, a random key or an integer. The same shapes and key
        give the same entries, so that the directions for two networks differ only in the lengths of their
        filters.
      filter_axis: see `filter_normalised`.

    Returns:
      `num` pytrees like `params`, float32 or wider.

    Cost: memory for the directions.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import diagnostics
      >>> w = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
      >>> d1, d2 = diagnostics.random_directions(w)
      >>> round(float(jnp.sum(d1["kernel"] ** 2)), 4), float(jnp.sum(d1["bias"] ** 2))
      (12.0, 0.0)
    """
    checks.check_params(params, params)
    checks.check_count("num", num)
    like = tree_math.full_precision(params)
    drawn = [tree_math.random_vector(keys.fold_in(tree_math.random_key(key), i), like) for i in range(num)]
    return tuple(filter_normalised(noise, like, filter_axis=filter_axis) for noise in drawn)
