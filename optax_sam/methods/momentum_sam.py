"""Momentum-SAM: one gradient per step, taken ahead along the momentum, ε = −ρ m/‖m‖."""

from typing import Any

import optax

from optax_sam import checks
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.one_gradient import one_gradient


@checks.goes_in_front
def momentum_sam(
    rho: optax.ScalarOrSchedule = 3.0, decay: float = 0.9, *, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Momentum-SAM: d = g' = ∇L(w + ε) with ε = −ρ m/‖m‖ and m the running mean of past g'.

    ε is what SGD with momentum would do next, only longer. So it is *downhill*: the other way than SAM's.
    The uphill form is `one_gradient(steepest_ascent(rho), decay=0.9)`, with a radius of SAM's size.

    Symbols: m `remembered_gradient` of the state, ρ `rho`.

    Args:
      rho: radius ρ; 3 in the authors' experiments on CIFAR-100, much larger than SAM's.
      decay: decay of m; 0.9 in the authors' code, the momentum of the base optimizer.
      state_dtype: dtype in which m is kept, as Optax's `mu_dtype`; None: float32 or wider.

    Returns:
      A gradient transformation to put in front of a base optimizer. Return no clean loss from the step; see
      `one_gradient`.

    Raises:
      ValueError: if rho is negative or the decay outside [0, 1).

    Cost: as the base optimizer, and memory for m: 4 bytes per parameter, 2 in bfloat16.

    Deviations from the authors' code (MarlonBecker/MSAM): their m is the momentum buffer of the base
    optimizer, which contains the weight decay; without weight decay the trajectories are equal. Their
    parameters are those at w + ε, here they are w, so nothing is undone for evaluation. A zero m gives ε = 0.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(optax_sam.momentum_sam(rho=1.0), optax.sgd(0.1, momentum=0.9))
      >>> loss = lambda w: jnp.sum(w**2)
      >>> w = jnp.array([3.0, 4.0])
      >>> state = tx.init(w)
      >>> for _ in range(2):
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
      >>> round(float(optax.tree.get(state, "ascent_value")), 4)  # (5 − 1)²
      16.0

    References:
      Becker et al., `Momentum-SAM: sharpness aware minimization without computational overhead
      <https://arxiv.org/abs/2401.12033>`_, 2024
    """
    downhill = optax.chain(steepest_ascent(rho), optax.scale(-1.0))
    return one_gradient(downhill, decay=decay, state_dtype=state_dtype)
