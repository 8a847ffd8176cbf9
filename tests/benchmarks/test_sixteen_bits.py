"""What XSAM's search compares: losses in 16 and 32 bits, and the directional forms."""

import jax.numpy as jnp
import numpy as np

from benchmarks.experiments import sixteen_bits


def test_all_ways_measure_the_same_increase():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(50, 64)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, 50))
    (found,) = sixteen_bits.searches(images, labels, 0, num_steps=1, every=1)
    assert len(np.unique(found["bfloat16"])) < 21 == len(np.unique(found["float32"]))
    exact = found["float32"] - found["float32"].min()
    # The increase over the whole distance, of which the directional forms round a few times.
    rounding = 3 * 2.0**-8 * np.abs(found["midpoint"]).max()
    assert rounding < 0.5 * exact.max()
    for name in ("logits in float32", "midpoint", "two points"):
        own = found[name] - found[name].min()
        np.testing.assert_allclose(own, exact, atol=rounding, err_msg=name)
