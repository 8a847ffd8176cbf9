"""Momentum with weight decay: the descent of Bayesian SAM.

    m ← a m + (1 − a) (g' + λ w)        (m_0 = 0)

λ w is the gradient of the prior, and a part of the mean: it is remembered with g'.

Symbols: g' `updates`, w `params`, a `decay`, λ `weight_decay`, m `trace` of the state.

Deviations from the authors' code (team-approx-bayes/bayesian-sam): a gradient that is not finite leaves m as
it is.

References:
  Möllenhoff and Khan, `SAM as an optimal relaxation of Bayes <https://arxiv.org/abs/2210.01620>`_, 2023
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math


def posterior_momentum(
    decay: float = 0.9, *, weight_decay: float = 2e-4
) -> optax.GradientTransformationExtraArgs:
    """Maps the gradient g' at w + ε to the running mean m ← a m + (1 − a) (g' + λ w).

    Args:
      decay: a in [0, 1); 0.9 in the authors' code.
      weight_decay: λ; 40/200,000 in the authors' experiments.

    Returns:
      A gradient transformation g' ↦ m with `optax.TraceState`, for the descent of `sharpness_aware`.

    Raises:
      ValueError: if the decay is outside [0, 1), or the weight decay negative.

    Cost: no gradient; memory for m, one copy of the parameters, float32 or wider.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.posterior_momentum(decay=0.5, weight_decay=0.1)
      >>> w, g_prime = jnp.array([10.0]), jnp.array([3.0])
      >>> stage.update(g_prime, stage.init(w), w)[0].tolist()
      [2.0]
    """
    checks.check_number("decay", decay, below=1.0)
    checks.check_number("weight_decay", weight_decay)

    def init(params: optax.Params) -> optax.TraceState:
        return optax.TraceState(tree_math.zeros_like(params))

    def update(
        updates: optax.Updates,
        state: optax.TraceState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.TraceState]:
        gradient = jax.tree.map(
            lambda m, g, w: g.astype(m.dtype) + weight_decay * w.astype(m.dtype), state.trace, updates, params
        )
        is_finite = jnp.isfinite(tree_math.norm(gradient))
        mean = tree_math.mix(jnp.asarray(decay), state.trace, gradient)
        return mean, optax.TraceState(tree_math.where(is_finite, mean, state.trace))

    return optax.GradientTransformationExtraArgs(init, update)
