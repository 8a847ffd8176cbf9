"""A product over a data set is that of the whole batch; Gauss-Newton products are Jᵀ H J v."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from optax_sam import curvature
from optax_sam.curvature.eigen import random_vector
from tests.problems import network

NETWORK = network()
DATA = jax.tree.map(lambda x: np.asarray(x.reshape(-1, x.shape[-1])), NETWORK.batches)
VECTOR = random_vector(jax.random.key(0), NETWORK.params)


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


def test_batches_are_views_made_when_asked_for():
    data = np.arange(10)
    batches = curvature.Batches(data, 4)
    assert len(batches) == 3
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert all(np.shares_memory(batch, data) for batch in batches)
    assert len(curvature.Batches(np.zeros((5, 2)))) == 5


def test_one_batch_is_on_the_device_at_a_time(monkeypatch):
    """Before a batch is handed over, the sum over those before it is ready."""
    waited = []
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(float(x[0])) or wait(x))
    loss = lambda w, x: jnp.sum(w**2) * x[0] / 2
    batches = np.arange(1.0, 5.0, dtype=np.float32)[:, None]
    curvature.hessian_operator(loss, jnp.ones(2), batches=batches)(jnp.ones(2))
    assert waited == [0.0, 1.0, 3.0, 6.0]


@pytest.mark.parametrize("jit", [True, False])
def test_number_of_compilations(jit):
    """A jitted loss is compiled once for all calls; any other for each, as its variables may change."""
    traces = []

    def loss(w, x):
        traces.append(1)
        return jnp.mean((x @ w) ** 2)

    value_fn = jax.jit(loss) if jit else loss
    batches = np.ones((6, 3, 2), np.float32)
    for _ in range(3):
        curvature.trace(value_fn, jnp.ones(2), num_samples=4, batches=batches)
    first = 1 if jit else 3
    assert len(traces) == first


def test_variables_of_a_function_that_is_not_jitted_may_change():
    scale = 1.0
    loss = lambda w: scale * jnp.sum(w**2)
    assert curvature.trace(loss, jnp.ones(2), num_samples=2).estimate == 4.0
    scale = 2.0
    assert curvature.trace(loss, jnp.ones(2), num_samples=2).estimate == 8.0


def test_sums_of_a_bfloat16_model_are_made_in_float32():
    """In bfloat16 a sum of equal terms stalls after 256 of them."""
    loss = lambda w, x: jnp.mean(x * w**2)
    params = jnp.ones((), jnp.bfloat16)
    matvec = curvature.hessian_operator(loss, params, batches=np.ones((1000, 2), np.float32))
    product = matvec(jnp.ones((), jnp.float32))
    assert product.dtype == jnp.float32
    assert product == 2.0


def test_spectrum_of_a_bfloat16_network():
    half = network(dtype=jnp.bfloat16)
    batches = curvature.Batches(half.batches)
    # The same weights and data in float32.
    full_params, full_data = jax.tree.map(lambda x: x.astype(jnp.float32), (half.params, half.batches))
    arguments = {"k": 2, "num_iters": 12}
    found = curvature.top_eigenpairs(half.loss, half.params, batches=batches, **arguments)
    expected = curvature.top_eigenpairs(
        half.loss, full_params, batches=curvature.Batches(full_data), **arguments
    )
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(found)}
    assert dtypes == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=0.03)


def test_iterator_is_refused():
    with pytest.raises(
        TypeError, match=r"an iterator.*is empty after the first.*Batches\(data, batch_size\)"
    ):
        curvature.trace(NETWORK.loss, NETWORK.params, batches=iter([DATA]))


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="`batches` has no examples"):
        curvature.trace(NETWORK.loss, NETWORK.params, batches=[])


@pytest.mark.parametrize("data", [(np.zeros(3), np.zeros(4)), np.zeros(()), np.zeros((0, 2)), ()])
def test_data_without_a_common_first_axis(data):
    with pytest.raises(ValueError, match="`data` must be arrays with the same first axis"):
        curvature.Batches(data, 2)


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
