"""Samples of the posterior follow the key and the precision of each parameter, and wrong ones are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam

PARAMS = {"a": jnp.ones((2, 3)), "b": jnp.zeros(4, jnp.bfloat16)}
PRECISION = {"a": jnp.full((2, 3), 4.0), "b": jnp.full(4, 9.0)}


def test_each_parameter_has_its_own_noise_of_its_own_length():
    w, s = jnp.zeros((2, 10_000)), jnp.ones((2, 10_000)).at[1].set(100.0)
    noise = optax_sam.sample_params(w, s, num_examples=4, key=0)
    np.testing.assert_allclose(noise.std(axis=1), [0.5, 0.05], rtol=0.05)
    assert len(np.unique(noise)) > 19_000


def test_a_sample_follows_the_key_and_is_like_the_parameters():
    draw = lambda key: optax_sam.sample_params(PARAMS, PRECISION, num_examples=10, key=key)
    first = draw(0)
    assert jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, PARAMS)
    assert first["b"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(draw(jax.random.key(0))["a"], first["a"])
    np.testing.assert_array_equal(draw(jax.random.PRNGKey(0))["a"], first["a"])
    assert np.all(draw(1)["a"] != first["a"])
    several = jax.vmap(draw)(jax.random.split(jax.random.key(0), 3))
    assert len(np.unique(several["a"])) == 18


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"num_examples": 0}, ValueError, "`num_examples` must be at least 1, got 0"),
        ({"num_examples": -5}, ValueError, "`num_examples` must be at least 1, got -5"),
        ({"precision": jnp.ones(())}, ValueError, "`precision` must have the tree structure"),
        ({"precision": PRECISION | {"b": jnp.ones(())}}, ValueError, r"`precision` must have the shapes"),
        (
            {"precision": PRECISION | {"b": 1j * jnp.ones(4)}},
            TypeError,
            r"`precision` must be made of arrays",
        ),
        ({"params": PARAMS | {"b": 1.0}}, TypeError, "must be a pytree of arrays"),
        ({"key": 0.5}, TypeError, "`key` must be an integer or a single random key"),
    ],
)
def test_errors(wrong, error, message):
    right = {"params": PARAMS, "precision": PRECISION, "num_examples": 10, "key": 0}
    arguments = right | wrong
    positional = [arguments.pop(name) for name in ("params", "precision")]
    with pytest.raises(error, match=message):
        optax_sam.sample_params(*positional, **arguments)
