"""Random vectors follow the key and the leaves; trees are chosen as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import tree_math
from optax_sam.diagnostics import ball, planes
from optax_sam.tree_math import random_vector


def test_leaves_that_are_alike_are_drawn_together_and_as_if_alone():
    shapes = [(3, 4), (4,), (3, 4), (3, 4), (4,)]
    like, key = [jnp.zeros(shape) for shape in shapes], jax.random.key(0)
    alone = [jax.random.normal(jax.random.fold_in(key, i), shape) for i, shape in enumerate(shapes)]
    for actual, expected in zip(random_vector(key, like), alone, strict=True):
        np.testing.assert_array_equal(actual, expected)
    draws = lambda like: str(jax.make_jaxpr(lambda: random_vector(key, like))()).count("random_bits")
    assert draws(like) == draws(like[:2]) == 2


def test_random_vectors_differ_between_leaves_and_follow_the_key(x64):
    like = {"a": jnp.zeros(4), "b": jnp.zeros(4, jnp.float32)}
    vector = random_vector(jax.random.key(0), like)
    assert vector["a"].dtype == jnp.float64
    assert vector["b"].dtype == jnp.float32
    assert not np.allclose(vector["a"], vector["b"])
    assert not np.allclose(vector["a"], random_vector(jax.random.key(1), like)["a"])


def test_mixed_dtypes_without_implicit_promotion():
    mixed = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float16), "c": jnp.ones(2)}
    other = {"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16), "c": jnp.ones(2, jnp.float16)}
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        assert tree_math.vdot(mixed, other) == 6
        added = tree_math.add(mixed, other)
        signs = tree_math.random_signs(jax.random.key(0), mixed)
        full = tree_math.full_precision(mixed)
    assert {k: x.dtype for k, x in added.items()} == {k: x.dtype for k, x in mixed.items()}
    assert {x.dtype for x in jax.tree.leaves((signs, full))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "compute",
    [
        tree_math.total,
        tree_math.norm,
        lambda tree: tree_math.vdot(tree, tree),
        ball.NORMS[np.inf].norm,
        lambda tree: tree_math.inner_products(tree, tree),
        lambda tree: planes._orthonormal(tree, tree),
    ],
    ids=["total", "norm", "vdot", "largest", "products", "orthonormal"],
)
def test_outside_of_jit_a_sum_over_all_leaves_is_one_program(compute, programs_compiled_by):
    """All-reduces of many programs in flight deadlocked on eight simulated devices and two cores."""
    tree = [np.full((2, 3 + i), i, np.float32) for i in range(5)]
    assert len(programs_compiled_by(lambda: compute(tree))) == 1


@pytest.mark.parametrize(
    "key",
    [3, np.int32(3), jnp.asarray(3), jax.random.key(3), jax.random.PRNGKey(3), np.array([0, 3], np.uint32)],
    ids=["int", "numpy", "array", "typed", "raw", "raw numpy"],
)
def test_a_key_is_an_integer_or_a_random_key(key):
    found = [tree_math.random_key(key)]
    if not isinstance(key, int):
        found.append(jax.jit(tree_math.random_key)(key))
    for each in found:
        np.testing.assert_array_equal(jax.random.key_data(each), [0, 3])


@pytest.mark.parametrize(
    "key",
    [0.0, True, "0", None, jnp.zeros(()), jnp.zeros(2, int), jax.random.split(jax.random.key(0), 2)],
    ids=str,
)
def test_other_keys_are_refused(key):
    with pytest.raises(TypeError, match="`key` must be an integer or a single random key"):
        tree_math.random_key(key)
