"""A loop as in flax's mnist and gemma examples: nnx, BatchNorm, random streams as an argument of the loss."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from optax_sam.flax import nnx_value_fn
from tests.clients.by_hand import assert_same, batches, checked_sam, mismatch, sam_gradient, silence, warning

BASE = optax.sgd(0.05, momentum=0.9)


class Network(nnx.Module):
    """With `own_rngs` the dropout layer has its random stream, otherwise it is passed one."""

    def __init__(self, rngs, own_rngs):
        self.inner = nnx.Linear(8, 16, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs if own_rngs else None)
        self.outer = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x, rngs=None):
        hidden = self.dropout(nnx.relu(self.norm(self.inner(x))), rngs=rngs)
        return self.outer(hidden)[:, 0]


def loss_fn(model, rngs, batch):
    prediction = model(batch["x"], rngs)
    return jnp.mean((prediction - batch["y"]) ** 2), prediction


def right(model, rngs, batch):
    return nnx_value_fn(loss_fn, model, rngs, batch, has_aux=True)


def other_batch(model, rngs, batch):
    return right(model, rngs, jax.tree.map(lambda leaf: leaf[::-1] * jnp.sign(leaf), batch))


def make(own_rngs):
    model = Network(nnx.Rngs(0), own_rngs)
    rngs = None if own_rngs else nnx.Rngs(dropout=1)
    optimizer = nnx.Optimizer(model, checked_sam(BASE), wrt=nnx.Param)
    return model, optimizer, nnx.MultiMetric(loss=nnx.metrics.Average("loss")), rngs


def make_step(make_value_fn, *, before=True):
    @nnx.jit
    def train_step(model, optimizer, metrics, rngs, batch):
        if before:
            value_fn = make_value_fn(model, rngs, batch)
        (loss, _), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, rngs, batch)
        if not before:
            value_fn = make_value_fn(model, rngs, batch)
        metrics.update(loss=loss)
        optimizer.update(model, grads, value_fn=value_fn)

    return train_step


@pytest.mark.parametrize("own_rngs", [False, True])
def test_equals_sam_by_hand(own_rngs):
    train_step, (model, optimizer, metrics, rngs) = make_step(right), make(own_rngs)
    # By hand: everything but the parameters is an argument that a pass returns anew.
    other, _, _, other_rngs = make(own_rngs)
    graphdef, params, rest = nnx.split((other, other_rngs), nnx.Param, ...)
    params = nnx.as_pure(params) if hasattr(nnx, "as_pure") else nnx.pure(params)
    base_state = BASE.init(params)

    @jax.jit
    def step_by_hand(params, rest, base_state, batch):
        def loss(params):
            merged = nnx.merge(graphdef, params, rest, copy=True)
            value, _ = loss_fn(*merged, batch)
            return value, nnx.split(merged, nnx.Param, ...)[2]

        _, new_rest = loss(params)
        updates, base_state = BASE.update(sam_gradient(lambda w: loss(w)[0], params), base_state, params)
        return optax.apply_updates(params, updates), new_rest, base_state

    for batch in batches():
        with silence():
            train_step(model, optimizer, metrics, rngs, batch)
        params, rest, base_state = step_by_hand(params, rest, base_state, batch)
    assert_same(nnx.state((model, rngs), nnx.Param), params)
    moved_on_once = (nnx.BatchStat, nnx.RngCount)
    assert_same(nnx.state((model, rngs), moved_on_once), nnx.filter_state(rest, moved_on_once))
    assert mismatch(optimizer.opt_state) < 1e-5


@pytest.mark.parametrize(
    ("make_value_fn", "before", "own_rngs"),
    [(right, False, False), (right, False, True), (other_batch, True, False)],
    ids=["rngs after the clean pass", "model after the clean pass", "another batch"],
)
def test_wrong_wiring(make_value_fn, before, own_rngs):
    train_step, (model, optimizer, metrics, rngs) = make_step(make_value_fn, before=before), make(own_rngs)
    with warning("`value_fn`", "another dropout key"):
        train_step(model, optimizer, metrics, rngs, batches()[0])
    assert mismatch(optimizer.opt_state) > 0.3


@pytest.mark.filterwarnings("ignore:`value_fn` does not depend")
def test_model_from_outside():
    """`value_fn` that evaluates the model and ignores its argument."""
    outside = lambda model, rngs, batch: lambda params: loss_fn(nnx.clone(model), nnx.clone(rngs), batch)[0]
    train_step, (model, optimizer, metrics, rngs) = make_step(outside), make(own_rngs=False)
    with warning("`value_fn`", "gradient of `value_fn` is zero"):
        train_step(model, optimizer, metrics, rngs, batches()[0])
    assert mismatch(optimizer.opt_state) == 1
