"""The running means of VaSSO and Friendly SAM, where parity does not look: bad gradients, later ascents."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
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


def unit(v):
    return v / np.linalg.norm(v)


RULES = {
    "vasso": (
        lambda **kw: optax_sam.vasso(0.1, 0.25, **kw),
        lambda g, m: g if m is None else 0.75 * m + 0.25 * g,
    ),
    "friendly_sam": (
        lambda **kw: optax_sam.friendly_sam(0.1, 0.8, 0.75, **kw),
        lambda g, m: g if m is None else g - 0.8 * m,
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_every_ascent_of_a_step_uses_the_mean_of_the_step_before(name, x64):
    """The second ascent used the mean that the first had updated: another equation."""
    make, rule = RULES[name]
    hessian = np.diag([1.0, 3.0, 5.0])
    value_fn = lambda w: 0.5 * w @ hessian @ w
    tx, w, mean = make(num_steps=3), np.ones(3), None
    state = tx.init(jnp.asarray(w))
    for _ in range(4):
        seen = {}
        g = hessian @ w
        d, state = tx.update(jnp.asarray(g), state, jnp.asarray(w), value_fn=value_fn, observe=seen.update)
        point = w.copy()
        for _ in range(3):
            point += 0.1 / 3 * unit(rule(hessian @ point, mean))
        np.testing.assert_allclose(seen["perturbation"], point - w, rtol=1e-10)
        mean = g if mean is None else 0.75 * mean + 0.25 * g
        w = w - 0.1 * np.asarray(d)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_difference_that_is_a_rounding_error_is_no_direction(dtype, scale):
    """The same gradient again: g − m was 1e-8 of g, and SAM's perturbation was as long as with any other."""
    with jax.enable_x64(dtype == "float64"):
        gradient = jnp.asarray(scale * np.random.default_rng(0).normal(size=1000), dtype)
        stage = optax_sam.subtract_running_mean(1.0, 0.9)
        state = stage.init(gradient)
        for step in range(5):
            rest, state = stage.update(gradient, state)
            assert step == 0 or not rest.any()
        changed = gradient.at[0].multiply(2)
        rest, _ = stage.update(changed, state)
        np.testing.assert_allclose(rest[0], gradient[0], rtol=1e-2)
