"""`optax_sam.flax`: what its functions promise one by one; tests/clients has whole training loops."""

import functools
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import optax_sam
from optax_sam import diagnostics
from optax_sam.flax import TrainState, nnx_value_fn
from tests.clients.by_hand import silence, warning

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
    with pytest.raises(TypeError, match=r"no field of `State`.*Did you mean `batch_stats`"):
        state.apply_gradients(grads=jnp.ones(2), value_fn=jnp.sum, batch_stat=3)


def stage(update):
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def named(updates, state, params=None, *, temperature=1.0, **extra_args):
    return jax.tree.map(lambda u: u * temperature, updates), state


def by_key(updates, state, params=None, **extra_args):
    return jax.tree.map(lambda u: u * extra_args.get("temperature", 1.0), updates), state


def handing_on(updates, state, params=None, **extra_args):
    return by_key(updates, state, params, **extra_args)


SAM = optax.chain(optax_sam.sam(), optax.sgd(0.1))
PARAMS = {"w": jnp.ones(2)}


def squares(params):
    return jnp.sum(params["w"] ** 2)


def trained(tx, **arguments):
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    return state.apply_gradients(grads=jax.grad(squares)(PARAMS), value_fn=squares, **arguments)


@pytest.mark.parametrize("name", ["batch_stats", "dropout_rng", "temperature"])
@pytest.mark.parametrize("tx", [SAM, optax.sgd(0.1), optax.MultiSteps(optax.sgd(0.1), 2)])
def test_what_neither_the_state_nor_the_chain_knows_is_an_error(tx, name):
    with pytest.raises(TypeError, match=f"`{name}`, which is no field of `TrainState`.*would be dropped"):
        trained(tx, **{name: 2.0})


@pytest.mark.parametrize("update", [named, by_key, handing_on, functools.partial(named)])
@pytest.mark.parametrize(
    "around",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax_sam.sam(), optax.chain(tx, optax.identity())),
        lambda tx: optax.apply_if_finite(tx, 2),
        lambda tx: optax.masked(tx, lambda params: jax.tree.map(lambda _: True, params)),
    ],
)
def test_an_argument_of_a_stage_of_the_user(update, around):
    new = trained(optax.chain(around(stage(update)), optax.sgd(0.1)), temperature=0.0)
    assert jnp.array_equal(new.params["w"], PARAMS["w"])


@pytest.mark.parametrize("name", ["refesh", "axis_names", "curvature_function", "msharpness"])
def test_misspelt_argument_of_update(name):
    with pytest.raises(TypeError, match=f"`update` got `{name}`.*Did you mean"):
        trained(SAM, **{name: None})


def test_another_transformation():
    other = optax.sgd(1.0)
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=SAM)
    assert state.apply_gradients(grads=PARAMS, value_fn=squares, tx=other).tx is other
    assert state.apply_gradients(grads=PARAMS, value_fn=squares).tx is SAM


def test_multi_steps_around_a_method():
    for around in (optax.MultiSteps(SAM, 2), optax.MultiSteps(SAM, 2).gradient_transformation()):
        with pytest.raises(ValueError, match=r"`optax.MultiSteps` is around a method.*optimizer, k"):
            trained(around)
    with pytest.raises(ValueError, match=r"`optax.MultiSteps\(...\).gradient_transformation\(\)`: write"):
        trained(optax.chain(optax.MultiSteps(SAM, 2).gradient_transformation(), optax.identity()))
    assert jnp.array_equal(trained(optax.MultiSteps(optax.sgd(0.1), 2)).params["w"], PARAMS["w"])
    behind = optax.chain(optax_sam.sam(), optax.MultiSteps(optax.sgd(0.1), 1))
    assert jnp.array_equal(trained(behind).params["w"], trained(SAM).params["w"])


@pytest.mark.parametrize("base", [optax.sgd(0.1), optax.adam(0.1), optax.adamw(0.1)])
def test_state_of_the_optimizer_from_before(base):
    tx = optax.chain(optax_sam.sam(), base)
    old = TrainState.create(apply_fn=None, params=PARAMS, tx=base)
    state = old.replace(tx=tx)
    with pytest.raises((ValueError, TypeError), match=r"`state = \(method.init\(params\), old_state\)`"):
        state.apply_gradients(grads=PARAMS, value_fn=squares)
    state = state.replace(opt_state=(optax_sam.sam().init(PARAMS), old.opt_state))
    state.apply_gradients(grads=PARAMS, value_fn=squares)


def test_value_fn_with_keyword_arguments():
    model = Network(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    value_fn = nnx_value_fn(loss_fn, model, x=X, y=Y, options="pair", has_aux=True)
    assert value_fn(params) == nnx_value_fn(loss_fn, model, X, Y)(params)


def test_value_fn_of_parameters_that_the_model_does_not_have():
    model = Network(nnx.Rngs(0))
    value_fn = nnx_value_fn(loss_fn, model, X, Y)
    with pytest.raises(ValueError, match=r"`linear/kernell`, which the model .*it has `linear/kernel`"):
        value_fn({"linear": {"kernell": jnp.ones((3, 4))}})
    for swapped in ((model, loss_fn, X, Y), (loss_fn, X, Y), (model, X)):
        with pytest.raises(TypeError, match="takes the loss function first, then the model"):
            nnx_value_fn(*swapped)


@pytest.mark.parametrize("norm", [nnx.SpectralNorm, nnx.WeightNorm])
def test_parameters_to_which_the_forward_pass_writes(norm):
    """The clean pass leaves other parameters than those of its gradient, unless they are put back."""

    def mismatch(put_back):
        rngs = nnx.Rngs(0)
        model = nnx.Sequential(norm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs), nnx.Linear(4, 1, rngs=rngs))
        loss_of = lambda model: jnp.mean((model(X)[:, 0] - Y) ** 2)
        tx = optax.chain(diagnostics.wiring_check(), SAM)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def train_step(model, optimizer):
            value_fn, before = nnx_value_fn(loss_of, model), nnx.clone(nnx.state(model, nnx.Param))
            grads = nnx.grad(loss_of)(model)
            if put_back:
                nnx.update(model, before)
            optimizer.update(model, grads, value_fn=value_fn)

        train_step(model, optimizer)
        return optax.tree.get(optimizer.opt_state, "mismatch")[...]

    with silence():
        assert mismatch(put_back=True) < 1e-5
    with warning("The forward pass writes to the parameters", "kernel", r"nnx.update\(model, before\)"):
        assert mismatch(put_back=False) > 0.01
