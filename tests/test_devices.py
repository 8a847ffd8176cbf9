"""What later ascents follow where it is only found out when the program runs: local or averaged gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.devices import averaged_like
from tests.problems import network

RNG = np.random.default_rng(0)
NUM_GROUPS, SIZE = 4, 12
PASSED, OWN = jnp.asarray(RNG.normal(size=(2, NUM_GROUPS, SIZE)), jnp.float32)
MEAN = jnp.broadcast_to(OWN.mean(0), OWN.shape)


def follow(passed, own, axis_name="group"):
    return jax.vmap(lambda p, o: averaged_like(p, o, axis_name), axis_name="group")(passed, own)


@pytest.mark.parametrize(
    "passed",
    [
        PASSED,
        PASSED / jnp.linalg.norm(PASSED, axis=1, keepdims=True),  # as where each device clips its own
        jnp.concatenate([PASSED[:1]] * (NUM_GROUPS - 1) + [PASSED[1:2]]),
        1.0 + 1e-3 * PASSED,
        1e-12 * PASSED,
    ],
    ids=["any", "of one length", "all but one the same", "nearly the same", "small"],
)
def test_local(passed):
    np.testing.assert_array_equal(follow(passed, OWN), OWN)


@pytest.mark.parametrize(
    "passed",
    [
        jnp.broadcast_to(PASSED[0], PASSED.shape),
        PASSED[0] * (1 + 1e-7 * jnp.sign(PASSED)),
        jnp.zeros_like(PASSED),
        PASSED.at[0, 0].set(jnp.nan),
    ],
    ids=["the same", "rounded", "zero", "not finite"],
)
def test_averaged(passed):
    np.testing.assert_allclose(follow(passed, OWN), MEAN, rtol=1e-6)


def test_averaged_along_one_of_two_axes():
    passed, own = jnp.asarray(RNG.normal(size=(2, 3, 2, SIZE)), jnp.float32)
    shared = jnp.broadcast_to(passed.mean(1, keepdims=True), passed.shape)
    function = lambda p, o: averaged_like(p, o, ("group", "member"))
    mapped = jax.vmap(jax.vmap(function, axis_name="member"), axis_name="group")
    expected = jnp.broadcast_to(own.mean(1, keepdims=True), own.shape)
    np.testing.assert_allclose(mapped(shared, own), expected, rtol=1e-6)


@pytest.mark.parametrize("m_sharpness", [None, True])
def test_loss_that_is_averaged_inside_is_followed_locally(m_sharpness):
    """`jax.lax.pmean` in `value_fn` changes nothing: each group's gradient is still that of its own loss."""
    problem = network(num_batches=NUM_GROUPS)
    tx = optax_sam.sam(0.1, num_steps=2, axis_name="group", m_sharpness=m_sharpness)
    state = tx.init(problem.params)

    def update(batch, average):
        local = lambda params: problem.loss(params, batch)
        value_fn = lambda params: jax.lax.pmean(local(params), "group") if average else local(params)
        return tx.update(jax.grad(local)(problem.params), state, problem.params, value_fn=value_fn)[0]

    both = lambda batch: (update(batch, False), update(batch, True))
    results = jax.jit(jax.vmap(both, axis_name="group"))(problem.batches)
    assert optax.tree.norm(optax.tree.sub(*results)) < 1e-6
