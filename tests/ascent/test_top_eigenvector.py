"""ε = ρ (ĝ + α s v⊥), s = sign⟨g, v⟩, v⊥ = v − ⟨ĝ, v⟩ ĝ, and the tracker of v."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

import optax_sam
from optax_sam.loss import BatchLoss
from tests.problems import flat, quadratic, unflat
from tests.strategies import (
    SIZE,
    constant,
    diagonals,
    gradient_and_update,
    nonzero_vectors,
    positive,
    read_perturbation,
)

pytestmark = pytest.mark.usefixtures("x64")

PROBLEM = quadratic([9.0, 4.0, 1.0, 0.5, -40.0])
OTHER = quadratic([1.0, 20.0, 1.0, 0.5, -2.0], seed=1)


def w64():
    return unflat(np.arange(1.0, 6.0))


@jax.jit
def perturb(g, v, rho, alpha):
    ascent = optax.chain(optax_sam.steepest_ascent(rho), optax_sam.tilt_to_top_eigenvector(alpha))
    g = unflat(g)
    state = optax.tree.set(ascent.init(g), eigenvector=unflat(v))
    return flat(ascent.update(g, state, g, refresh=False)[0])


def unit(x):
    return x / np.linalg.norm(x)


@given(g=nonzero_vectors, v=nonzero_vectors, rho=positive, alpha=positive)
def test_tilt(g, v, rho, alpha):
    v = unit(v)
    epsilon = np.asarray(perturb(g, v, rho, alpha))
    s = np.sign(g @ v) if abs(g @ v) > 1e-9 else 0.0
    v_perp = v - unit(g) @ v * unit(g)
    if s != 0 or g @ v == 0:
        expected = rho * (unit(g) + alpha * s * v_perp)
        np.testing.assert_allclose(epsilon, expected, rtol=1e-9, atol=1e-9 * rho * (1 + alpha))


@given(g=nonzero_vectors, v=nonzero_vectors, rho=positive, alpha=positive)
def test_tilt_is_orthogonal_to_the_gradient_and_towards_the_eigenvector(g, v, rho, alpha):
    v = unit(v)
    tilt = np.asarray(perturb(g, v, rho, alpha)) - rho * unit(g)
    v_perp = v - unit(g) @ v * unit(g)
    assert abs(tilt @ unit(g)) <= 1e-10 * rho * (1 + alpha)
    if abs(unit(g) @ v) > 1e-9:
        length = np.linalg.norm(perturb(g, v, rho, alpha))
        np.testing.assert_allclose(length, rho * np.sqrt(1 + alpha**2 * (v_perp @ v_perp)), rtol=1e-9)
        # Closer to ±v than before, on the side where the gradient is.
        assert np.sign(g @ v) * (tilt @ v) >= -1e-10 * rho * (1 + alpha)


@given(g=nonzero_vectors, v=nonzero_vectors, rho=positive, alpha=positive)
def test_sign_of_the_eigenvector_does_not_matter(g, v, rho, alpha):
    tolerance = {"rtol": 1e-12, "atol": 1e-12 * rho * (1 + alpha)}
    np.testing.assert_allclose(perturb(g, unit(v), rho, alpha), perturb(g, -unit(v), rho, alpha), **tolerance)


@given(g=nonzero_vectors, v=nonzero_vectors, rho=positive)
def test_alpha_0_and_a_zero_vector_are_sam(g, v, rho):
    np.testing.assert_allclose(perturb(g, unit(v), rho, 0.0), rho * unit(g), rtol=1e-12)
    np.testing.assert_allclose(perturb(g, np.zeros(SIZE), rho, 0.2), rho * unit(g), rtol=1e-12)


def test_before_the_first_refresh_it_is_sam():
    """Although there is a vector in the state, with which the first refresh begins."""
    tx, g = optax.chain(optax_sam.steepest_ascent(0.1), optax_sam.tilt_to_top_eigenvector(0.5)), w64()
    epsilon, state = tx.update(g, tx.init(g), g, refresh=False)
    np.testing.assert_allclose(flat(epsilon), 0.1 * unit(flat(g)), rtol=1e-12)
    np.testing.assert_array_equal(flat(state[1].eigenvector), flat(tx.init(g)[1].eigenvector))
    assert np.linalg.norm(flat(state[1].eigenvector)) > 0


@jax.jit
def tilt_preconditioned(g, v, t, rho, alpha):
    steepest = optax_sam.steepest_ascent(rho, constraint=constant(t))
    ascent = optax.chain(steepest, optax_sam.tilt_to_top_eigenvector(alpha))
    g = unflat(g)
    state = optax.tree.set(ascent.init(g), eigenvector=unflat(v))
    return flat(steepest.update(g, state[0], g)[0]), flat(ascent.update(g, state, g, refresh=False)[0])


@given(g=nonzero_vectors, v=nonzero_vectors, t=diagonals, rho=positive, alpha=positive)
def test_behind_another_ascent_the_tilt_is_orthogonal_to_that_one(g, v, t, rho, alpha):
    before, after = map(np.asarray, tilt_preconditioned(g, unit(v), t, rho, alpha))
    scale = np.linalg.norm(before) * (1 + alpha)
    assert abs((after - before) @ unit(before)) <= 1e-9 * scale
    v_perp = unit(v) - unit(before) @ unit(v) * unit(before)
    if abs(before @ unit(v)) > 1e-9 * scale:
        length = np.linalg.norm(before) * np.sqrt(1 + alpha**2 * (v_perp @ v_perp))
        np.testing.assert_allclose(np.linalg.norm(after), length, rtol=1e-9)


def track(
    value_fn=PROBLEM.value_fn, *, state=None, steps=1, refresh=True, params=None, num_iters=14, **kwargs
):
    """Returns the state after refreshing steps at fixed parameters."""
    functions = {name: kwargs.pop(name) for name in ("grad_fn", "curvature_fn") if name in kwargs}
    loss = BatchLoss(value_fn, **functions)
    tilt = optax_sam.tilt_to_top_eigenvector(num_iters=num_iters, **kwargs)
    params = w64() if params is None else params
    state = tilt.init(params) if state is None else state
    update = jax.jit(lambda state: tilt.update(params, state, params, loss=loss, refresh=refresh)[1])
    for _ in range(steps):
        state = update(state)
    return state


def tilt_init():
    return optax_sam.tilt_to_top_eigenvector().init(w64())


def alignment(state, problem, which):
    return abs(flat(state.eigenvector) @ problem.eigenvectors[:, which])


def test_tracker_finds_the_prescribed_eigenpair():
    power = track(solver="power")
    np.testing.assert_allclose(power.eigenvalue, -40.0, rtol=1e-9)
    np.testing.assert_allclose(alignment(power, PROBLEM, 4), 1.0, rtol=1e-9)
    lanczos = track(solver="lanczos", num_iters=SIZE)
    np.testing.assert_allclose(lanczos.eigenvalue, 9.0, rtol=1e-9)
    np.testing.assert_allclose(alignment(lanczos, PROBLEM, 0), 1.0, rtol=1e-9)


def test_running_mean_finds_the_top_eigenvector_of_the_mean_hessian():
    """Two batches in turn: without a mean the vector follows the last one."""
    batches = [quadratic([9.0, 4.0, 1.0, 0.5, 0.1], seed=seed) for seed in (0, 1)]
    values, vectors = np.linalg.eigh(sum(batch.hessian for batch in batches) / 2)

    @jax.jit
    def update(hessian, state, decay):
        tilt = optax_sam.tilt_to_top_eigenvector(num_iters=1, decay=decay)
        loss = BatchLoss(lambda params: 0.5 * flat(params) @ hessian @ flat(params))
        return tilt.update(w64(), state, w64(), loss=loss, refresh=True)[1]

    def after(decay):
        state = optax_sam.tilt_to_top_eigenvector().init(w64())
        for step in range(400):
            state = update(batches[step % 2].hessian, state, decay)
        return abs(flat(state.eigenvector) @ vectors[:, -1]), state.eigenvalue

    (without, _), (some, _), (more, eigenvalue) = after(0.0), after(0.9), after(0.95)
    angles = [np.arccos(alignment) for alignment in (without, some, more)]
    assert angles[0] > 0.4
    assert angles[2] < 0.02
    np.testing.assert_allclose(angles[1] / angles[2], 2, rtol=0.15)  # in proportion to 1 − decay
    np.testing.assert_allclose(eigenvalue, values[-1], rtol=0.03)


def test_first_refresh_has_nothing_to_average():
    one, other = (track(num_iters=3, decay=decay) for decay in (0.0, 0.9))
    chex.assert_trees_all_close(one, other, rtol=1e-12)
    v0 = unflat(unit(np.array([1.0, -1.0, 2.0, 0.5, 0.0])))
    own = optax.tree.set(track(num_iters=1, refresh=False), eigenvector=v0)
    state = track(state=own, num_iters=1, decay=0.9)
    np.testing.assert_allclose(state.eigenvalue, flat(v0) @ PROBLEM.hessian @ flat(v0), rtol=1e-9)


def test_decay_0_is_the_rule_without_a_mean():
    """Also as an array, which `optax.inject_hyperparams` makes of it."""
    good = track(num_iters=2)
    expected = track(state=good, num_iters=2)
    found = track(state=good, num_iters=2, decay=jnp.zeros(()))
    chex.assert_trees_all_equal(found, expected)
    mean = track(state=good, num_iters=2, decay=0.5)
    assert not np.allclose(flat(mean.eigenvector), flat(expected.eigenvector))


def test_curvature_fn_is_used_for_the_hessian_only():
    state = track(curvature_fn=OTHER.value_fn)
    np.testing.assert_allclose(state.eigenvalue, 20.0, rtol=1e-9)
    np.testing.assert_allclose(alignment(state, OTHER, 1), 1.0, rtol=1e-9)


def test_grad_fn_is_used_and_curvature_fn_goes_before_it():
    grad_fn = jax.grad(OTHER.value_fn)
    np.testing.assert_allclose(track(grad_fn=grad_fn).eigenvalue, 20.0, rtol=1e-9)
    state = track(grad_fn=grad_fn, curvature_fn=PROBLEM.value_fn)
    np.testing.assert_allclose(state.eigenvalue, -40.0, rtol=1e-9)


def test_curvature_fn_through_a_method():
    """The gradient at w + ε is still that of `value_fn`."""
    tx = optax_sam.eigen_sam(0.1, solver="lanczos", num_iters=SIZE)
    plain, _ = gradient_and_update(tx, tx.init(w64()), w64(), PROBLEM.value_fn)
    direction, state = gradient_and_update(
        tx, tx.init(w64()), w64(), PROBLEM.value_fn, curvature_fn=OTHER.value_fn
    )
    np.testing.assert_allclose(optax.tree.get(state, "eigenvalue"), 20.0, rtol=1e-9)
    v = OTHER.eigenvectors[:, 1]
    w, hessian = np.arange(1.0, 6.0), PROBLEM.hessian
    g = hessian @ w
    epsilon = 0.1 * (unit(g) + 0.2 * np.sign(g @ v) * (v - unit(g) @ v * unit(g)))
    np.testing.assert_allclose(flat(direction), hessian @ (w + epsilon), rtol=1e-7)
    assert not np.allclose(flat(plain), flat(direction))


def test_warm_start():
    """Twice two power iterations are four, so the second refresh starts where the first ended."""
    twice = track(steps=2, num_iters=2)
    once = track(steps=1, num_iters=4)
    np.testing.assert_allclose(flat(twice.eigenvector), flat(once.eigenvector), rtol=1e-9)
    np.testing.assert_allclose(twice.eigenvalue, once.eigenvalue, rtol=1e-9)


@pytest.mark.parametrize("solver", ["power", "lanczos"])
def test_start_vector_of_ones_own(solver):
    v0 = unflat(unit(np.array([1.0, -1.0, 2.0, 0.5, 0.0])))
    state = track(num_iters=1, refresh=False, solver=solver)
    state = track(state=optax.tree.set(state, eigenvector=v0), num_iters=1, solver=solver)
    product = PROBLEM.hessian @ flat(v0)
    shift = max(0, -2 * flat(v0) @ product) if solver == "lanczos" else 0
    expected = unit(product + shift * flat(v0))
    np.testing.assert_allclose(flat(state.eigenvector), expected, rtol=1e-9)
    np.testing.assert_allclose(state.eigenvalue, flat(v0) @ product, rtol=1e-9)


@pytest.mark.parametrize("solver", ["power", "lanczos"])
def test_seed_decides_the_first_start(solver):
    states = [track(num_iters=1, key=seed, solver=solver) for seed in (0, 0, 1)]
    chex.assert_trees_all_equal(states[0], states[1])
    assert not np.allclose(flat(states[0].eigenvector), flat(states[2].eigenvector))


@pytest.mark.parametrize(("solver", "bad"), [("power", np.nan), ("power", np.inf), ("lanczos", np.nan)])
def test_non_finite_refresh_keeps_the_last_good_eigenvector(solver, bad):
    good = track(solver=solver, num_iters=2)
    broken = lambda params: bad * PROBLEM.value_fn(params)
    after = track(broken, solver=solver, num_iters=2, state=good)
    chex.assert_trees_all_equal(after._replace(failed_refreshes=good.failed_refreshes), good)
    recovered = track(solver=solver, num_iters=2, state=after)
    assert not np.array_equal(flat(recovered.eigenvector), flat(good.eigenvector))


@pytest.mark.parametrize("solver", ["power", "lanczos"])
def test_non_finite_first_refresh_leaves_sam(solver):
    state = track(lambda params: jnp.nan * PROBLEM.value_fn(params), solver=solver, num_iters=2)
    chex.assert_trees_all_equal(state, tilt_init()._replace(failed_refreshes=state.failed_refreshes))
    later = track(solver=solver, num_iters=SIZE if solver == "lanczos" else 14, state=state)
    np.testing.assert_allclose(later.eigenvalue, 9.0 if solver == "lanczos" else -40.0, rtol=1e-9)


@pytest.mark.parametrize("solver", ["power", "lanczos"])
def test_a_zero_vector_does_not_stay(solver):
    """As in a state whose entries were all set to zero."""
    zero = jax.tree.map(jnp.zeros_like, tilt_init())
    state = track(solver=solver, num_iters=SIZE if solver == "lanczos" else 14, state=zero)
    np.testing.assert_allclose(state.eigenvalue, 9.0 if solver == "lanczos" else -40.0, rtol=1e-9)


@pytest.mark.parametrize("solver", ["power", "lanczos"])
def test_no_program_with_a_refresh_draws_random_numbers(solver):
    """They take long to compile, and only the first refresh would use them."""
    tx = optax_sam.eigen_sam(0.1, solver=solver, num_iters=2)
    step = lambda state: gradient_and_update(tx, state, w64(), PROBLEM.value_fn, refresh=True)
    program = str(jax.make_jaxpr(step)(tx.init(w64())))
    assert "random" not in program
    assert "threefry" not in program


@pytest.mark.parametrize("solver", ["power", "lanczos"])
def test_zero_hessian_is_finite(solver):
    """A linear loss has no curvature: power iteration keeps what it had, any vector is an eigenvector."""
    state = track(lambda params: flat(params).sum(), solver=solver, num_iters=3)
    chex.assert_tree_all_finite(state)
    np.testing.assert_array_equal(state.eigenvalue, 0.0)
    good = track(solver=solver, num_iters=3)
    after = track(lambda params: flat(params).sum(), solver=solver, num_iters=3, state=good)
    chex.assert_tree_all_finite(after)
    np.testing.assert_allclose(np.linalg.norm(flat(after.eigenvector)), 1.0, rtol=1e-12)


@pytest.mark.parametrize("interval", [1, 3])
def test_refreshes_at_the_first_step_and_every_interval(interval):
    tx = optax_sam.eigen_sam(0.1, interval=interval, num_iters=1)
    state = tx.init(w64())
    update = jax.jit(lambda state: gradient_and_update(tx, state, w64(), PROBLEM.value_fn)[1])
    vectors = [np.zeros(SIZE)]
    for _ in range(7):
        state = update(state)
        vectors.append(np.asarray(flat(optax.tree.get(state, "eigenvector"))))
    changed = [not np.array_equal(a, b) for a, b in itertools.pairwise(vectors)]
    assert changed == [step % interval == 0 for step in range(7)]


def test_several_ascents_refresh_once_and_use_the_new_eigenvector():
    calls = []

    def curvature_fn(params):
        calls.append(1)
        return PROBLEM.value_fn(params)

    tx = optax_sam.sharpness_aware(
        optax.chain(optax_sam.steepest_ascent(0.3), optax_sam.tilt_to_top_eigenvector(0.5, num_iters=2)),
        read_perturbation(),
        num_steps=3,
    )
    extra_args = {"curvature_fn": curvature_fn, "refresh": True}
    epsilon, state = gradient_and_update(tx, tx.init(w64()), w64(), PROBLEM.value_fn, **extra_args)
    assert len(calls) == 2 + 1  # One a product, not per ascent, and one to see that there are products.
    assert optax.tree.get(state, "step_count") == 1
    v = flat(state.ascent[1].eigenvector)
    path = np.arange(1.0, 6.0)
    for _ in range(3):
        g = PROBLEM.hessian @ path
        path = path + 0.1 * (unit(g) + 0.5 * np.sign(g @ v) * (v - unit(g) @ v * unit(g)))
    np.testing.assert_allclose(flat(epsilon), path - np.arange(1.0, 6.0), rtol=1e-8)


@pytest.mark.parametrize("solver", ["power", "lanczos"])
def test_refreshes_that_find_no_eigenvector_are_counted(solver):
    """A focal loss: the gradient is finite, the Hessian is not, and Eigen-SAM was SAM without a word."""
    focal = lambda w: jnp.sum(w["a"]) + jnp.sum(w["b"] ** 1.5)
    w = {"a": jnp.ones(2), "b": jnp.zeros(2)}
    assert np.isfinite(optax.tree.norm(jax.grad(focal)(w)))
    tx = optax_sam.eigen_sam(0.1, solver=solver, num_iters=2)
    state = tx.init(w)
    for refresh in (True, False, True):
        _, state = gradient_and_update(tx, state, w, focal, refresh=refresh)
    assert optax.tree.get(state, "failed_refreshes") == 2
    # A step that is broken as a whole says nothing about the Hessian.
    nans = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), w)
    _, state = tx.update(nans, state, w, value_fn=focal, refresh=True)
    assert optax.tree.get(state, "failed_refreshes") == 2


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_derivative_at_a_radius_of_0_is_the_one_from_the_right(alpha):
    """sign⟨ε₀, v⟩ is 0 there, so the tilt was missing."""
    w = w64()

    def squared_direction(rho):
        tx = optax_sam.eigen_sam(rho, alpha, num_iters=3)
        direction, _ = gradient_and_update(tx, tx.init(w), w, PROBLEM.value_fn, refresh=True)
        return jnp.sum(flat(direction) ** 2)

    with jax.enable_x64(True):
        from_the_right = (squared_direction(1e-7) - squared_direction(0.0)) / 1e-7
        np.testing.assert_allclose(jax.grad(squared_direction)(0.0), from_the_right, rtol=1e-4)
        np.testing.assert_allclose(jax.jvp(squared_direction, (0.0,), (1.0,))[1], from_the_right, rtol=1e-4)
