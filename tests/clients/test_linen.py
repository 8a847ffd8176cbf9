"""flax's linen: a `TrainState` with BatchNorm statistics and dropout, in float16 with `DynamicScale`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax.training.dynamic_scale import DynamicScale

import optax_sam
from optax_sam import diagnostics
from optax_sam.flax import TrainState
from tests.clients.by_hand import RHO, assert_same, batches, mismatch, sam_gradient, silence, warning

BASE = optax.sgd(0.05, momentum=0.9)
SCALE = 2.0**15


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16, use_bias=False, dtype=jnp.float16)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, dtype=jnp.float16)(x))
        x = nn.Dropout(0.5, deterministic=False)(x)
        return nn.Dense(1, dtype=jnp.float16)(x)[:, 0].astype(jnp.float32)


class State(TrainState):
    batch_stats: Any
    dynamic_scale: DynamicScale


def loss_fn(params, batch_stats, batch, key):
    variables = {"params": params, "batch_stats": batch_stats}
    prediction, new = Network().apply(variables, batch["x"], rngs={"dropout": key}, mutable=["batch_stats"])
    return jnp.mean((prediction - batch["y"]) ** 2), new["batch_stats"]


def in_grad_fn(state, batch, key):
    gradient = state.dynamic_scale.value_and_grad(loss_fn, has_aux=True)
    return {"grad_fn": lambda params: gradient(params, state.batch_stats, batch, key)[3]}


def scaled_value_fn(state, batch, key):
    scale = state.dynamic_scale.scale
    return {"value_fn": lambda params: scale * loss_fn(params, state.batch_stats, batch, key)[0]}


def other_key(state, batch, key):
    return in_grad_fn(state, batch, jax.random.split(key)[0])


def make_step(functions):
    @jax.jit
    def train_step(state, batch, key):
        gradient = state.dynamic_scale.value_and_grad(loss_fn, has_aux=True)
        dynamic_scale, _, (_, batch_stats), grads = gradient(state.params, state.batch_stats, batch, key)
        return state.apply_gradients(
            grads=grads, batch_stats=batch_stats, dynamic_scale=dynamic_scale, **functions(state, batch, key)
        )

    return train_step


@pytest.fixture(scope="module")
def start():
    keys = dict(zip(("params", "dropout"), jax.random.split(jax.random.key(0)), strict=True))
    variables = Network().init(keys, batches()[0]["x"])
    # The base skips a step if the second gradient is not finite.
    tx = optax.chain(
        diagnostics.wiring_check(tolerance=1e-2), optax_sam.sam(RHO), optax.apply_if_finite(BASE, 5)
    )
    create = functools.partial(State.create, apply_fn=None, tx=tx, params=variables["params"])
    return create(batch_stats=variables["batch_stats"], dynamic_scale=DynamicScale(scale=SCALE))


def test_equals_sam_by_hand(start):
    state, train_step = start, make_step(in_grad_fn)
    hand, stats, base_state = start.params, start.batch_stats, BASE.init(start.params)

    @jax.jit
    def step_by_hand(params, stats, base_state, batch, key):
        gradient = sam_gradient(lambda params: SCALE * loss_fn(params, stats, batch, key)[0], params)
        unscaled = jax.tree.map(lambda g: g / SCALE, gradient)
        updates, base_state = BASE.update(unscaled, base_state, params)
        return optax.apply_updates(params, updates), loss_fn(params, stats, batch, key)[1], base_state

    for number, batch in enumerate(batches()):
        key = jax.random.key(number)
        with silence():
            state = train_step(state, batch, key)
        hand, stats, base_state = step_by_hand(hand, stats, base_state, batch, key)
    assert_same(state.params, hand)
    assert_same(state.batch_stats, stats)
    assert state.step == 3
    assert not optax.tree.get(state.opt_state, "total_notfinite")
    assert mismatch(state.opt_state) < 1e-2


@pytest.mark.parametrize(
    ("functions", "parts"),
    [
        (scaled_value_fn, ("`value_fn`", "times the other", "unscaled already", "`DynamicScale`")),
        (other_key, ("`grad_fn`", "another dropout key")),
    ],
    ids=["scaled value_fn", "other key"],
)
def test_wrong_wiring(start, functions, parts):
    with warning(*parts):
        state = make_step(functions)(start, batches()[0], jax.random.key(0))
    assert mismatch(state.opt_state) > 0.3


def test_what_is_seen_of_a_gradient_that_is_not_finite():
    """Around the method `apply_if_finite` sees the clean gradient only, around the base the second one."""
    params = jnp.ones(2)
    overflows = lambda w: -jnp.sum(jnp.sqrt(1.05 - w))  # at w + ε
    grads = jax.grad(overflows)(params)
    for tx, is_applied in (
        (optax.apply_if_finite(optax.chain(optax_sam.sam(RHO), optax.sgd(0.1)), 5), True),
        (optax.chain(optax_sam.sam(RHO), optax.apply_if_finite(optax.sgd(0.1), 5)), False),
    ):
        updates, _ = tx.update(grads, tx.init(params), params, value_fn=overflows)
        assert jnp.isfinite(grads).all()
        assert bool(jnp.isfinite(updates).all()) != is_applied
