"""The SDE for sharded parameters and data is that on one device; its path is sharded like the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from optax_sam import sde
from tests.devices.layouts import P, max_difference

RNG = np.random.default_rng(0)
PARAMS = {"a": RNG.normal(size=(8, 16)), "b": RNG.normal(size=16)}
BATCHES = RNG.normal(size=(4, 16, 8))
TOLERANCE = 1e-10


def loss(params, batch):
    return jnp.mean((jnp.tanh(batch @ params["a"]) @ params["b"]) ** 2)


def separable(params, batch):
    """Without matrix products, which need to be told their result's sharding on an explicit mesh."""
    return jnp.mean(batch) * (jnp.sum(jnp.sin(params["a"]) ** 2) + jnp.sum(params["b"] ** 4))


def computed(value_fn, params, batches, sequential):
    """The three functions, compiled."""

    @jax.jit
    def compute(params, batches):
        settings = {"rho": 0.1, "sequential": sequential}
        path = sde.simulate(
            value_fn, params, batches, **settings, learning_rate=0.1, num_steps=2, key=jax.random.key(0)
        )
        drift = sde.drift(value_fn, params, batches, **settings)
        return drift, sde.noise_factors(value_fn, params, batches, **settings), path

    return compute(params, batches)


@pytest.mark.parametrize("sequential", [False, True], ids=["at once", "sequential"])
@pytest.mark.parametrize(
    ("kind", "specs", "of_data"),
    [
        (AxisType.Auto, {"a": P(None, "x"), "b": P("x")}, P()),
        (AxisType.Auto, {"a": P(), "b": P()}, P(None, "x")),
        (AxisType.Explicit, {"a": P(None, "x"), "b": P("x")}, P()),
    ],
    ids=["parameters", "data", "explicit"],
)
def test_sharded_is_the_same(kind, specs, of_data, sequential):
    value_fn = loss if kind == AxisType.Auto else separable
    expected = computed(value_fn, PARAMS, BATCHES, sequential)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
        params = jax.tree.map(place, PARAMS, specs)
        found = computed(value_fn, params, place(BATCHES, of_data), sequential)
        assert max_difference(found, expected) < TOLERANCE
        if specs["b"] != P():
            drift, factors, path = found
            assert drift["a"].sharding.shard_shape((8, 16)) == (8, 2)
            assert factors["a"].sharding.shard_shape((4, 8, 16)) == (4, 8, 2)
            assert path["a"].sharding.shard_shape((3, 8, 16)) == (3, 8, 2)
