"""The variance across devices: against known noise, and against the estimate over time."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam.loss import BatchLoss

NUM_DEVICES, SIZE = 8, 40
TRUTH = np.geomspace(1e-2, 1e2, SIZE)  # variance of one device's gradient


def local_gradients(step, seed=0):
    """Gradients of a training run: a mean that drifts, and noise of the known variance on every device."""
    noise = np.random.default_rng([seed, step]).normal(size=(NUM_DEVICES, SIZE))
    drift = 3 * np.cos(0.3 * step + np.arange(SIZE))
    return jnp.asarray(drift + np.sqrt(TRUTH) * noise, jnp.float32)


def run(stage, num_steps, *, average_first):
    """Returns the state after some steps, on every device."""
    state = jax.vmap(stage.init)(local_gradients(0))
    loss = BatchLoss(axis_name="batch", m_sharpness=not average_first)

    @jax.jit
    def update(gradients, state):
        def on_device(gradient, state):
            gradient = jax.lax.pmean(gradient, "batch") if average_first else gradient
            return stage.update(gradient, state, loss=loss)[1]

        return jax.vmap(on_device, axis_name="batch")(gradients, state)

    for step in range(num_steps):
        state = update(local_gradients(step), state)
    return state


def error(state):
    """How far σ² is from the truth, but for its scale, which does not matter: of the logarithm, rms."""
    variance = np.log(state.noise_variance[0]) - np.log(TRUTH)
    return np.std(variance)


def test_one_step_is_the_variance_of_the_local_gradients():
    state = run(optax_sam.gradient_noise(across_devices=True), 1, average_first=False)
    expected = np.var(local_gradients(0), axis=0)
    np.testing.assert_allclose(state.noise_variance[0], expected, rtol=2e-6)
    chex.assert_trees_all_equal(*(jax.tree.map(lambda x, i=i: x[i], state) for i in (0, NUM_DEVICES - 1)))


@pytest.mark.parametrize("num_steps", [2, 10, 50])
def test_nearer_the_truth_than_the_estimate_over_time(num_steps):
    across = run(optax_sam.gradient_noise(across_devices=True), num_steps, average_first=False)
    over_time = run(optax_sam.gradient_noise(), num_steps, average_first=True)
    assert error(across) < 0.75 * error(over_time)


NEEDS = (
    r'each must pass its own.*axis_name="batch", m_sharpness=True.*without `jax.lax.pmean` of the gradients'
)


def test_averaged_gradients_are_refused():
    with pytest.raises(ValueError, match=NEEDS):
        run(optax_sam.gradient_noise(across_devices=True), 1, average_first=True)


def test_needs_an_axis():
    stage = optax_sam.gradient_noise(across_devices=True)
    with pytest.raises(ValueError, match=NEEDS):
        stage.update(jnp.ones(3), stage.init(jnp.ones(3)))


def test_small_gradients_leave_no_trace_of_the_initial_variance():
    """In float32, a weight of 0.9999999 for the first square would leave 1e-7 of the initial σ² = 1."""
    stage = optax_sam.gradient_noise()
    update = jax.jit(stage.update)
    gradients = 1e-5 * local_gradients(0)[:2]
    state = stage.init(gradients[0])
    for gradient in gradients:
        _, state = update(gradient, state)
    mean = 0.9 * gradients[0] + 0.1 * gradients[1]
    np.testing.assert_allclose(state.noise_variance, (mean - gradients[1]) ** 2, rtol=1e-3)
