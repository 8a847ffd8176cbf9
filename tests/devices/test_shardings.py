"""The optimizer's state lies where the parameters lie that it mirrors.

Optax's own sharding tests ask the same of its optimizers: `init` accepts abstract parameters, and on a mesh
with explicit axes neither `jit` nor `update` changes a type, of which the sharding is a part.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

from tests.devices import layouts
from tests.devices.layouts import P
from tests.registry import every_method

COPIES = {
    "info_sam": 2,
    "eigen_sam": 1,
    "eigen_sam_lanczos": 1,
    "eigen_sam_running_mean": 1,
    "combination": 3,
    "monitored_sam": 1,
    "vasso": 1,
    "friendly_sam": 1,
    "sparse_sam": 1,
    "bayesian_sam": 2,
    "look_sam": 1,
    "rwp_adaptive": 1,
    "mixed_rwp": 1,
    "momentum_sam": 1,
    "one_gradient_search": 3,
}


def transformation(method):
    return optax.chain(method.make(0.05), optax.sgd(0.1, momentum=0.9))


def abstract(params):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)


# On a mesh with explicit axes the sharding is a part of the type: no update may change it.


@pytest.fixture
def params():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P(None, "x"))
        yield {"a": jnp.ones((2, 8, 4), jnp.float16, out_sharding=sharding), "b": jnp.ones(3)}


def value_fn(params):
    return sum(jnp.sum(jnp.sin(leaf.astype(jnp.float32)) ** 2) for leaf in jax.tree.leaves(params))


def types(tree):
    """Returns shapes, dtypes and, on an explicit mesh, shardings."""
    return [str(jax.typeof(leaf)) for leaf in jax.tree.leaves(tree)]


INITS = {
    "eager": lambda tx, params: tx.init(params),
    "jit": lambda tx, params: jax.jit(tx.init)(params),
    "abstract": lambda tx, params: jax.eval_shape(tx.init, abstract(params)),
    "structs": lambda tx, params: tx.init(abstract(params)),
}


@pytest.mark.parametrize("init", INITS)
@every_method
def test_init_gives_the_state_the_sharding_types_of_the_parameters(method, init, params):
    tx = transformation(method)
    state = INITS[init](tx, params)
    assert types(state) == types(tx.init(params))
    mirrors = [
        kind
        for kind, leaf in zip(types(state), jax.tree.leaves(state), strict=True)
        if leaf.shape == (2, 8, 4)
    ]
    assert len(mirrors) == 1 + COPIES.get(method.name, 0)  # 1: momentum
    assert all("[2,8@x,4]" in kind for kind in mirrors)


@every_method
def test_update_keeps_sharding_types(method, params):
    tx = transformation(method)
    state = tx.init(params)
    for refresh in (None, True, False) if method.has_refresh else (None,):
        step = jax.jit(functools.partial(tx.update, value_fn=value_fn, refresh=refresh))
        updates, after = jax.block_until_ready(step(params, state, params))
        assert types((updates, after)) == types((params, state))
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(updates))


# On a mesh with automatic axes the state lies where the parameter lies that it mirrors.


def placed_parameters():
    specs, _ = layouts.GLOBAL_VIEW["fsdp and tensor"]
    return jax.device_put(layouts.parameters(), layouts.shardings(layouts.mesh_2d(), specs))


def out_of_place(tree, shardings):
    """Returns the leaves, scalars left out, that lie elsewhere."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        f"{jax.tree_util.keystr(path)}: {x.sharding}"
        for (path, x), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True)
        if x.shape and not x.sharding.is_equivalent_to(sharding, x.ndim)
    ]


def is_whole(x):
    return np.ndim(x) > 1 and x.sharding.is_fully_replicated


@every_method
def test_init_on_an_automatic_mesh_shards_the_state(method):
    tx, params = transformation(method), placed_parameters()
    state = tx.init(params)
    assert not out_of_place(state, layouts.state_shardings(tx, state, params))


@every_method
def test_init_under_jit_makes_no_whole_copy(method):
    """Nothing is ever whole on one device: shardings from the abstract state, then `init` under `jit`."""
    tx, params = transformation(method), placed_parameters()
    shardings = layouts.state_shardings(tx, jax.eval_shape(tx.init, abstract(params)), abstract(params))
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    assert not out_of_place(state, layouts.state_shardings(tx, state, params))
    assert not [x.shape for x in jax.tree.leaves(state) if is_whole(x)]


@every_method
def test_update_on_an_automatic_mesh_leaves_parameters_and_state_in_place(method):
    tx, params = transformation(method), placed_parameters()
    step = layouts.make_step(tx, "fsdp and tensor")
    batch = step.place_batch(layouts.batches()[0])
    new_params, state = jax.block_until_ready(step.step(params, tx.init(params), batch, None))
    assert not out_of_place(state, layouts.state_shardings(tx, state, params))
    assert not out_of_place(new_params, jax.tree.map(lambda x: x.sharding, params))
