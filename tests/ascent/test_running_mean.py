"""The running means of VaSSO and Friendly SAM, where parity does not look: bad gradients, later ascents."""

import chex
import jax.numpy as jnp
import pytest

import optax_sam

STAGES = [optax_sam.running_mean(0.75), optax_sam.subtract_running_mean(1.0, 0.75)]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_left_out(stage, bad):
    good = [jnp.array([1.0]), jnp.array([5.0])]
    state = expected = stage.init(jnp.zeros(1))
    for gradient in good:
        _, expected = stage.update(gradient, expected)
    for gradient in (jnp.array([bad]), good[0], jnp.array([bad]), good[1]):
        _, state = stage.update(gradient, state)
    chex.assert_trees_all_equal(state, expected)


@pytest.mark.parametrize("stage", STAGES)
def test_later_ascents_leave_the_mean_alone(stage):
    _, state = stage.update(jnp.array([1.0]), stage.init(jnp.zeros(1)))
    _, later = stage.update(jnp.array([9.0]), state, ascent_step=1)
    chex.assert_trees_all_equal(later, state)
