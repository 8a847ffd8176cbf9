"""Losses with a gradient and no second derivative: an error that says so, wherever a product is taken."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from optax_sam import curvature, diagnostics

W = jnp.linspace(0.1, 1.0, 4)


@jax.custom_vjp
def own_rule(z):
    return jnp.tanh(z)


# Its forward pass calls the function itself, so a second derivative meets the rule again.
own_rule.defvjp(lambda z: (own_rule(z), own_rule(z)), lambda y, g: (g * (1 - y**2),))


@jax.custom_vjp
def first_order(z):
    return jnp.tanh(z)


def refuse(z):
    raise NotImplementedError("Higher-order AD not supported")


first_order_kernel = jax.custom_jvp(jnp.tanh)
first_order_kernel.defjvp(lambda z, t: refuse(z))
first_order.defvjp(lambda z: (jnp.tanh(z), first_order_kernel(z)), lambda y, g: (g * (1 - y**2),))

LOSSES = {
    "own rule": lambda w: jnp.sum(own_rule(w) ** 2),
    "kernel": lambda w: jnp.sum(first_order(w) ** 2),
    "in a scan": lambda w: jnp.sum(jax.lax.scan(lambda h, x: (own_rule(h * x), None), w, W)[0]),
}
METHODS = {
    "eigen_sam": optax_sam.eigen_sam(0.1, num_iters=2),
    "lanczos": optax_sam.eigen_sam(0.1, solver="lanczos", num_iters=2),
    "gradient_norm_penalty": optax_sam.gradient_norm_penalty(0.1),
    "monitor": diagnostics.monitor(optax_sam.sam(0.1), quantities=("top_eigenvalue",), num_iters=2),
}
SAYS = r"no second derivative in forward mode.*curvature_fn=reference.*training_loop\.md"


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("loss", LOSSES)
def test_methods_that_need_it_say_so(name, loss, jit):
    tx, loss = METHODS[name], LOSSES[loss]
    step = lambda w: tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
    with pytest.raises(TypeError, match=SAYS):
        (jax.jit(step) if jit else step)(W)


@pytest.mark.parametrize("loss", LOSSES)
def test_measures_that_need_it_say_so(loss):
    loss = LOSSES[loss]
    for measure in (
        lambda: curvature.hvp(loss, W, W),
        lambda: curvature.third_derivative(loss, W, W),
        lambda: curvature.top_eigenpairs(loss, W, num_iters=2),
        lambda: curvature.trace(loss, W, num_samples=2),
    ):
        with pytest.raises(TypeError, match=SAYS):
            measure()


@pytest.mark.parametrize("loss", LOSSES)
def test_methods_that_need_gradients_alone_work(loss):
    tx = optax_sam.sam(0.1)
    jax.jit(lambda w: tx.update(jax.grad(LOSSES[loss])(w), tx.init(w), w, value_fn=LOSSES[loss]))(W)


@pytest.mark.parametrize("name", ["eigen_sam", "lanczos", "monitor"])
def test_the_curvature_of_a_reference_is_the_remedy(name):
    tx = METHODS[name]
    reference = lambda w: jnp.sum(jnp.tanh(w) ** 2)
    grads = jax.grad(reference)(W)
    _, state = tx.update(grads, tx.init(W), W, value_fn=LOSSES["own rule"], curvature_fn=reference)
    _, expected = tx.update(grads, tx.init(W), W, value_fn=reference)
    field = "top_eigenvalue" if name == "monitor" else "eigenvalue"
    assert jnp.allclose(optax.tree.get(state, field), optax.tree.get(expected, field), rtol=1e-5)


def test_a_gradient_that_fails_says_why_itself():
    def broken(w):
        raise KeyError("missing layer")

    with pytest.raises(KeyError, match="missing layer"):
        curvature.hvp(broken, W, W)
