"""The sharpness of a minimum, measured with SciPy rather than with what the methods themselves use."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh


def top_eigenpair(
    value_fn: Callable[..., jax.Array], params: object, *args: object, tolerance: float = 1e-3
) -> tuple[float, object]:
    """The algebraically largest eigenvalue of the Hessian of `value_fn(params, *args)`, and its eigenvector.

    ARPACK's restarted Lanczos, from Hessian-vector products in the precision of the parameters.

    Args:
        value_fn: scalar function. Compiled once per function object, whatever the parameters.
        params: where; a pytree.
        *args: further arguments of `value_fn`.
        tolerance: relative accuracy of the eigenvalue.

    Returns:
        (eigenvalue, unit eigenvector like `params`).
    """
    flat, unravel = ravel_pytree(params)

    def product(vector: np.ndarray) -> np.ndarray:
        tangent = unravel(np.asarray(vector, flat.dtype).ravel())
        return np.asarray(ravel_pytree(hessian_vector_product(value_fn, params, tangent, *args))[0])

    operator = LinearOperator((flat.size, flat.size), matvec=product, dtype=flat.dtype)
    start = np.random.default_rng(0).standard_normal(flat.size)  # ARPACK's own varies by call
    values, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=tolerance)
    return float(values[0]), unravel(np.asarray(vectors[:, 0], flat.dtype))


def largest_hessian_eigenvalue(value_fn: Callable[..., jax.Array], params: object, *args: object) -> float:
    """The algebraically largest eigenvalue of the Hessian, to 1e-3; see `top_eigenpair`."""
    return top_eigenpair(value_fn, params, *args)[0]


@partial(jax.jit, static_argnums=0)
def hessian_vector_product(
    value_fn: Callable[..., jax.Array], params: object, tangent: object, *args: object
) -> object:
    """H v: forward over reverse."""
    return jax.jvp(lambda w: jax.grad(value_fn)(w, *args), (params,), (tangent,))[1]
