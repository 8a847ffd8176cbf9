"""A small network, and every way to train it on eight devices.

layout               parameters               batch                  `update` sees
single               on one device            on one device          everything
data                 replicated               data × model           everything (jit)
data, explicit       replicated               data × model           everything (jit, sharding in types)
fsdp                 data × model, one dim    data × model           everything (jit)
tensor               model                    data                   everything (jit)
fsdp and tensor      data and model           data                   everything (jit)
pmap                 replicated               one part per device    its part
shard_map            replicated               one part per device    its part, JAX tracks what varies
shard_map, unchecked replicated               one part per device    its part
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

P = PartitionSpec
AXIS = "batch"  # of the per-device views
NUM_DEVICES, NUM_STEPS, LEARNING_RATE = 8, 6, 0.1
REPLICATED = {"layer1": {"weight": P(), "bias": P()}, "layer2": {"weight": P(), "bias": P()}}
BOTH = ("data", "model")

# layout: specs of the parameters, spec of the batch
GLOBAL_VIEW = {
    "data": (REPLICATED, P(BOTH)),
    "data, explicit": (REPLICATED, P(BOTH)),
    "fsdp": (
        {
            "layer1": {"weight": P(BOTH, None), "bias": P(BOTH)},
            "layer2": {"weight": P(BOTH, None), "bias": P(BOTH)},
        },
        P(BOTH),
    ),
    "tensor": (
        {
            "layer1": {"weight": P(None, "model"), "bias": P("model")},
            "layer2": {"weight": P("model", None), "bias": P()},
        },
        P("data"),
    ),
    "fsdp and tensor": (
        {
            "layer1": {"weight": P("data", "model"), "bias": P("model")},
            "layer2": {"weight": P("model", "data"), "bias": P("data")},
        },
        P("data"),
    ),
}
PER_DEVICE_VIEW = ("pmap", "shard_map", "shard_map, unchecked")
LAYOUTS = (*GLOBAL_VIEW, *PER_DEVICE_VIEW)


def parameters() -> optax.Params:
    rng = np.random.default_rng(0)
    return {
        "layer1": {"weight": 0.5 * rng.normal(size=(8, 16)), "bias": 0.1 * rng.normal(size=16)},
        "layer2": {"weight": 0.5 * rng.normal(size=(16, 8)), "bias": 0.1 * rng.normal(size=8)},
    }


NUM_PARAMETERS = sum(leaf.size for leaf in jax.tree.leaves(parameters()))


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(32, 8)), rng.normal(size=(32, 8))) for _ in range(NUM_STEPS)]


def loss(params: optax.Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, y = batch
    hidden = jnp.tanh(x @ params["layer1"]["weight"] + params["layer1"]["bias"])
    output = hidden @ params["layer2"]["weight"] + params["layer2"]["bias"]
    return jnp.mean((output - y) ** 2)


def mesh_2d(axis_type: AxisType = AxisType.Auto) -> Mesh:
    return jax.make_mesh((4, 2), BOTH, axis_types=(axis_type,) * 2)


def mesh_1d() -> Mesh:
    return jax.make_mesh((NUM_DEVICES,), (AXIS,), axis_types=(AxisType.Auto,))


def shardings(mesh: Mesh, specs: Any) -> Any:
    is_spec = lambda x: isinstance(x, PartitionSpec)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)


class Step(NamedTuple):
    """A training step for a layout.

    Attributes:
      step: (params, state, batch, refresh) ↦ (params, state), compiled; `refresh` is static.
      place: puts the parameters or, where it is laid out alike, the state where the step wants it.
      place_batch: likewise for a batch.
      read: brings parameters or state back to the host, without the axis of devices.
    """

    step: Any
    place: Any = lambda tree: jax.tree.map(jnp.asarray, tree)
    place_batch: Any = lambda tree: jax.tree.map(jnp.asarray, tree)
    read: Any = jax.device_get


def averaged_gradient(value_fn, params, axis_name, layout):
    """Returns the gradient of the whole batch, as a user takes it in this layout."""
    if axis_name is None:
        return jax.grad(value_fn)(params)
    if layout == "shard_map":  # Sums over the axis by itself.
        return jax.grad(lambda params: jax.lax.pmean(value_fn(params), axis_name))(params)
    return jax.lax.pmean(jax.grad(value_fn)(params), axis_name)


def local_gradient(value_fn, params, axis_name, layout):
    """Returns the gradient of this device's part of the batch."""
    if layout == "shard_map":
        params = jax.lax.pcast(params, axis_name, to="varying")
    return jax.grad(value_fn)(params)


