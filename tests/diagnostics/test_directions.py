"""Filters keep their lengths, whatever the axes of the arrays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import diagnostics, tree_math
from tests.problems import network

NETWORK = network()
DIRECTIONS = diagnostics.random_directions(NETWORK.params)
GRID = np.array([-0.7, 0.0, 0.2, 1.1], np.float32)


@pytest.mark.parametrize("axis", [-1, 0])
def test_every_filter_has_the_length_of_that_of_the_parameters(axis):
    shapes = {"dense": (4, 6), "convolution": (3, 3, 2, 5), "bias": (6,), "scale": ()}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {
        name: jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    params["dense"] = params["dense"].at[:, 2].set(0)  # a dead filter
    for direction in diagnostics.random_directions(params, 3, key=1, filter_axis=axis):
        assert not direction["bias"].any()
        assert direction["scale"] == 0
        for name in ("dense", "convolution"):
            filters = lambda x: np.moveaxis(np.asarray(x), axis, 0).reshape(x.shape[axis], -1)
            np.testing.assert_allclose(
                np.linalg.norm(filters(direction[name]), axis=1),
                np.linalg.norm(filters(params[name]), axis=1),
                rtol=1e-5,
            )


def test_stacked_layers_have_the_directions_of_layers_apart():
    """By name: scanned scales and biases have two axes, and keep their values as those of one layer do."""
    keys = jax.random.split(jax.random.key(0), 3)
    make = lambda key, size: {
        "dense": {"kernel": size * jax.random.normal(key, (4, 6)), "bias": jnp.ones(6)},
        "heads": {"kernel": size * jax.random.normal(key, (4, 2, 3)), "scale": jnp.ones((2, 3))},
    }
    layers = [make(key, size) for key, size in zip(keys, (1.0, 5.0, 0.1), strict=True)]
    axes = lambda first: (
        lambda name, w: None if "kernel" not in name else first + ((-2, -1) if "heads" in name else (-1,))
    )
    noise = [jax.tree.map(lambda w, i=i: jnp.sin(w * (i + 2)), layer) for i, layer in enumerate(layers)]
    apart = [
        diagnostics.filter_normalised(d, w, filter_axis=axes(())) for d, w in zip(noise, layers, strict=True)
    ]
    stacked = diagnostics.filter_normalised(
        tree_math.stack(noise), tree_math.stack(layers), filter_axis=axes((0,))
    )
    chex.assert_trees_all_close(stacked, tree_math.stack(apart), rtol=1e-5)
    assert not stacked["heads"]["scale"].any()
    (drawn,) = diagnostics.random_directions(tree_math.stack(layers), 1, filter_axis=axes((0,)))
    length = lambda x: jnp.linalg.norm(x["heads"]["kernel"], axis=1)
    np.testing.assert_allclose(length(drawn), length(tree_math.stack(layers)), rtol=1e-5)


def test_one_filter_for_a_whole_array_and_an_axis_that_is_not_there():
    w = {"a": jnp.ones(4), "b": jnp.ones((2, 3))}
    (found,) = diagnostics.random_directions(w, 1, filter_axis=lambda name, w: ())
    for name, length in {"a": 2.0, "b": 6**0.5}.items():
        np.testing.assert_allclose(jnp.linalg.norm(found[name]), length, rtol=1e-5)
    with pytest.raises(ValueError, match=r"returned 1 for the array `a` of shape \(4,\).*or None"):
        diagnostics.random_directions(w, 1, filter_axis=lambda name, w: 1)


def test_normalisation_keeps_the_direction_of_each_filter():
    direction = jax.tree.map(lambda w: jnp.cos(jnp.arange(w.size)).reshape(w.shape), NETWORK.params)
    found = diagnostics.filter_normalised(direction, NETWORK.params)["layer1"]["weight"]
    ratio = found / direction["layer1"]["weight"]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-4)
    assert (ratio > 0).all()


def test_random_directions_differ_and_repeat():
    # Not `DIRECTIONS`: they are computed when the tests are collected, with other options of the compiler.
    one, other = directions = diagnostics.random_directions(NETWORK.params)
    assert diagnostics.alignment(one, other) < 0.5
    chex.assert_trees_all_equal(diagnostics.random_directions(NETWORK.params), directions)
    another = diagnostics.random_directions(NETWORK.params, 1, key=1)[0]
    assert diagnostics.alignment(one, another) < 0.9


def test_slices_do_not_change_when_layers_are_scaled():
    """A linear network without biases, its first layer twice and its second half as large."""
    x = jax.random.normal(jax.random.key(0), (30, 4))
    linear = lambda w: jnp.mean((x @ w["in"] @ w["out"]) ** 2)
    keys = jax.random.split(jax.random.key(1))
    w = {"in": jax.random.normal(keys[0], (4, 6)), "out": jax.random.normal(keys[1], (6, 1))}
    scaled = {"in": 2 * w["in"], "out": w["out"] / 2}
    slices = [
        diagnostics.loss_surface(linear, point, diagnostics.random_directions(point, 1), GRID).values
        for point in (w, scaled)
    ]
    np.testing.assert_allclose(*slices, rtol=1e-4)


W = jnp.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagnostics.filter_normalised({"a": W}, W), "`direction` must have the tree structure"),
        (lambda: diagnostics.random_directions(W, 0), "`num` must be at least 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
