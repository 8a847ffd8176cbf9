"""Products are those of dense matrices, over a data set those of the whole batch, Gauss-Newton's Jᵀ H J v."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.flatten_util import ravel_pytree

from optax_sam import curvature
from optax_sam.tree_math import random_vector
from tests.problems import flat, network, quadratic, unflat
from tests.strategies import nonzero_vectors

NETWORK = network()
DATA = jax.tree.map(lambda x: np.asarray(x.reshape(-1, x.shape[-1])), NETWORK.batches)
VECTOR = random_vector(jax.random.key(0), NETWORK.params)


@jax.jit
def cubic_hvp(w, v):
    problem = quadratic([5.0, -3.0, 2.0, 1.0, 0.5])
    cubic = lambda params: problem.value_fn(params) + jnp.sum(flat(params) ** 3)
    return flat(curvature.hvp(cubic, unflat(w), unflat(v)))


@given(w=nonzero_vectors, v=nonzero_vectors)
def test_hessian_vector_product(w, v):
    hessian = quadratic([5.0, -3.0, 2.0, 1.0, 0.5]).hessian
    with jax.enable_x64(True):
        product = cubic_hvp(w, v)
    np.testing.assert_allclose(product, hessian @ v + 6 * w * v, rtol=1e-10, atol=1e-10)


@jax.jit
def cubic_third_derivative(w, v):
    problem = quadratic([5.0, -3.0, 2.0, 1.0, 0.5])
    cubic = lambda params: problem.value_fn(params) + jnp.sum(flat(params) ** 3)
    return flat(curvature.third_derivative(cubic, unflat(w), unflat(v)))


@given(w=nonzero_vectors, v=nonzero_vectors)
def test_third_derivative(w, v):
    with jax.enable_x64(True):
        np.testing.assert_allclose(cubic_third_derivative(w, v), 6 * v**2, rtol=1e-10, atol=1e-10)


def test_third_derivative_along_an_eigenvector_is_the_gradient_of_its_eigenvalue(x64):
    problem = network(dtype=jnp.float64)
    w, unravel = ravel_pytree(problem.params)
    loss = lambda w: problem.loss(unravel(w), jax.tree.map(lambda x: x[0], problem.batches))
    eigenvalues = lambda w: jnp.linalg.eigh(jax.hessian(loss)(w))
    direction = np.random.default_rng(0).normal(size=w.shape)
    (_, vectors), (change, _) = jax.jit(lambda w, d: jax.jvp(eigenvalues, (w,), (d,)))(w, direction)
    for index in (0, -1):
        found = jax.jit(lambda v: curvature.third_derivative(loss, w, v))(vectors[:, index])
        np.testing.assert_allclose(found @ direction, change[index], rtol=1e-8)


@functools.cache
def whole_batch():
    return ravel_pytree(curvature.hvp(lambda w: NETWORK.loss(w, DATA), NETWORK.params, VECTOR))[0]


@pytest.mark.parametrize(
    "batches",
    [
        curvature.Batches(NETWORK.batches),
        curvature.Batches(DATA, 16),
        curvature.Batches(DATA, 40),  # 40, 40, 16 examples
        curvature.Batches(DATA, 1000),
        [DATA],
        list(zip(*NETWORK.batches, strict=True)),
        list(curvature.Batches(DATA, 7)),
    ],
    ids=["stacked", "equal", "unequal", "one", "whole", "list", "short last"],
)
def test_product_over_a_data_set_is_that_of_the_whole_batch(batches):
    matvec = curvature.hessian_operator(NETWORK.loss, NETWORK.params, batches=batches)
    np.testing.assert_allclose(ravel_pytree(matvec(VECTOR))[0], whole_batch(), rtol=1e-4, atol=1e-6)


def test_array_of_batches():
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    loss = lambda w, x: jnp.mean((x @ w) ** 2)
    matvec = curvature.hessian_operator(loss, jnp.zeros(2), batches=x)
    flat = x.reshape(12, 2)
    np.testing.assert_allclose(matvec(jnp.ones(2)), 2 * flat.T @ flat @ np.ones(2) / 12, rtol=1e-5)


def test_sums_of_a_bfloat16_model_are_made_in_float32():
    """In bfloat16 a sum of equal terms stalls after 256 of them."""
    loss = lambda w, x: jnp.mean(x * w**2)
    params = jnp.ones((), jnp.bfloat16)
    matvec = curvature.hessian_operator(loss, params, batches=np.ones((1000, 2), np.float32))
    product = matvec(jnp.ones((), jnp.float32))
    assert product.dtype == jnp.float32
    assert product == 2.0


def model(params, batch):
    x, _ = batch
    hidden = jnp.tanh(x @ params["layer1"]["weight"] + params["layer1"]["bias"])
    return hidden @ params["layer2"]["weight"] + params["layer2"]["bias"]


def cross_entropy(logits, batch):
    _, y = batch
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - jnp.sum(y * logits, axis=-1))


@functools.cache
def dense_gauss_newton():
    vector, unravel = ravel_pytree(NETWORK.params)
    logits = model(NETWORK.params, DATA)
    jacobian = jax.jacobian(lambda w: model(unravel(w), DATA).ravel())(vector)
    inner = jax.hessian(lambda z: cross_entropy(z.reshape(logits.shape), DATA))(logits.ravel())
    return np.asarray(jacobian.T @ inner @ jacobian)


def test_gauss_newton_product():
    matrix = dense_gauss_newton()
    product = jax.jit(
        lambda params, vector: curvature.gauss_newton_product(
            lambda w: model(w, DATA), lambda z: cross_entropy(z, DATA), params, vector
        )
    )(NETWORK.params, VECTOR)
    expected = matrix @ ravel_pytree(VECTOR)[0]
    np.testing.assert_allclose(ravel_pytree(product)[0], expected, rtol=1e-3, atol=1e-5)
    # The Hessian's is another.
    assert np.linalg.norm(whole_batch() - expected) > 0.01 * np.linalg.norm(expected)


def test_gauss_newton_loss():
    """Value and gradient of the loss; the spectrum over a data set is that of the dense matrix."""
    value_fn = curvature.gauss_newton_loss(model, cross_entropy)
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    expected = jax.value_and_grad(NETWORK.loss)(NETWORK.params, DATA)
    jax.tree.map(close, jax.value_and_grad(value_fn)(NETWORK.params, DATA), expected)
    matrix = dense_gauss_newton()
    pairs = curvature.top_eigenpairs(
        value_fn, NETWORK.params, 3, num_iters=30, batches=curvature.Batches(DATA, 40)
    )
    np.testing.assert_allclose(pairs.eigenvalues, np.linalg.eigvalsh(matrix)[::-1][:3], rtol=1e-4)
