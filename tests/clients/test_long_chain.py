"""Accumulation, clipping, AdamW with a schedule, bfloat16 and an average of the parameters, in one loop."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from optax_sam import diagnostics
from tests.clients.by_hand import RHO, assert_same, batches, mismatch, sam_gradient, silence, warning

EVERY = 2
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.05, warmup_steps=1, decay_steps=4)
CLIP = optax.clip_by_global_norm(0.1)
ADAMW = optax.adamw(SCHEDULE, weight_decay=0.1)
SAM = optax.chain(diagnostics.wiring_check(tolerance=1e-3), optax_sam.sam(RHO))

accumulated = lambda tx: optax.MultiSteps(tx, EVERY).gradient_transformation()
RIGHT = optax.chain(SAM, accumulated(optax.chain(CLIP, ADAMW)))
CLIPPED_IN_FRONT = optax.chain(CLIP, RIGHT)
ACCUMULATED_AROUND = accumulated(optax.chain(SAM, CLIP, ADAMW))


def loss_fn(params, batch):
    half = optax.tree.cast(params, jnp.bfloat16)
    hidden = jnp.tanh(batch["x"].astype(jnp.bfloat16) @ half["inner"])
    prediction = (hidden @ half["outer"]).astype(jnp.float32)
    return jnp.mean((prediction - batch["y"]) ** 2)


def start():
    normal = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape) / 3
    return {"inner": normal(0, 8, 16), "outer": normal(1, 16)}


def make_step(tx):
    @jax.jit
    def train_step(params, average, state, batch):
        value_fn = lambda params: loss_fn(params, batch)
        updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        params = optax.apply_updates(params, updates)
        return params, optax.incremental_update(params, average, 0.1), state

    return train_step


def test_equals_sam_by_hand():
    params, train_step = start(), make_step(RIGHT)
    carry = params, params, RIGHT.init(params)
    hand = hand_average = params
    adamw_state = ADAMW.init(params)
    gradient = jax.jit(lambda params, batch: sam_gradient(lambda params: loss_fn(params, batch), params))
    micro_batches = batches(3 * EVERY, 8)
    for number in range(3):
        pair = micro_batches[EVERY * number : EVERY * (number + 1)]
        for batch in pair:
            with silence():
                carry = train_step(*carry, batch)
        # Each micro-batch has its own perturbation; their mean is clipped.
        mean = jax.tree.map(lambda *g: sum(g) / EVERY, *(gradient(hand, batch) for batch in pair))
        shrink = 0.1 / jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(mean)))
        assert shrink < 1
        clipped = jax.tree.map(lambda g, shrink=shrink: shrink * g, mean)
        updates, adamw_state = ADAMW.update(clipped, adamw_state, hand)
        hand_average = optax.incremental_update(hand, hand_average, 0.1)  # after the first micro-batch
        hand = optax.apply_updates(hand, updates)
        hand_average = optax.incremental_update(hand, hand_average, 0.1)
    assert_same(carry[0], hand)
    assert_same(carry[1], hand_average)
    assert mismatch(carry[2]) < 1e-3


@pytest.mark.parametrize(
    ("tx", "parts"),
    [
        (CLIPPED_IN_FRONT, ("in the same direction", "clipping in front of the method")),
        (ACCUMULATED_AROUND, ("another batch", "`optax.MultiSteps` is around the method")),
    ],
    ids=["clipping in front", "accumulation around"],
)
def test_wrong_wiring(tx, parts):
    params, train_step = start(), make_step(tx)
    carry = params, params, tx.init(params)
    with warning(*parts):
        for batch in batches(EVERY, 8):
            carry = train_step(*carry, batch)
    assert mismatch(carry[2]) > 0.3
