"""Batches are made when asked for, one at a time is on the device, and a loss is compiled once."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import curvature, diagnostics, sde
from tests.problems import network

NETWORK = network()
DATA = jax.tree.map(lambda x: np.asarray(x.reshape(-1, x.shape[-1])), NETWORK.batches)


def test_batches_are_views_made_when_asked_for():
    data = np.arange(10)
    batches = optax_sam.Batches(data, 4)
    assert len(batches) == 3
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert all(np.shares_memory(batch, data) for batch in batches)
    assert len(optax_sam.Batches(np.zeros((5, 2)))) == 5


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
    # For each program the loss is traced twice: once to see that it has a second derivative.
    assert len(traces) == (1 if jit else 2 * 3)


def test_variables_of_a_function_that_is_not_jitted_may_change():
    scale = 1.0
    loss = lambda w: scale * jnp.sum(w**2)
    assert curvature.trace(loss, jnp.ones(2), num_samples=2).estimate == 4.0
    scale = 2.0
    assert curvature.trace(loss, jnp.ones(2), num_samples=2).estimate == 8.0


def test_under_jit():
    spectrum = jnp.array([5.0, 3.0, -1.0, 0.5])

    def everything(params):
        loss = lambda w, x: 0.5 * x[0] * jnp.sum(spectrum * w**2)
        batches = [params[:1]]  # traced
        pairs = curvature.top_eigenpairs(loss, params, k=2, num_iters=3, batches=batches)
        trace = curvature.trace(loss, params, num_samples=2, batches=batches)
        density = curvature.spectral_density(loss, params, num_iters=3, num_samples=1, batches=batches)
        return pairs, trace, density

    params = jnp.ones(4)
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, jax.jit(everything)(params), everything(params))


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
        optax_sam.Batches(data, 2)


def test_a_key_in_front_of_the_examples_is_not_counted():
    """A mean over batches of 3 and 1 examples, each with a key."""
    loss = lambda w, batch: jnp.mean(batch[1]) * jnp.sum(w**2) / 2
    keys = jax.random.split(jax.random.key(0), 2)
    batches = [(keys[0], np.array([1.0, 2.0, 3.0], np.float32)), (keys[1], np.array([10.0], np.float32))]
    product = curvature.hessian_operator(loss, jnp.ones(1), batches=batches)(jnp.ones(1))
    np.testing.assert_allclose(product, 4.0, rtol=1e-6)
    of_keys = lambda w, key: jax.random.uniform(key) * jnp.sum(w**2) / 2
    product = curvature.hessian_operator(of_keys, jnp.ones(1), batches=keys)(jnp.ones(1))
    np.testing.assert_allclose(product, np.mean([jax.random.uniform(key) for key in keys]), rtol=1e-6)


def test_a_jitted_loss_that_is_dropped_takes_its_data_along():
    class Data:
        array = np.ones(10, np.float32)

    def measured(data):
        value_fn = jax.jit(lambda w: jnp.sum(data.array * w**2))
        found = curvature.trace(value_fn, jnp.ones(10), num_samples=2).estimate
        diagnostics.sharpness(value_fn, jnp.ones(10), 0.1)
        return found, weakref.ref(value_fn)

    data = Data()
    freed = weakref.ref(data)
    found, value_fn = measured(data)
    assert found == 20.0
    del data
    gc.collect()
    assert value_fn() is None
    assert freed() is None


ERRORS = lambda w, x: (jnp.tanh(x @ w["a"]) @ w["b"] - x[:, 0]) ** 2
W = {
    "a": 0.4 * jax.random.normal(jax.random.key(3), (8, 6)),
    "b": 0.4 * jax.random.normal(jax.random.key(4), (6,)),
}
X = np.random.default_rng(0).normal(size=(103, 8)).astype(np.float32)
PARTS = [X[:96], X[96:]]
PADDED = np.concatenate([X, np.zeros((25, 8), np.float32)])
IS_REAL = np.arange(128) < 103


def masked_mean(w, batch):
    return jnp.sum(batch["mask"] * ERRORS(w, batch["x"])) / jnp.sum(batch["mask"])


RIGHT = {
    "arrays": (lambda w, x: ERRORS(w, x).mean(), PARTS),
    "dictionaries with a raw key": (
        lambda w, batch: ERRORS(w, batch["x"]).mean(),
        [{"key": jax.random.PRNGKey(0), "x": x, "y": x[:, 0]} for x in PARTS],
    ),
    "tokens that look like raw keys": (
        lambda w, batch: jnp.mean(ERRORS(w, jnp.asarray(X)[batch])),
        [np.arange(i, min(i + 4, 103), dtype=np.uint32) for i in range(0, 103, 4)],
    ),
    "weighted": (
        lambda w, batch: ERRORS(w, batch["x"]).mean(),
        optax_sam.WeightedBatches(
            [{"class_weights": np.ones(10), "x": x} for x in PARTS], lambda batch: len(batch["x"])
        ),
    ),
    "padded": (
        masked_mean,
        optax_sam.WeightedBatches(
            optax_sam.Batches({"x": PADDED, "mask": IS_REAL}, 32), lambda batch: jnp.sum(batch["mask"])
        ),
    ),
    "with a batch of padding": (
        masked_mean,
        optax_sam.WeightedBatches(
            [{"x": x, "mask": mask} for x, mask in ((X, np.ones(103)), (PADDED, np.zeros(128)))],
            lambda batch: batch["mask"].sum(),
        ),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_every_example_has_the_same_weight(name):
    """In products, losses and groups, whatever else is in a batch."""
    loss, batches = RIGHT[name]
    whole = {"batches": [{"x": X, "mask": np.ones(103)}]}
    found = curvature.trace(loss, W, num_samples=2, batches=batches).estimate
    np.testing.assert_allclose(
        found, curvature.trace(masked_mean, W, num_samples=2, **whole).estimate, rtol=1e-4
    )
    found = diagnostics.sharpness(loss, W, 0.1, batches=batches).sharpness
    np.testing.assert_allclose(
        found, diagnostics.sharpness(masked_mean, W, 0.1, **whole).sharpness, rtol=1e-4
    )
    groups = diagnostics.m_sharpness(loss, W, 0.1, batches=batches)
    sizes = {26: [4] * 25 + [3], 2: [96, 7], 4: [32, 32, 32, 7], 1: [103]}[len(groups.groups)]
    np.testing.assert_allclose(groups.sharpness, np.average(groups.groups, weights=sizes), rtol=1e-5)


def test_a_weight_that_would_be_guessed_is_refused():
    loss = lambda w, batch: ERRORS(w, batch["x"]).mean()
    batches = [{"class_weights": np.ones(10), "x": x} for x in PARTS]
    message = r"its arrays have first axes of the lengths \[10, 7\].*\[10, 96\].*WeightedBatches"
    for measure in (curvature.trace, lambda *args, **data: diagnostics.m_sharpness(*args, 0.1, **data)):
        with pytest.raises(ValueError, match=message):
            measure(loss, W, batches=batches)
        measure(loss, W, batches=[batches[0], batches[0]])  # All alike: any weight is right.


def test_weights_under_jit():
    batches = [{"x": X, "mask": jnp.arange(103) < n} for n in (40, 90)]
    found = jax.jit(
        lambda w, batches: (
            diagnostics.sharpness(
                masked_mean,
                w,
                0.1,
                batches=optax_sam.WeightedBatches(batches, lambda batch: batch["mask"].sum()),
            ).sharpness
        )
    )(W, batches)
    every = {"x": np.concatenate([X, X]), "mask": np.concatenate([batch["mask"] for batch in batches])}
    expected = diagnostics.sharpness(masked_mean, W, 0.1, batches=[every]).sharpness
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: optax_sam.WeightedBatches(iter(PARTS), len), TypeError, "is empty after the first"),
        (lambda: optax_sam.WeightedBatches(PARTS, [96, 7]), TypeError, "`num_examples` must be a function"),
        (lambda: optax_sam.WeightedBatches(PARTS, lambda x: -1), ValueError, "at least 0, got -1"),
        (lambda: optax_sam.WeightedBatches(PARTS, lambda x: x[0]), ValueError, "a number of examples"),
        (lambda: optax_sam.WeightedBatches(PARTS, lambda x: 0), ValueError, "`batches` has no examples"),
        (lambda: {"x": X}, TypeError, r"must be a data set in batches.*`\[batch\]`.*got dict"),
        (lambda: 3, TypeError, r"must be a data set in batches.*got int"),
    ],
)
def test_errors_of_batches(make, error, message):
    with pytest.raises(error, match=message):
        curvature.trace(lambda w, x: ERRORS(w, x).mean(), W, batches=make())


def test_a_weighted_data_set_has_no_place_in_the_sde():
    batches = optax_sam.WeightedBatches([X, X], len)
    with pytest.raises(TypeError, match="as probable as the others here"):
        sde.drift(lambda w, x: ERRORS(w, x).mean(), W, batches, rho=0.1)
