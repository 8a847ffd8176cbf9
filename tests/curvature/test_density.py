"""The density against prescribed spectra, a dense Hessian, and matfree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from optax_sam import curvature
from optax_sam.curvature.trace import sample_key
from optax_sam.tree_math import random_signs
from tests.problems import SPECTRA, network, quadratic, quadratic_loss, unflat

NETWORK = network()
DATA = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), NETWORK.batches)
LOSS = jax.jit(NETWORK.loss)


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_density_of_a_prescribed_spectrum(spectrum, x64):
    problem = quadratic(spectrum)
    found = curvature.spectral_density(
        quadratic_loss, unflat(np.ones(5)), num_samples=4, batches=[problem.hessian]
    )
    np.testing.assert_allclose(np.sum(found.weights, axis=1), 1, rtol=1e-9)
    scale = max(np.abs(spectrum).max(), 1.0)
    for nodes in found.nodes:
        np.testing.assert_allclose(np.sort(nodes), np.sort(spectrum), atol=1e-6 * scale, rtol=0)
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1, atol=1e-5)
    moment = np.trapezoid(found.density * found.grid, found.grid)
    trace = curvature.trace(quadratic_loss, unflat(np.ones(5)), num_samples=4, batches=[problem.hessian])
    np.testing.assert_allclose(moment, trace.estimate / 5, atol=1e-5 * scale)


def test_density_of_a_network(hessian):
    eigenvalues = np.linalg.eigvalsh(hessian)
    found = curvature.spectral_density(LOSS, NETWORK.params, num_iters=30, num_samples=10, batches=[DATA])
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1, atol=1e-4)
    trace = curvature.trace(LOSS, NETWORK.params, num_samples=10, batches=[DATA])
    mean = np.sum(found.nodes * found.weights) / 10
    np.testing.assert_allclose(mean, trace.estimate / len(hessian), rtol=1e-4)
    np.testing.assert_allclose(np.trapezoid(found.density * found.grid, found.grid), mean, rtol=1e-3)
    # Close to the true distribution function, in the mean over the grid, and to its ends.
    weights, nodes = np.ravel(found.weights) / 10, np.ravel(found.nodes)
    distances = [abs(weights[nodes <= t].sum() - np.mean(eigenvalues <= t)) for t in np.asarray(found.grid)]
    assert np.mean(distances) < 0.02
    np.testing.assert_allclose(found.nodes.max(), eigenvalues[-1], rtol=1e-4)


def test_trace_and_density_of_matfree_on_the_same_weights(hessian):
    """Quadratures of the same start vectors are equal; so are traces, within their errors."""
    pytest.importorskip("matfree")
    from matfree import decomp, funm, stochtrace

    n = len(hessian)
    matvec = lambda v: jnp.asarray(hessian) @ v
    estimate = stochtrace.estimator_monte_carlo_mean_and_sem(
        stochtrace.monte_carlo_trace(), sampler=stochtrace.sampler_signs(jnp.zeros(n), num=64)
    )
    theirs, their_error = jax.jit(lambda key: estimate(matvec, key))(jax.random.key(0))
    ours = curvature.trace(LOSS, NETWORK.params, num_samples=64, batches=[DATA])
    assert abs(ours.estimate - theirs) < 3 * np.hypot(ours.standard_error, their_error)

    found = curvature.spectral_density(LOSS, NETWORK.params, num_iters=8, num_samples=1, batches=[DATA])
    tridiagonal = decomp.tridiag_sym(8, reortho="full")
    quadrature = funm.monte_carlo_funm_sym(funm.dense_funm_sym_eigh(jnp.exp), tridiagonal)
    vector = ravel_pytree(random_signs(sample_key(0, 0), NETWORK.params))[0]
    ours = n * np.sum(found.weights[0] * np.exp(found.nodes[0]))
    np.testing.assert_allclose(ours, jax.jit(lambda v: quadrature(matvec, v))(vector), rtol=1e-5)


def test_a_width_of_zero_is_refused():
    with pytest.raises(ValueError, match="must be positive, got 0\\.0"):
        curvature.spectral_density(lambda w: jnp.sum(w**2), jnp.ones(3), width=0.0)


@pytest.mark.parametrize("width", [1e-9, 1e-3, 0.05, 10.0])
def test_the_density_integrates_to_one_whatever_the_width(width):
    """Gaussians narrower than a cell of the grid, and as wide as all of it."""
    eigenvalues = jnp.array([0.0, 1.0, np.pi, 5.5, 8.0])
    loss = lambda w: 0.5 * jnp.sum(eigenvalues * w**2)
    found = curvature.spectral_density(loss, jnp.ones(5), width=width, num_samples=1, num_points=200)
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1, atol=1e-5)
    mean = np.trapezoid(found.density * found.grid, found.grid)
    np.testing.assert_allclose(mean, np.mean(eigenvalues), atol=0.5 * (found.grid[1] - found.grid[0]))


def test_the_flanks_of_the_density_are_not_rounded():
    loss = lambda w: 0.5 * jnp.sum(w**2)
    found = curvature.spectral_density(loss, jnp.ones(3), width=1.0, num_iters=1, num_samples=1)
    expected = np.exp(-0.5 * (np.asarray(found.grid) - 1) ** 2) / (2 * np.pi) ** 0.5
    np.testing.assert_allclose(found.density, expected, rtol=1e-3)


def test_mixed_dtypes_without_implicit_promotion():
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2, jnp.float16)}
    loss = lambda w: sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in w.values())
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        pairs = curvature.top_eigenpairs(loss, params, num_iters=2)
        density = curvature.spectral_density(loss, params, num_iters=2, num_samples=1)
    np.testing.assert_allclose(pairs.eigenvalues, 2, rtol=1e-2)
    np.testing.assert_allclose(density.nodes, 2, rtol=1e-2)
