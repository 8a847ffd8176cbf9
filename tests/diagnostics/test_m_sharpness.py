"""m-sharpness is the mean of the groups' own sharpness, and grows as groups shrink."""

import jax
import numpy as np
import pytest

from optax_sam import curvature, diagnostics
from tests.problems import network

NETWORK = network()
DATA = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), NETWORK.batches)
LOSS = jax.jit(NETWORK.loss)

UNEQUAL = curvature.Batches(DATA, 64)  # 64 and 32 examples


@pytest.mark.parametrize("search", [{}, {"num_iters": 3}, {"num_iters": 3, "num_ascents": 2}], ids=str)
def test_m_sharpness_is_the_mean_of_the_groups_sharpness(search):
    """At SAM's perturbation of each group, unless more gradients are asked for: then its worst case."""
    measure = diagnostics.worst_case_sharpness if search else diagnostics.sharpness
    found = diagnostics.m_sharpness(LOSS, NETWORK.params, 0.3, batches=UNEQUAL, **search)
    alone = [measure(LOSS, NETWORK.params, 0.3, batches=[group], **search).sharpness for group in UNEQUAL]
    np.testing.assert_allclose(found.groups, alone, rtol=1e-4)
    np.testing.assert_allclose(found.sharpness, np.average(alone, weights=[64, 32]), rtol=1e-4)


def test_m_sharpness_grows_as_groups_shrink():
    sharpness = [
        diagnostics.m_sharpness(LOSS, NETWORK.params, 0.1, batches=curvature.Batches(DATA, m)).sharpness
        for m in (96, 24, 6)
    ]
    first = diagnostics.sharpness(LOSS, NETWORK.params, 0.1, batches=[DATA]).sharpness
    np.testing.assert_allclose(sharpness[0], first, rtol=1e-4)
    assert sharpness[0] < sharpness[1] < sharpness[2]
