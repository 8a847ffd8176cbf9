"""ε = ρ T² C g / ‖T C g‖ solves max ⟨C g, ε⟩ subject to ‖T⁻¹ ε‖ ≤ ρ."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_sam
from tests.problems import flat, quadratic, unflat
from tests.strategies import (
    SIZE,
    constant,
    diagonals,
    gradient_and_update,
    nonzero_vectors,
    positive,
    read_perturbation,
    vectors,
)

pytestmark = pytest.mark.usefixtures("x64")

QUADRATIC = quadratic([9.0, 4.0, 1.0, 0.5, -2.0])


@jax.jit
def perturb(gradient, rho, c=None, t=None):
    ascent = optax_sam.steepest_ascent(
        rho,
        objective=None if c is None else constant(c),
        constraint=None if t is None else constant(t),
    )
    gradient = unflat(gradient)
    epsilon, _ = ascent.update(gradient, ascent.init(gradient), gradient)
    return flat(epsilon)


@given(g=nonzero_vectors, c=diagonals, t=diagonals, rho=positive, seed=st.integers(0, 2**32 - 1))
def test_no_feasible_point_is_better(g, c, t, rho, seed):
    epsilon = np.asarray(perturb(g, rho, c, t))
    random = np.random.default_rng(seed).normal(size=(1000, SIZE))
    near = epsilon / t + 0.01 * rho * random[:500]
    ball = np.concatenate([random[500:], near])
    ball *= rho / np.linalg.norm(ball, axis=1, keepdims=True)
    assert (ball * t @ (c * g)).max() <= c * g @ epsilon * (1 + 1e-12)


@jax.jit
def perturb_in_a_cube(gradient, rho, c, t):
    ascent = optax_sam.steepest_ascent(rho, objective=constant(c), constraint=constant(t), ord=math.inf)
    gradient = unflat(gradient)
    return flat(ascent.update(gradient, ascent.init(gradient), gradient)[0])


@given(g=nonzero_vectors, c=diagonals, t=diagonals, rho=positive)
def test_in_a_cube_no_corner_is_better(g, c, t, rho):
    epsilon = np.asarray(perturb_in_a_cube(g, rho, c, t))
    assert np.max(np.abs(epsilon / t)) <= rho * (1 + 1e-12)
    corners = rho * np.array(list(itertools.product([-1, 1], repeat=SIZE)))
    assert (corners * t @ (c * g)).max() <= c * g @ epsilon * (1 + 1e-12)


@pytest.mark.parametrize("order", [1, 0, -1, "inf", None])
def test_other_orders_are_refused(order):
    with pytest.raises(
        ValueError, match=r"`ord` is the order of the norm .* must be the number 2 or `math\.inf`"
    ):
        optax_sam.steepest_ascent(0.1, ord=order)


@given(g=nonzero_vectors, c=diagonals, t=diagonals, rho=positive)
def test_karush_kuhn_tucker(g, c, t, rho):
    epsilon = np.asarray(perturb(g, rho, c, t))
    np.testing.assert_allclose(np.linalg.norm(epsilon / t), rho, rtol=1e-12)  # The constraint is active.
    multiplier = np.linalg.norm(t * c * g) / rho
    np.testing.assert_allclose(c * g, multiplier * epsilon / t**2, rtol=1e-11, atol=1e-12)


@given(g=nonzero_vectors, diagonal=diagonals, rho=positive)
def test_each_preconditioner_alone(g, diagonal, rho):
    plain = rho * g / np.linalg.norm(g)
    objective = rho * diagonal * g / np.linalg.norm(diagonal * g)
    constraint = rho * diagonal**2 * g / np.linalg.norm(diagonal * g)
    np.testing.assert_allclose(perturb(g, rho), plain, rtol=1e-12)
    np.testing.assert_allclose(perturb(g, rho, c=diagonal), objective, rtol=1e-12)
    np.testing.assert_allclose(perturb(g, rho, t=diagonal), constraint, rtol=1e-12)


@given(c=diagonals, t=diagonals)
def test_zero_gradient_gives_zero(c, t):
    np.testing.assert_array_equal(perturb(np.zeros(SIZE), 1.0, c, t), 0.0)


def test_a_stage_alone_goes_by_the_step_count_that_it_is_passed():
    ascent = optax_sam.steepest_ascent(lambda count: 1.0 + count)
    gradient = jnp.asarray([3.0, 4.0])
    state = ascent.init(gradient)
    for step in range(3):
        epsilon, state = ascent.update(gradient, state, gradient, **({"step_count": step} if step else {}))
        np.testing.assert_allclose(epsilon, (1.0 + step) * gradient / 5, rtol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize(
    "make",
    [
        optax_sam.steepest_ascent,
        lambda schedule: optax.inject_hyperparams(
            optax_sam.steepest_ascent, static_args=("ord", "layerwise")
        )(rho=schedule),
        lambda schedule: optax.chain(optax_sam.steepest_ascent(1.0), optax.scale_by_schedule(schedule)),
    ],
    ids=["own", "inject_hyperparams", "scale_by_schedule"],
)
def test_all_ascents_of_a_step_use_the_radius_of_that_step(make, num_steps):
    """A linear loss: the ascents all point the same way and their lengths add up to rho."""
    gradient = jnp.asarray([3.0, 4.0])
    ascent = make(lambda count: 1.0 + count)
    tx = optax_sam.sharpness_aware(ascent, read_perturbation(), num_steps=num_steps)
    state = tx.init(gradient)
    for step in range(3):
        epsilon, state = gradient_and_update(tx, state, gradient, lambda w: w @ gradient)
        np.testing.assert_allclose(epsilon, (1.0 + step) * gradient / 5, rtol=1e-12)
    assert optax.tree.get(state, "step_count") == 3


@jax.jit
def multi_step_perturbations(w, rho):
    w = unflat(w)

    def perturbation(num_steps):
        ascent = optax_sam.steepest_ascent(rho)
        tx = optax_sam.sharpness_aware(ascent, read_perturbation(), num_steps=num_steps)
        return flat(gradient_and_update(tx, tx.init(w), w, QUADRATIC.value_fn)[0])

    return perturbation(1), perturbation(3)


@given(w=nonzero_vectors, rho=positive)
def test_several_ascents_follow_the_path_and_stay_in_the_ball(w, rho):
    one, three = multi_step_perturbations(w, rho)
    np.testing.assert_allclose(np.linalg.norm(one), rho, rtol=1e-12)
    assert np.linalg.norm(three) <= rho * (1 + 1e-12)
    path = w.copy()
    for _ in range(3):
        gradient = QUADRATIC.hessian @ path
        path += rho / 3 * gradient / np.linalg.norm(gradient)
    np.testing.assert_allclose(three, path - w, rtol=1e-8, atol=1e-10)


@jax.jit
def reverse_perturb(gradient):
    ascent = optax.chain(optax_sam.steepest_ascent(0.1), optax.scale(-1.0))
    gradient = unflat(gradient)
    return flat(ascent.update(gradient, ascent.init(gradient), gradient)[0])


@given(g=vectors)
def test_reverse_sam_is_a_sign_behind_it(g):
    """The remedy that the error on a negative rho names."""
    np.testing.assert_allclose(reverse_perturb(g), -perturb(g, 0.1), rtol=1e-12)


def test_a_schedule_that_ends_below_0_by_rounding_does_not_descend():
    """Compiled, `optax.linear_schedule(0.05, 0.0, 15_000)` ends at −5.6e-10."""
    ascent = optax_sam.steepest_ascent(lambda count: jnp.asarray(-1e-9))
    gradient = jnp.asarray([3.0, 4.0])
    perturbation, _ = ascent.update(gradient, ascent.init(gradient), gradient)
    np.testing.assert_array_equal(perturbation, 0)
