"""Numbers of a method: concrete arrays are checked as Python numbers are, and none may have axes."""

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


@pytest.mark.parametrize("make", [optax_sam.sam, optax_sam.info_sam, optax_sam.eigen_sam, optax_sam.xsam])
def test_no_parameters(make):
    with jax.debug_nans(True):
        updates, _ = make(0.1).update({}, make(0.1).init({}), {}, value_fn=lambda params: jnp.ones(()))
    assert updates == {}
