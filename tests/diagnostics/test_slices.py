"""Slices are the loss at their points."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import curvature, diagnostics
from tests.problems import at, network

NETWORK = network()
DATA = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), NETWORK.batches)
LOSS = jax.jit(NETWORK.loss)
DIRECTIONS = diagnostics.random_directions(NETWORK.params)
GRID = np.array([-0.7, 0.0, 0.2, 1.1], np.float32)


def loss(params):
    return NETWORK.loss(params, DATA)


@pytest.mark.parametrize("data", [{}, {"batches": curvature.Batches(DATA, 64)}], ids=["loss", "batches"])
def test_a_plane_is_the_loss_at_its_points(data):
    coordinates = [GRID, GRID[:3]]
    value_fn = LOSS if data else loss
    found = diagnostics.loss_surface(value_fn, NETWORK.params, DIRECTIONS, coordinates, **data)
    assert found.values.shape == (4, 3)
    for i, a in enumerate(GRID):
        for j, b in enumerate(GRID[:3]):
            expected = loss(at(NETWORK.params, DIRECTIONS, (a, b)))
            np.testing.assert_allclose(found.values[i, j], expected, rtol=1e-5)
    chex.assert_trees_all_equal(found.coordinates, tuple(map(jnp.asarray, coordinates)))


def test_a_line_is_the_loss_at_its_points_under_jit_too():
    slice_ = lambda params: diagnostics.loss_surface(loss, params, DIRECTIONS[:1], GRID)
    expected = [loss(at(NETWORK.params, DIRECTIONS[:1], (a,))) for a in GRID]
    for function in (slice_, jax.jit(slice_)):
        np.testing.assert_allclose(function(NETWORK.params).values, expected, rtol=1e-5)


def test_coordinates_left_out_are_those_of_the_paper():
    found = diagnostics.loss_surface(lambda w: jnp.sum(w), jnp.zeros(1), [jnp.ones(1)])
    np.testing.assert_allclose(found.coordinates[0], np.linspace(-1, 1, 51), atol=1e-6)
    np.testing.assert_allclose(found.values, np.linspace(-1, 1, 51), atol=1e-6)


def test_with_a_progress_bar_the_values_are_the_same(capsys):
    """It counts batches: the data set is iterated over once, and a single loss is one of them."""
    grid = np.linspace(-1, 1, 71)
    arguments = LOSS, NETWORK.params, DIRECTIONS[:1], grid
    silent = diagnostics.loss_surface(*arguments, batches=[DATA])
    assert capsys.readouterr().err == ""
    shown = diagnostics.loss_surface(*arguments, batches=[DATA], progress=True)
    assert "1/1" in capsys.readouterr().err
    alone = diagnostics.loss_surface(loss, *arguments[1:], progress=True)
    assert "1/1" in capsys.readouterr().err
    np.testing.assert_allclose(alone.values, silent.values, rtol=1e-5)
    np.testing.assert_array_equal(shown.values, silent.values)
    assert shown.values.shape == (71,)


def test_memory_does_not_grow_with_the_number_of_points():
    """One point after another: a hidden layer of 10⁵ numbers is there once, not 100 times."""
    x = jnp.ones((1000, 1))
    wide = lambda w: jnp.sort(x @ w[None], axis=None)[0]  # a sort is not fused away

    def memory(count):
        surface = lambda w: diagnostics.loss_surface(wide, w, [w], jnp.linspace(0, 1, count)).values
        return jax.jit(surface).lower(jnp.ones(100)).compile().memory_analysis().temp_size_in_bytes

    hidden = 4 * 1000 * 100
    assert hidden <= memory(2)
    assert memory(100) < 1.5 * memory(2)


def test_bfloat16_parameters_are_moved_in_float32():
    found = diagnostics.loss_surface(
        lambda w: jnp.sum(w), jnp.ones(1, jnp.bfloat16), [jnp.ones(1, jnp.bfloat16)], jnp.array([1e-3])
    )
    np.testing.assert_allclose(found.values, 1.001, rtol=1e-6)


def test_losses_that_are_not_finite_stay_so():
    found = diagnostics.loss_surface(
        lambda w: jnp.log(w[0]), jnp.zeros(1), [jnp.ones(1)], [jnp.arange(-1, 2)]
    )
    assert np.isnan(found.values[0])
    assert np.isneginf(found.values[1])
    assert found.values[2] == 0


W = jnp.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: diagnostics.loss_surface(jnp.sum, W, W),
            r"`directions` must be a list.*write `loss_surface",
        ),
        (
            lambda: diagnostics.loss_surface(jnp.sum, W, [W] * 3),
            "one direction .a line. or two .a plane.*got 3",
        ),
        (
            lambda: diagnostics.loss_surface(jnp.sum, W, [jnp.ones(3)]),
            "Each of `directions` must have the shapes",
        ),
        (
            lambda: diagnostics.loss_surface(jnp.sum, W, [W, W], [W]),
            "a list of one for each of the 2 directions",
        ),
        (lambda: diagnostics.loss_surface(jnp.sum, W, [W], 1.0), "one array with one axis"),
        (lambda: diagnostics.loss_surface(jnp.sum, W, [W], []), "for each of the 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
