"""Haiku's imagenet example in small: BatchNorm state, a jmp policy in float16 and a dynamic loss scale."""

import haiku as hk
import jax
import jax.numpy as jnp
import jmp
import optax
import pytest

import optax_sam
from optax_sam import diagnostics
from tests.clients.by_hand import RHO, assert_same, batches, mismatch, sam_gradient, silence, warning

BASE = optax.sgd(0.05, momentum=0.9)
POLICY = jmp.get_policy("params=float32,compute=float16,output=float32")
SCALE = 2.0**15


def forward(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(16, with_bias=False)(x), is_training)
    return hk.Linear(1)(jax.nn.relu(x))[:, 0]


network = hk.transform_with_state(forward)


def loss_fn(params, state, loss_scale, batch):
    params, x = POLICY.cast_to_compute((params, batch["x"]))
    prediction, state = network.apply(params, state, None, x, is_training=True)
    loss = jnp.mean((prediction.astype(jnp.float32) - batch["y"]) ** 2)
    return loss_scale.scale(loss), (loss, state)


def unscaled_gradient(params, state, loss_scale, batch):
    grads, aux = jax.grad(loss_fn, has_aux=True)(params, state, loss_scale, batch)
    return loss_scale.unscale(grads), aux


def in_grad_fn(state, loss_scale, batch):
    return {"grad_fn": lambda params: unscaled_gradient(params, state, loss_scale, batch)[0]}


def scaled_value_fn(state, loss_scale, batch):
    return {"value_fn": lambda params: loss_fn(params, state, loss_scale, batch)[0]}


def make_step(tx, functions):
    @jax.jit
    def train_step(params, state, opt_state, loss_scale, batch):
        grads, (loss, new_state) = unscaled_gradient(params, state, loss_scale, batch)
        updates, new_opt_state = tx.update(grads, opt_state, params, **functions(state, loss_scale, batch))
        # Of both gradients: `updates` are not finite if one of them is not.
        is_finite = jmp.all_finite((grads, updates))
        new = optax.apply_updates(params, updates), new_state, new_opt_state
        old = params, state, opt_state
        return *jmp.select_tree(is_finite, new, old), loss_scale.adjust(is_finite), loss

    return train_step


@pytest.fixture(scope="module")
def start():
    return network.init(jax.random.key(0), batches()[0]["x"], is_training=True)


def make_chain(tolerance=1e-3):
    return optax.chain(diagnostics.wiring_check(tolerance=tolerance), optax_sam.sam(RHO), BASE)


def test_equals_sam_by_hand(start):
    tx, loss_scale = make_chain(), jmp.DynamicLossScale(jnp.float32(SCALE))
    (params, state), train_step = start, make_step(tx, in_grad_fn)
    opt_state, (hand, hand_state), base_state = tx.init(params), start, BASE.init(params)

    @jax.jit
    def step_by_hand(params, state, base_state, batch):
        # A constant scale: a power of two changes no digit.
        loss = lambda params: SCALE * loss_fn(params, state, jmp.NoOpLossScale(), batch)[0]
        unscaled = jax.tree.map(lambda g: g / SCALE, sam_gradient(loss, params))
        updates, base_state = BASE.update(unscaled, base_state, params)
        new_state = loss_fn(params, state, jmp.NoOpLossScale(), batch)[1][1]
        return optax.apply_updates(params, updates), new_state, base_state

    for batch in batches():
        with silence():
            params, state, opt_state, loss_scale, _ = train_step(params, state, opt_state, loss_scale, batch)
        hand, hand_state, base_state = step_by_hand(hand, hand_state, base_state, batch)
    assert loss_scale.loss_scale == SCALE  # No step was skipped.
    assert_same(params, hand)
    assert_same(state, hand_state)
    assert mismatch(opt_state) < 1e-3


def test_scale_in_value_fn_of_unscaled_gradients(start):
    """The loss grows: the gradient from which the base optimizer steps is 2¹⁵ times too long."""
    tx, loss_scale = make_chain(), jmp.DynamicLossScale(jnp.float32(SCALE))
    (params, state), train_step = start, make_step(tx, scaled_value_fn)
    with warning("`value_fn`", "times the other", "loss scale", "unscaled already", "jmp"):
        _, _, opt_state, _, _ = train_step(params, state, tx.init(params), loss_scale, batches()[0])
    assert mismatch(opt_state) == pytest.approx(SCALE, rel=1e-2)
