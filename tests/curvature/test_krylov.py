"""Lanczos returns the algebraically largest eigenpair, power iteration that of largest magnitude."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optax_sam.curvature import krylov
from optax_sam.curvature.krylov import PowerState, finite_power_iteration, lanczos, power_iteration
from tests.problems import flat, quadratic, unflat
from tests.strategies import SIZE, nonzero_vectors

spectra = arrays("float64", SIZE, elements=st.integers(-20, 20).map(lambda n: n / 2))


pytestmark = pytest.mark.usefixtures("x64")


@functools.partial(jax.jit, static_argnames=("solver", "num_iters"))
def solve(solver, hessian, start, num_iters):
    dtype = hessian.dtype
    matvec = lambda v: unflat(hessian @ flat(v), dtype)
    value, vector = solver(matvec, unflat(start, dtype), num_iters)
    return value, flat(vector)


def residual(hessian, value, vector):
    return np.linalg.norm(hessian @ vector - value * vector)


@given(spectrum=spectra, start=nonzero_vectors, seed=st.integers(0, 2**32 - 1))
def test_lanczos_solves_the_whole_problem_in_as_many_products_as_dimensions(spectrum, start, seed):
    """Whatever the spectrum: repeated, zero or all-negative eigenvalues."""
    problem = quadratic(spectrum, seed)
    value, vector = solve(lanczos, problem.hessian, start, SIZE)
    # Only eigenvectors that the start has a part of can be found: none is missing almost surely.
    np.testing.assert_allclose(value, spectrum.max(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vector), 1.0, rtol=1e-12)
    assert residual(problem.hessian, value, vector) < 1e-4


@pytest.mark.parametrize("num_iters", [1, 2, 3, 4])
@given(spectrum=spectra, start=nonzero_vectors)
def test_lanczos_maximises_the_rayleigh_quotient_over_the_krylov_space_and_goes_one_step_on(
    num_iters, spectrum, start
):
    problem = quadratic(spectrum)
    value, vector = solve(lanczos, problem.hessian, start, num_iters)
    # Compared within the numerically independent part of the Krylov space.
    columns = [start / np.linalg.norm(start)]
    for _ in range(1, num_iters):
        new = problem.hessian @ columns[-1]
        for _ in range(2):
            new = new - np.stack(columns).T @ (np.stack(columns) @ new)
        if np.linalg.norm(new) < 1e-6:
            break
        columns.append(new / np.linalg.norm(new))
    basis = np.stack(columns).T
    ritz_values, ritz_vectors = np.linalg.eigh(basis.T @ problem.hessian @ basis)
    expected = ritz_values[-1]
    assert value >= expected - 1e-8
    np.testing.assert_allclose(np.linalg.norm(vector), 1.0, rtol=1e-12)
    # What the last product adds: a shifted power step, which only improves unless -λ_min exceeds θ.
    if spectrum.min() >= -value:
        assert vector @ problem.hessian @ vector >= value - 1e-8
    if len(columns) == num_iters:
        np.testing.assert_allclose(value, expected, atol=1e-8)
        is_separate = num_iters == 1 or ritz_values[-1] - ritz_values[-2] > 1e-3
        ritz_vector = basis @ ritz_vectors[:, -1]
        stepped = problem.hessian @ ritz_vector + max(0, -2 * ritz_values[0]) * ritz_vector
        if is_separate and np.linalg.norm(stepped) > 1e-3:
            assert abs(stepped @ vector) / np.linalg.norm(stepped) > 1 - 1e-6


@pytest.mark.parametrize(
    "spectrum",
    [[-3.0, 2.0, 1.0, 0.5, 0.0], [-30.0, -20.0, -10.0, -2.0, -1.0]],
    ids=["indefinite", "negative"],
)
def test_lanczos_finds_the_largest_and_power_the_largest_in_magnitude(spectrum):
    problem = quadratic(spectrum)
    start = np.ones(SIZE)
    value, vector = solve(lanczos, problem.hessian, start, SIZE)
    top = np.argmax(spectrum)
    np.testing.assert_allclose(value, spectrum[top], rtol=1e-10)
    np.testing.assert_allclose(abs(vector @ problem.eigenvectors[:, top]), 1.0, rtol=1e-10)
    value, vector = solve(power_iteration, problem.hessian, start, 60)
    np.testing.assert_allclose(value, spectrum[0], rtol=1e-10)
    np.testing.assert_allclose(abs(vector @ problem.eigenvectors[:, 0]), 1.0, rtol=1e-10)


@given(start=nonzero_vectors)
def test_power_iteration_is_its_definition(start):
    hessian = quadratic([5.0, -3.0, 2.0, 1.0, 0.5]).hessian
    v = start / np.linalg.norm(start)
    for _ in range(3):
        expected_value, v = v @ hessian @ v, hessian @ v / np.linalg.norm(hessian @ v)
    value, vector = solve(power_iteration, hessian, start, 3)
    np.testing.assert_allclose(value, expected_value, rtol=1e-10)
    np.testing.assert_allclose(vector, v, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("in_loop", [False, True])
@pytest.mark.parametrize("num_good", [0, 1, 2])
def test_power_iteration_ends_before_the_first_product_that_is_not_finite(num_good, in_loop):
    hessian = np.diag([4.0, 2.0, 1.0, 0.5, 0.25])
    last = PowerState(jnp.array(7.0), jnp.full(SIZE, 3.0), jnp.array(True))
    expected = solve(power_iteration, hessian, last.eigenvector, num_good) if num_good else last[:2]
    # The first entry grows with each product.
    first = (4.0 ** np.arange(4))[num_good] / np.linalg.norm(np.diag(hessian) ** num_good)
    matvec = lambda v: jnp.where(jnp.abs(v[0] - first) < 1e-9, jnp.nan, 1) * (hessian @ v)
    run = lambda last: finite_power_iteration(matvec, last, lambda v: v, 4)
    value, vector, is_finite = (jax.jit(run) if in_loop else run)(last)
    assert not is_finite
    np.testing.assert_array_equal([value, *vector], [expected[0], *expected[1]])
    assert np.isnan(power_iteration(matvec, last.eigenvector, 4)[1]).all()


@pytest.mark.parametrize("num_iters", [1, 2, 8])
@pytest.mark.parametrize("which", [0, 1, 2, 3, 4])
def test_lanczos_started_at_an_eigenvector(which, num_iters):
    """The Krylov space has one dimension; what follows must not turn the result into something worse."""
    spectrum = np.array([3.0, 1.0, 0.0, -0.001, -7.0])
    hessian = np.diag(spectrum)
    value, vector = solve(lanczos, hessian, np.eye(SIZE)[which], num_iters)
    np.testing.assert_allclose(value, spectrum[which], atol=1e-12)
    np.testing.assert_allclose(np.abs(vector), np.eye(SIZE)[which], atol=1e-12)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("num_iters", [4, 5, 8])
@pytest.mark.parametrize(
    "spectrum",
    [
        [2.0, 2.0, 2.0, 1.0, 1.0],
        [-1.0, -1.0, -1.0, -4.0, -4.0],
        [-3.0, -3.0, -3.0, -3.0, -3.0],
        [1e6, 1e6, 1.0, -1.0, -1e6],
        [1e-9, 1e-9, -1e-9, -1e-9, -1e-9],
        [0.0, 0.0, 0.0, 0.0, 0.0],
    ],
    ids=str,
)
def test_lanczos_in_an_exhausted_space(spectrum, num_iters, rotate):
    hessian = quadratic(spectrum).hessian if rotate else np.diag(spectrum)
    value, vector = solve(lanczos, hessian, np.arange(1.0, 6.0), num_iters)
    scale = np.abs(spectrum).max()
    np.testing.assert_allclose(value, max(spectrum), atol=1e-10 * scale)
    np.testing.assert_allclose(np.linalg.norm(vector), 1.0, rtol=1e-12)
    assert residual(hessian, value, vector) <= 1e-8 * scale


@pytest.mark.parametrize(("solver", "num_iters"), [(lanczos, 2), (power_iteration, 2)])
def test_warm_starts_improve(solver, num_iters):
    problem = quadratic([10.0, 8.0, 4.0, 1.0, -5.0])
    vector = np.ones(SIZE)
    residuals = []
    for _ in range(6):
        value, vector = solve(solver, problem.hessian, vector, num_iters)
        residuals.append(residual(problem.hessian, value, vector))
    assert residuals[-1] < residuals[2] < residuals[0]


def test_converged_eigenvalue_does_not_come_back():
    """Without full re-orthogonalisation a copy of it appears (Paige) and spoils the vector: residual 0.07."""
    bulk = np.random.default_rng(0).uniform(-1, 1, size=59)
    problem = quadratic(np.concatenate([[1000.0], bulk]))
    with jax.enable_x64(False):
        hessian = jnp.asarray(problem.hessian, jnp.float32)
        # Not jitted: compilation would take longer.
        value, vector = lanczos(lambda v: hessian @ v, jnp.ones(60), 12)
    np.testing.assert_allclose(value, 1000.0, rtol=1e-6)
    assert residual(problem.hessian, value, vector) < 2e-3


@pytest.mark.parametrize("num_iters", [5, 8])
@pytest.mark.parametrize("spectrum", [[9.0, 4.0, 1.0, -2.0, -20.0], [2.0, 2.0, 2.0, 1.0, 1.0]], ids=str)
def test_lanczos_in_float32(spectrum, num_iters):
    with jax.enable_x64(False):
        hessian = quadratic(spectrum).hessian.astype(np.float32)
        value, vector = solve(lanczos, hessian, np.arange(1, 6, dtype=np.float32), num_iters)
        assert value.dtype == vector.dtype == np.float32
    np.testing.assert_allclose(value, max(spectrum), rtol=1e-5)
    assert residual(hessian, value, vector) < 1e-3


def test_a_step_of_lanczos_makes_no_second_array_as_large_as_the_basis():
    """Products with the basis, as element-wise sums over it, take 75 Hessian-vector products' time."""
    with jax.enable_x64(False):
        basis, vector = jnp.zeros((7, 3, 5)), jnp.zeros((3, 5))
        program = krylov._next.lower(basis, 0, vector, vector, jax.random.key(0)).as_text()
    results = [line for line in program.splitlines() if " = " in line and "tensor<7x3x5xf32>" in line]
    assert results
    assert not [line for line in results if line.endswith("tensor<7x3x5xf32>")]


@jax.jit
def top_eigenvalue(hessian, start):
    return lanczos(lambda v: hessian @ v, start, 6)


@pytest.mark.parametrize(
    "spectrum", [[4.0, -1.0, 3.0, 0.5, 1.0], [2.0, 1.0, 1.0, 2.0, 1.0], [0.0] * 5], ids=str
)
def test_derivatives_with_more_products_than_the_space_has_dimensions(spectrum):
    """That of λ = vᵀ H v with respect to H is v vᵀ; that of v is finite."""
    hessian, start = jnp.diag(jnp.array(spectrum)), jnp.arange(1.0, 6.0)
    _, vector = top_eigenvalue(hessian, start)
    of_value, of_vector = jax.jacrev(top_eigenvalue)(hessian, start)
    np.testing.assert_allclose((of_value + of_value.T) / 2, np.outer(vector, vector), atol=1e-6)
    assert np.isfinite(of_vector).all()
