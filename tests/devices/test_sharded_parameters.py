"""Spectra and diagnostics for sharded parameters are those on one device, and vectors are sharded alike."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

import optax_sam
from optax_sam import curvature, diagnostics
from tests.devices.layouts import P, max_difference

RNG = np.random.default_rng(0)
PARAMS = {"a": RNG.normal(size=(8, 16)), "b": RNG.normal(size=16)}
DATA = RNG.normal(size=(32, 8))
SPECS = {"a": P(None, "x"), "b": P("x")}
TOLERANCE = 1e-8


@jax.jit
def loss_of_batch(params, batch):
    return jnp.mean((jnp.tanh(batch @ params["a"]) @ params["b"]) ** 2)


def loss(params):
    return jnp.sum(jnp.sin(params["a"]) ** 2) + jnp.sum(params["b"] ** 4)


def on_one_device_and_sharded(kind, function):
    """Returns `function(value_fn, params)` for both; with batches of data on an automatic mesh."""
    value_fn = loss_of_batch if kind == AxisType.Auto else loss
    expected = function(value_fn, PARAMS)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
        return expected, function(value_fn, jax.tree.map(place, PARAMS, SPECS))


def batches(value_fn, batch_size):
    return curvature.Batches(DATA, batch_size) if value_fn is loss_of_batch else None


def spectra(value_fn, params):
    data = {"batches": batches(value_fn, 20)}
    return (
        curvature.top_eigenpairs(value_fn, params, k=2, num_iters=6, **data),
        curvature.trace(value_fn, params, num_samples=2, **data),
        curvature.spectral_density(value_fn, params, num_iters=3, num_samples=1, **data),
    )


def measured(value_fn, params):
    data = {"batches": batches(value_fn, 16)}
    adaptive = optax_sam.weight_magnitude()
    first = diagnostics.sharpness(value_fn, params, 0.1, constraint=adaptive, **data)
    worst = diagnostics.worst_case_sharpness(value_fn, params, 0.1, num_iters=3, num_ascents=2, **data)
    noise = diagnostics.average_case_sharpness(value_fn, params, 0.1, num_samples=2, **data)
    plane = diagnostics.gradient_plane(value_fn, params, first.perturbation, **data)
    grid = jnp.linspace(-1, 1, 3)
    surface = diagnostics.loss_surface(value_fn, params, plane.directions, grid, **data)
    return first, worst, noise, plane.coordinates, surface


def monitored(value_fn, params):
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


every_mesh = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


@every_mesh
def test_spectra(kind):
    expected, found = on_one_device_and_sharded(kind, spectra)
    assert max_difference(found, expected) < TOLERANCE
    assert found[0].eigenvectors["a"].sharding.shard_shape((2, 8, 16)) == (2, 8, 2)


@every_mesh
def test_diagnostics(kind):
    expected, found = on_one_device_and_sharded(kind, measured)
    assert max_difference(found, expected) < TOLERANCE
    assert found[0].perturbation["a"].sharding.shard_shape((8, 16)) == (8, 2)


@every_mesh
def test_monitor(kind):
    expected, found = on_one_device_and_sharded(kind, monitored)
    assert max_difference(found, expected) < TOLERANCE
    assert found[-1]["a"].sharding.shard_shape((8, 16)) == (8, 2)
