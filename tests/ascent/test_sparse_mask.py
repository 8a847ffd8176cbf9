"""M ⊙ ε: which coordinates the masks choose, counted over all leaves together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_sam
from optax_sam.ascent import sparse_mask
from tests.problems import flat, unflat
from tests.strategies import SIZE, vectors

MANY = jnp.arange(1.0, 10_001.0).reshape(100, 100)


@jax.jit
def largest(scores, num_kept):
    return sparse_mask._largest(unflat(scores, scores.dtype), num_kept)


@given(scores=vectors, num_kept=st.integers(0, SIZE))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_scores_are_kept_and_equal_ones_together(scores, num_kept, dtype):
    with jax.enable_x64(dtype == "float64"):
        scores = np.abs(scores).astype(dtype)
        kept = np.asarray(flat(largest(jnp.asarray(scores), num_kept)))
    # Ranks that count how many are strictly larger: equal scores share a rank.
    rank = (scores[None, :] > scores[:, None]).sum(axis=1)
    np.testing.assert_array_equal(kept, rank < num_kept)


def masks(stage, num_refreshes=3):
    state, found = stage.init(MANY), []
    for count in range(num_refreshes):
        masked, state = stage.update(MANY, state, grad=MANY, refresh=True, step_count=count)
        np.testing.assert_array_equal(masked, jnp.where(state.mask, MANY, 0))
        found.append(np.asarray(state.mask))
    return found


@pytest.mark.parametrize("make", [optax_sam.random_mask, optax_sam.fisher_mask, optax_sam.dynamic_mask])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_a_fraction_of_the_coordinates_is_kept(make, sparsity):
    for mask in masks(make(sparsity)):
        assert mask.mean() == pytest.approx(1 - sparsity, abs=0.02)


def test_a_random_mask_changes_and_a_fisher_mask_follows_the_gradient():
    first, second, _ = masks(optax_sam.random_mask(0.5))
    assert (first != second).mean() == pytest.approx(0.5, abs=0.05)
    for mask in masks(optax_sam.fisher_mask(0.25)):
        np.testing.assert_array_equal(mask, MANY > 2500)


def test_a_dynamic_mask_drops_the_smallest_gradients_and_takes_in_others():
    before, after, _ = masks(optax_sam.dynamic_mask(0.5, 0.2))
    dropped, taken = before & ~after, after & ~before
    assert dropped.sum() == pytest.approx(0.2 * 5000, abs=2)
    assert taken.sum() == pytest.approx(0.2 * 5000, abs=2)
    assert MANY[dropped].max() <= MANY[before & after].min()
    assert MANY[taken].mean() == pytest.approx(5000, rel=0.1)  # anywhere


def test_a_drop_rate_may_follow_the_number_of_refreshes():
    stage = optax_sam.dynamic_mask(0.5, lambda count: jnp.where(count < 2, 0.2, 0.0), interval=1)
    _, second, third = masks(stage)
    np.testing.assert_array_equal(second, third)


def test_between_refreshes_the_mask_stays():
    stage = optax_sam.random_mask(0.5)
    _, state = stage.update(MANY, stage.init(MANY), refresh=True)
    _, later = stage.update(MANY, state, refresh=False)
    np.testing.assert_array_equal(state.mask, later.mask)


MASKS = [optax_sam.random_mask, optax_sam.fisher_mask, optax_sam.dynamic_mask]


@pytest.mark.parametrize("make", MASKS)
def test_before_the_first_refresh_the_mask_is_random(make):
    stage = make(0.3)
    masked, state = stage.update(MANY, stage.init(MANY), grad=MANY, refresh=False)
    assert (np.asarray(masked) != 0).mean() == pytest.approx(0.7, abs=0.02)
    abstract = jax.eval_shape(lambda: MANY)
    np.testing.assert_array_equal(stage.init(abstract).mask, state.mask)


@pytest.mark.parametrize("make", MASKS)
@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_leaves_the_mask_alone(make, count, bad):
    """Of NaN nothing is among the largest, so the mask was empty until the next refresh."""
    stage = make(0.3)
    state = stage.init(MANY)
    if count:
        _, state = stage.update(MANY, state, grad=MANY, refresh=True)
    broken = MANY.at[3, 3].set(bad)
    _, after = stage.update(broken, state, grad=broken, refresh=True, step_count=count)
    np.testing.assert_array_equal(after.mask, state.mask)
