"""Worker: diagnostics for parameters that are sharded, against those on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_sam
from optax_sam import curvature, diagnostics
from tests.devices.processes import reported

RNG = np.random.default_rng(0)
PARAMS = {"a": RNG.normal(size=(8, 16)), "b": RNG.normal(size=16)}
DATA = RNG.normal(size=(32, 8))
SPECS = {"a": PartitionSpec(None, "x"), "b": PartitionSpec("x")}


@jax.jit
def loss_of_batch(params, batch):
    return jnp.mean((jnp.tanh(batch @ params["a"]) @ params["b"]) ** 2)


def loss(params):
    return jnp.sum(jnp.sin(params["a"]) ** 2) + jnp.sum(params["b"] ** 4)


def everything(value_fn, params, batches):
    data = {"batches": batches}
    adaptive = optax_sam.weight_magnitude()
    first = diagnostics.sharpness(value_fn, params, 0.1, constraint=adaptive, **data)
    worst = diagnostics.worst_case_sharpness(value_fn, params, 0.1, num_iters=3, num_restarts=2, **data)
    noise = diagnostics.average_case_sharpness(value_fn, params, 0.1, num_samples=2, **data)
    plane = diagnostics.gradient_plane(value_fn, params, first.perturbation, **data)
    grid = jnp.linspace(-1, 1, 3)
    surface = diagnostics.loss_surface(value_fn, params, plane.directions, grid, **data)
    return first, worst, noise, plane.coordinates, surface


def monitored(params):
    """The state after a step in which everything is recorded, and the eigenvector."""
    method = diagnostics.monitor(
        optax_sam.sam(0.1), quantities=("sharpness", "alignment", "top_eigenvalue"), num_iters=3
    )
    tx = optax.chain(method, optax.sgd(0.1))

    @jax.jit
    def step(params):
        grads = jax.grad(loss)(params)
        return tx.update(grads, tx.init(params), params, value_fn=loss, record=True)[1][0]

    state = step(params)
    return state.sharpness, state.alignment, state.top_eigenvalue, state.top_eigenvector


def check(name, kind, value_fn, batches):
    expected = everything(value_fn, PARAMS, batches), monitored(PARAMS)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh), reported(name) as report:
        place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
        params = jax.tree.map(place, PARAMS, SPECS)
        found = everything(value_fn, params, batches), monitored(params)
        difference = lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max())
        report(
            difference=max(jax.tree.leaves(jax.tree.map(difference, found, expected))),
            shard=found[0][0].perturbation["a"].sharding.shard_shape((8, 16)),
        )


if __name__ == "__main__":
    check("auto", AxisType.Auto, loss_of_batch, curvature.Batches(DATA, 16))
    check("explicit", AxisType.Explicit, loss, None)
