"""The first-order sharpness is the rise at the perturbation of `steepest_ascent`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import diagnostics
from tests.problems import network

NETWORK = network()
DATA = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), NETWORK.batches)
LOSS = jax.jit(NETWORK.loss)

ADAPTIVE = optax_sam.weight_magnitude(0.1)


def rise(value_fn, params, epsilon):
    moved = jax.tree.map(jnp.add, params, epsilon)
    return value_fn(moved) - value_fn(params)


def loss(params):
    return NETWORK.loss(params, DATA)


def gradient():
    return jax.grad(loss)(NETWORK.params)


def magnitudes(params, eta=0.1):
    return jax.tree.map(lambda w: jnp.abs(w) + eta, params)


@pytest.mark.parametrize("constraint", [None, ADAPTIVE], ids=["plain", "adaptive"])
def test_sharpness_is_the_rise_at_the_perturbation_of_steepest_ascent(constraint):
    found = diagnostics.sharpness(loss, NETWORK.params, 0.1, constraint=constraint)
    ascent = optax_sam.steepest_ascent(0.1, constraint=constraint)
    expected, _ = ascent.update(gradient(), ascent.init(NETWORK.params), NETWORK.params)
    chex.assert_trees_all_close(found.perturbation, expected, rtol=1e-5)
    np.testing.assert_allclose(found.sharpness, rise(loss, NETWORK.params, expected), rtol=1e-4)
    t = jax.tree.map(jnp.ones_like, expected) if constraint is None else magnitudes(NETWORK.params)
    tg = jax.tree.map(jnp.multiply, t, gradient())
    np.testing.assert_allclose(found.linear, 0.1 * optax_sam.tree_math.norm(tg), rtol=1e-5)


def test_sharpness_in_the_infinity_norm_moves_every_parameter_by_its_share():
    found = diagnostics.sharpness(loss, NETWORK.params, 0.01, ord=jnp.inf, constraint=ADAPTIVE)
    expected = jax.tree.map(lambda t, g: 0.01 * t * jnp.sign(g), magnitudes(NETWORK.params), gradient())
    chex.assert_trees_all_close(found.perturbation, expected, rtol=1e-5)


def test_a_model_that_returns_a_bfloat16_loss():
    half = lambda w: jnp.sum(w.astype(jnp.bfloat16) ** 2)
    found = diagnostics.sharpness(half, jnp.ones(4), 1.0)
    assert found.sharpness.dtype == jnp.float32
    np.testing.assert_allclose(found.sharpness, 5.0, rtol=0.02)
