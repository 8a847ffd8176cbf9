"""Equinox: a network with state (BatchNorm on running statistics) and dropout keys."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

from tests.clients.by_hand import assert_same, batches, checked_sam, mismatch, sam_gradient, silence, warning

BASE = optax.sgd(0.05, momentum=0.9)


class Network(eqx.Module):
    inner: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    outer: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.inner = eqx.nn.Linear(8, 16, use_bias=False, key=keys[0])
        self.norm = eqx.nn.BatchNorm(16, "examples", momentum=0.5, mode="ema")
        self.dropout = eqx.nn.Dropout(0.5)
        self.outer = eqx.nn.Linear(16, "scalar", key=keys[1])

    def __call__(self, x, state, key):
        x, state = self.norm(self.inner(x), state)
        return self.outer(self.dropout(jax.nn.relu(x), key=key)), state


def compute_loss(model, state, batch, key):
    keys = jax.random.split(key, len(batch["x"]))
    forward = jax.vmap(model, axis_name="examples", in_axes=(0, None, 0), out_axes=(0, None))
    prediction, state = forward(batch["x"], state, keys)
    return jnp.mean((prediction - batch["y"]) ** 2), state


def make_step(tx, *, late=False, other_key=False):
    @eqx.filter_jit
    def train_step(model, state, opt_state, batch, key):
        gradient = eqx.filter_value_and_grad(compute_loss, has_aux=True)
        (_, new_state), grads = gradient(model, state, batch, key)
        params, static = eqx.partition(model, eqx.is_inexact_array)
        used_state, used_key = new_state if late else state, jax.random.split(key)[0] if other_key else key
        value_fn = lambda params: compute_loss(eqx.combine(params, static), used_state, batch, used_key)[0]
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=value_fn)
        return eqx.apply_updates(model, updates), new_state, opt_state

    return train_step


@pytest.fixture(scope="module")
def start():
    return eqx.nn.make_with_state(Network)(jax.random.key(0))


def test_equals_sam_by_hand(start):
    tx = checked_sam(BASE)
    (model, state), train_step = start, make_step(tx)
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    base_state, hand_state = BASE.init(params), state

    @eqx.filter_jit
    def step_by_hand(params, state, base_state, batch, key):
        loss = lambda params: compute_loss(eqx.combine(params, static), state, batch, key)
        gradient = sam_gradient(lambda params: loss(params)[0], params)
        updates, base_state = BASE.update(gradient, base_state, params)
        return eqx.apply_updates(params, updates), loss(params)[1], base_state

    for number, batch in enumerate(batches()):
        key = jax.random.key(number)
        with silence():
            model, state, opt_state = train_step(model, state, opt_state, batch, key)
        params, hand_state, base_state = step_by_hand(params, hand_state, base_state, batch, key)
    assert_same(eqx.filter(model, eqx.is_inexact_array), params)
    assert_same(state, hand_state)
    assert mismatch(opt_state) < 1e-5


@pytest.mark.parametrize("wrong", ["late", "other_key"])
def test_wrong_wiring(start, wrong):
    tx = checked_sam(BASE)
    (model, state), train_step = start, make_step(tx, **{wrong: True})
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    first, second, _ = batches()
    with warning("`value_fn`", "another dropout key", "a state from after the clean pass"):
        # In the first step the statistics are those of the batch, in either state.
        model, state, opt_state = train_step(model, state, opt_state, first, jax.random.key(0))
        model, state, opt_state = train_step(model, state, opt_state, second, jax.random.key(1))
    assert mismatch(opt_state) > 0.1
