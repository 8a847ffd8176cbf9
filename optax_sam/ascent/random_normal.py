"""Random noise in place of a gradient: where a random weight perturbation begins.

    n ~ N(0, I)

Nothing reads the gradient, so behind this stage ε costs no gradient: under `jit` XLA drops the clean one. A
stage that follows gives n its length:

    random_normal(), scale_by_filter_norm(sigma)       ε_f = σ ‖w_f‖ n_f for each filter f
    random_normal(), steepest_ascent(rho)              ε = ρ n/‖n‖, a random direction

The key of a step is folded in from the number of updates made, so a run that is resumed draws what it would
have drawn. All devices draw the same numbers, as one device would; with m-sharpness, and for a shard of a
parameter inside `jax.shard_map`, each its own.

Symbols: n the result.
"""

from typing import Any

import jax
import optax

from optax_sam import checks, keys, tree_math
from optax_sam.loss import NO_LOSS, BatchLoss


def random_normal(*, key: jax.Array | int = 0) -> optax.GradientTransformationExtraArgs:
    """Maps any gradient to independent standard normal entries n, new ones in each step.

    Args:
      key: an int, or a key of `jax.random`, whose generator is then used. With an int it is JAX's default,
        threefry: JAX promises that its numbers depend neither on how arrays are sharded nor on the kind of
        device, and on CPU it is the fastest. `jax.random.key(0, impl="unsafe_rbg")` takes fewer operations
        per number and compiles faster, without that promise.

    Returns:
      A gradient transformation without state, for the ascent of `sharpness_aware`. The entries have the
      structure, shapes and dtypes of the gradient.

    Cost: a random number per parameter, about 100 operations; no gradient. Memory for n, which is ε later;
    while threefry draws it, one or two more copies of the largest array.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.random_normal(key=1)
      >>> gradient = jnp.zeros(10_000)
      >>> noise, _ = stage.update(gradient, stage.init(gradient))
      >>> abs(round(float(noise.mean()), 1)), round(float(noise.std()), 1)
      (0.0, 1.0)
    """
    tree_math.random_key(key)

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        loss: BatchLoss = NO_LOSS,
        step_count: jax.Array | int = 0,
        ascent_step: int = 0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        checks.check_whole(updates)
        key_now = keys.fold_in(loss.own_key(tree_math.random_key(key)), step_count)
        if ascent_step:
            key_now = keys.fold_in(key_now, ascent_step)
        # In 16 bits a uniform number has 7 or 10 of them, and a normal one no tails.
        noise = tree_math.random_vector(key_now, tree_math.full_precision(updates))
        return tree_math.cast_like(noise, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
