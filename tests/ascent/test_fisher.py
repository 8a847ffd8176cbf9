"""ε = ρ F⁻¹ g/(gᵀ F⁻¹ g)^(1/2) with F = 1 + η g²."""

import jax
import numpy as np
import optax
import pytest
from hypothesis import given

import optax_sam
from tests.problems import flat, quadratic, unflat
from tests.strategies import gradient_and_update, nonzero_vectors, positive, read_perturbation

pytestmark = pytest.mark.usefixtures("x64")

QUADRATIC = quadratic([9.0, 4.0, 1.0, 0.5, -2.0])


@jax.jit
def perturb(g, rho, eta):
    ascent = optax_sam.steepest_ascent(rho, constraint=optax_sam.fisher_information(eta))
    return flat(ascent.update(unflat(g), ascent.init(unflat(g)), unflat(g))[0])


@given(g=nonzero_vectors, rho=positive, eta=positive)
def test_fisher_perturbation(g, rho, eta):
    inverse = 1 / (1 + eta * g**2)
    expected = rho * inverse * g / np.sqrt(g @ (inverse * g))
    epsilon = np.asarray(perturb(g, rho, eta))
    np.testing.assert_allclose(epsilon, expected, rtol=1e-12)
    np.testing.assert_allclose(epsilon @ (epsilon / inverse), rho**2, rtol=1e-12)  # εᵀ F ε = ρ²


def test_later_ascents_keep_the_metric_of_the_clean_gradient():
    stage = optax_sam.fisher_information(eta=2.0)
    seen = []

    def record(updates, state, params=None, **extra_args):
        diagonal, state = stage.update(updates, state, params, **extra_args)
        seen.append(flat(diagonal))
        return diagonal, state

    spied = optax.GradientTransformationExtraArgs(stage.init, record)
    ascent = optax_sam.steepest_ascent(1.0, constraint=spied)
    tx = optax_sam.sharpness_aware(ascent, read_perturbation(), num_steps=3)
    w = unflat(np.arange(1.0, 6.0))
    gradient_and_update(tx, tx.init(w), w, QUADRATIC.value_fn)
    expected = (1 + 2 * (QUADRATIC.hessian @ np.arange(1.0, 6.0)) ** 2) ** -0.5
    assert len(seen) == 3
    for diagonal in seen:
        np.testing.assert_allclose(diagonal, expected, rtol=1e-12)
