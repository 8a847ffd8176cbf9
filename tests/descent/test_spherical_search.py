"""d = ‖g'‖ v(α*), v(α) on the great circle through ε/‖ε‖ and g'/‖g'‖, α* the first maximum of the loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import optax_sam
from optax_sam.descent.spherical_search import _worst
from optax_sam.loss import BatchLoss
from tests.problems import flat, quadratic, unflat
from tests.strategies import SIZE, gradient_and_update, nonzero_vectors

pytestmark = pytest.mark.usefixtures("x64")

ALPHAS = np.linspace(0.0, 2.0, 21)


def unit(x):
    return x / np.linalg.norm(x)


def on_arc(alpha, epsilon, gradient):
    v0, v1 = unit(epsilon), unit(gradient)
    psi = np.arccos(np.clip(v0 @ v1, -1, 1))
    return (np.sin((1 - alpha) * psi) * v0 + np.sin(alpha * psi) * v1) / np.sin(psi)


@jax.jit
def direction(gradient, epsilon, alpha):
    """d(α), α kept as from an earlier search."""
    search = optax_sam.spherical_search(0.3)
    gradient, epsilon = unflat(gradient), unflat(epsilon)
    state = optax.tree.set(search.init(gradient), alpha=alpha)
    return flat(search.update(gradient, state, gradient, perturbation=epsilon, refresh=False)[0])


alphas = st.integers(0, 20).map(lambda n: n / 10)


def arcs(test):
    """Draws the ends of an arc which are neither parallel nor antiparallel."""

    @given(gradient=nonzero_vectors, epsilon=nonzero_vectors, alpha=alphas)
    @functools.wraps(test)
    def drawn(gradient, epsilon, alpha):
        assume(abs(unit(gradient) @ unit(epsilon)) < 0.9999)
        test(gradient, epsilon, alpha)

    return drawn


@arcs
def test_direction_has_the_length_of_the_gradient(gradient, epsilon, alpha):
    length = np.linalg.norm(direction(gradient, epsilon, alpha))
    np.testing.assert_allclose(length, np.linalg.norm(gradient), rtol=1e-9)


@arcs
def test_ends_of_the_arc(gradient, epsilon, alpha):
    at_0, at_1 = direction(gradient, epsilon, 0.0), direction(gradient, epsilon, 1.0)
    np.testing.assert_allclose(at_0, np.linalg.norm(gradient) * unit(epsilon), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(at_1, gradient, rtol=1e-9, atol=1e-9)


@arcs
def test_alpha_is_the_angle_from_the_perturbation_in_units_of_the_arc(gradient, epsilon, alpha):
    v = unit(np.asarray(direction(gradient, epsilon, alpha)))
    v0, v1 = unit(epsilon), unit(gradient)
    psi = np.arccos(v0 @ v1)
    np.testing.assert_allclose(v @ v0, np.cos(alpha * psi), atol=1e-7)
    np.testing.assert_allclose(v @ v1, np.cos((1 - alpha) * psi), atol=1e-7)
    # In the plane of the two: nothing is left when its part in it is taken away.
    plane, _ = np.linalg.qr(np.stack([v0, v1], axis=1))
    np.testing.assert_allclose(plane @ (plane.T @ v), v, atol=1e-7)


@given(gradient=nonzero_vectors, alpha=alphas)
def test_parallel_ends(gradient, alpha):
    """v₀ = v₁: that direction whatever α."""
    np.testing.assert_allclose(direction(gradient, 0.5 * gradient, alpha), gradient, rtol=1e-6, atol=1e-9)


@given(
    axis=st.integers(0, SIZE - 1), exponent=st.integers(-9, 9), sign=st.sampled_from([-1, 1]), alpha=alphas
)
def test_antiparallel_ends(axis, exponent, sign, alpha):
    """v₀ = −v₁: no arc is spanned, d = g'. Powers of 2, whose cosine is -1 without rounding."""
    gradient = sign * 2.0**exponent * np.eye(SIZE)[axis]
    np.testing.assert_allclose(direction(gradient, -0.5 * gradient, alpha), gradient, rtol=1e-12)