def make_step(tx, layout, *, gradient=averaged_gradient) -> Step:
    """Returns the training step of `tx` in a layout."""
    axis_name = AXIS if layout in PER_DEVICE_VIEW else None
    tx = optax.with_extra_args_support(tx)

    def step(params, state, batch, refresh=None):
        value_fn = lambda params: loss(params, batch)
        updates, state = tx.update(
            gradient(value_fn, params, axis_name, layout),
            state,
            params,
            value_fn=value_fn,
            refresh=refresh,
            axis_name=axis_name,
            m_sharpness=gradient is local_gradient,
        )
        return optax.apply_updates(params, updates), state

    if layout == "single":
        return Step(jax.jit(step, static_argnums=3))
    if layout in GLOBAL_VIEW:
        specs, batch_spec = GLOBAL_VIEW[layout]
        mesh = mesh_2d(AxisType.Explicit if layout == "data, explicit" else AxisType.Auto)
        return Step(
            jax.jit(step, static_argnums=3),
            place=lambda params: jax.device_put(params, shardings(mesh, specs)),
            place_batch=lambda batch: jax.device_put(batch, NamedSharding(mesh, batch_spec)),
        )
    if layout == "pmap":
        # As `pmap` returns them, so that the second step does not compile again.
        put = functools.partial(jax.device_put, device=NamedSharding(mesh_1d(), P(AXIS)))
        stacked = lambda tree: put(jax.tree.map(lambda x: np.stack([x] * NUM_DEVICES), tree))
        parts = lambda tree: put(jax.tree.map(lambda x: x.reshape(NUM_DEVICES, -1, *x.shape[1:]), tree))
        first = lambda tree: jax.tree.map(lambda x: x[0], jax.device_get(tree))
        return Step(jax.pmap(step, AXIS, static_broadcasted_argnums=3), stacked, parts, first)

    mesh, is_checked = mesh_1d(), layout == "shard_map"

    @functools.partial(jax.jit, static_argnums=3)
    def mapped(params, state, batch, refresh=None):
        return jax.shard_map(
            functools.partial(step, refresh=refresh),
            mesh=mesh,
            in_specs=(P(), P(), P(AXIS)),
            out_specs=P(),
            check_vma=is_checked,
        )(params, state, batch)

    return Step(
        mapped,
        place=lambda tree: jax.device_put(tree, NamedSharding(mesh, P())),
        place_batch=lambda batch: jax.device_put(batch, NamedSharding(mesh, P(AXIS))),
    )


def initial(tx, layout, step: Step) -> tuple[optax.Params, optax.OptState]:
    """Returns the parameters and the optimizer's state, placed as the layout wants them."""
    params = parameters()
    state = jax.device_get(tx.init(jax.tree.map(jnp.asarray, params)))
    if layout in GLOBAL_VIEW:
        state = jax.device_put(state, state_shardings(tx, state, step.place(params)))
    else:
        state = step.place(state)
    return step.place(params), state


def state_shardings(tx, state, params: optax.Params) -> optax.OptState:
    """Returns where each part of the state goes: as the parameter it mirrors, or everywhere."""
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    return optax.tree.map_params(
        tx,
        lambda _, param: param.sharding,
        state,
        params,
        transform_non_params=lambda _: NamedSharding(mesh, P()),
    )


def train(tx, layout, refreshes=(None,) * NUM_STEPS) -> list[Any]:
    """Returns (params, state) after every step, on the host."""
    step = make_step(tx, layout)
    carry, trajectory = initial(tx, layout, step), []
    for batch, refresh in zip(batches(), refreshes, strict=True):
        # Simulated devices deadlock when many collectives are in flight.
        carry = jax.block_until_ready(step.step(*carry, step.place_batch(batch), refresh))
        trajectory.append(step.read(carry))
    return trajectory


def max_difference(a: Any, b: Any) -> float:
    """Returns the largest difference of two pytrees of arrays, in absolute value."""
    differences = jax.tree.map(
        lambda x, y: np.max(np.abs(np.float64(x) - np.float64(y)), initial=0.0),
        jax.device_get(a),
        jax.device_get(b),
    )
    return float(np.max(jax.tree.leaves(differences)))  # NaN, if there is one
