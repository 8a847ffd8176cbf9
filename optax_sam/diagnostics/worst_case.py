"""Worst-case sharpness: how much the loss rises at the worst point in a ball, found by projected ascent.

    max L(w + ε) − L(w)  over  ‖T⁻¹ ε‖_p ≤ ρ

In coordinates z = T⁻¹ ε, ascents start from 0 and from random points of the sphere, and after each of these
that ended at z, another one starts from −z:

    z' = P(z + s ρ argmax ⟨T ∇L(w + T z), d⟩ over ‖d‖_p ≤ 1)        P projects to ‖z‖_p ≤ ρ, at first s = 2
    if L(w + T z') > L(w + T z): z ← z',  else: s ← s/2

So the loss never falls, and the first step from 0 is SAM's, or a random one if the gradient is 0. The
ascents find local maxima, so the result is a lower bound. On a quadratic around its minimum, with p = 2, an
ascent is a power iteration with a shift, and finds ½ ρ² λ_max.

Why −z: the loss rises on both sides of a minimum, but the gradient at w leads the ascent from 0, and most of
those from random points, to the same side. notebooks/how_flat_is_my_minimum.py shows how much this helps.

Symbols: T `constraint`, ρ `rho`, p `ord`, z `position`, s `step`.

Deviations from the authors' code (tml-epfl/sharpness-vs-generalization, Auto-PGD): the step is halved
whenever it does not raise the loss, not at set iterations, and has no momentum; the first ascent starts at
w; with T the steepest direction in the ball is T² g/‖T g‖ (theirs: T g/‖g‖); the loss is the
mean over one batch or over all (theirs: the mean over batches of each one's worst case, which is
`m_sharpness`).

References:
  Andriushchenko et al., `A modern look at the relationship between sharpness and generalization
  <https://arxiv.org/abs/2302.07011>`_, 2023
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, keys, tree_math
from optax_sam.batches import Evaluate, value_and_gradient_over
from optax_sam.diagnostics.ball import NORMS, Ball, check_ball, make_ball
from optax_sam.progress import counted


class WorstCaseSharpness(NamedTuple):
    """Result of `worst_case_sharpness`.

    Attributes:
      sharpness: the largest L(w + ε) − L(w) found, a scalar; at least 0.
      perturbation: the ε where it was found, like the parameters, float32 or wider.
      ascents: the largest rise that each ascent found, (num_ascents,). If they differ much, more ascents may
        help; even if they agree, there may be a higher rise elsewhere.
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
    num_ascents: int = 3,
    key: jax.Array | int = 0,
    start: optax.Params | None = None,
    batches: Iterable[Any] | None = None,
    progress: bool = False,
) -> WorstCaseSharpness:
    """Searches for the largest rise of the loss in a ball: max L(w + ε) − L(w) over ‖T⁻¹ ε‖_p ≤ ρ.

    Args:
      value_fn: the loss L, `value_fn(params)`, or `value_fn(params, batch)` with `batches`.
      params: parameters w, a pytree.
      rho: radius ρ, in units of T⁻¹ w.
      ord: p, 2 or `jnp.inf`.
      constraint: a stage that maps the gradient at w to the diagonal of T; see `sharpness`. T = |w|, from
        `optax_sam.weight_magnitude(eta=0.0)`, makes it adaptive: it does not change when a layer is scaled
        up and the next one down. With η > 0 this holds only for weights far larger than η.
      num_iters: gradients of each ascent; 20 in the paper.
      num_ascents: number of ascents. The first starts at w, the third, fifth, ... at random points; each
        of the others opposite to where the one before it ended.
      key: of the random points, a random key or an integer.
      start: an ε to start the first ascent from instead of 0, a pytree like `params`.
      batches: data set over which the loss is averaged; see `optax_sam.curvature.hessian_operator`.
      progress: whether to show a progress bar; needs tqdm.

    Returns:
      `WorstCaseSharpness`. Points whose loss is not finite are ignored.

    Raises:
      ValueError: if `rho` is negative, `ord` is not 2 or `jnp.inf`, or a number is below 1.

    Cost: `num_ascents` times `num_iters` + 1 gradients; memory for about eight copies of the parameters.
    Under `jax.jit` all gradients are in one program; without it, a single gradient is compiled.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import diagnostics
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0]) * w**2)
      >>> found = diagnostics.worst_case_sharpness(loss, jnp.zeros(2), 0.1)
      >>> round(float(found.sharpness), 4)  # ½ ρ² λ_max
      0.045
    """
    checks.check_loss(value_fn, params)
    check_ball(rho, ord, constraint)
    check_ascents(num_iters, num_ascents)
    key = tree_math.random_key(key)
    params = tree_math.full_precision(params)
    if start is not None:
        checks.check_vector("`start`", start, params)
    evaluate = value_and_gradient_over(value_fn, params, batches)
    total = num_ascents * (num_iters + 1) + (start is not None)
    with counted(evaluate, total, "gradient", show=progress) as evaluate:
        search = search_around(params, evaluate, rho, ord, constraint)
        first = search.center
        if start is not None:
            first = search.at(NORMS[ord].project(search.ball.position(start), search.ball.radius))
        starts = itertools.chain([search.with_nonzero_gradient(first, key)], search.random_points(key))
        return search.worst_of(starts, num_iters, num_ascents)


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


