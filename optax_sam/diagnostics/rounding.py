"""What rounding leaves of a perturbation: ε̃ = round(w + ε) − round(w).

bfloat16 keeps eight bits, so that w + ε = w wherever |ε| is under about |w|/512, and a perturbation spread
over many parameters mostly is. Measured on a million parameters of standard deviation 0.1 and a random ε of
1.6e-5 a parameter (ρ = 0.05 for ten million):

                                             moved   cosine  length  projection
    bfloat16 parameters                      3.7 %    0.26    0.35      0.09
    the same, ε twenty times as long          54 %    0.90    1.05      0.94
    the same, ε as long, T = |w| + 0.01     0.02 %    0.00    0.00      0.00
    float32 parameters, bfloat16 computing   8.4 %    0.21    4.78      1.00
    float16 parameters                        28 %    0.69    0.90      0.62

So the parameters have to be float32; then computing in bfloat16 does little harm. Where such a w lies
between two numbers of bfloat16 is as good as random, so that a small ε is rounded up now and then rather
than always down: what arrives is ε and a noise, which may be longer than ε but has no particular direction,
and to which the loss of a large network hardly responds. Stochastic rounding of w + ε does the same for
bfloat16 parameters. Where the noise matters, compute the second pass in float32: its gradient alone reaches
the optimizer. A longer ε helps bfloat16 parameters, but is another method; T = |w| + η does not: each |ε|
is then small beside its |w|.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.diagnostics.losses import full_precision


class EffectivePerturbation(NamedTuple):
    """Result of `effective_perturbation`.

    Attributes:
      moved: share of the parameters with ε ≠ 0 that move at all, a scalar in [0, 1].
      cosine: of the angle between ε̃ and ε; a scalar.
      norm_ratio: ‖ε̃‖/‖ε‖, a scalar.
      projection: ⟨ε̃, ε⟩/‖ε‖², cosine times norm ratio: how much of ε arrives, other than noise. 1 is all.
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
    """Computes what is left of ε when w + ε and w are rounded: ε̃ = round(w + ε) − round(w).

    Args:
      params: parameters w, a pytree, in the dtype in which they are kept: bfloat16 if you keep them so,
        float32 if only the model computes in bfloat16.
      perturbation: ε, a pytree like `params`.
      dtype: what w + ε is rounded to.

    Returns:
      `EffectivePerturbation`; all 0 where ε is 0.

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
    checks.check_gradient("`perturbation`", perturbation, params)
    w, epsilon = full_precision(params), full_precision(perturbation)
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
    # Without the barrier XLA may leave out a cast there and back.
    return jax.lax.optimization_barrier(x.astype(dtype)).astype(x.dtype)
