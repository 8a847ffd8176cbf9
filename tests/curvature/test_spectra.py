"""Eigenpairs, trace and density against prescribed spectra and against dense Hessians."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from optax_sam import curvature
from optax_sam.curvature.hutchinson import random_signs, sample_key
from tests.problems import flat, network, quadratic, unflat

SPECTRA = {
    "indefinite": [9.0, 4.0, 1.0, -2.0, -20.0],
    "negative": [-1.0, -2.0, -3.0, -4.0, -50.0],
    "repeated": [2.0, 2.0, 2.0, 1.0, 1.0],
    "one": [3.0, 3.0, 3.0, 3.0, 3.0],
    "none": [0.0, 0.0, 0.0, 0.0, 0.0],
    "wide": [1e6, 1.0, 1e-3, -1.0, -1e6],
}
spectra = pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)

NETWORK = network()
DATA = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), NETWORK.batches)
LOSS = jax.jit(NETWORK.loss)
NETWORK_BATCHES = curvature.Batches(NETWORK.batches)

# Compiled once for all spectra: the Hessian is data.
QUADRATIC = jax.jit(lambda params, hessian: 0.5 * flat(params) @ hessian @ flat(params))


def rows(vectors):
    """Returns stacked pytrees as the rows of a matrix."""
    return np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(vectors))


def dense_hessian(value_fn, params):
    vector, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda w: value_fn(unravel(w))))(vector))


@pytest.fixture(scope="module")
def hessian():
    """Of the network, over the whole data set."""
    return dense_hessian(lambda w: NETWORK.loss(w, DATA), NETWORK.params)


@spectra
def test_eigenpairs_of_a_prescribed_spectrum(spectrum, x64):
    problem = quadratic(spectrum)
    pairs = curvature.top_eigenpairs(QUADRATIC, unflat(np.ones(5)), k=3, batches=[problem.hessian])
    expected = np.sort(spectrum)[::-1][:3]
    scale = max(np.abs(spectrum).max(), 1.0)
    np.testing.assert_allclose(pairs.eigenvalues, expected, atol=1e-6 * scale, rtol=0)
    vectors = np.stack([flat(jax.tree.map(lambda x, i=i: x[i], pairs.eigenvectors)) for i in range(3)])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-6)
    residuals = np.linalg.norm(problem.hessian @ vectors.T - vectors.T * expected, axis=0)
    np.testing.assert_allclose(residuals, 0, atol=1e-6 * scale)
    np.testing.assert_allclose(pairs.residuals, 0, atol=1e-6 * scale)


def test_residuals_are_those_of_the_definition(x64):
    spectrum = np.random.default_rng(0).normal(size=60) * 5
    problem = quadratic(spectrum)
    pairs = curvature.top_eigenpairs(problem.value_fn, unflat(np.ones(60)), k=4, num_iters=12)
    vectors = np.stack([flat(jax.tree.map(lambda x, i=i: x[i], pairs.eigenvectors)) for i in range(4)])
    residuals = np.linalg.norm(
        vectors @ problem.hessian - np.asarray(pairs.eigenvalues)[:, None] * vectors, axis=1
    )
    assert residuals.max() > 0.1  # not converged, or there would be nothing to see
    np.testing.assert_allclose(pairs.residuals, residuals, rtol=1e-6)
    for value, residual in zip(pairs.eigenvalues, pairs.residuals, strict=True):
        assert np.abs(spectrum - value).min() <= residual * (1 + 1e-6)


@pytest.mark.parametrize("start", ["random", "given"])
def test_eigenpairs_of_a_network(hessian, start):
    expected, vectors = np.linalg.eigh(hessian)
    given = None
    if start == "given":  # close to the first: one product is enough where a random one takes many
        given = ravel_pytree(NETWORK.params)[1](vectors[:, -1] + 0.01)
    k, num_iters = (5, 40) if start == "random" else (1, 4)
    pairs = curvature.top_eigenpairs(
        LOSS, NETWORK.params, k, num_iters=num_iters, start=given, batches=NETWORK_BATCHES
    )
    np.testing.assert_allclose(pairs.eigenvalues, expected[::-1][:k], rtol=1e-4)
    alignment = np.abs(np.sum(rows(pairs.eigenvectors) * vectors.T[::-1][:k], axis=1))
    np.testing.assert_allclose(alignment, 1, atol=1e-2)
    assert pairs.eigenvectors["layer1"]["weight"].shape == (k, 5, 8)


def test_the_smallest_eigenvalue_is_that_of_the_negative_loss(hessian):
    pairs = curvature.top_eigenpairs(lambda w: -NETWORK.loss(w, DATA), NETWORK.params, num_iters=40)
    np.testing.assert_allclose(-pairs.eigenvalues[0], np.linalg.eigvalsh(hessian)[0], rtol=1e-4)


def test_eigenvalue_within_one_percent_in_twenty_products():
    """A bulk of 1,000 and a few outliers, as networks have."""
    bulk = np.random.default_rng(1).exponential(0.1, size=1000)
    spectrum = jnp.asarray(np.concatenate([[10.0, 8.0, 7.5, 3.0], bulk]), jnp.float32)
    loss = lambda w: 0.5 * jnp.sum(spectrum * w**2)
    pairs = curvature.top_eigenpairs(loss, jnp.zeros(1004), k=4, num_iters=20)
    np.testing.assert_allclose(pairs.eigenvalues, [10.0, 8.0, 7.5, 3.0], rtol=1e-5)


def test_trace_within_its_standard_error(hessian):
    errors = []
    for seed in range(10):
        found = curvature.trace(LOSS, NETWORK.params, num_samples=32, seed=seed, batches=[DATA])
        errors.append((found.estimate - np.trace(hessian)) / found.standard_error)
        off_diagonal = hessian - np.diag(np.diag(hessian))
        exact = np.sqrt(2 * np.sum(off_diagonal**2) / 32)
        np.testing.assert_allclose(found.standard_error, exact, rtol=0.5)
    # Of ten t-distributed numbers: none beyond 3.5, a root mean square around 1, a mean around 0.
    assert np.abs(errors).max() < 3.5
    assert 0.5 < np.sqrt(np.mean(np.square(errors))) < 1.6
    assert abs(np.mean(errors)) < 1.0


@spectra
def test_trace_of_a_prescribed_spectrum(spectrum, x64):
    """Over all 2⁵ vectors of signs the mean of the samples is the trace; here over those drawn."""
    problem = quadratic(spectrum)
    found = curvature.trace(QUADRATIC, unflat(np.ones(5)), num_samples=8, batches=[problem.hessian])
    like = unflat(np.ones(5))
    signs = np.stack([flat(random_signs(sample_key(0, i), like)) for i in range(8)])
    samples = np.sum(signs @ problem.hessian * signs, axis=1)
    scale = max(np.abs(spectrum).max(), 1.0)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    np.testing.assert_allclose(found.estimate, samples.mean(), atol=1e-9 * scale)
    np.testing.assert_allclose(found.standard_error, samples.std(ddof=1) / 8**0.5, atol=1e-9 * scale)


@spectra
def test_density_of_a_prescribed_spectrum(spectrum, x64):
    problem = quadratic(spectrum)
    found = curvature.spectral_density(
        QUADRATIC, unflat(np.ones(5)), num_samples=4, batches=[problem.hessian]
    )
    np.testing.assert_allclose(np.sum(found.weights, axis=1), 1, rtol=1e-9)
    scale = max(np.abs(spectrum).max(), 1.0)
    for nodes in found.nodes:
        np.testing.assert_allclose(np.sort(nodes), np.sort(spectrum), atol=1e-6 * scale, rtol=0)
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1, atol=1e-5)
    moment = np.trapezoid(found.density * found.grid, found.grid)
    trace = curvature.trace(QUADRATIC, unflat(np.ones(5)), num_samples=4, batches=[problem.hessian])
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


def test_under_jit():
    spectrum = jnp.array([5.0, 3.0, -1.0, 0.5])

    def everything(params):
        loss = lambda w, x: 0.5 * x[0] * jnp.sum(spectrum * w**2)
        batches = [params[:1]]  # traced
        pairs = curvature.top_eigenpairs(loss, params, k=2, num_iters=3, batches=batches)
        trace = curvature.trace(loss, params, num_samples=2, batches=batches)
        density = curvature.spectral_density(loss, params, num_iters=3, num_samples=1, batches=batches)
        return pairs, trace, density

    params = jnp.ones(4)
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4)
    jax.tree.map(close, jax.jit(everything)(params), everything(params))


def test_start_vectors_follow_the_seed():
    loss = lambda w: jnp.sum(w**4)
    params = jnp.arange(5.0)
    found = [curvature.top_eigenpairs(loss, params, num_iters=2, seed=s).eigenvalues for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_progress_bar(capsys, monkeypatch):
    loss = lambda w: jnp.sum(w**2)
    curvature.trace(loss, jnp.ones(3), num_samples=4, progress=True)
    assert "trace: 100%" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"needs tqdm.*optax_sam\[curvature\]"):
        curvature.top_eigenpairs(loss, jnp.ones(3), progress=True)
    curvature.top_eigenpairs(loss, jnp.ones(3))


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda f, w: curvature.top_eigenpairs(f, w, k=4, num_iters=3), "`k` must be at most `num_iters`"),
        (lambda f, w: curvature.top_eigenpairs(f, w, k=4, num_iters=9), "number of parameters, here 3"),
        (lambda f, w: curvature.top_eigenpairs(f, w, num_iters=0), "`num_iters` must be at least 1"),
        (lambda f, w: curvature.trace(f, w, num_samples=1), "`num_samples` must be at least 2"),
        (lambda f, w: curvature.spectral_density(f, w, width=0.0), "`width` .* must be positive, got 0.0"),
    ],
)
def test_errors(call, what):
    with pytest.raises(ValueError, match=what):
        call(lambda w: jnp.sum(w**2), jnp.ones(3))


def test_value_fn_is_checked():
    with pytest.raises(TypeError, match="`value_fn` must return the loss alone"):
        curvature.trace(lambda w: (jnp.sum(w), 0), jnp.ones(3))
    with pytest.raises(TypeError, match="`value_fn` must be a function"):
        curvature.trace(1.0, jnp.ones(3))
