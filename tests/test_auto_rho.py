"""A radius that follows the loss: its equation, what it returns, where it keeps still, and errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from optax_sam import diagnostics
from tests.problems import network

W = jnp.array([3.0, 4.0])
RISE = 0.2


def loss(w):
    """At ‖w‖ = r it rises by 2 ρ r + ρ² along the gradient, which is c r² at ρ = r (√(1 + c) − 1)."""
    return jnp.sum(w**2)


def radii(tx, num, w=W, value_fn=loss, **extra_args):
    """The radii after each of some updates at w."""
    state, found = tx.init(w), []
    step = jax.jit(lambda state: tx.update(jax.grad(loss)(w), state, w, value_fn=value_fn, **extra_args)[1])
    for _ in range(num):
        state = step(state)
        found.append(float(optax.tree.get(state, "current_rho")))
    return found


@pytest.mark.parametrize("start", [1e-3, 10.0])
def test_the_radius_reaches_its_rise(start):
    found = radii(optax_sam.auto_rho(optax_sam.sam, RISE, rho=start), 400)
    assert found[-1] == pytest.approx(5 * (1.2**0.5 - 1), rel=0.02)
    assert found[0] == pytest.approx(start * 1.02 if start < 1 else start / 1.02)


def test_a_step_is_that_of_the_method_with_the_radius_found_before():
    method = functools.partial(optax_sam.asam, eta=0.1)
    tx = optax_sam.auto_rho(method, RISE, rho=0.3)
    state = tx.init(W)
    for _ in range(3):
        rho = optax.tree.get(state, "current_rho")
        expected, _ = method(rho).update(jax.grad(loss)(W), state.inner_state, W, value_fn=loss)
        direction, state = tx.update(jax.grad(loss)(W), state, W, value_fn=loss)
        chex.assert_trees_all_equal(direction, expected)


def test_the_clean_value_is_used_where_it_is_given():
    tx = optax_sam.auto_rho(optax_sam.sam, RISE)
    assert radii(tx, 5, clean_value=loss(W)) == radii(tx, 5)
    # With another one the loss rises by less than its share.
    assert radii(tx, 1, clean_value=10 * loss(W)) > radii(tx, 1, clean_value=loss(W) / 10)


@pytest.mark.parametrize(("gives_value", "more"), [(True, 0), (False, 2)])
def test_with_the_clean_value_nothing_more_is_computed(gives_value, more):
    """Matrix products of a network with two layers, before XLA merges what is equal."""
    problem = network()

    def products(tx):
        def step(params, state, batch):
            value_fn = lambda params: problem.loss(params, batch)
            value, grads = jax.value_and_grad(value_fn)(params)
            known = {"clean_value": value} if gives_value else {}
            return tx.update(grads, state, params, value_fn=value_fn, **known)

        batch = jax.tree.map(lambda x: x[0], problem.batches)
        return (
            jax.jit(step).lower(problem.params, tx.init(problem.params), batch).as_text().count("dot_general")
        )

    assert products(optax_sam.auto_rho(optax_sam.sam)) - products(optax_sam.sam(0.05)) == more


@pytest.mark.parametrize(
    ("value", "clean", "change"),
    [(jnp.nan, 25.0, 1 / 1.02), (jnp.inf, 25.0, 1 / 1.02), (30.0, jnp.nan, 1), (0.0, 0.0, 1 / 1.02)],
    ids=["NaN at w + ε", "inf at w + ε", "NaN at w", "no loss"],
)
def test_losses_that_are_not_finite_or_zero(value, clean, change):
    found = radii(
        optax_sam.auto_rho(optax_sam.sam, rho=0.1),
        1,
        value_fn=lambda w: jnp.sum(w) * 0 + value,
        clean_value=jnp.asarray(clean),
    )
    assert found[0] == pytest.approx(0.1 * change, rel=1e-6)


def test_the_radius_stays_between_its_limits():
    limits = {"rho": 0.1, "min_rho": 0.09, "max_rho": 0.12}
    assert radii(optax_sam.auto_rho(optax_sam.sam, 1e6, **limits), 20)[-1] == pytest.approx(0.12)
    assert radii(optax_sam.auto_rho(optax_sam.sam, 0.0, **limits), 20)[-1] == pytest.approx(0.09)


def test_with_a_gradient_function_the_loss_is_evaluated():
    tx = optax_sam.auto_rho(optax_sam.sam, RISE)
    assert radii(tx, 5, grad_fn=jax.grad(loss)) == radii(tx, 5)


def test_steps_without_a_second_gradient_leave_the_radius():
    tx = optax_sam.auto_rho(lambda rho: optax_sam.look_sam(rho, interval=2), RISE)
    assert radii(tx, 1, refresh=False)[0] == pytest.approx(0.05)
    assert radii(tx, 1, refresh=True)[0] == pytest.approx(0.05 * 1.02)


def test_a_monitor_sees_the_method():
    tx = diagnostics.monitor(optax_sam.auto_rho(optax_sam.sam, rho=0.3), quantities=("perturbation_norm",))
    _, state = tx.update(jax.grad(loss)(W), tx.init(W), W, value_fn=loss)
    assert float(state.perturbation_norm) == pytest.approx(0.3, rel=1e-6)


def update(tx, **extra_args):
    extra_args = {"value_fn": loss} | extra_args
    return tx.update(jax.grad(loss)(W), tx.init(W), W, **extra_args)


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: optax_sam.auto_rho(optax_sam.sam(0.1)), TypeError, "takes a function from the radius"),
        (lambda: optax_sam.auto_rho(optax_sam.sam, rho=0.0), ValueError, "0 < `min_rho`"),
        (lambda: optax_sam.auto_rho(optax_sam.sam, rho=20.0), ValueError, "`max_rho`"),
        (lambda: optax_sam.auto_rho(optax_sam.sam, factor=0.9), ValueError, "`factor` must be at least 1"),
        (lambda: update(optax_sam.auto_rho(optax.sgd)), TypeError, "took no second gradient"),
        (
            lambda: update(optax_sam.auto_rho(optax_sam.sam), value_fn=None, grad_fn=jax.grad(loss)),
            ValueError,
            "got no `value_fn`",
        ),
        (
            lambda: jax.jit(lambda: update(optax_sam.auto_rho(optax_sam.look_sam)))(),
            ValueError,
            "inside a `lax.cond`",
        ),
    ],
    ids=["a method", "no radius", "too large", "factor", "no method", "no loss", "in a cond"],
)
def test_errors(action, error, message):
    with pytest.raises(error, match=message):
        action()
