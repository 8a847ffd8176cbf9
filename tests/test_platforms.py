"""What depends on the platform that a program is compiled for: products in a loop, and the loss at w + ε.

A program for TPUs is lowered here, and run on the CPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.platforms import repeated

IMAGES = jax.random.normal(jax.random.key(0), (4, 6, 6, 2))
PLACES = jax.random.normal(jax.random.key(2), (6, 3))


def convolution(params):
    """The loss of a small convolutional network."""
    images = IMAGES.astype(params["kernel"].dtype)
    x = jax.lax.conv_general_dilated(
        images, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.mean((jnp.tanh(x) @ params["out"] - 1) ** 2)


def dense(params):
    """The same parameters in a network without a convolution."""
    x = jnp.einsum("nhwc,ijcd,hi,wj->nhwd", IMAGES, params["kernel"], PLACES, PLACES)
    return jnp.mean((jnp.tanh(x) @ params["out"] - 1) ** 2)


def step_of(method, value_fn, **arguments):
    def step(params, state):
        return method.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn, **arguments)

    return step


@pytest.fixture
def params():
    keys = jax.random.split(jax.random.key(1))
    return {
        "kernel": jax.random.normal(keys[0], (3, 3, 2, 3)) / 3,
        "out": jax.random.normal(keys[1], (3, 1)),
    }


def text_for(platform, function, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def run_as_for_tpu(function, *args):
    checks = [jax.export.DisabledSafetyCheck.platform()]
    return jax.export.export(jax.jit(function), platforms=("tpu",), disabled_checks=checks)(*args).call(*args)


@pytest.mark.parametrize("solver", ["power", "lanczos"])
@pytest.mark.parametrize("value_fn", [convolution, dense])
def test_products_are_in_a_loop_except_convolutions_on_a_cpu(value_fn, solver, params):
    method = optax_sam.eigen_sam(0.1, solver=solver)
    step = step_of(method, value_fn, refresh=True)
    loops = {
        name: text_for(name, step, params, method.init(params)).count("while")
        for name in ("cpu", "cuda", "tpu")
    }
    assert loops["tpu"] == loops["cuda"] > 0
    assert (loops["cpu"] == 0) == (value_fn is convolution)


@pytest.mark.parametrize("num_iters", [1, 2, 5])
@pytest.mark.parametrize("solver", ["power", "lanczos"])
@pytest.mark.parametrize("value_fn", [convolution, dense])
def test_a_loop_finds_what_products_without_a_loop_find(value_fn, solver, num_iters, params):
    with jax.enable_x64():
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        method = optax_sam.eigen_sam(0.1, solver=solver, num_iters=num_iters)
        step = step_of(method, value_fn, refresh=True)
        unrolled = step(params, method.init(params))  # Without `jit` there is no loop.
        looped = run_as_for_tpu(step, params, method.init(params))
        values = [optax.tree.get(state, "eigenvalue") for _, state in (unrolled, looped)]
        np.testing.assert_allclose(*values, rtol=1e-10)
        vectors = [optax.tree.get(state, "eigenvector") for _, state in (unrolled, looped)]
        np.testing.assert_allclose(jnp.abs(optax.tree.vdot(*vectors)), 1, rtol=1e-10)  # Of either sign.


def test_twice_the_products_are_no_longer_program(params):
    lines = [
        text_for("tpu", step_of(method, convolution, refresh=True), params, method.init(params)).count("\n")
        for method in (optax_sam.eigen_sam(0.1, num_iters=3), optax_sam.eigen_sam(0.1, num_iters=6))
    ]
    assert lines[0] == lines[1]


def test_a_loop_is_not_compiled_where_nothing_is_traced():
    seen = []

    def step(i, x):
        seen.append(i)
        return x + 1

    assert repeated(step, jnp.zeros(()), 3) == 3
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    ("asked", "on_cpu", "on_tpu"), [(None, True, False), (True, True, True), (False,) * 3]
)
def test_the_loss_at_the_perturbed_point_is_kept_where_it_is_free_or_asked_for(asked, on_cpu, on_tpu, params):
    method = optax_sam.sam(0.1)
    step = step_of(method, dense, keep_ascent_value=asked)
    state = optax.tree.set(method.init(params), ascent_value=jnp.asarray(-1.0))
    (direction, for_cpu), (same, for_tpu) = jax.jit(step)(params, state), run_as_for_tpu(step, params, state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), direction, same)
    for is_kept, new in ((on_cpu, for_cpu), (on_tpu, for_tpu)):
        assert (optax.tree.get(new, "ascent_value") > 0) == is_kept
    _, without_jit = step(params, state)
    assert (optax.tree.get(without_jit, "ascent_value") > 0) == on_cpu


@pytest.mark.parametrize("asked", [None, True, False])
def test_the_loss_at_the_perturbed_point_inside_a_map(asked, params):
    """Under `vmap`, and differentiated."""
    method = optax_sam.sam(0.1)
    step = step_of(method, dense, keep_ascent_value=asked)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    states = jax.vmap(lambda params: method.init(params))(both)
    _, new = jax.jit(jax.vmap(step))(both, states)
    assert jnp.all((new.ascent_value > 0) == (asked is not False))
    value = lambda params: step(params, method.init(params))[1].ascent_value
    slope = optax.tree.norm(jax.jit(jax.grad(value))(params))
    assert (slope > 0) == (asked is not False)
