"""Alignment: the cosine between a perturbation and an eigenvector, without its sign.

    |⟨ε, v⟩| / (‖ε‖ ‖v‖)

The nearer it is to 1 for the top eigenvector of the Hessian, the more SAM's regulariser is that of the top
eigenvalue (figure 1 of Luo et al., where it is small for SAM and large for Eigen-SAM).

References:
  Luo et al., `Explicit eigenvalue regularization improves sharpness-aware minimization
  <https://arxiv.org/abs/2501.12666>`_, 2024
"""

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math


def alignment(perturbation: optax.Params, eigenvector: optax.Params) -> jax.Array:
    """Computes |⟨ε, v⟩| / (‖ε‖ ‖v‖).

    Args:
      perturbation: ε, or any other direction, such as a gradient; a pytree.
      eigenvector: v, a pytree of the same structure, such as one of `optax_sam.curvature.top_eigenpairs`.

    Returns:
      A scalar in [0, 1], float32 or wider; 0 where one of the two is 0. Two random directions of n
      parameters have about n^(-1/2).

    Raises:
      ValueError: if the two differ in structure or shapes.

    Cost: three inner products.

    Example: with all of the eigenvectors found.
      >>> import jax, jax.numpy as jnp
      >>> from optax_sam import curvature, diagnostics
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0, 4.0]) * w**2)
      >>> pairs = curvature.top_eigenpairs(loss, jnp.ones(3), k=2)
      >>> epsilon = jnp.array([0.0, 3.0, 4.0])
      >>> found = jax.vmap(diagnostics.alignment, (None, 0))(epsilon, pairs.eigenvectors)
      >>> [round(float(x), 3) for x in found]
      [0.6, 0.8]
    """
    checks.check_gradient("`eigenvector`", eigenvector, perturbation)
    inverses = tree_math.reciprocal_or_zero(tree_math.norm(perturbation)) * tree_math.reciprocal_or_zero(
        tree_math.norm(eigenvector)
    )
    # Rounding errors would exceed 1.
    return jnp.minimum(jnp.abs(tree_math.vdot(perturbation, eigenvector)) * inverses, 1)
