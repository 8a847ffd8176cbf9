"""Worker: eigenpairs, trace and density for parameters that are sharded, against those on one device."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_sam import curvature
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


def spectra(value_fn, params, batches):
    return (
        curvature.top_eigenpairs(value_fn, params, k=2, num_iters=6, batches=batches),
        curvature.trace(value_fn, params, num_samples=2, batches=batches),
        curvature.spectral_density(value_fn, params, num_iters=3, num_samples=1, batches=batches),
    )


def check(name, kind, value_fn, batches):
    expected = spectra(value_fn, PARAMS, batches)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh), reported(name) as report:
        place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
        found = spectra(value_fn, jax.tree.map(place, PARAMS, SPECS), batches)
        difference = lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max())
        report(
            difference=max(jax.tree.leaves(jax.tree.map(difference, found, expected))),
            shard=found[0].eigenvectors["a"].sharding.shard_shape((2, 8, 16)),
        )


if __name__ == "__main__":
    check("auto", AxisType.Auto, loss_of_batch, curvature.Batches(DATA, 20))
    check("explicit", AxisType.Explicit, loss, None)
