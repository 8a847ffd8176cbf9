"""Every notion of sharpness against its definition: closed forms, brute force, one notion against another."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import curvature, diagnostics
from tests.problems import flat, network, quadratic, unflat

NETWORK = network()
DATA = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), NETWORK.batches)
LOSS = jax.jit(NETWORK.loss)
BATCHES = curvature.Batches(DATA, 48)
UNEQUAL = curvature.Batches(DATA, 64)  # 64 and 32 examples
ADAPTIVE = optax_sam.weight_magnitude(0.1)

SPECTRUM = [9.0, 4.0, 1.0, 0.5, 0.1]
INDEFINITE = [5.0, 1.0, -1.0, -2.0, -7.0]
# Compiled once: the Hessian is data.
QUADRATIC = jax.jit(lambda params, hessian: 0.5 * flat(params) @ hessian @ flat(params))


def rise(value_fn, params, epsilon):
    moved = jax.tree.map(jnp.add, params, epsilon)
    return value_fn(moved) - value_fn(params)


def loss(params):
    return NETWORK.loss(params, DATA)


def gradient():
    return jax.grad(loss)(NETWORK.params)


def magnitudes(params, eta=0.1):
    return jax.tree.map(lambda w: jnp.abs(w) + eta, params)


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


@pytest.mark.parametrize("constraint", [None, ADAPTIVE], ids=["plain", "adaptive"])
def test_sharpness_is_the_rise_at_the_perturbation_of_steepest_ascent(constraint):
    found = diagnostics.sharpness(loss, NETWORK.params, 0.1, constraint=constraint)
    ascent = optax_sam.steepest_ascent(0.1, constraint=constraint)
    expected, _ = ascent.update(gradient(), ascent.init(NETWORK.params), NETWORK.params)
    chex.assert_trees_all_close(found.perturbation, expected, rtol=1e-5)
    np.testing.assert_allclose(found.sharpness, rise(loss, NETWORK.params, expected), rtol=1e-4)
    t = jax.tree.map(jnp.ones_like, expected) if constraint is None else magnitudes(NETWORK.params)
    tg = jax.tree.map(jnp.multiply, t, gradient())
    np.testing.assert_allclose(found.linear, 0.1 * optax_sam.tree_math.norm(tg), rtol=1e-5)


def test_sharpness_in_the_infinity_norm_moves_every_parameter_by_its_share():
    found = diagnostics.sharpness(loss, NETWORK.params, 0.01, ord=jnp.inf, constraint=ADAPTIVE)
    expected = jax.tree.map(lambda t, g: 0.01 * t * jnp.sign(g), magnitudes(NETWORK.params), gradient())
    chex.assert_trees_all_close(found.perturbation, expected, rtol=1e-5)


@pytest.mark.parametrize("spectrum", [SPECTRUM, INDEFINITE], ids=["convex", "indefinite"])
def test_worst_case_at_a_stationary_point_is_that_of_the_top_eigenvalue(spectrum, x64):
    problem = quadratic(spectrum)
    found = diagnostics.worst_case_sharpness(
        QUADRATIC, unflat(np.zeros(5)), 0.3, num_iters=60, batches=[problem.hessian]
    )
    np.testing.assert_allclose(found.sharpness, 0.5 * 0.3**2 * max(spectrum), rtol=1e-6)
    # No gradient, no first ascent; the random starts find it.
    assert found.ascents[0] == 0
    top = np.abs(problem.eigenvectors[:, 0] @ flat(found.perturbation))
    np.testing.assert_allclose(top, 0.3, rtol=1e-3)


@pytest.mark.parametrize("spectrum", [SPECTRUM, INDEFINITE], ids=["convex", "indefinite"])
@pytest.mark.parametrize("rho", [0.1, 1.0, 10.0])
def test_worst_case_away_from_it_is_that_of_the_secular_equation(spectrum, rho, x64):
    problem = quadratic(spectrum)
    w = np.array([1.0, -2.0, 0.5, 3.0, 0.1])
    found = diagnostics.worst_case_sharpness(
        QUADRATIC, unflat(w), rho, num_iters=60, batches=[problem.hessian]
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
        QUADRATIC,
        unflat(w),
        0.2,
        ord=jnp.inf,
        constraint=constraint,
        num_restarts=8,
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
        adaptive = notion(QUADRATIC, unflat(w), 0.1, **options, **in_w)
        plain = notion(QUADRATIC, unflat(w / t), 0.1, **options, **in_u)
        np.testing.assert_allclose(adaptive.sharpness, plain.sharpness, rtol=1e-9)
        np.testing.assert_allclose(
            flat(adaptive.perturbation), t * flat(plain.perturbation), rtol=1e-6, atol=1e-9
        )
    noise = [
        diagnostics.average_case_sharpness(QUADRATIC, unflat(point), 0.1, **options)
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
    worst = diagnostics.worst_case_sharpness(LOSS, NETWORK.params, rho, num_restarts=2, **geometry)
    first = diagnostics.sharpness(LOSS, NETWORK.params, rho, **geometry)
    assert 0 < first.sharpness <= worst.sharpness
    one = diagnostics.worst_case_sharpness(LOSS, NETWORK.params, rho, num_iters=1, num_restarts=1, **geometry)
    np.testing.assert_allclose(one.sharpness, first.sharpness, rtol=1e-3)


def test_restarts_find_what_the_first_ascent_does_not():
    """The gradient at 0 leads to the lower of two hills."""
    hills = lambda w: jnp.exp(-16 * jnp.sum((w - 0.5) ** 2)) + 3 * jnp.exp(-9 * jnp.sum((w + 1) ** 2))
    find = lambda **options: diagnostics.worst_case_sharpness(hills, jnp.zeros(1), 1.5, **options)
    alone, several = find(num_restarts=1), find(num_restarts=8)
    np.testing.assert_allclose(alone.sharpness, 1 - hills(jnp.zeros(1)), rtol=1e-3)
    np.testing.assert_allclose(several.sharpness, 3 - hills(jnp.zeros(1)), rtol=1e-3)
    assert several.ascents.shape == (8,)
    np.testing.assert_allclose(several.sharpness, several.ascents.max())
    given = find(num_restarts=1, start=jnp.array([-0.9]))
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


def test_average_case_within_its_standard_error(x64):
    """½ σ² tr(T H T), and no trace of the gradient, a million times larger."""
    hessian = quadratic(INDEFINITE).hessian
    w = np.array([1.0, -2.0, 0.5, 3.0, 0.1])
    t = np.abs(w) + 0.1
    tilted = jax.jit(lambda params, hessian: QUADRATIC(params, hessian) + 1e6 * jnp.sum(flat(params)))
    scaled = t[:, None] * hessian * t
    for constraint, matrix in [(None, hessian), (ADAPTIVE, scaled)]:
        errors, squares = [], []
        for seed in range(10):
            found = diagnostics.average_case_sharpness(
                tilted,
                unflat(w),
                0.1,
                constraint=constraint,
                num_samples=100,
                seed=seed,
                batches=[hessian],
            )
            expected = 0.5 * 0.1**2 * np.trace(matrix)
            errors.append((found.estimate - expected) / found.standard_error)
            squares.append(found.standard_error**2)
        # The variance of ½ zᵀ M z is ½ σ⁴ tr M².
        np.testing.assert_allclose(np.mean(squares), 0.5 * 0.1**4 * np.sum(matrix**2) / 100, rtol=0.3)
        assert np.abs(errors).max() < 3.5
        assert 0.5 < np.sqrt(np.mean(np.square(errors))) < 1.6


@pytest.mark.parametrize("num_iters", [1, 3])
def test_m_sharpness_is_the_mean_of_the_groups_sharpness(num_iters):
    found = diagnostics.m_sharpness(LOSS, NETWORK.params, 0.3, UNEQUAL, num_iters=num_iters, num_restarts=2)
    alone = [
        diagnostics.worst_case_sharpness(
            LOSS, NETWORK.params, 0.3, num_iters=num_iters, num_restarts=2, batches=[group]
        ).sharpness
        for group in UNEQUAL
    ]
    np.testing.assert_allclose(found.groups, alone, rtol=1e-4)
    np.testing.assert_allclose(found.sharpness, np.average(alone, weights=[64, 32]), rtol=1e-4)


def test_m_sharpness_grows_as_groups_shrink():
    sharpness = [
        diagnostics.m_sharpness(LOSS, NETWORK.params, 0.1, curvature.Batches(DATA, m)).sharpness
        for m in (96, 24, 6)
    ]
    first = diagnostics.sharpness(LOSS, NETWORK.params, 0.1, batches=[DATA]).sharpness
    np.testing.assert_allclose(sharpness[0], first, rtol=1e-4)
    assert sharpness[0] < sharpness[1] < sharpness[2]


NOTIONS = {
    "sharpness": lambda value_fn, params, **data: diagnostics.sharpness(value_fn, params, 0.1, **data),
    "worst case": lambda value_fn, params, **data: diagnostics.worst_case_sharpness(
        value_fn, params, 0.1, num_iters=3, num_restarts=2, constraint=ADAPTIVE, **data
    ),
    "average case": lambda value_fn, params, **data: diagnostics.average_case_sharpness(
        value_fn, params, 0.1, num_samples=3, **data
    ),
    "gain": lambda value_fn, params, **data: diagnostics.perturbation_gain(
        value_fn, params, params, num_iters=3, num_restarts=1, **data
    ),
}
every_notion = pytest.mark.parametrize("notion", NOTIONS.values(), ids=NOTIONS)


@every_notion
def test_over_a_data_set_and_under_jit(notion):
    eager = notion(loss, NETWORK.params)
    compiled = jax.jit(lambda params: notion(loss, params))(NETWORK.params)
    in_batches = notion(LOSS, NETWORK.params, batches=BATCHES)
    chex.assert_trees_all_close(compiled, eager, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(in_batches, eager, rtol=1e-3, atol=1e-5)


@every_notion
def test_bfloat16_parameters_are_perturbed_in_float32(notion):
    """As those of the same values in float32: no perturbation is rounded away."""
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), NETWORK.params)
    full = jax.tree.map(lambda w: w.astype(jnp.float32), half)
    found = notion(LOSS, half, batches=[DATA])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
    chex.assert_trees_all_close(found, notion(LOSS, full, batches=[DATA]), rtol=1e-5)


def test_a_model_that_returns_a_bfloat16_loss():
    half = lambda w: jnp.sum(w.astype(jnp.bfloat16) ** 2)
    found = diagnostics.sharpness(half, jnp.ones(4), 1.0)
    assert found.sharpness.dtype == jnp.float32
    np.testing.assert_allclose(found.sharpness, 5.0, rtol=0.02)


def test_compiled_once_for_all_ascents():
    traces = []

    def counted(w):
        traces.append(1)
        return jnp.sum(jnp.sin(w))

    diagnostics.worst_case_sharpness(counted, jnp.ones(3), 0.1, num_iters=10, num_restarts=5)
    assert len(traces) == 1


def test_progress_bars(capsys):
    shown = {"progress": True}
    diagnostics.worst_case_sharpness(LOSS, NETWORK.params, 0.1, num_iters=2, batches=BATCHES, **shown)
    found = diagnostics.average_case_sharpness(LOSS, NETWORK.params, 0.1, batches=BATCHES, **shown)
    diagnostics.m_sharpness(LOSS, NETWORK.params, 0.1, BATCHES, **shown)
    text = capsys.readouterr().err
    assert "ascent 3/3: 100%" in text
    assert "average case: 100%" in text
    assert "m-sharpness: 100%" in text
    assert "3/3" in text
    silent = diagnostics.average_case_sharpness(LOSS, NETWORK.params, 0.1, batches=BATCHES)
    chex.assert_trees_all_close(found, silent, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: diagnostics.sharpness(loss, NETWORK.params, -0.1), ValueError, "`rho` must be at least 0"),
        (
            lambda: diagnostics.worst_case_sharpness(loss, NETWORK.params, 0.1, ord=1),
            ValueError,
            r"`ord` is the p of the norm.*must be 2 or `jnp.inf`, got 1",
        ),
        (
            lambda: diagnostics.sharpness(loss, NETWORK.params, 0.1, constraint=optax_sam.weight_magnitude),
            TypeError,
            "`constraint` must be an Optax gradient transformation, got the function `weight_magnitude`",
        ),
        (
            lambda: diagnostics.worst_case_sharpness(loss, NETWORK.params, 0.1, num_restarts=0),
            ValueError,
            "`num_restarts` must be at least 1",
        ),
        (
            lambda: diagnostics.worst_case_sharpness(loss, NETWORK.params, 0.1, start=jnp.ones(3)),
            ValueError,
            "`start` must have the tree structure of the parameters",
        ),
        (
            lambda: diagnostics.average_case_sharpness(loss, NETWORK.params, 0.1, num_samples=1),
            ValueError,
            "one sample has no standard error",
        ),
        (
            lambda: diagnostics.m_sharpness(LOSS, NETWORK.params, 0.1, []),
            ValueError,
            "`batches` has no groups",
        ),
        (
            lambda: diagnostics.sharpness(LOSS, NETWORK.params, 0.1, batches=iter([DATA])),
            TypeError,
            "an iterator.*is empty after the first",
        ),
        (
            lambda: diagnostics.sharpness(lambda w: (loss(w), 0), NETWORK.params, 0.1),
            TypeError,
            "must return the loss alone",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
