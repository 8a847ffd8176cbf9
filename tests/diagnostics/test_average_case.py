"""The average case is ½ σ² tr(T H T) to second order, within its standard error."""

import jax
import jax.numpy as jnp
import numpy as np

import optax_sam
from optax_sam import diagnostics
from tests.problems import flat, quadratic, quadratic_loss, unflat

ADAPTIVE = optax_sam.weight_magnitude(0.1)
INDEFINITE = [5.0, 1.0, -1.0, -2.0, -7.0]


def test_average_case_within_its_standard_error(x64):
    """½ σ² tr(T H T), and no trace of the gradient, a million times larger."""
    hessian = quadratic(INDEFINITE).hessian
    w = np.array([1.0, -2.0, 0.5, 3.0, 0.1])
    t = np.abs(w) + 0.1
    tilted = jax.jit(lambda params, hessian: quadratic_loss(params, hessian) + 1e6 * jnp.sum(flat(params)))
    scaled = t[:, None] * hessian * t
    for constraint, matrix in [(None, hessian), (ADAPTIVE, scaled)]:
        errors, squares = [], []
        for seed in range(10):
            found = diagnostics.average_case_sharpness(
                tilted,
                unflat(w),
                0.1,
                constraint=constraint,
                num_samples=100,
                key=seed,
                batches=[hessian],
            )
            expected = 0.5 * 0.1**2 * np.trace(matrix)
            errors.append((found.estimate - expected) / found.standard_error)
            squares.append(found.standard_error**2)
        # The variance of ½ zᵀ M z is ½ σ⁴ tr M².
        np.testing.assert_allclose(np.mean(squares), 0.5 * 0.1**4 * np.sum(matrix**2) / 100, rtol=0.3)
        assert np.abs(errors).max() < 3.5
        assert 0.5 < np.sqrt(np.mean(np.square(errors))) < 1.6
