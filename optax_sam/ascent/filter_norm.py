"""A perturbation relative to the weights, filter by filter: the length of a random weight perturbation.

    ε_f = σ ‖w_f‖ n_f        for every filter f, and every array with one axis or none

A filter is the part of a weight array that computes one output (`optax_sam.filters`). Networks that differ
only in the scale of their layers are then perturbed alike. With n standard normal, ‖ε_f‖ is about
σ √m ‖w_f‖, m the number of entries of the filter.

Symbols: n `updates`, w `params`, σ `sigma`.

Deviations from the authors' code (nblt/mARWP): a filter is at an index of the *last* axis, which counts the
outputs in Flax (theirs: the first, as in PyTorch); 1e-16 is not added to the length of an array with one
axis.

References:
  Li et al., `Efficient generalization improvement guided by random weight perturbation
  <https://arxiv.org/abs/2211.11489>`_, 2022
"""

from typing import Any

import jax
import optax

from optax_sam import checks, filters, tree_math
from optax_sam.schedules import radius_at


def scale_by_filter_norm(
    sigma: optax.ScalarOrSchedule, *, filter_axis: filters.FilterAxis = -1
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each filter of a vector by σ and the length of that filter of the parameters.

    Args:
      sigma: σ; a number, or a schedule of the number of updates made.
      filter_axis: the axis of weight arrays that counts the filters: −1, the last, in Flax and Haiku; 0 in
        Equinox. Arrays with one axis or none are one filter. Or a function `filter_axis(name, array)` of the
        path of an array, such as "layer/kernel", and the array, which returns an axis or several, or None
        for an array that is one filter; see `optax_sam.diagnostics.filter_normalised`.

    Returns:
      A gradient transformation n ↦ ε without state, to put behind `random_normal`.

    Raises:
      ValueError: if sigma is negative; at trace time, if an array has no such axis, or if it is sharded
        inside `jax.shard_map` and it is not known along which of its axes.

    Cost: one pass over the parameters; no gradient and no memory.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.scale_by_filter_norm(sigma=0.1)
      >>> w = {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]]), "bias": jnp.array([0.0, 2.0])}
      >>> ones = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> epsilon, _ = stage.update(ones, stage.init(w), w)
      >>> print(epsilon["kernel"][0], epsilon["bias"])
      [0.5 0.1] [0.2 0.2]
    """
    checks.check_radius("sigma", sigma, what="the length of a random perturbation")
    filters.check_filter_axis(filter_axis)

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        step_count: jax.Array | int = 0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        checks.check_params(updates, params)
        factor = radius_at(sigma, step_count, "sigma")
        leaf = lambda n, length: factor.astype(length.dtype) * length * n.astype(length.dtype)
        epsilon = jax.tree.map(leaf, updates, filters.norms(params, filter_axis))
        return tree_math.cast_like(epsilon, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
