"""The combinator: the step count that it hands to its stages, and what later ascents of a step see."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import diagnostics
from tests.registry import METHODS

LOSS = lambda w: jnp.sum(w**2)
W = jnp.array([0.1, 0.2, 5.0])


def updated(tx, num_updates, **extra_args):
    state = tx.init(W)
    for _ in range(num_updates):
        _, state = tx.update(jax.grad(LOSS)(W), state, W, value_fn=LOSS, **extra_args)
    return state


def recorder(seen):
    """A stage g ↦ g that records the step count and the number of the ascent."""

    def update(updates, state, params=None, *, step_count=0, ascent_step=None, **extra_args):
        seen.append((int(step_count), ascent_step))
        return updates, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def test_stages_get_the_number_of_updates_made():
    ascents, descents = [], []
    ascent = optax.chain(optax_sam.steepest_ascent(0.1), recorder(ascents))
    state = updated(optax_sam.sharpness_aware(ascent, recorder(descents), num_steps=2), 3)
    assert ascents == [(count, step) for count in range(3) for step in range(2)]
    assert descents == [(count, None) for count in range(3)]
    assert optax.tree.get(state, "step_count") == 3


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_has_one_step_count(method):
    state = updated(method.make(0.1), 2, **({"refresh": True} if method.has_refresh else {}))
    assert optax.tree.get(state, "step_count") == 2


def follow_largest(used):
    """A stage of one's own whose statistic is an integer, the index of the largest coordinate."""

    def update(updates, state, params=None, *, ascent_step=0, **extra_args):
        if ascent_step == 0:
            state = {"index": jnp.argmax(jnp.abs(updates)).astype(jnp.int32)}
        used.append(int(state["index"]))
        return jnp.zeros_like(updates).at[state["index"]].set(0.1), state

    init = lambda params: {"index": jnp.zeros((), jnp.int32)}
    return optax.GradientTransformationExtraArgs(init, update)


def test_later_ascents_see_a_statistic_that_is_an_integer():
    """Integers were taken for step counts, so later ascents saw the index of the step before."""
    used = []
    updated(optax_sam.sharpness_aware(follow_largest(used), num_steps=3), 1)
    assert used == [2, 2, 2]


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda method: method,
        lambda method: optax.chain(method, optax.sgd(0.1)),
        lambda method: diagnostics.monitor(method),
        lambda method: optax.apply_if_finite(method, 5),
        lambda method: optax.MultiSteps(method, 1).gradient_transformation(),
    ],
    ids=["alone", "chain", "monitor", "apply_if_finite", "MultiSteps"],
)
def test_a_schedule_of_rho_goes_on_after_a_restart(wrap, num_steps):
    """Two updates, the state saved and restored, and two more are four updates."""
    rho = lambda count: 0.1 * (1.0 + count)
    radii = []

    def measure(updates, state, params=None, *, perturbation, **extra_args):
        radii.append(float(jnp.linalg.norm(perturbation)))
        return updates, state

    descent = optax.GradientTransformationExtraArgs(optax.init_empty_state, measure)
    tx = wrap(optax_sam.sharpness_aware(optax_sam.steepest_ascent(rho), descent, num_steps=num_steps))
    line, gradient = (lambda w: w @ jnp.ones(3)), jnp.ones(3)
    with jax.disable_jit():
        state = tx.init(W)
        for step in range(4):
            if step == 2:
                leaves, structure = jax.tree.flatten(state)
                state = jax.tree.unflatten(structure, [jnp.asarray(np.array(leaf)) for leaf in leaves])
            _, state = tx.update(gradient, state, W, value_fn=line)
    np.testing.assert_allclose(radii, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
