"""`wiring_check` in every layout: silent where the wiring is right, with one number for all devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import diagnostics
from tests.clients.by_hand import silence
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


def test_local_gradients_passed_as_averages():
    """Where JAX does not track what varies, only the check can tell."""
    tx, params = diagnostics.wiring_check(action="record"), jax.tree.map(jnp.asarray, parameters())

    def step(batch):
        value_fn = lambda params: loss(params, batch)
        grads = jax.grad(value_fn)(params)
        return tx.update(grads, tx.init(params), params, value_fn=value_fn, axis_name=AXIS)[1].mismatch

    mapped = jax.shard_map(step, mesh=mesh_1d(), in_specs=P(AXIS), out_specs=P(), check_vma=False)
    assert jax.jit(mapped)(batches()[0]) > 0.3
