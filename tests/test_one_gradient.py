"""The ascent follows past gradients, and the gradient that is passed is never read."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.problems import network

PROBLEM = network()
BATCH = jax.tree.map(lambda x: x[0], PROBLEM.batches)
VALUE_FN = lambda params: PROBLEM.loss(params, BATCH)


def test_the_gradient_that_is_passed_does_not_matter():
    tx = optax_sam.momentum_sam(0.5)
    states = [tx.init(PROBLEM.params)] * 2
    nans = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), PROBLEM.params)
    update = jax.jit(lambda grads, state: tx.update(grads, state, PROBLEM.params, value_fn=VALUE_FN))
    for _ in range(3):
        results = [update(grads, state) for grads, state in zip((PROBLEM.params, nans), states, strict=True)]
        chex.assert_trees_all_equal(*results)
        states = [state for _, state in results]


def test_uphill_and_downhill():
    values = {}
    for name, tx in {
        "up": optax_sam.one_gradient(optax_sam.steepest_ascent(0.1)),
        "down": optax_sam.momentum_sam(0.1, 0.0),
    }.items():
        state = tx.init(PROBLEM.params)
        for _ in range(2):
            _, state = tx.update(PROBLEM.params, state, PROBLEM.params, value_fn=VALUE_FN)
        values[name] = float(optax.tree.get(state, "ascent_value"))
    assert values["down"] < float(VALUE_FN(PROBLEM.params)) < values["up"]


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_what_is_remembered_is_a_mean_of_the_gradients_there(decay):
    seen = []

    def grad_fn(params):
        seen.append(jax.grad(VALUE_FN)(params))
        return seen[-1]

    tx = optax_sam.one_gradient(optax_sam.steepest_ascent(0.1), decay=decay)
    state = tx.init(PROBLEM.params)
    for _ in range(4):
        _, state = tx.update(PROBLEM.params, state, PROBLEM.params, grad_fn=grad_fn)
    weights = (1 - decay) * decay ** np.arange(3, -1, -1.0)
    expected = jax.tree.map(lambda *g: sum(w * x for w, x in zip(weights, g, strict=True)), *seen)
    remembered = optax.tree.get(state, "remembered_gradient")
    chex.assert_trees_all_close(remembered, expected, rtol=1e-5, atol=1e-7)


def test_a_gradient_that_is_not_finite_is_not_remembered():
    tx = optax_sam.momentum_sam(0.1)
    broken = lambda params: VALUE_FN(params) * jnp.nan
    _, state = tx.update(PROBLEM.params, tx.init(PROBLEM.params), PROBLEM.params, value_fn=broken)
    assert not optax.tree.norm(optax.tree.get(state, "remembered_gradient")) > 0
