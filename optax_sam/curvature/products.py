"""Products with the Hessian, the third derivative and the Gauss-Newton matrix; none is stored.

    H v = ∇²L(w) v                              `jax.jvp` over the gradient, about two gradients each
    ∇³L(w)(v, v)                                `jax.jvp` over that, about four
    ∇²(ℓ∘f)(w) = Jᵀ H J + Σ_i ∂ℓ/∂z_i ∇²f_i(w)   ℓ a loss of the outputs z = f(w), J = ∂f/∂w, H = ∇²ℓ(z)

The Gauss-Newton matrix G = Jᵀ H J, a term of the Hessian without negative eigenvalues if ℓ is convex, is the
Hessian of the loss of the *linearised* model, w ↦ ℓ(f(w₀) + J(w₀)(w − w₀)) at w₀ = w. So with such a loss
every function of `optax_sam.curvature` measures G. If ℓ is the cross-entropy of logits, or a squared error, G
is also the Fisher information matrix of the model.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.batches import over_batches
from optax_sam.curvature.krylov import MatVec
from optax_sam.devices import AxisName
from optax_sam.loss import BatchLoss, ValueFn
from optax_sam.platforms import primitives

NO_SECOND_DERIVATIVE = (
    "The loss has a gradient but no second derivative in forward mode, of which Hessian-vector products"
    " are made (`eigen_sam`, `gradient_norm_penalty`, `monitor` with curvature, `optax_sam.curvature`). It"
    " contains a function with a derivative rule of its own: `jax.custom_vjp`, an attention kernel of"
    " Pallas, an adjoint of an ODE solver. Use the curvature of a loss without it, in plain JAX:"
    " `tx.update(grads, state, params, value_fn=value_fn, curvature_fn=reference)`. If the rule can be"
    ' differentiated in reverse mode, see "Flash attention and custom gradients" in the documentation,'
    " docs/recipes/training_loop.md."
)


def hvp(
    value_fn: ValueFn,
    params: optax.Params,
    vector: optax.Params,
    *,
    axis_name: AxisName = None,
) -> optax.Params:
    """Computes the Hessian-vector product ∇²L(w) v.

    Args:
      value_fn: the loss L as a function of the parameters, a scalar.
      params: parameters w, a pytree.
      vector: direction v, a pytree like `params`.
      axis_name: `pmap` or `shard_map` axis over which the loss is averaged.

    Returns:
      A pytree like `params`, float32 or wider.

    Raises:
      ValueError: if `vector` is not like `params`.

    Cost: about two gradients, and no more memory than two.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import curvature
      >>> curvature.hvp(lambda w: w[0] ** 2 * w[1], jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])).tolist()
      [4.0, 2.0]
    """
    checks.check_loss(value_fn, params)
    checks.check_vector("`vector`", vector, params)
    gradient = BatchLoss(value_fn, axis_name=axis_name).gradient
    check_second_derivative(gradient, params, vector)
    return hessian_vector_product(gradient, params, vector)


def hessian_vector_product(
    gradient_fn: Callable[[optax.Params], optax.Updates],
    params: optax.Params,
    vector: optax.Params,
) -> optax.Params:
    """Computes J(w) v, where J is the Jacobian of `gradient_fn`, in float32 or wider.

    It uses `jax.jvp` rather than `jax.linearize`, which keeps the memory of a micro-batched gradient small;
    if several products are taken at one point, XLA shares their common part anyway.
    """
    _, product = jax.jvp(gradient_fn, (params,), (tree_math.cast_like(vector, params),))
    return jax.tree.map(lambda x: x.astype(tree_math.accumulation_dtype(x)), product)


def check_second_derivative(
    gradient_fn: Callable[[optax.Params], optax.Updates], params: optax.Params, vector: optax.Params
) -> None:
    """Raises if a gradient has no derivative in forward mode. It is traced once more, and not computed."""
    product = lambda v: jax.jvp(gradient_fn, (params,), (tree_math.cast_like(v, params),))[1]
    try:
        program = jax.make_jaxpr(product)(vector)
    except Exception as error:
        try:
            jax.eval_shape(gradient_fn, params)
        except Exception:
            return  # The gradient itself fails, and says why.
        raise TypeError(NO_SECOND_DERIVATIVE) from error
    # So JAX marks where it meets a `custom_vjp`. It is an error if the result depends on it, when compiled.
    if "custom_lin" not in primitives(program.jaxpr):
        return
    constants = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in program.consts]
    evaluate = lambda constants, vector: jax.extend.core.jaxpr_as_fun(
        jax.extend.core.ClosedJaxpr(program.jaxpr, constants)
    )(*jax.tree.leaves(vector))
    try:
        jax.jit(evaluate).lower(constants, jax.eval_shape(lambda: vector))
    except TypeError as error:
        raise TypeError(NO_SECOND_DERIVATIVE) from error


def third_derivative(
    value_fn: ValueFn,
    params: optax.Params,
    vector: optax.Params,
    *,
    axis_name: AxisName = None,
) -> optax.Params:
    """Computes ∇³L(w)(v, v), the second derivative of the gradient along v.

    For a unit eigenvector v of a simple eigenvalue λ of the Hessian it is the gradient ∇λ(w): where an
    optimizer moves by −η d, λ changes by −η ⟨∇λ, d⟩.

    Args:
      value_fn: the loss L as a function of the parameters, a scalar.
      params: parameters w, a pytree.
      vector: direction v, a pytree like `params`; held constant.
      axis_name: `pmap` or `shard_map` axis over which the loss is averaged.

    Returns:
      A pytree like `params`, float32 or wider.

    Raises:
      ValueError: if `vector` is not like `params`.

    Cost: about four gradients, and no more memory than four.

    Example: the eigenvalue 2 w₁ of the Hessian of w₀² w₁ at w₀ = 0.
      >>> import jax.numpy as jnp
      >>> from optax_sam import curvature
      >>> value_fn = lambda w: w[0] ** 2 * w[1]
      >>> curvature.third_derivative(value_fn, jnp.array([0.0, 3.0]), jnp.array([1.0, 0.0])).tolist()
      [0.0, 2.0]
    """
    checks.check_loss(value_fn, params)
    checks.check_vector("`vector`", vector, params)
    gradient = BatchLoss(value_fn, axis_name=axis_name).gradient
    check_second_derivative(gradient, params, vector)
    return derivatives_along(gradient, params, vector)[2]


def derivatives_along(
    gradient_fn: Callable[[optax.Params], optax.Updates], params: optax.Params, vector: optax.Params
) -> tuple[optax.Params, optax.Params, optax.Params]:
    """Computes ∇L(w), ∇²L(w) v and ∇³L(w)(v, v), where `gradient_fn` is ∇L, in float32 or wider."""
    vector = tree_math.cast_like(vector, params)
    along = lambda w: jax.jvp(gradient_fn, (w,), (vector,))
    (first, second), (_, third) = jax.jvp(along, (params,), (vector,))
    return tree_math.full_precision((first, second, third))


def hessian_operator(
    value_fn: Callable[..., jax.Array],
    params: optax.Params,
    *,
    batches: Iterable[Any] | None = None,
) -> MatVec:
    """Returns v ↦ ∇²L(w) v, compiled once, for one loss or for the mean loss over a data set.

    A `value_fn` that is wrapped in `jax.jit` is compiled once for all calls to which it is passed (with
    parameters and batches of the same shapes). Any other is compiled again for each operator, because
    variables that it closes over may have changed.

    Args:
      value_fn: the loss L as a function of the parameters, `value_fn(params)`; with `batches`, the mean loss
        of the examples of a batch, `value_fn(params, batch)`.
      params: parameters w, a pytree.
      batches: the data set, iterated over once for each product: a list, a data loader, `Batches`, or an
        array of which each entry is a batch. A batch is weighted by its number of examples, the length of
        the first axis of its arrays. If they do not tell it (class weights beside the examples, a last batch
        that is padded), pass `optax_sam.WeightedBatches(batches, num_examples)`.

    Returns:
      v ↦ H v; H v is like `params`, float32 or wider.

    Raises:
      TypeError: if `batches` is an iterator, which is empty after the first product.
      ValueError: when called, if there are no batches.

    Cost: about two gradients for each product and batch; memory of one batch and two copies of `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import Batches, curvature
      >>> value_fn = lambda w, x: jnp.mean((x * w) ** 2)
      >>> data = jnp.array([1.0, 2.0, 3.0])
      >>> matvec = curvature.hessian_operator(value_fn, jnp.ones(()), batches=Batches(data, 2))
      >>> round(float(matvec(jnp.ones(()))), 4)  # 2 (1 + 4 + 9) / 3
      9.3333
    """
    checks.check_loss(value_fn, params)
    product = over_batches(hvp, value_fn, batches, zeros=lambda: tree_math.zeros_like(params))
    return lambda vector: product(params, vector)


def gauss_newton_loss(
    model_fn: Callable[..., Any], loss_fn: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
    """Returns a `value_fn` with the value and gradient of ℓ∘f, whose Hessian is the Gauss-Newton matrix.

    Args:
      model_fn: the model f, `model_fn(params)` or `model_fn(params, batch)`; returns z, a pytree.
      loss_fn: the loss ℓ of the outputs, `loss_fn(z)` or `loss_fn(z, batch)`, a scalar. If it is convex
        in z, G has no negative eigenvalue.

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
    for name, function in {"model_fn": model_fn, "loss_fn": loss_fn}.items():
        if not callable(function):
            raise TypeError(f"`{name}` must be a function, got {type(function).__name__}.")

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
