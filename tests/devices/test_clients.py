"""Training loops on several devices: linen and BatchNorm under `pmap`, nnx on an explicit mesh."""

import functools
from typing import Any

import flax
import flax.jax_utils
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from packaging.version import Version

from optax_sam.flax import TrainState, nnx_value_fn
from tests.clients.by_hand import assert_same, batches, checked_sam, mismatch, sam_gradient, silence, warning
from tests.devices.layouts import NUM_DEVICES

P = PartitionSpec
AXIS = "batch"
BASE = optax.sgd(0.05, momentum=0.9)
BATCHES = batches(size=4 * NUM_DEVICES)


# As flax's imagenet example: `pmap`, gradients averaged with `pmean`, BatchNorm over all devices.


class Network(nn.Module):
    axis_name: str | None

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9, axis_name=self.axis_name)(x))
        return nn.Dense(1)(x)[:, 0]


class State(TrainState):
    batch_stats: Any


def loss_fn(params, batch_stats, batch, axis_name=AXIS):
    variables = {"params": params, "batch_stats": batch_stats}
    prediction, new = Network(axis_name).apply(variables, batch["x"], mutable=["batch_stats"])
    return jnp.mean((prediction - batch["y"]) ** 2), new["batch_stats"]


def make_pmap_step(axis_name=AXIS, average=jax.lax.pmean):
    def train_step(state, batch):
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, batch_stats), grads = gradient(state.params, state.batch_stats, batch)
        value_fn = lambda params: loss_fn(params, state.batch_stats, batch)[0]
        state = state.apply_gradients(
            grads=average(grads, AXIS), batch_stats=batch_stats, value_fn=value_fn, axis_name=axis_name
        )
        return state, jax.lax.pmean(loss, AXIS)

    return jax.pmap(train_step, axis_name=AXIS)


def parts(batch):
    return jax.tree.map(lambda leaf: leaf.reshape(NUM_DEVICES, -1, *leaf.shape[1:]), batch)


@pytest.fixture(scope="module")
def linen_state():
    variables = Network(None).init(jax.random.key(0), BATCHES[0]["x"])
    tx = checked_sam(BASE)
    return State.create(
        apply_fn=None, params=variables["params"], tx=tx, batch_stats=variables["batch_stats"]
    )


def test_pmap_equals_sam_by_hand_on_one_device(linen_state):
    state, step = flax.jax_utils.replicate(linen_state), make_pmap_step()
    params, stats, base_state = linen_state.params, linen_state.batch_stats, BASE.init(linen_state.params)

    @jax.jit
    def step_by_hand(params, stats, base_state, batch):
        loss = lambda params: loss_fn(params, stats, batch, None)
        updates, base_state = BASE.update(sam_gradient(lambda w: loss(w)[0], params), base_state, params)
        return optax.apply_updates(params, updates), loss(params)[1], base_state

    for batch in BATCHES:
        with silence():
            state, _ = jax.block_until_ready(step(state, parts(batch)))
        params, stats, base_state = step_by_hand(params, stats, base_state, batch)
    trained = flax.jax_utils.unreplicate(state)
    assert_same(trained.params, params)
    assert_same(trained.batch_stats, stats)
    mismatches = optax.tree.get(state.opt_state, "mismatch")
    assert mismatches.shape == (NUM_DEVICES,)
    assert jnp.all(mismatches < 1e-5)
    assert jnp.all(mismatches == mismatches[0])


@pytest.mark.filterwarnings("ignore:`update` runs inside")
@pytest.mark.parametrize(
    ("arguments", "parts_of_message"),
    [
        ({"axis_name": None}, ("`axis_name` is missing", "mapped over 'batch'", "axis_name='batch'")),
        ({"average": jax.lax.psum}, ("8 times the other", "number of devices", "`jax.lax.psum`")),
        ({"average": lambda grads, axis: grads}, ("of the squared difference",)),
    ],
    ids=["no axis_name", "sum over the devices", "local gradient"],
)
def test_wrong_wiring_under_pmap(linen_state, arguments, parts_of_message):
    state = flax.jax_utils.replicate(linen_state)
    with warning("`value_fn`", *parts_of_message):
        state, _ = jax.block_until_ready(make_pmap_step(**arguments)(state, parts(BATCHES[0])))
    assert mismatch(state.opt_state) > 0.3


