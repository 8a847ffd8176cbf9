"""The trace against prescribed spectra and a dense Hessian, within its standard error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import curvature
from optax_sam.curvature.trace import sample_key
from optax_sam.tree_math import random_signs
from tests.problems import SPECTRA, flat, network, quadratic, quadratic_loss, unflat

NETWORK = network()
DATA = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), NETWORK.batches)
LOSS = jax.jit(NETWORK.loss)


def test_trace_within_its_standard_error(hessian):
    errors = []
    for seed in range(10):
        found = curvature.trace(LOSS, NETWORK.params, num_samples=32, key=seed, batches=[DATA])
        errors.append((found.estimate - np.trace(hessian)) / found.standard_error)
        off_diagonal = hessian - np.diag(np.diag(hessian))
        exact = np.sqrt(2 * np.sum(off_diagonal**2) / 32)
        np.testing.assert_allclose(found.standard_error, exact, rtol=0.5)
    # Of ten t-distributed numbers: none beyond 3.5, a root mean square around 1, a mean around 0.
    assert np.abs(errors).max() < 3.5
    assert 0.5 < np.sqrt(np.mean(np.square(errors))) < 1.6
    assert abs(np.mean(errors)) < 1.0


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_trace_of_a_prescribed_spectrum(spectrum, x64):
    """Over all 2⁵ vectors of signs the mean of the samples is the trace; here over those drawn."""
    problem = quadratic(spectrum)
    found = curvature.trace(quadratic_loss, unflat(np.ones(5)), num_samples=8, batches=[problem.hessian])
    like = unflat(np.ones(5))
    signs = np.stack([flat(random_signs(sample_key(0, i), like)) for i in range(8)])
    samples = np.sum(signs @ problem.hessian * signs, axis=1)
    scale = max(np.abs(spectrum).max(), 1.0)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    np.testing.assert_allclose(found.estimate, samples.mean(), atol=1e-9 * scale)
    np.testing.assert_allclose(found.standard_error, samples.std(ddof=1) / 8**0.5, atol=1e-9 * scale)


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="`num_samples` must be at least 2"):
        curvature.trace(lambda w: jnp.sum(w**2), jnp.ones(3), num_samples=1)


def test_value_fn_is_checked():
    with pytest.raises(TypeError, match="`value_fn` must return the loss alone"):
        curvature.trace(lambda w: (jnp.sum(w), 0), jnp.ones(3))
    with pytest.raises(TypeError, match="`value_fn` must be a function"):
        curvature.trace(1.0, jnp.ones(3))


def test_layers_are_the_traces_of_the_diagonal_blocks():
    """Exact where the blocks are diagonal, whatever couples them is noise of mean zero."""
    loss = lambda w: jnp.sum(jnp.arange(1.0, 4.0) * w["a"] ** 2) + 5 * w["b"] ** 2
    found = curvature.trace(loss, {"a": jnp.ones(3), "b": jnp.ones(())}, num_samples=2)
    assert found.layers == {"a": 12.0, "b": 10.0}
    assert found.estimate == 22.0
