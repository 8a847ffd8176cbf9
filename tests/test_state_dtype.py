"""What a method keeps may be kept in bfloat16: half the memory, and the same training up to rounding."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.problems import network

PROBLEM = network(num_batches=30)
NUM_PARAMETERS = sum(leaf.size for leaf in jax.tree.leaves(PROBLEM.params))
EPS = float(jnp.finfo(jnp.bfloat16).eps)
# Of each method, and the field that it keeps so.
METHODS = {
    "eigen_sam": (functools.partial(optax_sam.eigen_sam, 0.1, 0.5, interval=5), "eigenvector"),
    "eigen_sam, running mean": (
        functools.partial(optax_sam.eigen_sam, 0.1, 0.5, interval=2, num_iters=1, decay=0.8),
        "eigenvector",
    ),
    "eigen_sam, lanczos": (
        functools.partial(optax_sam.eigen_sam, 0.1, 0.5, interval=5, solver="lanczos"),
        "eigenvector",
    ),
    "vasso": (functools.partial(optax_sam.vasso, 0.1, 0.1), "running_mean"),
    "friendly_sam": (functools.partial(optax_sam.friendly_sam, 0.1), "running_mean"),
    "info_sam": (functools.partial(optax_sam.info_sam, 0.1), "gradient_mean"),
    "look_sam": (functools.partial(optax_sam.look_sam, 0.1, 0.7), "reused_direction"),
    "momentum_sam": (functools.partial(optax_sam.momentum_sam, 0.1), "remembered_gradient"),
    "one_gradient": (
        functools.partial(optax_sam.one_gradient, optax_sam.steepest_ascent(0.1), decay=0.9),
        "remembered_gradient",
    ),
}
every = pytest.mark.parametrize("name", METHODS)


@functools.cache
def trained(name, state_dtype):
    """Returns (parameters, state) after 30 steps of SGD with momentum."""
    make, _ = METHODS[name]
    tx = optax.chain(make(state_dtype=state_dtype), optax.sgd(0.1, momentum=0.9))

    def step(carry, batch):
        params, state = carry
        value_fn = lambda params: PROBLEM.loss(params, batch)
        updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        return (optax.apply_updates(params, updates), state), None

    carry = PROBLEM.params, tx.init(PROBLEM.params)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, PROBLEM.batches)[0])(carry)


def distance(a, b):
    return float(optax.tree.norm(jax.tree.map(lambda x, y: x.astype(jnp.float32) - y, a, b)))


@every
def test_bfloat16_is_half_the_memory_and_the_same_training_up_to_rounding(name):
    _, field = METHODS[name]
    (params, state), (expected, full) = trained(name, "bfloat16"), trained(name, None)
    size = lambda state: sum(leaf.nbytes for leaf in jax.tree.leaves(optax.tree.get(state, field)))
    assert (size(full), size(state)) == (4 * NUM_PARAMETERS, 2 * NUM_PARAMETERS)
    moved = distance(expected, PROBLEM.params)
    assert 0 < distance(params, expected) < EPS * moved
    # Far less than what the method itself changes.
    kept, exact = (optax.tree.get(s, field) for s in (state, full))
    assert distance(kept, exact) < 8 * EPS * float(optax.tree.norm(exact))


@every
def test_float32_is_the_default_bit_for_bit(name):
    chex.assert_trees_all_equal(trained(name, jnp.float32), trained(name, None))


@every
def test_the_dtype_stays_also_with_parameters_of_16_bits_and_of_64(name):
    make, field = METHODS[name]
    for dtype in ("bfloat16", "float64"):
        with jax.enable_x64(dtype == "float64"):
            problem = network(dtype=jnp.dtype(dtype), num_batches=1)
            batch = jax.tree.map(lambda x: x[0], problem.batches)
            value_fn = lambda params: problem.loss(params, batch)  # noqa: B023
            tx = make(state_dtype=jnp.bfloat16)
            state = tx.init(problem.params)
            step = lambda state: tx.update(problem.params, state, problem.params, value_fn=value_fn)  # noqa: B023
            updates, after = jax.eval_shape(step, state)
            chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
            chex.assert_trees_all_equal_shapes_and_dtypes(updates, problem.params)
            kept = jax.tree.leaves(optax.tree.get(state, field))
            assert {leaf.dtype for leaf in kept} == {jnp.dtype(jnp.bfloat16)}


def test_where_a_step_changes_less_than_bfloat16_resolves_nothing_is_offered():
    """A sum with the decay 0.99 in bfloat16 ends far from the one in float32."""
    kept = {dtype: jnp.zeros((), dtype) for dtype in ("float32", "bfloat16")}
    for dtype, total in kept.items():
        for _ in range(1000):
            total = (0.99 * total.astype(jnp.float32) + 1.0).astype(dtype)
        kept[dtype] = float(total)
    assert kept["bfloat16"] < 0.8 * kept["float32"]
    with pytest.raises(TypeError, match="state_dtype"):
        optax_sam.rwp(eta=0.1, state_dtype="bfloat16")


@pytest.mark.parametrize("wrong", ["int8", "float16", np.int32, "half", 16, jnp.zeros(())], ids=repr)
@every
def test_errors(name, wrong):
    make, _ = METHODS[name]
    with pytest.raises(TypeError, match=r"`state_dtype` is the dtype in which a state is kept: \"bfloat16\""):
        make(state_dtype=wrong)
