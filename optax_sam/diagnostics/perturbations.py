"""How good a perturbation is: aligned with an eigenvector, compared with the best one, and after rounding.

    alignment               |⟨ε, v⟩| / (‖ε‖ ‖v‖)      v an eigenvector of the Hessian
    gain                    L(w + ε) − L(w)
    best gain               max L(w + ε') − L(w)      over  ‖T⁻¹ ε'‖_p ≤ ‖T⁻¹ ε‖_p
    effective perturbation  round(w + ε) − round(w)

The nearer the alignment with the top eigenvector is to 1, the more SAM regularises the top eigenvalue
(figure 1 of Luo et al., where it is small for SAM and large for Eigen-SAM). An ascent should raise
the loss as much as possible: gradient noise, a bad preconditioner, rounding and a curved loss all cost some
of the gain. How much rounding costs: docs/measure.md.

References:
  Luo et al., `Explicit eigenvalue regularization improves sharpness-aware minimization
  <https://arxiv.org/abs/2501.12666>`_, 2024
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.batches import value_and_gradient_over
from optax_sam.diagnostics.ball import NORMS, check_ball
from optax_sam.diagnostics.worst_case import check_ascents, search_around
from optax_sam.progress import counted


def alignment(perturbation: optax.Params, eigenvector: optax.Params) -> jax.Array:
    """Computes |⟨ε, v⟩| / (‖ε‖ ‖v‖).

    Args:
      perturbation: ε, or any other direction, such as a gradient; a pytree.
      eigenvector: v, a pytree of the same structure, such as one of `optax_sam.curvature.top_eigenpairs`.

    Returns:
      A scalar in [0, 1], float32 or wider; 0 if one of the two is 0. For two random directions of n
      parameters it is about n^(-1/2).

    Raises:
      ValueError: if the two differ in structure or shapes.

    Cost: three inner products.

    Example: with several eigenvectors.
      >>> import jax, jax.numpy as jnp
      >>> from optax_sam import curvature, diagnostics
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0, 4.0]) * w**2)
      >>> pairs = curvature.top_eigenpairs(loss, jnp.ones(3), k=2)
      >>> epsilon = jnp.array([0.0, 3.0, 4.0])
      >>> found = jax.vmap(diagnostics.alignment, (None, 0))(epsilon, pairs.eigenvectors)
      >>> [round(float(x), 3) for x in found]
      [0.6, 0.8]
    """
    checks.check_params(perturbation, perturbation)
    checks.check_vector("`eigenvector`", eigenvector, perturbation)
    inverses = tree_math.reciprocal_or_zero(tree_math.norm(perturbation)) * tree_math.reciprocal_or_zero(
        tree_math.norm(eigenvector)
    )
    # Rounding errors could exceed 1.
    return jnp.minimum(jnp.abs(tree_math.vdot(perturbation, eigenvector)) * inverses, 1)


class PerturbationGain(NamedTuple):
    """Result of `perturbation_gain`.

    Attributes:
      gain: L(w + ε) − L(w), a scalar; negative if the loss falls.
      best_gain: the largest rise found in the ball on whose surface ε lies; at least the gain, and at least
        0.
      ratio: the gain divided by the best gain; 1 is perfect. 0 if no rise was found.
      best_perturbation: where the largest rise was found, like the parameters, float32 or wider.
    """

    gain: jax.Array
    best_gain: jax.Array
    ratio: jax.Array
    best_perturbation: optax.Params


def perturbation_gain(
    value_fn: Callable[..., jax.Array],
    params: optax.Params,
    perturbation: optax.Params,
    *,
    ord: float = 2,
    constraint: optax.GradientTransformation | None = None,
    num_iters: int = 20,
    num_ascents: int = 3,
    key: jax.Array | int = 0,
    batches: Iterable[Any] | None = None,
    progress: bool = False,
) -> PerturbationGain:
    """Compares the rise of the loss at w + ε with the largest one at that radius.

    Args:
      value_fn: the loss L, `value_fn(params)`, or `value_fn(params, batch)` with `batches`. If ε was computed
        from the gradient of a batch, the loss of the whole data set shows what the gradient's noise cost.
      params: parameters w, a pytree.
      perturbation: ε, a pytree like `params`, such as the result of an ascent stage.
      ord: p of the ball, 2 or `jnp.inf`.
      constraint: a stage that maps the gradient at w to the diagonal of T; see `sharpness`.
      num_iters: gradients of each ascent.
      num_ascents: number of ascents, as in `worst_case_sharpness`, but the first starts from ε.
      key: of the random points, a random key or an integer.
      batches: data set over which the loss is averaged; see `optax_sam.curvature.hessian_operator`.
      progress: whether to show a progress bar; needs tqdm.

    Returns:
      `PerturbationGain`.

    Raises:
      ValueError: if `perturbation` is not like `params`, `ord` is not 2 or `jnp.inf`, or a number is below 1.

    Cost: as `worst_case_sharpness` with as many ascents, and one gradient.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> from optax_sam import diagnostics
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 100.0]) * w**2)
      >>> w = jnp.array([1.0, 0.0])  # in a valley, along which the gradient points
      >>> ascent = optax_sam.steepest_ascent(0.1)
      >>> epsilon, _ = ascent.update(jax.grad(loss)(w), ascent.init(w), w)
      >>> found = diagnostics.perturbation_gain(loss, w, epsilon)
      >>> [round(float(x), 3) for x in found[:3]]
      [0.105, 0.505, 0.208]
    """
    checks.check_loss(value_fn, params)
    check_ball(0, ord, constraint)
    check_ascents(num_iters, num_ascents)
    checks.check_vector("`perturbation`", perturbation, params)
    params, perturbation = tree_math.full_precision(params), tree_math.full_precision(perturbation)
    key = tree_math.random_key(key)
    evaluate = value_and_gradient_over(value_fn, params, batches)
    with counted(evaluate, num_ascents * (num_iters + 1) + 1, "gradient", show=progress) as evaluate:
        search = search_around(params, evaluate, 0, ord, constraint)
        position = search.ball.position(perturbation)
        radius = NORMS[ord].norm(position).astype(search.ball.radius.dtype)
        search = search._replace(ball=search.ball._replace(radius=radius))

        given = search.at(position)
        starts = itertools.chain([search.with_nonzero_gradient(given, key)], search.random_points(key))
        best = search.worst_of(starts, num_iters, num_ascents)
    gain = given.value - search.center.value
    return PerturbationGain(
        gain=gain,
        best_gain=best.sharpness,
        ratio=gain * tree_math.reciprocal_or_zero(best.sharpness),
        best_perturbation=best.perturbation,
    )


class EffectivePerturbation(NamedTuple):
    """Result of `effective_perturbation`.

    Attributes:
      moved: share of the parameters with ε ≠ 0 that change at all, a scalar in [0, 1].
      cosine: of the angle between ε̃ and ε; a scalar.
      norm_ratio: ‖ε̃‖/‖ε‖, a scalar.
      projection: ⟨ε̃, ε⟩/‖ε‖², cosine times norm ratio: how much of ε remains, apart from noise. 1 is all.
      perturbation: ε̃, like the parameters, float32 or wider.
    """

    moved: jax.Array
    cosine: jax.Array
    norm_ratio: jax.Array
    projection: jax.Array
    perturbation: optax.Params


def effective_perturbation(
    params: optax.Params, perturbation: optax.Params, dtype: Any = jnp.bfloat16
) -> EffectivePerturbation:
    """Computes what remains of ε when w + ε and w are rounded: ε̃ = round(w + ε) − round(w).

    Args:
      params: parameters w, a pytree, in the dtype in which they are stored: bfloat16 if they are stored so,
        float32 if only the model computes in bfloat16.
      perturbation: ε, a pytree like `params`.
      dtype: dtype to which w + ε is rounded.

    Returns:
      `EffectivePerturbation`; all 0 if ε is 0.

    Raises:
      ValueError: if `perturbation` is not like `params`.

    Cost: a few passes over the parameters, and memory for two copies.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import diagnostics
      >>> found = diagnostics.effective_perturbation(jnp.array([1.0, 0.01]), jnp.array([1e-3, 1e-3]))
      >>> float(found.moved), float(found.perturbation[0])  # the first one does not move
      (0.5, 0.0)
    """
    checks.check_params(params, params)
    checks.check_vector("`perturbation`", perturbation, params)
    w, epsilon = tree_math.full_precision(params), tree_math.full_precision(perturbation)
    rounded = lambda tree: jax.tree.map(lambda x: _round(x, dtype), tree)
    effective = jax.tree.map(jnp.subtract, rounded(tree_math.add(w, epsilon)), rounded(w))

    count = lambda tree: tree_math.vdot(tree, tree)
    is_moved = jax.tree.map(lambda x, e: ((x != 0) & (e != 0)).astype(jnp.float32), effective, epsilon)
    is_meant = jax.tree.map(lambda e: (e != 0).astype(jnp.float32), epsilon)
    length, effective_length = tree_math.norm(epsilon), tree_math.norm(effective)
    inverse = tree_math.reciprocal_or_zero(length)
    along = tree_math.vdot(effective, epsilon) * inverse
    return EffectivePerturbation(
        moved=count(is_moved) * tree_math.reciprocal_or_zero(count(is_meant)),
        cosine=along * tree_math.reciprocal_or_zero(effective_length),
        norm_ratio=effective_length * inverse,
        projection=along * inverse,
        perturbation=effective,
    )


def _round(x: jax.Array, dtype: Any) -> jax.Array:
    # Without the barrier XLA may remove a cast to another dtype and back.
    return jax.lax.optimization_barrier(x.astype(dtype)).astype(x.dtype)