class Search(NamedTuple):
    """What is searched for, and where: the largest L(w + T z) over ‖z‖_p ≤ ρ.

    Attributes:
      params: w, in full precision.
      evaluate: w ↦ (L(w), ∇L(w)).
      ball: ρ and T.
      ord: p.
      center: the point at w.
    """

    params: optax.Params
    evaluate: Evaluate
    ball: Ball
    ord: float
    center: Point

    def at(self, position: optax.Params) -> Point:
        """Returns the point at z."""
        return Point(position, *self.evaluate(tree_math.add(self.params, self.ball.perturbation(position))))

    def with_nonzero_gradient(self, point: Point, key: jax.Array) -> Point:
        """Returns the point; if its gradient is 0, as at a minimum, it gets a random direction instead."""
        noise = tree_math.random_vector(key, self.params)
        is_zero = tree_math.norm(self.ball.perturbation(point.gradient)) == 0
        return point._replace(gradient=tree_math.where(is_zero, noise, point.gradient))

    def random_points(self, key: jax.Array) -> Iterator[Point]:
        """Yields points of the sphere: uniformly distributed for p = 2, corners for p = ∞."""
        for i in itertools.count(1):
            noise = tree_math.random_vector(keys.fold_in(key, i), self.params)
            yield self.at(tree_math.scale(self.ball.radius, NORMS[self.ord].steepest(noise)))

    def worst_of(self, starts: Iterator[Point], num_iters: int, num_ascents: int) -> WorstCaseSharpness:
        """Ascends from the points. If the loss never rises above that at w, w is the worst point.

        Args:
          starts: the points, made when needed, for every other ascent: the ones in between start opposite
            to the end of the one before.
          num_iters: gradients of each ascent.
          num_ascents: number of ascents.
        """
        at_w = self.center.value
        best, worst, rises, end = self.center.position, at_w, [], self.center
        for i in range(num_ascents):
            start = next(starts) if i % 2 == 0 else self.at(jax.tree.map(jnp.negative, end.position))
            end = self.ascend(start, num_iters)
            rises.append(jnp.where(_is_worse(end.value, at_w), end.value - at_w, 0))
            best, worst = tree_math.where(
                _is_worse(end.value, worst), (end.position, end.value), (best, worst)
            )
        return WorstCaseSharpness(worst - at_w, self.ball.perturbation(best), jnp.stack(rises))

    def ascend(self, point: Point, num_iters: int) -> Point:
        """Returns the end of the ascent from a point."""
        step = jnp.full_like(self.ball.radius, 2)
        for _ in range(num_iters):
            position, perturbed = _candidate(self.params, self.ball, point, step, self.ord)
            found = Point(position, *self.evaluate(perturbed))
            # One gradient at a time: queued gradients take memory, and simulated devices can deadlock.
            point, step = jax.block_until_ready(_next(point, found, step))
        return point


def search_around(
    params: optax.Params,
    evaluate: Evaluate,
    rho: float | jax.Array,
    ord: float,
    constraint: optax.GradientTransformation | None,
) -> Search:
    """Returns the search in the ball of radius ρ around w, with the T that `constraint` gives there."""
    value, gradient = evaluate(params)
    ball = make_ball(rho, constraint, gradient, params)
    return Search(params, evaluate, ball, ord, Point(tree_math.zeros_like(params), value, gradient))


def check_ascents(num_iters: int, num_ascents: int) -> None:
    """Raises unless both are Python integers of at least 1."""
    checks.check_count("num_iters", num_iters)
    checks.check_count("num_ascents", num_ascents)


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
    return tree_math.where(is_worse, found, point), jnp.where(is_worse, step, step / 2)


def _is_worse(value: jax.Array, than: jax.Array) -> jax.Array:
    """Whether a loss is finite, and larger than the other one or that one not finite."""
    return jnp.isfinite(value) & ((value > than) | ~jnp.isfinite(than))
