"""The sharpness of a minimum, measured with SciPy rather than with what the methods themselves use."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh


def largest_hessian_eigenvalue(value_fn: Callable[..., jax.Array], params: object, *args: object) -> float:
    """The largest eigenvalue of the Hessian of `value_fn(params, *args)`.

    ARPACK's restarted Lanczos to a relative accuracy of 1e-3, from Hessian-vector products in the
    precision of the parameters.

    Args:
        value_fn: scalar function. Compiled once per function object, whatever the parameters.
        params: where; a pytree.
        *args: further arguments of `value_fn`.

    Returns:
        The algebraically largest eigenvalue.
    """
    flat, unravel = ravel_pytree(params)

    def product(vector: np.ndarray) -> np.ndarray:
        tangent = unravel(np.asarray(vector, flat.dtype).ravel())
        return np.asarray(hessian_vector_product(value_fn, params, tangent, *args))

    operator = LinearOperator((flat.size, flat.size), matvec=product, dtype=flat.dtype)
    start = np.random.default_rng(0).standard_normal(flat.size)  # ARPACK's own varies by call
    values = eigsh(operator, k=1, which="LA", v0=start, tol=1e-3, return_eigenvectors=False)
    return float(values[0])


@partial(jax.jit, static_argnums=0)
def hessian_vector_product(
    value_fn: Callable[..., jax.Array], params: object, tangent: object, *args: object
) -> jax.Array:
    """H v as one flat vector: forward over reverse."""
    _, product = jax.jvp(lambda w: jax.grad(value_fn)(w, *args), (params,), (tangent,))
    return ravel_pytree(product)[0]
