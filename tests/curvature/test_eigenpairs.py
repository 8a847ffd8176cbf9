"""Eigenpairs against prescribed spectra and against a dense Hessian."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from optax_sam import curvature
from tests.problems import SPECTRA, flat, network, quadratic, quadratic_loss, unflat

NETWORK = network()
DATA = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), NETWORK.batches)
LOSS = jax.jit(NETWORK.loss)
BATCHES = curvature.Batches(NETWORK.batches)


def rows(vectors):
    """Returns stacked pytrees as the rows of a matrix."""
    return np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(vectors))


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_eigenpairs_of_a_prescribed_spectrum(spectrum, x64):
    problem = quadratic(spectrum)
    pairs = curvature.top_eigenpairs(quadratic_loss, unflat(np.ones(5)), k=3, batches=[problem.hessian])
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
        LOSS, NETWORK.params, k, num_iters=num_iters, start=given, batches=BATCHES
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


def test_spectrum_of_a_bfloat16_network():
    half = network(dtype=jnp.bfloat16)
    batches = curvature.Batches(half.batches)
    # The same weights and data in float32.
    full_params, full_data = jax.tree.map(lambda x: x.astype(jnp.float32), (half.params, half.batches))
    arguments = {"k": 2, "num_iters": 12}
    found = curvature.top_eigenpairs(half.loss, half.params, batches=batches, **arguments)
    expected = curvature.top_eigenpairs(
        half.loss, full_params, batches=curvature.Batches(full_data), **arguments
    )
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(found)}
    assert dtypes == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=0.03)


def test_start_vectors_follow_the_key():
    loss = lambda w: jnp.sum(w**4)
    params = jnp.arange(5.0)
    found = [curvature.top_eigenpairs(loss, params, num_iters=2, key=s).eigenvalues for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_progress_bar(capsys, monkeypatch):
    loss = lambda w: jnp.sum(w**2)
    curvature.trace(loss, jnp.ones(3), num_samples=4, progress=True)
    assert "4/4" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"needs tqdm.*optax_sam\[progress\]"):
        curvature.top_eigenpairs(loss, jnp.ones(3), progress=True)
    curvature.top_eigenpairs(loss, jnp.ones(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 4, "num_iters": 3}, "`k` must be at most `num_iters`"),
        ({"k": 4, "num_iters": 9}, "number of parameters, here 3"),
        ({"num_iters": 0}, "`num_iters` must be at least 1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        curvature.top_eigenpairs(lambda w: jnp.sum(w**2), jnp.ones(3), **arguments)


def test_smallest_eigenvalues():
    loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0, -4.0, -2.0]) * w**2)
    found = curvature.top_eigenpairs(loss, jnp.ones(4), k=2, smallest=True)
    np.testing.assert_allclose(found.eigenvalues, [-4.0, -2.0], rtol=1e-5)
    np.testing.assert_allclose(jnp.abs(found.eigenvectors), jnp.eye(4)[2:], atol=1e-3)


def test_stops_at_a_tolerance():
    """With the first residuals that are small enough: one product fewer is not enough."""
    spectrum = jnp.append(jnp.linspace(0.0, 1.0, 50), jnp.array([5.0, 9.0]))
    loss = lambda w: 0.5 * jnp.sum(spectrum * w**2)
    find = lambda **options: curvature.top_eigenpairs(loss, jnp.ones(52), k=2, **options)
    small_enough = lambda pairs: bool(jnp.all(pairs.residuals <= 1e-2 * pairs.eigenvalues))
    count = next(n for n in range(2, 40) if small_enough(find(num_iters=n)))
    assert 3 < count < 39
    found, expected = find(num_iters=40, tolerance=1e-2), find(num_iters=count)
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-5)
    np.testing.assert_allclose(found.residuals, expected.residuals, rtol=1e-3)


@pytest.mark.parametrize("start", [0.0, 1e-30, np.nan, np.inf], ids=str)
def test_a_start_vector_without_a_direction_is_refused(start):
    """It gave an eigenvalue of 0 with residual 0, "there is an eigenvalue within that distance"."""
    loss = lambda w: -jnp.sum(jnp.arange(2.0, 6.0) * w**2)
    find = lambda start: curvature.top_eigenpairs(loss, jnp.ones(4), start=start)
    with pytest.raises(ValueError, match="`start` must be a vector whose length is finite and not 0"):
        find(jnp.full(4, start))
    found = jax.jit(find)(jnp.full(4, start))  # Not known when it is traced.
    assert np.all(np.isnan(found.eigenvalues))
    assert np.all(np.isnan(found.residuals))
    np.testing.assert_allclose(find(jnp.full(4, 1e-15)).eigenvalues, [-4.0], rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2])
def test_where_products_are_not_finite_nothing_looks_measured(k):
    loss = lambda w: jnp.sum(w["a"] ** 2) + jnp.sum(jnp.sqrt(w["b"] - 1))  # infinite at 1
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    for num_iters in (2, 5):
        found = curvature.top_eigenpairs(loss, params, k, num_iters=num_iters)
        for part in jax.tree.leaves(found):
            assert np.all(np.isnan(part))