@given(gradient=nonzero_vectors, alpha=alphas)
def test_zero_ends(gradient, alpha):
    zero = np.zeros(SIZE)
    np.testing.assert_allclose(direction(gradient, zero, alpha), gradient, rtol=1e-12)
    np.testing.assert_array_equal(direction(zero, gradient, alpha), zero)


EPSILON = np.array([0.1, 0.2, 0.0, -0.1, 0.05])
GRADIENT = np.array([1.0, 1.0, 3.0, -0.5, 2.0])  # ψ < 90°, so that α in [0, 2] is less than half a circle.
W = np.arange(1.0, 6.0)


def searched(loss, *, rho_max=0.3, alpha=0.7, **kwargs):
    """α* of a search in `loss`, a function of the flat parameters; 0.7 is that of the last search."""
    search = optax_sam.spherical_search(rho_max, **kwargs)
    params = unflat(W)
    state = optax.tree.set(search.init(params), alpha=jnp.asarray(alpha))
    update = jax.jit(
        lambda state: search.update(
            unflat(GRADIENT),
            state,
            params,
            perturbation=unflat(EPSILON),
            loss=BatchLoss(lambda params: loss(flat(params))),
            refresh=True,
        )
    )
    d, state = update(state)
    expected = np.linalg.norm(GRADIENT) * on_arc(float(state.alpha), EPSILON, GRADIENT)
    np.testing.assert_allclose(flat(d), expected, rtol=1e-9)  # The new α is used at once.
    return round(float(state.alpha), 9)


def angle(w):
    """α of the point w on the arc."""
    v0 = unit(EPSILON)
    rest = unit(unit(GRADIENT) - v0 @ unit(GRADIENT) * v0)
    offset = w - W
    return jnp.arctan2(offset @ rest, offset @ v0) / np.arccos(v0 @ unit(GRADIENT))


@jax.jit
def best_alpha(best, offset, rho_max):
    search = optax_sam.spherical_search(rho_max)
    params, perturbation = unflat(W), unflat(EPSILON)
    value_fn = lambda params: offset - (angle(flat(params)) - best) ** 2
    extra_args = {"perturbation": perturbation, "loss": BatchLoss(value_fn), "refresh": True}
    return search.update(unflat(GRADIENT), search.init(params), params, **extra_args)[1].alpha


@pytest.mark.parametrize("best", ALPHAS[[0, 3, 10, 14, 20]])
@pytest.mark.parametrize("offset", [0.0, 1000.0, -1000.0])
@pytest.mark.parametrize("rho_max", [0.3, 30.0])
def test_search_finds_the_worst_direction(best, offset, rho_max):
    """Also where all losses are negative (the authors' running maximum starts at 0)."""
    np.testing.assert_allclose(best_alpha(best, offset, rho_max), best, atol=1e-12)


def test_losses_are_compared_at_distance_rho_max():
    assert searched(lambda w: -((jnp.linalg.norm(w - W) - 0.3) ** 2) - 1e-3 * (angle(w) - 0.5) ** 2) == 0.5
    schedule = lambda count: jnp.where(count == 0, 0.4, jnp.nan)
    distances = lambda w: jnp.where(jnp.abs(jnp.linalg.norm(w - W) - 0.4) < 1e-9, angle(w), jnp.nan)
    assert searched(distances, rho_max=schedule) == 2.0


