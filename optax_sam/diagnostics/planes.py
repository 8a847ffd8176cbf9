"""Planes for slices of the loss, through given points or along given vectors.

A plane is spanned by two vectors u₁ and u₂:

    e₁ = u₁/‖u₁‖,   e₂ = (u₂ − ⟨u₂, e₁⟩ e₁)/‖·‖,   coordinates of u:  (⟨u, e₁⟩, ⟨u, e₂⟩)

The basis is orthonormal, so lengths and angles in the plane are those among the parameters.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.batches import value_and_gradient_over
from optax_sam.curvature.krylov import orthogonalise


class Plane(NamedTuple):
    """A plane in the space of parameters, with the points or vectors that define it.

    Attributes:
      origin: the point with coordinates (0, 0), a pytree.
      directions: the orthonormal e₁ and e₂, pytrees like `origin`, float32 or wider.
      coordinates: of these points or vectors, (number, 2).
    """

    origin: optax.Params
    directions: tuple[optax.Params, optax.Params]
    coordinates: jax.Array


def plane_through(solutions: Sequence[optax.Params]) -> Plane:
    """Returns the plane through three solutions, such as the ends of three runs.

    Args:
      solutions: three pytrees of parameters; the first is the origin, and the second lies on the first axis.

    Returns:
      `Plane`, with the coordinates of the three solutions. If they lie on a line, e₂ = 0, and a slice
      does not change along it.

    Raises:
      ValueError: if there are not three solutions, or if they differ in structure or shapes.

    Cost: a few inner products, and memory for the two directions.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import diagnostics
      >>> plane = diagnostics.plane_through([jnp.array(w) for w in ([1.0, 1.0], [4.0, 5.0], [1.0, 6.0])])
      >>> plane.coordinates.tolist()
      [[0.0, 0.0], [5.0, 0.0], [4.0, 3.0]]
    """
    if len(solutions) != 3:
        raise ValueError(
            f"Three solutions lie in one plane, got {len(solutions)}. Along the line through two of them:"
            " `loss_surface(value_fn, w_0, [jax.tree.map(jnp.subtract, w_1, w_0)])`."
        )
    origin, *others = solutions
    for solution in solutions:
        checks.check_params(solution, solution)
        checks.check_vector("Each of `solutions`", solution, origin)
    differences = [
        jax.tree.map(jnp.subtract, tree_math.full_precision(x), tree_math.full_precision(origin))
        for x in others
    ]
    plane = _span(origin, differences)
    return plane._replace(coordinates=jnp.concatenate([jnp.zeros((1, 2)), plane.coordinates]))


def path_plane(path: Sequence[optax.Params]) -> Plane:
    """Returns the plane in which a path, such as the checkpoints of a run, is seen best.

    Its axes are the two principal components of the steps from the last point (Li et al., section 7).

    Args:
      path: at least three pytrees of parameters, in the order of the training; the last is the origin.

    Returns:
      `Plane`, with the coordinates of the projections of all points; the first axis has the largest variance.
      If all points lie on a line, up to rounding, e₂ = 0.

    Raises:
      ValueError: if there are fewer than three points, or if they differ in structure or shapes.

    Cost: 2 n² inner products for n points, and memory for 3n + 4 copies of the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import diagnostics
      >>> plane = diagnostics.path_plane([jnp.array(w) for w in ([4.0, 0, 1], [2.0, 1, 1], [0.0, 0, 1])])
      >>> jnp.abs(plane.coordinates).round(3).tolist()
      [[4.0, 0.0], [2.0, 1.0], [0.0, 0.0]]

    References:
      Li et al., `Visualizing the loss landscape of neural nets <https://arxiv.org/abs/1712.09913>`_, 2018
    """
    if len(path) < 3:
        raise ValueError(
            f"A path in a plane needs at least three points, got {len(path)}. Along the line through two of"
            " them: `loss_surface(value_fn, w_0, [jax.tree.map(jnp.subtract, w_1, w_0)])`."
        )
    origin = path[-1]
    for point in path:
        checks.check_params(point, point)
        checks.check_vector("Each point of `path`", point, origin)
    steps = [
        jax.tree.map(jnp.subtract, tree_math.full_precision(x), tree_math.full_precision(origin))
        for x in path
    ]
    stacked = tree_math.stack(steps)
    directions = _principal_components(stacked)
    coordinates = tree_math.inner_products(stacked, tree_math.stack(directions))
    return Plane(origin, directions, coordinates)


def gradient_plane(
    value_fn: Callable[..., jax.Array],
    params: optax.Params,
    perturbation: optax.Params,
    *,
    batches: Iterable[Any] | None = None,
) -> Plane:
    """Returns the plane of the gradients at w and at w + ε, which shows SAM's step and the loss around it.

    It is the plane of figure 1 in Chen and Zhou, with its axes: g₀ points up, and the part of g₁ orthogonal
    to it to the right. It shows whether the worst nearby point lies in the direction of the second gradient.

    Args:
      value_fn: the loss L, `value_fn(params)`, or `value_fn(params, batch)` with `batches`.
      params: parameters w, a pytree.
      perturbation: ε, a pytree like `params`, such as `sharpness` returns.
      batches: data set over which the loss is averaged; see `optax_sam.curvature.hessian_operator`.

    Returns:
      `Plane` with origin w and the coordinates of the vectors ε, g₀ = ∇L(w) and g₁ = ∇L(w + ε), in that
      order. e₂ is the direction of g₀, e₁ of the part of g₁ orthogonal to it, or 0 if there is none.
      If ε is not in the plane, as with another T, its coordinates are its projection's.

    Raises:
      ValueError: if `perturbation` is not like `params`.

    Cost: two gradients, and memory for four copies of the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import diagnostics
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 3.0]) * w**2)
      >>> w = jnp.ones(2)
      >>> epsilon = diagnostics.sharpness(loss, w, 0.1).perturbation
      >>> plane = diagnostics.gradient_plane(loss, w, epsilon)
      >>> epsilon, g_0, g_1 = plane.coordinates
      >>> round(float(epsilon[1]), 3), bool(g_1[1] > g_0[1])  # steeper there
      (0.1, True)

    References:
      Chen and Zhou, `Revisiting sharpness-aware minimization: a more faithful and effective
      implementation <https://arxiv.org/abs/2603.10048>`_, 2026
    """
    checks.check_loss(value_fn, params)
    checks.check_vector("`perturbation`", perturbation, params)
    w, epsilon = tree_math.full_precision(params), tree_math.full_precision(perturbation)
    evaluate = value_and_gradient_over(value_fn, w, batches)
    first, second = evaluate(w)[1], evaluate(tree_math.add(w, epsilon))[1]
    up, right = _span(params, [first, second]).directions
    plane = Plane(params, (right, up), jnp.zeros((3, 2)))
    vectors = tree_math.stack([epsilon, first, second])
    return plane._replace(coordinates=tree_math.inner_products(vectors, tree_math.stack(plane.directions)))


def _span(origin: optax.Params, vectors: Sequence[optax.Params]) -> Plane:
    """Returns the plane spanned by two vectors."""
    directions = _orthonormal(*vectors)
    coordinates = tree_math.inner_products(tree_math.stack(vectors), tree_math.stack(directions))
    return Plane(origin, directions, coordinates)


@jax.jit
def _principal_components(points: optax.Params) -> tuple[optax.Params, optax.Params]:
    """Returns the directions of the two largest variances of stacked points; 0 if there is no second."""
    rest = jax.tree.map(lambda x: x - jnp.mean(x, axis=0), points)
    first = _longest(rest)
    size = tree_math.norm(rest)
    # Without the first component, the second is sought among numbers of its own size: inner products of whole
    # points are rounded by more than the second adds to them. Twice, because once leaves rounding errors.
    for _ in range(2):
        along = tree_math.coordinates(rest, first)
        rest = jax.tree.map(lambda x, e, along=along: x - along.reshape(-1, *[1] * e.ndim) * e, rest, first)
    second = _longest(rest)
    is_new = tree_math.norm(rest) > 4 * jnp.finfo(size.dtype).eps * size
    return first, tree_math.scale(jnp.where(is_new, 1.0, 0.0), second)


def _longest(points: optax.Params) -> optax.Params:
    """Returns the unit vector along which stacked points have the largest sum of squares."""
    _, components = jnp.linalg.eigh(tree_math.inner_products(points, points))
    return tree_math.unit(tree_math.combination(components[:, -1], points))


@jax.jit
def _orthonormal(first: optax.Params, second: optax.Params) -> tuple[optax.Params, optax.Params]:
    """Returns two orthonormal vectors that span the same plane; 0 is the second if there is no plane."""
    e_1 = tree_math.unit(first)
    project = lambda v: tree_math.combine(jnp.ones(()), v, -tree_math.vdot(v, e_1), e_1)
    rest, _, is_new = orthogonalise(second, project)
    return e_1, tree_math.scale(jnp.where(is_new, 1.0, 0.0), tree_math.unit(rest))
