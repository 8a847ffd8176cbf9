"""Fisher information: the constraint of Fisher SAM.

    F = 1 + η g²,   T = F^(-1/2)        ‖T⁻¹ ε‖² = εᵀ F ε

The ball measures how much the model's predictions change, by the diagonal of the empirical Fisher
information of one batch.

Symbols: g `updates` (the clean gradient), η `eta`.

Deviations from the paper: the diagonal is the squared gradient of the *batch*, as in the community's
code, not the mean over examples; with several ascents F comes from the clean gradient.

References:
  Kim et al., `Fisher SAM: Information geometry and sharpness aware minimisation
  <https://arxiv.org/abs/2206.04920>`_, 2022
"""

from typing import Any

import jax
import optax

from optax_sam import checks, tree_math


def fisher_information(eta: float = 1.0) -> optax.GradientTransformationExtraArgs:
    """Maps a gradient g to the diagonal T = (1 + η g²)^(-1/2) of the ball ‖T⁻¹ ε‖ ≤ ρ.

    Args:
      eta: η, weight of the information relative to the Euclidean metric; 1 in the community's code, 0 is SAM.

    Returns:
      A gradient transformation without state, for `steepest_ascent(rho, constraint=...)`. The diagonal has
      the shapes of the gradient and is float32 or wider.

    Raises:
      ValueError: if `eta` is negative.

    Cost: no gradient and no memory.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.fisher_information(eta=3.0)
      >>> gradient = jnp.array([0.0, 1.0])
      >>> stage.update(gradient, stage.init(gradient))[0].tolist()
      [1.0, 0.5]
    """
    checks.check_number("eta", eta)

    def init(params: optax.Params) -> optax.EmptyState:
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        grad: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        checks.check_whole(updates)
        gradient = updates if grad is None else grad
        return jax.tree.map(lambda g: _inverse_root(g, eta), gradient), state

    return optax.GradientTransformationExtraArgs(init, update)


def _inverse_root(g: jax.Array, eta: float) -> jax.Array:
    return jax.lax.rsqrt(1 + eta * g.astype(tree_math.accumulation_dtype(g)) ** 2)