def test_of_equal_maxima_the_last_alpha_wins_and_then_the_first():
    assert searched(lambda w: 1.0) == 0.7
    assert searched(lambda w: jnp.where(angle(w) > 0.45, 1.0, 0.0)) == 0.7
    assert searched(lambda w: jnp.where(angle(w) > 0.85, 1.0, 0.0)) == 0.9
    twins = lambda w: jnp.where(jnp.abs(jnp.abs(angle(w) - 1.0) - 0.5) < 0.01, -1.0, -2.0)
    assert searched(twins) == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_losses_cannot_win(bad):
    assert searched(lambda w: jnp.where(angle(w) > 1.25, bad, -(angle(w) ** 2) + 3 * angle(w))) == 1.2
    assert searched(lambda w: jnp.where(angle(w) < 0.25, bad, -10.0 - angle(w))) == 0.3
    assert searched(lambda w: jnp.where(jnp.abs(angle(w) - 1.6) < 0.01, -1e300, bad)) == 1.6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_finite_loss_keeps_the_last_alpha(bad):
    assert searched(lambda w: bad * jnp.sum(w)) == 0.7


def test_alpha_max_and_num_alphas():
    loss = lambda w: angle(w)
    assert searched(loss, alpha_max=1.5) == 1.5
    assert searched(loss, alpha_max=0.5, num_alphas=2) == 0.5
    assert searched(lambda w: -((angle(w) - 0.6) ** 2), num_alphas=5) == 0.5


spectra = arrays("float64", SIZE, elements=st.integers(1, 20).map(lambda n: n / 2))


@jax.jit
def best_alphas(hessian, w):
    """α* of XSAM on the quadratic, for a large and for a small distance ρ_m."""

    def best(rho_max):
        tx = optax_sam.xsam(rho=0.01, rho_max=rho_max)
        params = unflat(w)
        value_fn = lambda params: 0.5 * flat(params) @ hessian @ flat(params)
        _, state = gradient_and_update(tx, tx.init(params), params, value_fn, refresh=True)
        return optax.tree.get(state, "alpha")

    return best(1e4), best(1e-3)


@given(spectrum=spectra, w=nonzero_vectors)
def test_positive_definite_quadratics(spectrum, w):
    """Proposition 1 of the paper: far away the worst point is beyond v₁, close by before it."""
    hessian = quadratic(spectrum).hessian
    u = unit(hessian @ w)
    turn = np.linalg.norm(hessian @ u - (u @ hessian @ u) * u)
    assume(np.linalg.norm(w) > 1 and turn > 0.1)  # Not an eigenvector: else there is no arc.
    large, small = best_alphas(hessian, w)
    assert large > 1
    assert small < 1


def test_first_search_at_the_first_step_and_schedule_of_rho_max():
    search = optax_sam.spherical_search(lambda count: 0.1 * (count + 1), interval=2)
    params = unflat(W)
    state = search.init(params)
    np.testing.assert_array_equal(state.alpha, 1.0)
    value_fn = lambda params: -((angle(flat(params)) - 5 * jnp.linalg.norm(flat(params) - W)) ** 2)
    extra_args = {"perturbation": unflat(EPSILON), "loss": BatchLoss(value_fn)}
    update = jax.jit(
        lambda state, count: search.update(unflat(GRADIENT), state, params, step_count=count, **extra_args)[1]
    )
    found = []
    for count in range(4):
        state = update(state, count)
        found.append(round(float(state.alpha), 6))
    assert found == [0.5, 0.5, 1.5, 1.5]


def temporary_bytes(num_alphas):
    tx = optax_sam.sharpness_aware(
        optax_sam.steepest_ascent(0.1),
        optax_sam.spherical_search(0.3, num_alphas=num_alphas),
    )
    x = jnp.ones((64, 100))
    value_fn = lambda w: jnp.mean(jnp.tanh(jnp.tanh(x @ w) @ w.T) ** 2)
    params = jnp.ones((100, 100))
    step = lambda params, state: gradient_and_update(tx, state, params, value_fn, refresh=True)
    return jax.jit(step).lower(params, tx.init(params)).compile().memory_analysis().temp_size_in_bytes


