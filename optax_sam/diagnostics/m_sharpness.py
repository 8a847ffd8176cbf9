"""m-sharpness: the mean over groups of m examples of each group's own worst rise of the loss.

    (1/k) Σ_j  max L_j(w + ε) − L_j(w)  over  ‖T⁻¹ ε‖_p ≤ ρ         L_j the loss of group j, k groups

This is what SAM lowers when it trains with batches, or parts of batches, of m examples. It correlates better
with generalisation than the sharpness of the whole loss, is at least as large, and grows as m falls.

References:
  Foret et al., `Sharpness-aware minimization for efficiently improving generalization
  <https://arxiv.org/abs/2010.01412>`_, 2021
  Andriushchenko and Flammarion, `Towards understanding sharpness-aware minimization
  <https://arxiv.org/abs/2206.06232>`_, 2022
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.batches import compiled, counted_batches, counter, of_batch, value_and_gradient
from optax_sam.diagnostics.ball import check_ball
from optax_sam.diagnostics.worst_case import check_ascents, search_around
from optax_sam.progress import with_bar


class MSharpness(NamedTuple):
    """Result of `m_sharpness`.

    Attributes:
      sharpness: the mean over all groups, each weighted by its number of examples; a scalar.
      groups: the sharpness of each group, (number of groups,).
    """

    sharpness: jax.Array
    groups: jax.Array


def m_sharpness(
    value_fn: Callable[..., jax.Array],
    params: optax.Params,
    rho: float | jax.Array,
    *,
    batches: Iterable[Any],
    ord: float = 2,
    constraint: optax.GradientTransformation | None = None,
    num_iters: int = 1,
    num_ascents: int = 3,
    key: jax.Array | int = 0,
    progress: bool = False,
) -> MSharpness:
    """Measures the mean over groups of examples of each group's own sharpness.

    Args:
      value_fn: the mean loss of the examples of a group, `value_fn(params, group)`.
      params: parameters w, a pytree.
      rho: radius ρ of the ball ‖T⁻¹ ε‖_p ≤ ρ, in units of T⁻¹ w.
      batches: the groups, such as `optax_sam.Batches((x, y), m)`.
      ord: p, 2 or `jnp.inf`.
      constraint: a stage that maps the gradient of a group to the diagonal of T; see `sharpness`.
      num_iters: gradients of each ascent. With 1, ε is SAM's for the group, as in Foret et al. (and a group
        whose loss falls there counts as 0); with more, it is the one of `worst_case_sharpness`.
      num_ascents: number of ascents for each group if `num_iters` is more than 1; see
        `worst_case_sharpness`.
      key: of the random points, a random key or an integer.
      progress: whether to show a progress bar; needs tqdm.

    Returns:
      `MSharpness`.

    Raises:
      ValueError: if `rho` is negative, `ord` is not 2 or `jnp.inf`, a number is below 1, or there are no
        groups.

    Cost: for each group 2 gradients with `num_iters=1`; otherwise as `worst_case_sharpness`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import Batches, diagnostics
      >>> loss = lambda w, x: jnp.mean(x * w)  # opposite slopes cancel in the mean over all
      >>> slopes = jnp.array([1.0, 3.0, -1.0, -3.0])
      >>> [float(diagnostics.m_sharpness(loss, jnp.ones(()), 1.0, batches=Batches(slopes, m)).sharpness)
      ...  for m in (4, 2, 1)]
      [0.0, 2.0, 2.0]
    """
    checks.check_loss(value_fn, params)
    check_ball(rho, ord, constraint)
    check_ascents(num_iters, num_ascents)
    num_ascents = 1 if num_iters == 1 else num_ascents
    key = tree_math.random_key(key)
    params = tree_math.full_precision(params)
    of_group = compiled(of_batch, value_and_gradient, value_fn)
    rises, sizes = [], []
    for group, size in counted_batches(with_bar(batches, "group", show=progress), counter(batches)):
        search = search_around(params, functools.partial(of_group, group), rho, ord, constraint)
        first = search.center if num_iters == 1 else search.with_nonzero_gradient(search.center, key)
        starts = itertools.chain([first], search.random_points(key))
        rises.append(search.worst_of(starts, num_iters, num_ascents).sharpness)
        sizes.append(size)
    if not rises:
        raise ValueError("`batches` has no groups: pass `optax_sam.Batches(data, m)`, or a list.")
    groups = jnp.stack(rises)
    weights = jnp.asarray(sizes, groups.dtype) / sum(sizes)
    return MSharpness(jnp.sum(weights * groups), groups)
