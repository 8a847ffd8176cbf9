"""The methods written by hand, which the package is measured against, are independent and equal to it."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.cost.by_hand import BY_HAND
from benchmarks.cost.tpu_programs import HAND, LAYOUTS, NETWORKS, make_program, mesh_of
from benchmarks.methods import METHODS


def loss(params):
    hidden = jnp.tanh(params["a"] @ jnp.arange(1.0, 4.0))
    return jnp.sum((params["b"] * hidden - 1) ** 2)


def steps(direction_of, state, params):
    """Directions of four steps, along which the base optimizer goes."""
    found = []
    for _ in range(4):
        direction, state = direction_of(jax.grad(loss)(params), params, state)
        params = jax.tree.map(lambda w, d: w - 0.01 * d, params, direction)
        found.append(direction)
    return found


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand_equals_the_package_to_rounding(name):
    params = {"a": jnp.linspace(-0.5, 0.7, 12).reshape(4, 3), "b": jnp.linspace(0.3, 1.0, 4)}
    own_name, _, is_refresh = name.partition(" ")
    method, hand = METHODS[own_name], BY_HAND[name]
    tx = optax.with_extra_args_support(method.make(**method.options))
    refresh = bool(is_refresh) if method.occasional else None
    state = tx.init(params)
    # The first eigenvector is not made by hand.
    own = optax.tree.get(state, "eigenvector") if own_name == "eigen_sam" else hand.init(params)

    packaged = steps(
        lambda g, w, state: tx.update(g, state, w, value_fn=loss, refresh=refresh), state, params
    )
    by_hand = steps(lambda g, w, state: hand.direction(g, jax.grad(loss), w, state), own, params)
    for one, other in zip(packaged, by_hand, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), one, other)


def test_by_hand_imports_nothing_of_the_package():
    program = "import sys, benchmarks.cost.by_hand; print([m for m in sys.modules if 'optax_sam' in m])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("row", ["base", f"sam{HAND}", "sam", f"eigen_sam{HAND}", "eigen_sam"])
def test_a_step_for_chips_keeps_the_shapes_that_it_is_given(layout, row):
    program = make_program(
        NETWORKS["tiny_decoder"], mesh_of(jax.devices()[:1]), layout, row, False if "eigen" in row else None
    )
    after = jax.eval_shape(program.step, *program.arguments)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), program.arguments[:3]
    )
