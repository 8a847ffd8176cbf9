"""Planes contain what they were made of, and its coordinates."""

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


def loss(params):
    return NETWORK.loss(params, DATA)


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
