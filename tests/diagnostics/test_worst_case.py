"""The worst case against closed forms, brute force and the other notions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import curvature, diagnostics
from tests.problems import flat, network, quadratic, quadratic_loss, unflat

NETWORK = network()
DATA = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), NETWORK.batches)
LOSS = jax.jit(NETWORK.loss)

BATCHES = curvature.Batches(DATA, 48)
ADAPTIVE = optax_sam.weight_magnitude(0.1)
SPECTRUM = [9.0, 4.0, 1.0, 0.5, 0.1]
INDEFINITE = [5.0, 1.0, -1.0, -2.0, -7.0]


def rise(value_fn, params, epsilon):
    moved = jax.tree.map(jnp.add, params, epsilon)
    return value_fn(moved) - value_fn(params)


def largest_rise_in_a_ball(hessian, w, rho):
    """Solves the secular equation of max ½ (w+ε)ᵀH(w+ε) − ½ wᵀHw: (μ − H) ε = H w, ‖ε‖ = ρ, μ > λ_max."""
    values, vectors = np.linalg.eigh(hessian)
    g = vectors.T @ hessian @ w
    length = lambda mu: np.linalg.norm(g / (mu - values))
    low, high = values[-1] + 1e-12, values[-1] + np.linalg.norm(g) / rho
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if length(middle) > rho else (low, middle)
    epsilon = vectors @ (g / (high - values))
    return epsilon @ hessian @ w + 0.5 * epsilon @ hessian @ epsilon


@pytest.mark.parametrize("spectrum", [SPECTRUM, INDEFINITE], ids=["convex", "indefinite"])
def test_worst_case_at_a_stationary_point_is_that_of_the_top_eigenvalue(spectrum, x64):
    problem = quadratic(spectrum)
    found = diagnostics.worst_case_sharpness(
        quadratic_loss, unflat(np.zeros(5)), 0.3, num_iters=60, batches=[problem.hessian]
    )
    np.testing.assert_allclose(found.sharpness, 0.5 * 0.3**2 * max(spectrum), rtol=1e-6)
    top = np.abs(problem.eigenvectors[:, 0] @ flat(found.perturbation))
    np.testing.assert_allclose(top, 0.3, rtol=1e-3)


@pytest.mark.parametrize("spectrum", [SPECTRUM, INDEFINITE], ids=["convex", "indefinite"])
@pytest.mark.parametrize("rho", [0.1, 1.0, 10.0])
def test_worst_case_away_from_it_is_that_of_the_secular_equation(spectrum, rho, x64):
    problem = quadratic(spectrum)
    w = np.array([1.0, -2.0, 0.5, 3.0, 0.1])
    found = diagnostics.worst_case_sharpness(
        quadratic_loss, unflat(w), rho, num_iters=60, batches=[problem.hessian]
    )
    np.testing.assert_allclose(found.sharpness, largest_rise_in_a_ball(problem.hessian, w, rho), rtol=1e-5)
    assert optax_sam.tree_math.norm(found.perturbation) <= rho * (1 + 1e-12)
    value_fn = problem.value_fn
    np.testing.assert_allclose(rise(value_fn, unflat(w), found.perturbation), found.sharpness, rtol=1e-9)


@pytest.mark.parametrize("constraint", [None, ADAPTIVE], ids=["plain", "adaptive"])
def test_worst_case_of_a_convex_loss_in_a_cube_is_at_a_corner(constraint, x64):
    problem = quadratic(SPECTRUM)
    w = np.array([0.1, -0.2, 0.05, 0.3, 0.0])
    t = np.ones(5) if constraint is None else np.abs(w) + 0.1
    corners = 0.2 * t * np.array(list(itertools.product([-1.0, 1.0], repeat=5)))
    rises = [e @ problem.hessian @ w + 0.5 * e @ problem.hessian @ e for e in corners]
    found = diagnostics.worst_case_sharpness(
        quadratic_loss,
        unflat(w),
        0.2,
        ord=jnp.inf,
        constraint=constraint,
        num_ascents=8,
        batches=[problem.hessian],
    )
    np.testing.assert_allclose(found.sharpness, max(rises), rtol=1e-9)
    assert np.abs(flat(found.perturbation) / t).max() <= 0.2 * (1 + 1e-12)


@pytest.mark.parametrize("ord", [2, jnp.inf])
def test_adaptive_is_plain_in_units_of_the_weights(ord, x64):
    """L(w + ε) over ‖T⁻¹ε‖ ≤ ρ is L(T u + T z) over ‖z‖ ≤ ρ."""
    hessian = quadratic(SPECTRUM).hessian
    w = np.array([1.0, -2.0, 0.5, 3.0, 0.1])
    t = np.abs(w) + 0.1
    # Curvature of L(T u) in u. Every notion has the same value; perturbations differ by T.
    arguments = {"ord": ord, "num_iters": 40}
    in_w = {"constraint": ADAPTIVE, "batches": [hessian]}
    in_u = {"batches": [t[:, None] * hessian * t]}
    for notion, options in [
        (diagnostics.sharpness, {"ord": ord}),
        (diagnostics.worst_case_sharpness, arguments),
    ]:
        adaptive = notion(quadratic_loss, unflat(w), 0.1, **options, **in_w)
        plain = notion(quadratic_loss, unflat(w / t), 0.1, **options, **in_u)
        np.testing.assert_allclose(adaptive.sharpness, plain.sharpness, rtol=1e-9)
        np.testing.assert_allclose(
            flat(adaptive.perturbation), t * flat(plain.perturbation), rtol=1e-6, atol=1e-9
        )
    noise = [
        diagnostics.average_case_sharpness(quadratic_loss, unflat(point), 0.1, **options)
        for point, options in [(w, in_w), (w / t, in_u)]
    ]
    np.testing.assert_allclose(*noise, rtol=1e-6)


def test_adaptive_sharpness_does_not_change_when_layers_are_scaled():
    """Twice the first layer's outputs, half the second's inputs: the same linear network."""
    x = jax.random.normal(jax.random.key(0), (30, 4))
    linear = jax.jit(lambda w, x: jnp.mean(((x @ w["in"]) @ w["out"] - x[:, 0]) ** 2))
    keys = jax.random.split(jax.random.key(1))
    w = {"in": jax.random.normal(keys[0], (4, 6)), "out": jax.random.normal(keys[1], (6,)) / 3}
    scaled = {"in": 2 * w["in"], "out": w["out"] / 2}
    worst = lambda w, t: diagnostics.worst_case_sharpness(linear, w, 0.1, constraint=t, batches=[x]).sharpness
    without = [worst(point, None) for point in (w, scaled)]
    adaptive = [worst(point, optax_sam.weight_magnitude(0.0)) for point in (w, scaled)]
    np.testing.assert_allclose(*adaptive, rtol=1e-3)
    assert abs(without[0] - without[1]) > 0.1 * without[0]


@pytest.mark.parametrize("ord", [2, jnp.inf])
@pytest.mark.parametrize("constraint", [None, ADAPTIVE], ids=["plain", "adaptive"])
def test_no_notion_exceeds_the_worst_case(ord, constraint):
    rho = 0.5 if ord == 2 else 0.05
    geometry = {"ord": ord, "constraint": constraint, "batches": BATCHES}
    worst = diagnostics.worst_case_sharpness(LOSS, NETWORK.params, rho, num_ascents=2, **geometry)
    first = diagnostics.sharpness(LOSS, NETWORK.params, rho, **geometry)
    assert 0 < first.sharpness <= worst.sharpness
    one = diagnostics.worst_case_sharpness(LOSS, NETWORK.params, rho, num_iters=1, num_ascents=1, **geometry)
    np.testing.assert_allclose(one.sharpness, first.sharpness, rtol=1e-3)


def test_restarts_find_what_the_first_ascent_does_not():
    """The gradient at 0 leads to the lower of two hills."""
    hills = lambda w: jnp.exp(-16 * jnp.sum((w - 0.5) ** 2)) + 3 * jnp.exp(-9 * jnp.sum((w + 1) ** 2))
    find = lambda **options: diagnostics.worst_case_sharpness(hills, jnp.zeros(1), 1.5, **options)
    alone, several = find(num_ascents=1), find(num_ascents=8)
    np.testing.assert_allclose(alone.sharpness, 1 - hills(jnp.zeros(1)), rtol=1e-3)
    np.testing.assert_allclose(several.sharpness, 3 - hills(jnp.zeros(1)), rtol=1e-3)
    assert several.ascents.shape == (8,)
    np.testing.assert_allclose(several.sharpness, several.ascents.max())
    given = find(num_ascents=1, start=jnp.array([-0.9]))
    np.testing.assert_allclose(given.perturbation, -1, atol=1e-2)


def test_points_with_an_infinite_loss_are_passed_over():
    cliff = lambda w: jnp.where(w.sum() > 0.5, jnp.inf, jnp.sum(w))
    found = diagnostics.worst_case_sharpness(cliff, jnp.zeros(1), 1.0, num_iters=40)
    np.testing.assert_allclose(found.sharpness, 0.5, rtol=1e-3)


def test_where_nothing_rises_w_is_the_worst():
    found = diagnostics.worst_case_sharpness(lambda w: -jnp.sum(w**2), jnp.zeros(3), 1.0)
    assert found.sharpness == 0
    assert not found.perturbation.any()
    still = diagnostics.sharpness(lambda w: -jnp.sum(w**2), jnp.zeros(3), 1.0)
    assert still.sharpness == still.linear == 0


def test_compiled_once_for_all_ascents():
    traces = []

    def counted(w):
        traces.append(1)
        return jnp.sum(jnp.sin(w))

    diagnostics.worst_case_sharpness(counted, jnp.ones(3), 0.1, num_iters=10, num_ascents=5)
    assert len(traces) == 1


@pytest.mark.parametrize("start", [None, jnp.zeros(3)], ids=["from w", "from 0"])
@pytest.mark.parametrize("ord", [2, jnp.inf])
def test_one_ascent_from_an_exact_minimum_leaves_it(ord, start):
    loss = lambda w: 0.5 * jnp.sum(jnp.array([9.0, 4.0, 1.0]) * w**2)
    found = diagnostics.worst_case_sharpness(loss, jnp.zeros(3), 0.3, ord=ord, num_ascents=1, start=start)
    expected = 0.5 * 0.3**2 * (9.0 if ord == 2 else 14.0)
    np.testing.assert_allclose(found.sharpness, expected, rtol=1e-3)


def test_the_second_ascent_starts_opposite_to_the_end_of_the_first():
    """A slope leads every random point to the lower of two hills, on either side of a valley."""
    loss = lambda w: 0.5 * w[0] + 2 * w[0] ** 2 - w[0] ** 3
    found = diagnostics.worst_case_sharpness(loss, jnp.zeros(1000), 1.0, num_ascents=3)
    # ±0.5 + 2 ∓ 1.
    np.testing.assert_allclose(found.ascents, [1.5, 2.5, 1.5], rtol=1e-3)
