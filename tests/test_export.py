"""Every method lowers for the accelerators that nobody has at hand while writing it."""

import jax
import jax.export
import optax
import pytest

from tests.problems import network
from tests.registry import every_method

PROBLEM = network()
BATCH = jax.tree.map(lambda x: x[0], PROBLEM.batches)
PLATFORMS = ("cpu", "cuda", "tpu")


@every_method
@pytest.mark.parametrize("refresh", [None, True])
def test_a_step_lowers_for_every_platform(method, refresh):
    if refresh and not method.has_refresh:
        return  # the same program as with None
    tx = optax.chain(method.make(0.1), optax.sgd(0.1, momentum=0.9))

    @jax.jit
    def step(params, state, batch):
        value_fn = lambda params: PROBLEM.loss(params, batch)
        grads = jax.grad(value_fn)(params)
        updates, state = tx.update(grads, state, params, value_fn=value_fn, refresh=refresh)
        return optax.apply_updates(params, updates), state

    exported = jax.export.export(step, platforms=PLATFORMS)(PROBLEM.params, tx.init(PROBLEM.params), BATCH)
    assert exported.platforms == PLATFORMS
