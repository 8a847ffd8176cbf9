"""A method on every k-th step: what is kept of its direction, and what is not computed in between."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.problems import flat, quadratic, unflat

QUADRATIC = quadratic([9.0, 4.0, 1.0, 0.5, -2.0])
W = unflat(np.arange(1.0, 6.0), jnp.float32)


def step(tx, state, params=W, **extra_args):
    return tx.update(
        jax.grad(QUADRATIC.value_fn)(params), state, params, value_fn=QUADRATIC.value_fn, **extra_args
    )


def test_what_is_kept_is_a_unit_vector_orthogonal_to_the_gradient():
    tx = optax_sam.look_sam(0.5, 0.3)
    direction, state = step(tx, tx.init(W), refresh=True)
    u, g = flat(state.reused_direction), flat(jax.grad(QUADRATIC.value_fn)(W))
    assert jnp.linalg.norm(u) == pytest.approx(1, rel=1e-5)
    assert u @ g / jnp.linalg.norm(g) == pytest.approx(0, abs=1e-5)
    assert u @ flat(direction) > 0
    between, _ = step(tx, state, refresh=False)
    np.testing.assert_allclose(flat(between), g + 0.3 * jnp.linalg.norm(g) * u, rtol=1e-5)


def test_where_the_method_adds_nothing_nothing_is_reused():
    """A unit vector of rounding errors would be a random direction of the length of the gradient."""
    tx = optax_sam.look_sam(0.0, 0.3)
    _, state = step(tx, tx.init(W), refresh=True)
    assert not flat(state.reused_direction).any()


def test_without_alpha_no_copy_of_the_parameters_is_kept():
    tx = optax_sam.reuse(optax_sam.sam(0.1))
    assert optax.tree.size(tx.init(W)) == 3  # two counts and the ascent value
    between, _ = step(tx, tx.init(W), refresh=False)
    chex.assert_trees_all_equal(between, jax.grad(QUADRATIC.value_fn)(W))


def test_the_second_gradient_is_not_even_traced_between_refreshes():
    def never(params):
        raise AssertionError("the loss was evaluated")

    tx = optax_sam.look_sam(0.1)
    g = jax.grad(QUADRATIC.value_fn)(W)
    tx.update(g, tx.init(W), W, value_fn=never, refresh=False)
    with pytest.raises(AssertionError, match="was evaluated"):
        tx.update(g, tx.init(W), W, value_fn=never, refresh=True)


def test_a_method_that_refreshes_is_told_to_when_it_is_used():
    tx = optax_sam.reuse(optax_sam.eigen_sam(0.1, num_iters=2), 0.2, interval=2)
    state = tx.init(W)
    for refresh in (True, False, True):
        _, state = step(tx, state, refresh=refresh)
    assert optax.tree.get(state, "step_count") == 2
    assert optax.tree.get(state, "eigenvalue") > 1
