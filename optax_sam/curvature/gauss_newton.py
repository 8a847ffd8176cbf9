"""The Gauss-Newton matrix G = Jᵀ H J: the part of the Hessian that is never negative.

For a loss ℓ of the outputs z = f(w) of a model, J = ∂f/∂w and H = ∇²ℓ(z):

    ∇²(ℓ∘f)(w) = Jᵀ H J + Σ_i ∂ℓ/∂z_i ∇²f_i(w)

G is the Hessian of the loss of the *linearised* model, w ↦ ℓ(f(w₀) + J(w₀)(w − w₀)) at w₀ = w. So a loss made
that way is all that is needed: every function of `optax_sam.curvature` then speaks of G. Where ℓ is the
cross-entropy of logits, or a squared error, G is also the Fisher information matrix of the model.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam.curvature.hvp import hvp
from optax_sam.devices import AxisName


def gauss_newton_loss(
    model_fn: Callable[..., Any], loss_fn: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
    """Returns a `value_fn` with value and gradient of ℓ∘f, and the Gauss-Newton matrix for its Hessian.

    Args:
      model_fn: the model f, `model_fn(params)` or `model_fn(params, batch)`; returns z, a pytree.
      loss_fn: the loss ℓ of the outputs, `loss_fn(z)` or `loss_fn(z, batch)`, a scalar; convex in z if G is
        to have no negative eigenvalue.

    Returns:
      `value_fn(params)` or `value_fn(params, batch)`, for `top_eigenpairs`, `trace`, `spectral_density`.

    Cost: a product with G takes about as long as one with the Hessian.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import curvature
      >>> value_fn = curvature.gauss_newton_loss(jnp.sin, lambda z: jnp.sum(z**2))
      >>> w = jnp.array([0.0, 1.0])
      >>> product = curvature.hvp(value_fn, w, jnp.array([1.0, 1.0]))
      >>> bool(jnp.allclose(product, 2 * jnp.cos(w) ** 2))
      True
    """

    def value_fn(params: optax.Params, *batch: Any) -> jax.Array:
        point = jax.lax.stop_gradient(params)
        step = jax.tree.map(jnp.subtract, params, point)  # 0, with a derivative
        outputs, change = jax.jvp(lambda w: model_fn(w, *batch), (point,), (step,))
        return loss_fn(jax.tree.map(jnp.add, outputs, change), *batch)

    return value_fn


def gauss_newton_product(
    model_fn: Callable[[optax.Params], Any],
    loss_fn: Callable[[Any], jax.Array],
    params: optax.Params,
    vector: optax.Params,
    *,
    axis_name: AxisName = None,
) -> optax.Params:
    """Computes the Gauss-Newton-vector product Jᵀ H J v.

    Args:
      model_fn: the model f as a function of the parameters; returns its outputs z, a pytree.
      loss_fn: the loss ℓ as a function of the outputs, a scalar.
      params: parameters w, a pytree.
      vector: direction v, a pytree like `params`.
      axis_name: `pmap` or `shard_map` axis over which the loss is averaged.

    Returns:
      A pytree like `params`, float32 or wider.

    Cost: about two gradients, as for `hvp`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import curvature
      >>> square = lambda z: 0.5 * jnp.sum(z**2)
      >>> matrix = jnp.array([[1.0, 2.0], [0.0, 1.0]])
      >>> model = lambda w: matrix @ w
      >>> curvature.gauss_newton_product(model, square, jnp.ones(2), jnp.array([1.0, 0.0])).tolist()
      [1.0, 2.0]
    """
    return hvp(gauss_newton_loss(model_fn, loss_fn), params, vector, axis_name=axis_name)
