"""The loss rises, to first order, by the budget, or by what the largest radius gives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam

W = jnp.array([1.0, -2.0, 0.5])
LOSS = lambda w: jnp.sum(w**4)


def perturbation(tx, loss=LOSS, w=W):
    seen = {}
    tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss, observe=seen.update)
    return np.asarray(seen["perturbation"])


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_linearised_rise_is_the_budget_whatever_the_gradient(size):
    loss = lambda w: size * LOSS(w)
    g, epsilon = jax.grad(loss)(W), perturbation(optax_sam.le_sam(0.01, 1e3), loss)
    np.testing.assert_allclose(g @ epsilon, 0.01, rtol=1e-5)
    np.testing.assert_allclose(epsilon / np.linalg.norm(epsilon), g / np.linalg.norm(g), rtol=1e-5)


def test_the_radius_is_limited():
    np.testing.assert_allclose(np.linalg.norm(perturbation(optax_sam.le_sam(1e3, 0.2))), 0.2, rtol=1e-6)


def test_no_budget_is_no_perturbation_and_neither_is_a_zero_gradient():
    assert not perturbation(optax_sam.le_sam(0.0, 0.2)).any()
    assert not perturbation(optax_sam.le_sam(0.1, 0.2), w=jnp.zeros(3)).any()


def test_behind_any_ascent_and_an_ascent_downhill_is_left_alone():
    adaptive = optax_sam.steepest_ascent(1.0, constraint=optax_sam.weight_magnitude())
    for sign in (1.0, -1.0):
        ascent = optax.chain(adaptive, optax.scale(sign))
        before = perturbation(optax_sam.sharpness_aware(ascent))
        after = perturbation(optax_sam.sharpness_aware(optax.chain(ascent, optax_sam.loss_budget(0.02))))
        rise = jax.grad(LOSS)(W) @ before
        expected = before * 0.02 / rise if sign > 0 else before
        np.testing.assert_allclose(after, expected, rtol=1e-5)
