import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests.problems import network


@pytest.fixture(scope="session")
def hessian():
    """Of the loss of `network()` over its whole data set."""
    problem = network()
    data = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), problem.batches)
    vector, unravel = ravel_pytree(problem.params)
    return np.asarray(jax.jit(jax.hessian(lambda w: problem.loss(unravel(w), data)))(vector))
