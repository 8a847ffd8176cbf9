"""Random directions for slices of the loss, filter-normalised: comparable between networks.

    d_f ← d_f ‖w_f‖ / ‖d_f‖  for every filter f,        d ← 0  for biases and normalisation layers

Two networks that differ by a scale of their layers only, and compute the same, have the same slices. A
filter is what makes one output: the slice of a weight array at one index of its output axis. Arrays with
one axis or none (biases, scales and shifts of normalisation layers) stay as they are at w, as in the
authors' published figures (`biasbn` in their code, tomgoldstein/loss-landscape).

References:
  Li et al., `Visualizing the loss landscape of neural nets <https://arxiv.org/abs/1712.09913>`_, 2018
"""

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.curvature.eigen import random_vector
from optax_sam.diagnostics.losses import full_precision


def filter_normalised(
    direction: optax.Params, params: optax.Params, *, filter_axis: int = -1
) -> optax.Params:
    """Gives every filter of a direction the length of that filter of the parameters; 0 for biases.

    Args:
      direction: d, a pytree like `params`.
      params: parameters w, a pytree.
      filter_axis: the axis of weight arrays that counts the filters. −1, the last, is that of outputs in Flax
        and Haiku; 0 is in Equinox and PyTorch.

    Returns:
      A pytree like `params`, float32 or wider: 0 in arrays with one axis or none, and where d is.

    Raises:
      ValueError: if `direction` is not like `params`.

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
    checks.check_gradient("`direction`", direction, params)

    def normalised(d: jax.Array, w: jax.Array) -> jax.Array:
        if w.ndim <= 1:
            return jnp.zeros_like(d)
        axes = tuple(axis for axis in range(w.ndim) if axis != filter_axis % w.ndim)
        length = lambda x: jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))
        return d * (length(w) * tree_math.reciprocal_or_zero(length(d)))

    return jax.tree.map(normalised, full_precision(direction), full_precision(params))


def random_directions(
    params: optax.Params, num: int = 2, *, seed: int = 0, filter_axis: int = -1
) -> tuple[optax.Params, ...]:
    """Returns random, filter-normalised directions, for `loss_surface`.

    In many dimensions two of them are nearly orthogonal, and that is left at that, as in the paper.

    Args:
      params: parameters w, a pytree.
      num: number of directions.
      seed: of the normal entries before the normalisation. Same shapes, same seed: the same entries, so
        that two networks are looked at in directions that differ by their lengths only.
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
    checks.check_count("num", num)
    like = full_precision(params)
    keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(num)]
    return tuple(filter_normalised(random_vector(k, like), like, filter_axis=filter_axis) for k in keys)
