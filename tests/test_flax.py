"""`optax_sam.flax`: what its functions promise one by one; tests/clients has whole training loops."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import optax_sam
from optax_sam.flax import TrainState, nnx_value_fn

X, Y = jnp.arange(12.0).reshape(4, 3) ** 0.5, jnp.ones(4)


def test_the_package_does_not_import_flax():
    program = "import sys, optax_sam.diagnostics, optax_sam.curvature; print('flax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("imported", ["json", "flax.nnx"])
def test_the_core_knows_of_flax_only_where_flax_is_imported(imported):
    """Users who import flax, and never `optax_sam.flax`, get the remedy; the others import nothing."""
    program = f"""
import sys, {imported}, jax.numpy as jnp, optax_sam
def value_fn(params):
    raise ValueError("Incorrect number of leaves")
tx = optax_sam.sam()
try:
    tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value_fn=value_fn)
except ValueError as error:
    print("nnx_value_fn" in str(getattr(error, "__notes__", "")), "optax_sam.flax" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(imported == "flax.nnx")] * 2


class Network(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x))).mean(-1)


def loss_fn(model, x, y, options=None):
    loss = jnp.mean((model(x) - y) ** 2)
    return (loss, model.dropout.rngs.count[...]) if options == "pair" else loss


def arrays(tree):
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return [jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]


def test_value_fn_is_a_function_of_the_parameters_alone():
    model = Network(nnx.Rngs(0))
    before, params = arrays(nnx.state(model)), nnx.state(model, nnx.Param)
    value_fn = nnx_value_fn(loss_fn, model, X, Y)
    values = [value_fn(params) for _ in range(2)] + [jax.jit(value_fn)(params)]
    assert values[0] == values[1] == pytest.approx(values[2])
    assert all(map(jnp.array_equal, arrays(nnx.state(model)), before))  # The model is as it was.
    assert loss_fn(model, X, Y) == values[0]  # The clean pass draws the same mask ...
    assert loss_fn(model, X, Y) != values[0]  # ... and the next one another,
    assert value_fn(params) == values[0]  # but not in `value_fn`.


def test_value_fn_of_a_part_of_the_parameters():
    model = Network(nnx.Rngs(0))
    value_fn = nnx_value_fn(loss_fn, model, X, Y)
    kernel = nnx.state(model, nnx.All(nnx.Param, nnx.PathContains("linear")))
    assert value_fn(kernel) == value_fn(nnx.state(model, nnx.Param))
    assert value_fn(jax.tree.map(lambda leaf: leaf + jnp.arange(4.0), kernel)) != value_fn(kernel)


def test_value_fn_drops_the_aux():
    model = Network(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    alone = nnx_value_fn(loss_fn, model, X, Y)(params)
    assert nnx_value_fn(loss_fn, model, X, Y, "pair", has_aux=True)(params) == alone
    for options, has_aux in (("pair", False), (None, True)):
        with pytest.raises(TypeError, match=r"`loss_fn` returned a .*has_aux=True"):
            nnx_value_fn(loss_fn, model, X, Y, options, has_aux=has_aux)(params)


class State(TrainState):
    batch_stats: Any = None


def test_train_state_hands_on_what_is_no_field():
    seen = {}

    def update(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    state = State.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=tx)
    arguments = {"value_fn": jnp.sum, "axis_name": None, "refresh": True}
    new = state.apply_gradients(grads={"w": jnp.ones(2)}, batch_stats=3, **arguments)
    assert seen == arguments
    assert (new.step, new.batch_stats, new.tx) == (1, 3, tx)
    assert jnp.array_equal(new.params["w"], 2 * jnp.ones(2))
    assert type(new) is State


def test_train_state_with_an_optimizer_of_optax():
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=optax.sgd(0.1))
    state = state.apply_gradients(grads={"w": jnp.ones(2)}, value_fn=jnp.sum)
    assert jnp.allclose(state.params["w"], 0.9)


def test_misspelt_field():
    state = State.create(apply_fn=None, params=jnp.ones(2), tx=optax_sam.sam())
    with pytest.raises(TypeError, match=r"no field `batch_stat`.*Did you mean `batch_stats`"):
        state.apply_gradients(grads=jnp.ones(2), value_fn=jnp.sum, batch_stat=3)
