"""Slices of the loss: L(w + a d₁) on a line, L(w + a d₁ + b d₂) on a plane, at the points of a grid.

The points are evaluated one after another (`jax.lax.map`), so that memory does not grow with their number.
Only forward passes are needed, so the slow gradients of convolutions in loops of XLA on CPU do not occur.

Networks with BatchNorm: the activations at w + a d differ from those at w, so running statistics do not fit.
Let `value_fn` use batch statistics, or compare networks without BatchNorm.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_sam import checks, tree_math
from optax_sam.batches import over_batches, value
from optax_sam.loss import ValueFn


class LossSurface(NamedTuple):
    """Result of `loss_surface`.

    Attributes:
      coordinates: the values of a, and of b, one array for each direction.
      values: the losses; (number of a,) or (number of a, number of b), float32 or wider.
    """

    coordinates: tuple[jax.Array, ...]
    values: jax.Array


def loss_surface(
    value_fn: Callable[..., jax.Array],
    params: optax.Params,
    directions: Sequence[optax.Params],
    coordinates: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    batches: Iterable[Any] | None = None,
    progress: bool = False,
) -> LossSurface:
    """Evaluates the loss on a grid on a line or a plane: L(w + a d₁ + b d₂).

    Args:
      value_fn: the loss L, `value_fn(params)`, or `value_fn(params, batch)` with `batches`.
      params: parameters w, a pytree.
      directions: a sequence of one or two directions, pytrees like `params`: `random_directions`, a `Plane`'s
        directions, eigenvectors, a perturbation, the difference of two solutions.
      coordinates: the values of a and of b: an array for both, or a sequence of one for each direction. None
        is 51 values from −1 to 1, as in Li et al., in units of the directions.
      batches: data set over which the loss is averaged; see `optax_sam.curvature.hessian_operator`.
      progress: whether to show a progress bar, which counts the batches; needs tqdm. Without
        `batches` all points are computed at once, as one.

    Returns:
      `LossSurface`. Losses that are not finite are returned as they are.

    Raises:
      ValueError: if there are not one or two directions, if one is not like `params`, or if there is not one
        array of coordinates for each.

    Cost: a forward pass for each point, one after another, with the memory of a single one.

    Example: along the top eigenvector.
      >>> import jax.numpy as jnp
      >>> from optax_sam import diagnostics
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0]) * w**2)
      >>> line = diagnostics.loss_surface(loss, jnp.zeros(2), [jnp.array([0.0, 1.0])], jnp.arange(3.0))
      >>> line.values.tolist()
      [0.0, 4.5, 18.0]
    """
    checks.check_loss(value_fn, params)
    directions = _checked_directions(directions, params)
    axes = _checked_coordinates(coordinates, len(directions), tree_math.accumulation_dtype(params))
    points = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    zeros = lambda: jnp.zeros(len(points), points.dtype)
    evaluate = over_batches(_values, value_fn, batches, zeros=zeros, progress=progress)
    values = evaluate(tree_math.full_precision(params), tree_math.full_precision(directions), points)
    return LossSurface(axes, values.reshape(tuple(map(len, axes))))


def _values(
    loss: ValueFn, params: optax.Params, directions: tuple[optax.Params, ...], points: jax.Array
) -> jax.Array:
    def at(point: jax.Array) -> jax.Array:
        w = params
        for coordinate, direction in zip(point, directions, strict=True):
            w = tree_math.combine(jnp.ones_like(coordinate), w, coordinate, direction)
        return value(loss, w)

    return jax.lax.map(at, points)


def _checked_directions(directions: Sequence[optax.Params], params: optax.Params) -> tuple[optax.Params, ...]:
    if not isinstance(directions, tuple | list) or len(directions) not in (1, 2):
        is_sequence = isinstance(directions, tuple | list)
        raise ValueError(
            "`directions` must be a list or tuple of one direction (a line) or two (a plane), each a pytree"
            f" like the parameters, got {len(directions) if is_sequence else type(directions).__name__}. For"
            " a line write `loss_surface(value_fn, params, [direction])`."
        )
    for direction in directions:
        checks.check_vector("Each of `directions`", direction, params)
    return tuple(directions)


def _checked_coordinates(
    coordinates: ArrayLike | Sequence[ArrayLike] | None, count: int, dtype: jnp.dtype
) -> tuple[jax.Array, ...]:
    if coordinates is None:
        coordinates = jnp.linspace(-1, 1, 51)
    given = list(coordinates) if isinstance(coordinates, tuple | list) else [coordinates] * count
    axes = tuple(jnp.asarray(axis, dtype) for axis in given)
    if len(axes) != count or any(axis.ndim != 1 or len(axis) == 0 for axis in axes):
        raise ValueError(
            f"`coordinates` must be one array with one axis, or a list of one for each of the {count}"
            f" directions, got shapes {[axis.shape for axis in axes]}."
        )
    return axes
