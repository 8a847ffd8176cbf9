"""T = |w| + η where the mask is true, 1 elsewhere."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import optax_sam
from tests.problems import flat, network, unflat
from tests.strategies import nonzero_vectors, positive, vectors

pytestmark = pytest.mark.usefixtures("x64")


def adaptive(w):
    return jnp.abs(w) + 0.1


def diagonal(params, mask):
    stage = optax_sam.weight_magnitude(0.1, mask=mask)
    return stage.update(params, stage.init(params), params)[0]


LAYERS = {"layer1": True, "layer2": False}
MATRICES = {name: {"weight": True, "bias": False} for name in LAYERS}
FIRST = {"layer1": {"weight": True, "bias": True}, "layer2": {"weight": False, "bias": False}}


@pytest.mark.parametrize(
    ("mask", "selected"),
    [
        (None, {name: {"weight": True, "bias": True} for name in LAYERS}),
        (True, {name: {"weight": True, "bias": True} for name in LAYERS}),
        (MATRICES, MATRICES),
        (LAYERS, FIRST),
        (lambda params: LAYERS, FIRST),
        (lambda params: MATRICES, MATRICES),
        (jax.tree.map(np.bool_, MATRICES), MATRICES),
    ],
    ids=["none", "all", "tree", "prefix", "callable prefix", "callable tree", "numpy bools"],
)
def test_mask(mask, selected):
    params = network(dtype=jnp.float64).params
    expected = jax.tree.map(lambda m, w: adaptive(w) if m else jnp.ones_like(w), selected, params)
    chex.assert_trees_all_close(diagonal(params, mask), expected, rtol=1e-12)


@functools.partial(jax.jit, static_argnames="is_masked")
def perturb(g, w, rho, eta, is_masked=True):
    mask = {"a": True, "b": not is_masked}
    ascent = optax_sam.steepest_ascent(rho, constraint=optax_sam.weight_magnitude(eta, mask=mask))
    g, w = unflat(g), unflat(w)
    return flat(ascent.update(g, ascent.init(w), w)[0])


@given(g=nonzero_vectors, w=vectors, rho=positive, eta=positive)
def test_asam_perturbation(g, w, rho, eta):
    t = np.where(np.arange(5) < 2, np.abs(w) + eta, 1.0)
    expected = rho * t**2 * g / np.linalg.norm(t * g)
    np.testing.assert_allclose(perturb(g, w, rho, eta), expected, rtol=1e-12)


@given(g=nonzero_vectors, w=nonzero_vectors.filter(np.all), scale=positive)
def test_with_eta_0_scaling_a_weight_scales_its_perturbation(g, w, scale):
    """ASAM's point: w₁ → s w₁ with g₁ → g₁/s (the same function) gives ε₁ → s ε₁, ε₂ as it was."""
    s = np.where(np.arange(5) < 2, scale, 1.0)
    plain = perturb(g, w, 0.1, 0.0, is_masked=False)
    np.testing.assert_allclose(perturb(g / s, w * s, 0.1, 0.0, is_masked=False), s * plain, rtol=1e-10)
