"""Lookbehind: the gradients at all points of the ascent, not at the last one alone.

The k ascents of a multi-step method pass the points w_1, ..., w_k. SAM uses the gradient at w_k; Lookbehind
takes a step of a fast copy of w with each, and then moves w a fraction α of the way to the copy. With
gradient descent as the copy's optimizer that is one step along

    d = α (∇L(w_1) + ... + ∇L(w_k))

With `alpha=None`, α = (1 + cos(∇L(w_1), ∇L(w_1) + ... + ∇L(w_k)))/2 for each parameter array: the more the
gradients disagree, the shorter the step.

Symbols: ∇L(w_1), ..., ∇L(w_{k-1}) `ascent_gradients`, ∇L(w_k) `updates`, α `alpha`.

Deviations from the authors' code (chandar-lab/Lookbehind-SAM): the base optimizer makes one step with d,
where theirs makes k steps of the fast copy, whose momentum is updated k times; without momentum and weight
decay the two are equal. They compute the gradient at each point twice, for the descent and for the next
ascent.

References:
  Mordido et al., `Lookbehind-SAM: k steps back, 1 step forward <https://arxiv.org/abs/2307.16704>`_, 2024
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, shards, tree_math


def lookbehind(alpha: float | None = 0.5) -> optax.GradientTransformationExtraArgs:
    """Maps the gradient at the last point of the ascent to d = α (∇L(w_1) + ... + ∇L(w_k)).

    Args:
      alpha: α; 0.2, 0.5 or 0.8 in the paper. None: from the agreement of the gradients, see above.

    Returns:
      A gradient transformation without state, for the descent of `sharpness_aware(..., num_steps=k)`. It
      reads the extra argument `ascent_gradients`.

    Raises:
      ValueError: if alpha is negative.

    Cost: no gradient: the ascent has computed them. Memory for their sum.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.lookbehind(alpha=0.5)
      >>> first, last = jnp.array([1.0]), jnp.array([3.0])
      >>> stage.update(last, stage.init(last), last, ascent_gradients=(first,))[0].tolist()
      [2.0]
    """
    if alpha is not None:
        checks.check_number("alpha", alpha)

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        ascent_gradients: tuple[optax.Updates, ...] = (),
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        first, *others = [*ascent_gradients, updates]

        def leaf(first: jax.Array, *others: jax.Array) -> jax.Array:
            dtype = tree_math.accumulation_dtype(first)
            total = sum((x.astype(dtype) for x in others), start=first.astype(dtype))
            factor = _agreement(first, total) if alpha is None else jnp.asarray(alpha, dtype)
            return (factor * total).astype(first.dtype)

        return shards.map_leaves(leaf, first, *others), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _agreement(first: jax.Array, total: jax.Array) -> jax.Array:
    """Returns (1 + cos)/2 of two arrays."""
    lengths = tree_math.norm(first) * tree_math.norm(total)
    return (1 + tree_math.vdot(first, total) * tree_math.reciprocal_or_zero(lengths)) / 2
