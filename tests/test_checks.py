"""Numbers of a method: concrete arrays are checked as Python numbers are, and none may have axes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam

W = jnp.ones(2)
MAKE = {
    "rho": optax_sam.sam,
    "rho_max": lambda value: optax_sam.xsam(0.1, value),
    "eta": lambda value: optax_sam.asam(0.1, value),
    "decay": lambda value: optax_sam.info_sam(0.1, value),
    "alpha": lambda value: optax_sam.eigen_sam(0.1, value),
}


@pytest.mark.parametrize("number", [-0.1, np.array(-0.1), np.float32(-0.1), jnp.array(-0.1), float("nan")])
@pytest.mark.parametrize("name", MAKE)
def test_negative_numbers_are_errors_in_any_form(name, number):
    with pytest.raises(ValueError, match=rf"`{name}` (must be|is the radius)"):
        MAKE[name](number)


@pytest.mark.parametrize("shape", [(1,), (2,), (2, 1)])
@pytest.mark.parametrize("name", MAKE)
def test_numbers_for_each_coordinate_are_errors(name, shape):
    with pytest.raises(ValueError, match=f"`{name}` must be one number for all parameters, got an array"):
        MAKE[name](jnp.full(shape, 0.1))


@pytest.mark.parametrize("name", MAKE)
def test_arrays_of_one_number_are_let_through(name):
    for number in (np.array(0.1), jnp.array(0.1)):
        MAKE[name](number).init(W)
    known = jnp.array(0.1)
    jax.jit(lambda number: MAKE[name](number + known).init(W))(-0.2)  # Not known when it is traced.
    jax.jit(lambda w: MAKE[name](known).init(w))(W)  # Known when something else is.


def test_inject_hyperparams_with_a_negative_radius():
    method = optax.inject_hyperparams(optax_sam.sam, static_args=("num_steps",))
    with pytest.raises(ValueError, match="`rho` is the radius of a ball"):
        method(rho=-0.1).init(W)


def test_an_unknown_negative_radius_is_zero():
    """As that of a schedule: no error can be raised when the step runs."""
    value_fn = lambda w: jnp.sum(jnp.arange(1, 3) * w**2)
    method = optax.inject_hyperparams(optax_sam.sam, static_args=("num_steps",))(rho=-0.1)
    update = lambda w, state: method.update(jax.grad(value_fn)(w), state, w, value_fn=value_fn)[0]
    np.testing.assert_allclose(jax.jit(update)(W, jax.jit(method.init)(W)), jax.grad(value_fn)(W), rtol=1e-6)


def test_the_derivative_at_a_radius_of_0_is_that_from_the_right():
    value_fn = lambda w: jnp.sum(jnp.arange(1, 3) * w**2)
    updated = lambda rho: optax_sam.sam(rho).update(
        jax.grad(value_fn)(W), optax_sam.sam().init(W), W, value_fn=value_fn
    )[0]
    of_arrays, of_schedules = jax.jacobian(updated), jax.jacobian(lambda rho: updated(lambda count: rho))
    for derivative in (of_arrays, of_schedules):
        np.testing.assert_allclose(derivative(0.0), derivative(1e-3), rtol=1e-5)


@pytest.mark.parametrize("name", ["rho", "rho_max"])
@pytest.mark.parametrize("shape", [(1,), (2,)])
def test_schedules_of_arrays_are_errors(name, shape):
    method = MAKE[name](lambda count: jnp.full(shape, 0.1))
    with pytest.raises(ValueError, match=f"`{name}` must be one number for all parameters, got an array"):
        method.update(W, method.init(W), W, value_fn=jnp.sum)


@pytest.mark.parametrize("name", MAKE)
def test_complex_numbers_are_errors(name):
    with pytest.raises(TypeError, match=f"`{name}` must be a (real )?number"):
        MAKE[name](np.array(0.1j))


@pytest.mark.parametrize(
    ("method", "arguments"),
    [(optax_sam.wsam, {"gamma": 0.999}), (optax_sam.info_sam, {"decay": 0.999})],
    ids=["wsam", "info_sam"],
)
def test_numbers_below_1_that_16_bits_round_to_1(method, arguments):
    others = {"wsam": (), "info_sam": ("damping",)}[method.__name__]
    inject = functools.partial(optax.inject_hyperparams, method, static_args=("num_steps", *others))
    w = W.astype(jnp.bfloat16)
    with pytest.raises(
        ValueError, match=r"must be in \[0, 1\), got 1.*bfloat16.*hyperparam_dtype=jnp.float32"
    ):
        inject()(rho=0.1, **arguments).init(w)
    inject(hyperparam_dtype=jnp.float32)(rho=0.1, **arguments).init(w)


@pytest.mark.parametrize("interval", [0, np.array(0), jnp.array([2])])
def test_intervals(interval):
    with pytest.raises(ValueError, match="`interval`"):
        optax_sam.eigen_sam(interval=interval)


def test_one_alpha_is_no_search():
    with pytest.raises(ValueError, match=r"must be at least 2.*α = 0.*`optax_sam.sam\(rho\)`"):
        optax_sam.xsam(num_alphas=1)


def test_float8_parameters():
    params = jnp.ones(3, jnp.float8_e4m3fn)
    with pytest.raises(TypeError, match=r"at least 16 bits, got float8_e4m3fn.*cast them in the loss"):
        optax_sam.sam().init(params)
    with pytest.raises(TypeError, match=r"at least 16 bits"):
        optax_sam.sam().update(params, optax_sam.sam().init(jnp.ones(3)), params, value_fn=jnp.sum)


def test_lookahead_and_its_remedy():
    value_fn = lambda w: jnp.sum(w**4)
    method, lookahead = optax_sam.sam(0.1), optax.lookahead(optax.sgd(0.1), 2, 0.5)
    params, grads = optax.LookaheadParams.init_synced(W), jax.grad(value_fn)(W)
    chain = optax.chain(method, lookahead)
    with pytest.raises(ValueError, match=r"`optax.lookahead` keeps two sets.*method_state, params.fast"):
        chain.update(grads, chain.init(params), params, value_fn=value_fn)
    direction, _ = method.update(grads, method.init(params.fast), params.fast, value_fn=value_fn)
    updates, _ = lookahead.update(direction, lookahead.init(params), params)
    assert updates.fast[0] == -0.1 * direction[0]
    around = optax.lookahead(optax.chain(method, optax.sgd(0.1)), 2, 0.5)
    with pytest.raises(ValueError, match=r"`optax.lookahead` around the method.*with `params.fast`"):
        around.update(grads, around.init(params), params)


@pytest.mark.parametrize("make", [optax_sam.sam, optax_sam.info_sam, optax_sam.eigen_sam, optax_sam.xsam])
def test_no_parameters(make):
    with jax.debug_nans(True):
        updates, _ = make(0.1).update({}, make(0.1).init({}), {}, value_fn=lambda params: jnp.ones(()))
    assert updates == {}


@pytest.mark.parametrize("num_steps", [1, 2])
def test_the_state_of_a_stage_may_be_a_python_number(num_steps):
    decayed = optax.GradientTransformation(lambda w: 1.0, lambda g, state, w=None: (g, 0.5 * state))
    tx = optax_sam.sharpness_aware(optax.chain(decayed, optax_sam.steepest_ascent(0.1)), num_steps=num_steps)
    _, state = tx.update(W, tx.init(W), W, value_fn=jnp.sum)
    assert state.ascent[0] == 0.5
