"""Worst-case sharpness: how much the loss rises at the worst point of a ball, sought by projected ascent.

    max L(w + ε) − L(w)  over  ‖T⁻¹ ε‖_p ≤ ρ

In z = T⁻¹ ε, from 0 and from random points of the sphere:

    z' = P(z + s ρ argmax ⟨T ∇L(w + T z), d⟩ over ‖d‖_p ≤ 1)        P projects to ‖z‖_p ≤ ρ, at first s = 2
    if L(w + T z') > L(w + T z): z ← z',  else: s ← s/2

so that the loss never falls, and the first step from 0 is that of SAM. It finds local maxima: the result is
a lower bound. On a quadratic around its minimum, p = 2, it is a power iteration with a shift, and finds ½
ρ² λ_max.

Symbols: T `constraint`, ρ `rho`, p `ord`, z `position`, s `step`.

Deviations from the authors' code (tml-epfl/sharpness-vs-generalization, Auto-PGD): the step is halved
whenever it does not raise the loss, not at set iterations, and has no momentum; the first ascent starts at
w; with T the steepest direction is that of the ball, T² g/‖T g‖ (theirs: T g/‖g‖); the loss is that of the
batch or of all batches together (theirs: the mean over batches of each one's worst case, which is
`m_sharpness`).

References:
  Andriushchenko et al., `A modern look at the relationship between sharpness and generalization
  <https://arxiv.org/abs/2302.07011>`_, 2023
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.curvature.eigen import random_vector
from optax_sam.curvature.progress import steps
from optax_sam.diagnostics.ball import NORMS, Ball, check_ball, make_ball
from optax_sam.diagnostics.losses import Evaluate, full_precision, value_and_gradient_over

T = TypeVar("T")


class WorstCaseSharpness(NamedTuple):
    """Result of `worst_case_sharpness`.

    Attributes:
      sharpness: the largest L(w + ε) − L(w) found, a scalar; at least 0.
      perturbation: the ε where it was found, like the parameters, float32 or wider.
      ascents: the largest rise that each ascent found, (num_restarts,). If they differ much, more may pay.
    """

    sharpness: jax.Array
    perturbation: optax.Params
    ascents: jax.Array


def worst_case_sharpness(
    value_fn: Callable[..., jax.Array],
    params: optax.Params,
    rho: float | jax.Array,
    *,
    ord: float = 2,
    constraint: optax.GradientTransformation | None = None,
    num_iters: int = 20,
    num_restarts: int = 3,
    seed: int = 0,
    start: optax.Params | None = None,
    batches: Iterable[Any] | None = None,
    progress: bool = False,
) -> WorstCaseSharpness:
    """Seeks the largest rise of the loss in a ball: max L(w + ε) − L(w) over ‖T⁻¹ ε‖_p ≤ ρ.

    Args:
      value_fn: the loss L, `value_fn(params)`, or `value_fn(params, batch)` with `batches`.
      params: parameters w, a pytree.
      rho: radius ρ, in units of T⁻¹ w.
      ord: p, 2 or `jnp.inf`.
      constraint: a stage that maps the gradient at w to the diagonal of T; see `sharpness`. T = |w| + η, from
        `optax_sam.weight_magnitude()`, makes it adaptive: it does not change when a layer is scaled up and
        the next one down.
      num_iters: gradients of each ascent; 20 in the paper.
      num_restarts: number of ascents: one from w, the others from random points.
      seed: of the random points.
      start: an ε to start the first ascent from instead of 0, a pytree like `params`.
      batches: data set over which the loss is averaged; see `optax_sam.curvature.hessian_operator`.
      progress: whether to show a progress bar; needs tqdm.

    Returns:
      `WorstCaseSharpness`. Points with a loss that is not finite are passed over.

    Raises:
      ValueError: if `rho` is negative, `ord` another, or a number under 1.

    Cost: `num_restarts` times `num_iters` + 1 gradients; memory of about eight copies of the parameters.
    Under `jax.jit` all of them are in one program; without, one gradient is compiled.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import diagnostics
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0]) * w**2)
      >>> found = diagnostics.worst_case_sharpness(loss, jnp.zeros(2), 0.1)
      >>> round(float(found.sharpness), 4)  # ½ ρ² λ_max
      0.045
    """
    check_ball(rho, ord, constraint)
    check_ascents(num_iters, num_restarts)
    params = full_precision(params)
    if start is not None:
        checks.check_gradient("`start`", start, params)
    evaluate = value_and_gradient_over(value_fn, params, batches)
    value, gradient = evaluate(params)
    ball = make_ball(rho, constraint, gradient, params)
    first = Point(tree_math.zeros_like(params), value, gradient)
    if start is not None:
        first = point_at(evaluate, params, ball, NORMS[ord].project(ball.position(start), ball.radius))
    starts = first_and_random_points(first, evaluate, params, ball, ord, num_restarts, seed)
    titles = [f"ascent {i + 1}/{num_restarts}" if progress else "" for i in range(num_restarts)]
    return worst_of(evaluate, params, ball, ord, starts, value, num_iters, titles)


class Point(NamedTuple):
    """A point w + T z of an ascent.

    Attributes:
      position: z.
      value: L(w + T z).
      gradient: ∇L(w + T z).
    """

    position: optax.Params
    value: jax.Array
    gradient: optax.Updates


def check_ascents(num_iters: int, num_restarts: int) -> None:
    """Raises unless both are Python integers of at least 1."""
    checks.check_count("num_iters", num_iters)
    checks.check_count("num_restarts", num_restarts)


def point_at(evaluate: Evaluate, params: optax.Params, ball: Ball, position: optax.Params) -> Point:
    """Returns the point at z."""
    return Point(position, *evaluate(tree_math.add(params, ball.perturbation(position))))


def first_and_random_points(
    first: Point, evaluate: Evaluate, params: optax.Params, ball: Ball, ord: float, count: int, seed: int
) -> Iterator[Point]:
    """Yields `first`, and points of the sphere: uniformly distributed where p = 2, corners where p = ∞."""
    yield first
    for i in range(1, count):
        noise = random_vector(jax.random.fold_in(jax.random.key(seed), i), params)
        position = tree_math.scale(ball.radius, NORMS[ord].steepest(noise))
        yield point_at(evaluate, params, ball, position)


def worst_of(
    evaluate: Evaluate,
    params: optax.Params,
    ball: Ball,
    ord: float,
    starts: Iterable[Point],
    value: jax.Array,
    num_iters: int,
    titles: Sequence[str],
) -> WorstCaseSharpness:
    """Ascends from each of the points; where the loss never rises above `value`, w itself is the worst."""
    best, worst, rises = tree_math.zeros_like(params), value, []
    for start, title in zip(starts, titles, strict=True):
        end = ascend(evaluate, params, ball, ord, start, num_iters, title)
        rises.append(jnp.where(_is_worse(end.value, value), end.value - value, 0))
        best, worst = _where(_is_worse(end.value, worst), (end.position, end.value), (best, worst))
    return WorstCaseSharpness(worst - value, ball.perturbation(best), jnp.stack(rises))


def ascend(
    evaluate: Evaluate,
    params: optax.Params,
    ball: Ball,
    ord: float,
    point: Point,
    num_iters: int,
    title: str = "",
) -> Point:
    """Returns the end of the ascent from a point."""
    step = jnp.full_like(ball.radius, 2)
    for _ in steps(num_iters, title, unit="gradient"):
        position, perturbed = _candidate(params, ball, point, step, ord)
        found = Point(position, *evaluate(perturbed))
        # One gradient at a time: what is enqueued takes memory, and simulated devices can deadlock.
        point, step = jax.block_until_ready(_next(point, found, step))
    return point


@functools.partial(jax.jit, static_argnames="ord")
def _candidate(
    params: optax.Params, ball: Ball, point: Point, step: jax.Array, ord: float
) -> tuple[optax.Params, optax.Params]:
    """Returns z' and w + T z'."""
    move = tree_math.scale(step, ball.steepest_ascent(point.gradient, ord))
    position = NORMS[ord].project(tree_math.add(point.position, move), ball.radius)
    return position, tree_math.add(params, ball.perturbation(position))


@jax.jit
def _next(point: Point, found: Point, step: jax.Array) -> tuple[Point, jax.Array]:
    """Returns the worse of two points, and the length of the next step."""
    is_worse = _is_worse(found.value, point.value)
    return _where(is_worse, found, point), jnp.where(is_worse, step, step / 2)


def _is_worse(value: jax.Array, than: jax.Array) -> jax.Array:
    """Whether a loss is finite and larger than another, or that one not finite."""
    return jnp.isfinite(value) & ((value > than) | ~jnp.isfinite(than))


def _where(condition: jax.Array, yes: T, no: T) -> T:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), yes, no)
