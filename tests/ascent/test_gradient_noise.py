"""C = (σ² + δ)^(-p), σ² a weighted mean of squared deviations from a running mean."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import optax_sam
from tests.problems import flat, quadratic, unflat
from tests.strategies import SIZE, gradient_and_update, hundredths, positive

pytestmark = pytest.mark.usefixtures("x64")

QUADRATIC = quadratic([9.0, 4.0, 1.0, 0.5, -2.0])
STEPS = 6
EPS = np.finfo(np.float64).eps

gradients = arrays("float64", (STEPS, SIZE), elements=hundredths)
fractions = st.integers(0, 99).map(lambda n: n / 100)


@jax.jit
def _observe(gradients, **kwargs):
    stage = optax_sam.gradient_noise(**kwargs)

    def step(state, gradient):
        diagonal, state = stage.update(unflat(gradient), state)
        return state, (
            flat(diagonal),
            flat(state.gradient_mean),
            flat(state.noise_variance),
            state.noise_count,
        )

    return jax.lax.scan(step, stage.init(unflat(gradients[0])), gradients)[1]


def observe(gradients, **kwargs):
    """Returns C, mean, variance and count of every step."""
    return jax.tree.map(np.asarray, _observe(gradients, **kwargs))


def reference(gradients, decay, variance_decay):
    """The means and variances of every step, the variances from all squares anew at each."""
    means, squares, variances = [gradients[0]], [], [np.ones(SIZE)]
    for t in range(1, len(gradients)):
        means.append(decay * means[-1] + (1 - decay) * gradients[t])
        squares.append((means[-1] - gradients[t]) ** 2)
        weights = [variance_decay ** (t - 1 - s) for s in range(t)]  # 0⁰ = 1: the last square alone.
        total = sum(weight * square for weight, square in zip(weights, squares, strict=True))
        variances.append(total / sum(weights))
    return np.stack(means), np.stack(variances)


@given(gradients=gradients, decay=fractions, variance_decay=fractions)
def test_mean_and_variance(gradients, decay, variance_decay):
    _, mean, variance, count = observe(gradients, decay=decay, variance_decay=variance_decay)
    means, variances = reference(gradients, decay, variance_decay)
    np.testing.assert_allclose(mean, means, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(variance, variances, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(count, np.arange(1, STEPS + 1))


@given(gradients=gradients, decay=fractions, damping=positive, power=positive)
def test_damping_and_power(gradients, decay, damping, power):
    power /= 10
    diagonal, *_ = observe(gradients, decay=decay, damping=damping, power=power)
    _, variances = reference(gradients, decay, 0.99)
    damped = variances + damping * variances.mean(axis=1, keepdims=True)
    is_noisy = variances.mean(axis=1) > 1e-6
    np.testing.assert_allclose(diagonal[is_noisy], damped[is_noisy] ** -power, rtol=1e-8)


@given(gradients=gradients, decay=fractions, scale=positive)
def test_damping_does_not_depend_on_the_scale_of_the_loss(gradients, decay, scale):
    """C is scaled by one number, which `steepest_ascent` divides out again."""
    diagonal, _, variance, _ = observe(gradients, decay=decay)
    scaled, *_ = observe(scale * gradients, decay=decay)
    is_noisy = np.mean(variance, axis=1) > 1e-6
    is_noisy &= np.arange(STEPS) > 0  # C = ½ at the first gradient, whatever its scale.
    np.testing.assert_allclose(scaled[is_noisy], diagonal[is_noisy] / scale**2, rtol=1e-8)


@given(gradients=gradients, decay=fractions)
def test_authors_form(gradients, decay):
    """m = g, b = 1; then m ← a m + (1−a) g, b = (m − g)², C = 1/b. Where b is 0 (theirs: NaN) finite."""
    diagonal, *_ = observe(gradients, decay=decay, variance_decay=0.0, damping=0.0)
    m, b = gradients[0], np.ones(SIZE)
    np.testing.assert_array_equal(diagonal[0], b)
    for t in range(1, STEPS):
        m = decay * m + (1 - decay) * gradients[t]
        b = (m - gradients[t]) ** 2
        is_noisy = b > 1e-6
        np.testing.assert_allclose(diagonal[t][is_noisy], 1 / b[is_noisy], rtol=1e-8)
    assert np.isfinite(diagonal).all()


def test_coordinate_without_noise_is_bounded_by_the_rounding_error_of_the_mean():
    gradients = np.tile([[1.0, 0.0, 0.0, 0.0, 0.0]], (2, 1))
    gradients[1, 0] = 3.0  # Deviation 0.9 · 2 in the first coordinate, none in the others.
    diagonal, _, variance, _ = observe(gradients, decay=0.9, damping=0.0)
    np.testing.assert_allclose(variance[1], [1.8**2, 0, 0, 0, 0], rtol=1e-12)
    np.testing.assert_allclose(diagonal[1], 1 / np.array([1.8**2] + [EPS * 1.8**2 / 5] * 4), rtol=1e-12)


@pytest.mark.parametrize("damping", [0.0, 0.5, 1.0])
def test_no_noise_prefers_no_coordinate(damping):
    diagonal, *_ = observe(np.tile(np.arange(5.0), (3, 1)), damping=damping)
    np.testing.assert_array_equal(diagonal[1:], np.ones((2, SIZE)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_gradient_is_not_seen(bad):
    gradients = np.random.default_rng(0).normal(size=(4, SIZE))
    broken = np.insert(gradients, 2, gradients[0], axis=0)
    broken[2, 1] = bad
    broken = np.insert(broken, 0, np.full(SIZE, bad), axis=0)  # Also as the very first one.
    diagonal, mean, variance, _ = observe(broken, decay=0.5)
    expected_diagonal, expected_mean, expected_variance, _ = observe(gradients, decay=0.5)
    seen = [1, 2, 4, 5]
    np.testing.assert_array_equal(diagonal[seen], expected_diagonal)
    np.testing.assert_array_equal(mean[seen], expected_mean)
    np.testing.assert_array_equal(variance[seen], expected_variance)
    np.testing.assert_array_equal(mean[3], mean[2])
    np.testing.assert_array_equal(variance[3], variance[2])


@pytest.mark.parametrize("num_steps", [1, 3])
def test_statistics_see_the_clean_gradient_once_a_step(num_steps):
    noise = optax_sam.gradient_noise(0.5)
    ascent = optax_sam.steepest_ascent(0.1, objective=noise)
    tx = optax_sam.sharpness_aware(ascent, num_steps=num_steps)
    w = unflat(np.zeros(SIZE))
    state, alone = tx.init(w), noise.init(w)
    for seed in range(3):
        w = unflat(np.random.default_rng(seed).normal(size=SIZE))
        _, state = gradient_and_update(tx, state, w, QUADRATIC.value_fn)
        _, alone = noise.update(jax.grad(QUADRATIC.value_fn)(w), alone)
    chex.assert_trees_all_close(state.ascent.objective, alone, rtol=1e-12)
    assert alone.noise_count == 3


def test_later_ascents_keep_the_diagonal_of_the_clean_gradient():
    noise = optax_sam.gradient_noise(0.5)
    first, second, third = (unflat(g) for g in np.random.default_rng(0).normal(size=(3, SIZE)))
    _, state = noise.update(first, noise.init(first))
    diagonal, state = noise.update(second, state, ascent_step=0)
    later, later_state = noise.update(third, state, ascent_step=1)
    chex.assert_trees_all_equal(later, diagonal)
    chex.assert_trees_all_equal(later_state, state)


def test_noisy_coordinates_are_perturbed_less():
    """What it is for: with noise in one coordinate ε points closer to the noise-free gradient."""
    rng = np.random.default_rng(0)
    true = np.ones(SIZE)
    deviation = np.array([10.0, 0.1, 0.1, 0.1, 0.1])
    ascent = optax_sam.steepest_ascent(1.0, objective=optax_sam.gradient_noise())
    update = jax.jit(ascent.update)
    state = ascent.init(unflat(true))
    gains = []
    for step in range(100):
        gradient = true + deviation * rng.normal(size=SIZE)
        epsilon, state = update(unflat(gradient), state, unflat(true))
        if step >= 20:
            gains.append((true @ flat(epsilon), true @ gradient / np.linalg.norm(gradient)))
    gain, sam_gain = np.mean(gains, axis=0) / np.linalg.norm(true)
    assert gain > sam_gain + 0.2


def test_float32_statistics_are_close_to_float64():
    gradients = np.random.default_rng(0).normal(size=(STEPS, SIZE))
    expected = observe(gradients)
    with jax.enable_x64(False):
        stage = optax_sam.gradient_noise()
        state = stage.init(jnp.zeros(SIZE, jnp.float32))
        for gradient in gradients:
            diagonal, state = stage.update(jnp.asarray(gradient, jnp.float32), state)
    np.testing.assert_allclose(diagonal, expected[0][-1], rtol=1e-4)
    np.testing.assert_allclose(state.noise_variance, expected[2][-1], rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_variance_decay_that_rounds_to_1_gives_the_plain_mean(dtype):
    """0.99999999 in float32, or 0.999 in bfloat16, to which `inject_hyperparams` casts."""
    make = optax.inject_hyperparams(optax_sam.gradient_noise, static_args=("across_devices",))
    with jax.enable_x64(False):
        stage = make(decay=0.5, variance_decay=0.999 if dtype == jnp.bfloat16 else 0.99999999)
        state, squares = stage.init(jnp.zeros(2, dtype)), []
        for i in range(5):
            gradient = jnp.array([1.0, 2.0], dtype) * i
            _, state = stage.update(gradient, state)
            squares.append((optax.tree.get(state, "gradient_mean") - gradient) ** 2)
        found = optax.tree.get(state, "noise_variance")
        np.testing.assert_allclose(found, np.mean(squares[1:], axis=0), rtol=1e-5)
