"""What all notions of sharpness share: data sets, precision, progress bars, errors."""

import re

import chex
import jax
import jax.numpy as jnp
import pytest

import optax_sam
from optax_sam import curvature, diagnostics
from tests.problems import network

NETWORK = network()
DATA = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), NETWORK.batches)
LOSS = jax.jit(NETWORK.loss)

BATCHES = curvature.Batches(DATA, 48)
ADAPTIVE = optax_sam.weight_magnitude(0.1)


def loss(params):
    return NETWORK.loss(params, DATA)


NOTIONS = {
    "sharpness": lambda value_fn, params, **data: diagnostics.sharpness(value_fn, params, 0.1, **data),
    "worst case": lambda value_fn, params, **data: diagnostics.worst_case_sharpness(
        value_fn, params, 0.1, num_iters=3, num_ascents=2, constraint=ADAPTIVE, **data
    ),
    "average case": lambda value_fn, params, **data: diagnostics.average_case_sharpness(
        value_fn, params, 0.1, num_samples=3, **data
    ),
    "gain": lambda value_fn, params, **data: diagnostics.perturbation_gain(
        value_fn, params, params, num_iters=3, num_ascents=2, **data
    ),
}


every_notion = pytest.mark.parametrize("notion", NOTIONS.values(), ids=NOTIONS)


@every_notion
def test_over_a_data_set_and_under_jit(notion):
    eager = notion(loss, NETWORK.params)
    compiled = jax.jit(lambda params: notion(loss, params))(NETWORK.params)
    in_batches = notion(LOSS, NETWORK.params, batches=BATCHES)
    chex.assert_trees_all_close(compiled, eager, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(in_batches, eager, rtol=1e-3, atol=1e-5)


@every_notion
def test_bfloat16_parameters_are_perturbed_in_float32(notion):
    """As those of the same values in float32: no perturbation is rounded away."""
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), NETWORK.params)
    full = jax.tree.map(lambda w: w.astype(jnp.float32), half)
    found = notion(LOSS, half, batches=[DATA])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
    chex.assert_trees_all_close(found, notion(LOSS, full, batches=[DATA]), rtol=1e-5)


@every_notion
def test_mixed_dtypes_without_implicit_promotion(notion):
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2, jnp.float16)}
    value_fn = lambda w: sum(jnp.sum(x**2) for x in w.values())
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        found = notion(value_fn, params)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(found))


def test_progress_bars(capsys):
    shown = {"progress": True}
    diagnostics.worst_case_sharpness(LOSS, NETWORK.params, 0.1, num_iters=2, batches=BATCHES, **shown)
    found = diagnostics.average_case_sharpness(LOSS, NETWORK.params, 0.1, batches=BATCHES, **shown)
    diagnostics.m_sharpness(LOSS, NETWORK.params, 0.1, batches=BATCHES, **shown)
    text = capsys.readouterr().err
    assert "9/9" in text  # gradients of the worst case
    # On a slow machine the rate is in seconds.
    assert re.search("2/2 .*(batch/s|s/batch)", text)
    assert re.search("2/2 .*(group/s|s/group)", text)
    silent = diagnostics.average_case_sharpness(LOSS, NETWORK.params, 0.1, batches=BATCHES)
    chex.assert_trees_all_equal(found, silent)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: diagnostics.sharpness(loss, NETWORK.params, -0.1), ValueError, "`rho` must be at least 0"),
        (
            lambda: diagnostics.worst_case_sharpness(loss, NETWORK.params, 0.1, ord=1),
            ValueError,
            r"`ord` is the p of the norm.*must be 2 or `jnp.inf`, got 1",
        ),
        (
            lambda: diagnostics.sharpness(loss, NETWORK.params, 0.1, constraint=optax_sam.weight_magnitude),
            TypeError,
            "`constraint` must be an Optax gradient transformation, got the function `weight_magnitude`",
        ),
        (
            lambda: diagnostics.worst_case_sharpness(loss, NETWORK.params, 0.1, num_ascents=0),
            ValueError,
            "`num_ascents` must be at least 1",
        ),
        (
            lambda: diagnostics.worst_case_sharpness(loss, NETWORK.params, 0.1, start=jnp.ones(3)),
            ValueError,
            "`start` must have the tree structure of the parameters",
        ),
        (
            lambda: diagnostics.average_case_sharpness(loss, NETWORK.params, 0.1, num_samples=1),
            ValueError,
            "one sample has no standard error",
        ),
        (
            lambda: diagnostics.m_sharpness(LOSS, NETWORK.params, 0.1, batches=[]),
            ValueError,
            "`batches` has no groups",
        ),
        (
            lambda: diagnostics.sharpness(LOSS, NETWORK.params, 0.1, batches=iter([DATA])),
            TypeError,
            "an iterator.*is empty after the first",
        ),
        (
            lambda: diagnostics.sharpness(lambda w: (loss(w), 0), NETWORK.params, 0.1),
            TypeError,
            "must return the loss alone",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
