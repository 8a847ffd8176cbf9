"""Planes contain what they were made of, filters keep their lengths."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from optax_sam import curvature, diagnostics, tree_math
from tests.problems import at, network

NETWORK = network()
DATA = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), NETWORK.batches)
LOSS = jax.jit(NETWORK.loss)
DIRECTIONS = diagnostics.random_directions(NETWORK.params)
GRID = np.array([-0.7, 0.0, 0.2, 1.1], np.float32)


def loss(params):
    return NETWORK.loss(params, DATA)


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
    one, other = DIRECTIONS
    assert diagnostics.alignment(one, other) < 0.5
    chex.assert_trees_all_equal(diagnostics.random_directions(NETWORK.params), DIRECTIONS)
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


def gram(plane):
    return np.array([[tree_math.vdot(a, b) for a in plane.directions] for b in plane.directions])


def test_the_plane_through_three_solutions_contains_them(x64):
    solutions = [network(seed, dtype=jnp.float64).params for seed in range(3)]
    plane = diagnostics.plane_through(solutions)
    np.testing.assert_allclose(gram(plane), np.eye(2), atol=1e-12)
    np.testing.assert_allclose(plane.coordinates[0], 0)
    np.testing.assert_allclose(plane.coordinates[1, 1], 0, atol=1e-12)
    for solution, point in zip(solutions, plane.coordinates, strict=True):
        chex.assert_trees_all_close(at(plane.origin, plane.directions, point), solution, atol=1e-12)


def test_three_solutions_on_a_line(x64):
    solutions = [jax.tree.map(lambda w, c=c: c * w, NETWORK.params) for c in (1.0, 2.0, -3.0)]
    plane = diagnostics.plane_through(solutions)
    assert not ravel_pytree(plane.directions[1])[0].any()
    for solution, point in zip(solutions, plane.coordinates, strict=True):
        chex.assert_trees_all_close(at(plane.origin, plane.directions, point), solution, rtol=1e-6)


def test_the_gradient_plane_contains_both_gradients_and_the_step():
    epsilon = diagnostics.sharpness(loss, NETWORK.params, 0.5).perturbation
    plane = diagnostics.gradient_plane(loss, NETWORK.params, epsilon)
    np.testing.assert_allclose(gram(plane), np.eye(2), atol=1e-5)
    first = jax.grad(loss)(NETWORK.params)
    second = jax.grad(loss)(jax.tree.map(jnp.add, NETWORK.params, epsilon))
    zero = jax.tree.map(jnp.zeros_like, first)
    for vector, point in zip((epsilon, first, second), plane.coordinates, strict=True):
        chex.assert_trees_all_close(at(zero, plane.directions, point), vector, atol=1e-5)
    # As in the paper's figure 1: SAM's ε points up, with its own length; the second gradient turns right.
    np.testing.assert_allclose(plane.coordinates[0], [0, 0.5], atol=1e-5)
    np.testing.assert_allclose(plane.coordinates[1, 0], 0, atol=1e-5)
    assert plane.coordinates[2, 0] > 0.01


def test_the_gradient_plane_of_a_data_set():
    epsilon = diagnostics.sharpness(loss, NETWORK.params, 0.5).perturbation
    whole = diagnostics.gradient_plane(loss, NETWORK.params, epsilon)
    batches = curvature.Batches(DATA, 32)
    found = diagnostics.gradient_plane(LOSS, NETWORK.params, epsilon, batches=batches)
    np.testing.assert_allclose(found.coordinates, whole.coordinates, rtol=1e-4, atol=1e-5)


W = jnp.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagnostics.plane_through([W, W]), "Three solutions lie in one plane, got 2"),
        (lambda: diagnostics.plane_through([W, W, jnp.ones(3)]), "Each of `solutions` must have the shapes"),
        (
            lambda: diagnostics.gradient_plane(jnp.sum, W, {"a": W}),
            "`perturbation` must have the tree structure",
        ),
        (lambda: diagnostics.filter_normalised({"a": W}, W), "`direction` must have the tree structure"),
        (lambda: diagnostics.random_directions(W, 0), "`num` must be at least 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_path_plane_has_the_principal_components_of_the_path():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(6, 5)) * np.array([9.0, 4.0, 1.0, 0.5, 0.1])
    plane = diagnostics.path_plane([{"a": jnp.asarray(p[:2]), "b": jnp.asarray(p[2:])} for p in points])
    _, _, components = np.linalg.svd(points - points.mean(0))
    expected = (points - points[-1]) @ components[:2].T
    np.testing.assert_allclose(jnp.abs(plane.coordinates), np.abs(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [1e-2, 1e-4, 1e-5])
def test_path_plane_of_a_narrow_path(width):
    """The second axis is that of the float32 points themselves: it is not rounded away."""
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(1000, 3)))
    time = np.linspace(1, 0, 40)
    waves = [time, width * np.sin(7 * time), 0.3 * width * np.sin(23 * time)]
    path = (100 * np.stack(waves, axis=1) @ axes.T).astype(np.float32)
    plane = diagnostics.path_plane([{"a": p[:300], "b": p[300:]} for p in path])
    e_1, e_2 = (np.concatenate([e["a"], e["b"]]).astype(float) for e in plane.directions)
    steps = path.astype(float) - path[-1]
    _, _, components = np.linalg.svd(steps - steps.mean(0), full_matrices=False)
    assert abs(e_1 @ components[0]) > 1 - 1e-6
    assert abs(e_2 @ components[1]) > 0.999
    assert abs(e_1 @ e_2) < 1e-6


def test_path_plane_of_a_straight_path():
    direction = np.random.default_rng(0).normal(size=100).astype(np.float32)
    plane = diagnostics.path_plane(
        [jnp.asarray(t * direction) for t in np.linspace(1, 0, 7, dtype=np.float32)]
    )
    np.testing.assert_array_equal(plane.directions[1], 0)
    resting = diagnostics.path_plane([jnp.ones(3)] * 3)
    np.testing.assert_array_equal(resting.coordinates, 0)


def test_path_plane_of_two_points():
    with pytest.raises(ValueError, match=r"at least three points, got 2.*loss_surface"):
        diagnostics.path_plane([jnp.ones(2)] * 2)
