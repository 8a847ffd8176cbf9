"""`wiring_check` in every layout: silent where the wiring is right, with one number for all devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import diagnostics
from tests.clients.by_hand import finished, silence, warning
from tests.devices.layouts import (
    AXIS,
    LAYOUTS,
    PER_DEVICE_VIEW,
    averaged_gradient,
    batches,
    initial,
    local_gradient,
    loss,
    make_step,
    mesh_1d,
    parameters,
)

P = jax.sharding.PartitionSpec
CASES = [(layout, averaged_gradient) for layout in LAYOUTS] + [
    (layout, local_gradient) for layout in PER_DEVICE_VIEW
]


@pytest.mark.parametrize(("layout", "gradient"), CASES)
def test_right_wiring(layout, gradient):
    tx = optax.chain(diagnostics.wiring_check(tolerance=1e-10), optax_sam.sam(0.1), optax.sgd(0.1))
    step = make_step(tx, layout, gradient=gradient)
    with silence():
        _, state = jax.block_until_ready(
            step.step(*initial(tx, layout, step), step.place_batch(batches()[0]), None)
        )
    found = np.asarray([shard.data for shard in optax.tree.get(state, "mismatch").addressable_shards])
    assert np.all(found < 1e-10)
    assert np.all(found == found.flat[0])


@pytest.mark.parametrize(("layout", "gradient"), CASES)
def test_frozen_by_the_optimizer(layout, gradient):
    is_trained = {"layer1": False, "layer2": True}
    freeze = optax.masked(optax.set_to_zero(), {"layer1": True, "layer2": False})

    def run(method):
        tx = optax.chain(diagnostics.wiring_check(tolerance=1e-10), method, optax.sgd(0.1), freeze)
        step = make_step(tx, layout, gradient=gradient)
        carry = initial(tx, layout, step)
        for batch in batches()[:3]:
            carry = jax.block_until_ready(step.step(*carry, step.place_batch(batch), None))
        return carry[1]

    with silence():
        state = run(optax_sam.masked(optax_sam.sam(0.1), is_trained))
    layer1 = r"`params\['layer1'\]\['bias'\]`, `params\['layer1'\]\['weight'\]`, which did not move"
    with pytest.warns(UserWarning, match=layer1), finished():
        run(optax_sam.sam(0.1))
    unmoved = optax.tree.get(state, "unmoved")
    shards = np.asarray([shard.data for shard in unmoved.addressable_shards]).reshape(-1, 4)
    assert (shards == [2, 2, -30, -30]).all()


def test_local_gradients_passed_as_averages():
    """Where JAX does not track what varies, only the check can tell."""
    tx, params = diagnostics.wiring_check(action="record"), jax.tree.map(jnp.asarray, parameters())

    def step(batch):
        value_fn = lambda params: loss(params, batch)
        grads = jax.grad(value_fn)(params)
        return tx.update(grads, tx.init(params), params, value_fn=value_fn, axis_name=AXIS)[1].mismatch

    mapped = jax.shard_map(step, mesh=mesh_1d(), in_specs=P(AXIS), out_specs=P(), check_vma=False)
    assert jax.jit(mapped)(batches()[0]) > 0.3


def forgotten(grad_fn):
    """A step under `pmap` whose `update` is told no axis."""
    tx = optax_sam.sam(0.1)

    def step(params, batch):
        grads = jax.lax.pmean(jax.grad(loss)(params, batch), AXIS)
        gradient_at = lambda params: grad_fn(params, batch)
        return tx.update(grads, tx.init(params), params, grad_fn=gradient_at)[0]

    params = jax.tree.map(jnp.asarray, parameters())
    split = jax.tree.map(lambda leaf: leaf.reshape(jax.device_count(), -1, *leaf.shape[1:]), batches()[0])
    return jax.pmap(step, AXIS, in_axes=(None, 0)).lower(params, split)


def test_grad_fn_that_averages_nothing_under_pmap_is_a_warning():
    with pytest.warns(UserWarning, match=r"axis 'batch', but got no `axis_name`.*grad_fn=grad_fn, axis_name"):
        forgotten(jax.grad(loss))
    with silence():
        forgotten(lambda params, batch: jax.lax.pmean(jax.grad(loss)(params, batch), AXIS))
        forgotten(jax.grad(lambda params, batch: jax.lax.pmean(loss(params, batch), AXIS)))


# Devices with different numbers of examples: sums over global counts, as with padded batches and texts.

NUM, SIZE = 8, 4
X = np.random.default_rng(0).normal(size=(NUM, SIZE, 6))
WEIGHTS = np.arange(SIZE) < np.array([4, 3, 1, 1, 2, 4, 1, 1])[:, None]
W = np.random.default_rng(1).normal(size=6)


def loss_sum(w, x, weights):
    return jnp.sum(weights * (jnp.tanh(x @ w) - jnp.sin(x[:, 0])) ** 2)


def ragged_direction(value_fn_of, tx):
    def step(w, x, weights):
        count = jax.lax.psum(weights.sum(), AXIS)
        grads = jax.lax.psum(jax.grad(loss_sum)(w, x, weights), AXIS) / count
        value_fn = value_fn_of(x, weights, count)
        direction, state = tx.update(grads, tx.init(w), w, value_fn=value_fn, axis_name=AXIS)
        return direction, state

    direction, state = jax.pmap(step, AXIS, in_axes=(None, 0, 0))(W, X, WEIGHTS)
    jax.block_until_ready(direction)
    return np.asarray(direction)[0], state


def test_devices_with_different_numbers_of_examples():
    tx = optax.chain(diagnostics.wiring_check(tolerance=1e-10), optax_sam.sam(0.1))
    of_batch = lambda w: loss_sum(w, X.reshape(-1, 6), WEIGHTS.ravel()) / WEIGHTS.sum()
    gradient = jax.grad(of_batch)(W)
    expected = jax.grad(of_batch)(W + 0.1 * gradient / np.linalg.norm(gradient))
    right = lambda x, weights, count: lambda w: NUM * loss_sum(w, x, weights) / count
    mean_of_means = lambda x, weights, count: lambda w: loss_sum(w, x, weights) / weights.sum()
    with silence():
        found, _ = ragged_direction(right, tx)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    with warning("different numbers of examples", "times the number of devices", r"`jax.lax.psum\(count"):
        ragged_direction(mean_of_means, tx)