def test_unnamed_axis_under_pmap_is_a_warning(linen_state):
    step = make_pmap_step(axis_name=None)
    with pytest.warns(UserWarning, match=r"over the axis 'batch', but got no `axis_name`.*axis_name='batch'"):
        step.lower(flax.jax_utils.replicate(linen_state), parts(BATCHES[0]))


# As flax's gemma example: nnx on a mesh with explicit axes, random streams as an argument, donated states.


SPECS = {"inner": P(None, "model"), "outer": P("model")}


class SplitNetwork(nnx.Module):
    """The hidden layer is split over the devices of the axis "model"."""

    def __init__(self, rngs):
        normal = nnx.initializers.normal(0.3)
        self.inner = nnx.Param(jax.device_put(normal(rngs.params(), (8, 16)), SPECS["inner"]))
        self.outer = nnx.Param(jax.device_put(normal(rngs.params(), (16,)), SPECS["outer"]))
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, rngs):
        hidden = jnp.tanh(jnp.matmul(x, self.inner[...], out_sharding=P("data", "model")))
        return jnp.matmul(self.dropout(hidden, rngs=rngs), self.outer[...], out_sharding=P("data"))


def nnx_loss(model, rngs, batch):
    return jnp.mean((model(batch["x"], rngs) - batch["y"]) ** 2)


@functools.partial(nnx.jit, donate_argnums=(0, 1), static_argnums=4)
def mesh_step(model, optimizer, rngs, batch, is_right):
    value_fn = nnx_value_fn(nnx_loss, model, rngs, batch)
    grads = nnx.grad(nnx_loss)(model, rngs, batch)
    if not is_right:
        value_fn = nnx_value_fn(nnx_loss, model, rngs, batch)
    optimizer.update(model, grads, value_fn=value_fn)


@pytest.fixture
def mesh():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def on_mesh():
    model, rngs = SplitNetwork(nnx.Rngs(0)), nnx.Rngs(dropout=1)
    return model, nnx.Optimizer(model, checked_sam(BASE), wrt=nnx.Param), rngs


def split(batch):
    return jax.tree.map(lambda leaf: jax.device_put(leaf, P("data")), batch)


dropout_on_a_mesh = pytest.mark.skipif(
    Version(flax.__version__) < Version("0.12.8"),
    reason="the mask of nnx.Dropout in flax 0.12.2 has not the sharding of what it masks",
)


@dropout_on_a_mesh
def test_explicit_mesh_equals_sam_by_hand(mesh):
    model, optimizer, rngs = on_mesh()
    params = {name: jnp.asarray(np.asarray(getattr(model, name)[...])) for name in SPECS}
    base_state = BASE.init(params)
    dropout, hand_rngs = nnx.Dropout(0.5), nnx.Rngs(dropout=1)

    @jax.jit
    def step_by_hand(params, base_state, batch, mask):
        def loss(params):
            hidden = jnp.tanh(batch["x"] @ params["inner"]) * mask
            return jnp.mean((hidden @ params["outer"] - batch["y"]) ** 2)

        updates, base_state = BASE.update(sam_gradient(loss, params), base_state, params)
        return optax.apply_updates(params, updates), base_state

    for batch in BATCHES:
        with silence():
            mesh_step(model, optimizer, rngs, split(batch), True)
            jax.block_until_ready(model.outer[...])
        mask = dropout(jnp.ones((len(batch["y"]), 16)), rngs=hand_rngs)
        params, base_state = step_by_hand(params, base_state, batch, mask)
    assert_same({name: getattr(model, name)[...] for name in SPECS}, params)
    assert jax.typeof(model.inner[...]).sharding.spec == SPECS["inner"]
    assert mismatch(optimizer.opt_state) < 1e-5


@dropout_on_a_mesh
def test_wrong_wiring_on_an_explicit_mesh(mesh):
    model, optimizer, rngs = on_mesh()
    with warning("`value_fn`", "another dropout key"):
        mesh_step(model, optimizer, rngs, split(BATCHES[0]), False)
        jax.block_until_ready(model.outer[...])
    assert mismatch(optimizer.opt_state) > 0.3
