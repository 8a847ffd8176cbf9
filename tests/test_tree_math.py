"""Random vectors follow the key and the leaves; trees are chosen as a whole."""

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam.tree_math import random_vector


def test_random_vectors_differ_between_leaves_and_follow_the_key(x64):
    like = {"a": jnp.zeros(4), "b": jnp.zeros(4, jnp.float32)}
    vector = random_vector(jax.random.key(0), like)
    assert vector["a"].dtype == jnp.float64
    assert vector["b"].dtype == jnp.float32
    assert not np.allclose(vector["a"], vector["b"])
    assert not np.allclose(vector["a"], random_vector(jax.random.key(1), like)["a"])
