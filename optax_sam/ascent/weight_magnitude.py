"""Weight magnitude: the adaptive constraint of ASAM.

    T = |w| + η   where the mask is true,   T = 1 elsewhere

A large weight may then be perturbed more than a small one, and the measured sharpness does not change when
one layer is scaled up and the next one scaled down.

Symbols: w `params`, η `eta`.

Deviations from the authors' code: none with their mask (parameters named "weight") and their η = 0.01. The
other common PyTorch implementation (davda54/sam) has no mask and η = 0.

References:
  Kwon et al., `ASAM: Adaptive sharpness-aware minimization for scale-invariant learning of deep neural
  networks <https://arxiv.org/abs/2102.11600>`_, 2021
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.masks import Mask, resolved

REMEDY = " With `optax.inject_hyperparams` name `mask` in `static_args`."


def weight_magnitude(eta: float = 0.01, *, mask: Mask | None = None) -> optax.GradientTransformationExtraArgs:
    """Maps a gradient to the diagonal T = |w| + η of the ball ‖T⁻¹ ε‖ ≤ ρ.

    Args:
      eta: η, which lets weights at 0 be perturbed; 0.01 in the authors' code.
      mask: a pytree of bools with the structure of the parameters or a prefix of it, or a function from
        the parameters to one. True: T = |w| + η; False: T = 1. None: true everywhere. The authors select all
        but the biases (in PyTorch, scales of normalisation layers are named "weight" too). For weight
        matrices only: `mask_by_name("kernel")`.

    Returns:
      A gradient transformation without state, for `steepest_ascent(rho, constraint=...)`. The diagonal has
      the shapes of the parameters and is float32 or wider.

    Raises:
      ValueError: if `eta` is negative; at trace time if the mask does not fit the parameters.

    Cost: no gradient and no memory.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> stage = optax_sam.weight_magnitude(eta=0.5)
      >>> params = jnp.array([-2.0, 0.0])
      >>> stage.update(params, stage.init(params), params)[0].tolist()
      [2.5, 0.5]
    """
    checks.check_number("eta", eta)

    def init(params: optax.Params) -> optax.EmptyState:
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        checks.check_params(updates, params)
        if mask is None:
            return jax.tree.map(lambda w: _magnitude(w, eta), params), state
        selected = resolved(mask, params, REMEDY)
        if not any(jax.tree.leaves(selected)):
            raise ValueError(f"`mask` selects no parameter, so T = 1 everywhere and ASAM is SAM.{REMEDY}")
        diagonal = lambda w, adaptive: _magnitude(w, eta) if adaptive else jnp.ones_like(_magnitude(w, eta))
        return jax.tree.map(diagonal, params, selected), state

    return optax.GradientTransformationExtraArgs(init, update)


def _magnitude(w: jax.Array, eta: float) -> jax.Array:
    return jnp.abs(w.astype(tree_math.accumulation_dtype(w))) + eta