def test_memory_does_not_depend_on_the_number_of_losses(optimized):
    few, many = temporary_bytes(5), temporary_bytes(41)
    assert many - few <= 3 * 8 * (41 - 5)  # The losses and the α themselves, a few times.


NO_ARC = {
    "rho warmed up from 0": (optax.linear_schedule(0.0, 0.1, 5), 0.3, [1.0, 1.0], [1.0, 9.0]),
    "rho_max warmed up from 0": (0.1, optax.linear_schedule(0.0, 0.3, 5), [1.0, 1.0], [1.0, 9.0]),
    "zero gradient": (0.1, 0.3, [0.0, 0.0], [1.0, 9.0]),
    "one parameter": (0.1, 0.3, [2.0], [1.0]),
    "parallel gradients": (0.1, 0.3, [1.0, 1.0], [1.0, 1.0]),
}


@pytest.mark.parametrize("last", [1.0, 0.3])
@pytest.mark.parametrize("case", NO_ARC)
def test_where_nothing_can_be_compared_alpha_stays(case, last):
    rho, rho_max, w, curvature = NO_ARC[case]
    w, value_fn = jnp.array(w), lambda w: jnp.sum(jnp.array(curvature) * w**2)
    tx = optax_sam.xsam(rho, rho_max)
    state = optax.tree.set(tx.init(w), alpha=jnp.asarray(last))
    _, state = tx.update(jax.grad(value_fn)(w), state, w, value_fn=value_fn, refresh=True)
    assert optax.tree.get(state, "alpha") == last


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_losses_that_are_equal_but_for_rounding_leave_alpha_near_the_last(dtype):
    """In bfloat16 the losses of an arc have a few values at most: α does not jump to the first of them."""
    w = jnp.array([1.0, 1.0])
    exact = lambda w: 100 + jnp.sum(jnp.array([1.0, 9.0]) * w**2)
    tx = optax_sam.xsam(0.01, 0.01)
    coarse = lambda w: exact(w).astype(dtype).astype(jnp.float32)
    _, state = tx.update(jax.grad(exact)(w), tx.init(w), w, value_fn=coarse, grad_fn=jax.grad(exact))
    truth = optax.tree.get(tx.update(jax.grad(exact)(w), tx.init(w), w, value_fn=exact)[1], "alpha")
    assert optax.tree.get(state, "alpha") == (1.0 if dtype == jnp.bfloat16 else truth)


def test_differences_that_16_bits_resolve_count():
    """A tolerance of four units of bfloat16, 3 % of the loss, left α where the losses told more."""
    alphas, unit = jnp.linspace(0, 2, 5), 2**-7
    losses = 1 + unit * jnp.array([0, 1, 2, 1, 2])
    for dtype in (jnp.bfloat16, jnp.float32):
        chosen = lambda last, dtype=dtype: _worst(alphas, losses.astype(dtype), jnp.asarray(last))
        assert [float(chosen(last)) for last in (0.0, 0.5, 1.0, 2.0)] == [1.0, 1.0, 1.0, 2.0]


@pytest.mark.parametrize("rho", [0.0, 0.1])
@pytest.mark.parametrize("curvature", [[1.0, 1.0], [1.0, 9.0]], ids=["parallel gradients", "an arc"])
def test_reverse_mode_through_the_method_agrees_with_forward_mode(rho, curvature):
    """Hypergradients: of what follows a step with respect to ρ, also where the arc is a point."""
    w, value_fn = jnp.array([1.0, 2.0]), lambda w: jnp.sum(jnp.array(curvature) * w**2)

    def after(rho):
        tx = optax_sam.xsam(rho)
        return value_fn(w - 0.01 * tx.update(jax.grad(value_fn)(w), tx.init(w), w, value_fn=value_fn)[0])

    reverse, forward = jax.grad(after)(rho), jax.jacfwd(after)(rho)
    assert jnp.isfinite(reverse)
    np.testing.assert_allclose(reverse, forward, rtol=1e-6)
