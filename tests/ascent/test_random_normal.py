"""Noise of the right size for every filter, new in each step, for which no gradient is computed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.problems import network

PROBLEM = network()
BATCH = jax.tree.map(lambda x: x[0], PROBLEM.batches)
VALUE_FN = lambda params: PROBLEM.loss(params, BATCH)
NOISE = [
    lambda: optax_sam.rwp(0.1),
    lambda: optax_sam.rwp(0.1, eta=0.5),
    lambda: optax_sam.sharpness_aware(optax.chain(optax_sam.random_normal(), optax_sam.steepest_ascent(0.1))),
]


def draw(stage, like, **extra_args):
    noise, _ = stage.update(like, stage.init(like), like, **extra_args)
    return noise


@pytest.mark.parametrize("make", NOISE, ids=["rwp", "adaptive", "direction"])
def test_the_gradient_that_is_passed_does_not_matter(make):
    tx = make()
    states = [tx.init(PROBLEM.params)] * 2
    nans = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), PROBLEM.params)
    update = jax.jit(lambda grads, state: tx.update(grads, state, PROBLEM.params, value_fn=VALUE_FN))
    for _ in range(2):
        results = [update(grads, state) for grads, state in zip((PROBLEM.params, nans), states, strict=True)]
        chex.assert_trees_all_equal(*results)
        states = [state for _, state in results]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_numbers_follow_key_step_and_ascent_with_every_generator(impl):
    like = {"a": jnp.zeros((3, 4)), "b": jnp.zeros((3, 4))}
    key = jax.random.key(0, impl=impl)
    seen = [
        draw(optax_sam.random_normal(key=key), like, step_count=step, ascent_step=ascent)
        for step, ascent in ((0, 0), (1, 0), (0, 1))
    ]
    seen.append(draw(optax_sam.random_normal(key=jax.random.fold_in(key, 1)), like))
    numbers = np.concatenate([np.ravel(x) for tree in seen for x in jax.tree.leaves(tree)])
    assert len(np.unique(numbers)) == 4 * 24
    again = jax.jit(lambda step: draw(optax_sam.random_normal(key=key), like, step_count=step))(1)
    chex.assert_trees_all_close(again, seen[1], rtol=1e-6)


def test_an_integer_is_the_key_of_the_default_generator():
    like = jnp.zeros(5)
    np.testing.assert_array_equal(
        draw(optax_sam.random_normal(key=3), like), draw(optax_sam.random_normal(key=jax.random.key(3)), like)
    )
    with pytest.raises(TypeError, match="`key` must be an integer or a single random key"):
        optax_sam.rwp(key=0.5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_in_16_bits_have_tails(dtype):
    """Drawn in 16 bits they end at 2.7 standard deviations (bfloat16)."""
    noise = draw(optax_sam.random_normal(), jnp.zeros(100_000, dtype)).astype(jnp.float32)
    assert abs(noise).max() > 3.5
    assert abs(noise.std() - 1) < 0.01


AXES = {
    "last": (-1, {"kernel": -1, "convolution": -1, "bias": ()}),
    "first": (0, {"kernel": 0, "convolution": 0, "bias": ()}),
    "by name": (
        lambda name, w: {"net/kernel": None, "net/convolution": (0, -1), "net/bias": 0}[name],
        {"kernel": (), "convolution": (0, -1), "bias": 0},
    ),
}


@pytest.mark.parametrize("name", AXES)
def test_noise_is_relative_to_the_length_of_each_filter(name):
    filter_axis, kept = AXES[name]
    rng = np.random.default_rng(0)
    shapes = {"kernel": (400, 5), "convolution": (10, 20, 2, 30), "bias": (7,)}
    params = {
        "net": {key: rng.normal(size=shape) * rng.uniform(1, 9, shape) for key, shape in shapes.items()}
    }
    params = jax.tree.map(jnp.float32, params)
    ones = jax.tree.map(jnp.ones_like, params)
    epsilon = draw_scaled(ones, params, filter_axis=filter_axis)
    for key, w in params["net"].items():
        axes = kept[key] if isinstance(kept[key], tuple) else (kept[key],)
        others = tuple(set(range(w.ndim)) - {axis % w.ndim for axis in axes})
        expected = 0.1 * np.sqrt(np.sum(np.square(w, dtype=np.float64), axis=others, keepdims=True))
        np.testing.assert_allclose(epsilon["net"][key], np.broadcast_to(expected, w.shape), rtol=1e-5)


def draw_scaled(noise, params, **kwargs):
    stage = optax_sam.scale_by_filter_norm(0.1, **kwargs)
    epsilon, _ = stage.update(noise, stage.init(params), params)
    return epsilon


def test_filters_that_have_had_large_gradients_get_less_noise():
    seen, w = [], {"kernel": jnp.ones((50, 2)), "bias": jnp.ones(2)}
    scale = {"kernel": jnp.array([0.0, 10.0]), "bias": jnp.array([0.0, 10.0])}
    loss = lambda w: sum(jnp.sum(scale[name] * w[name]) for name in w)
    tx = optax_sam.rwp(0.1, eta=2.0, decay=0.5)
    plain = optax_sam.rwp(0.1)
    observe = lambda perturbation, **_: seen.append(perturbation)
    for method in (tx, plain):
        state = method.init(w)
        for _ in range(2):
            _, state = method.update(w, state, w, value_fn=loss, observe=observe)
    ratios = [jax.tree.map(lambda a, b: a / b, a, b) for a, b in zip(seen[:2], seen[2:], strict=True)]
    for name, squares in (("kernel", 50 * 100.0), ("bias", 100.0)):
        np.testing.assert_allclose(ratios[0][name], 1, rtol=1e-6)
        np.testing.assert_allclose(ratios[1][name][..., 0], 1, rtol=1e-6)
        np.testing.assert_allclose(ratios[1][name][..., 1], (1 + 2 * squares) ** -0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: optax_sam.rwp(-0.1), ValueError, "`sigma` is the length of a random perturbation"),
        (lambda: optax_sam.rwp("0.1"), TypeError, "`sigma` must be a number or a schedule"),
        (lambda: optax_sam.rwp(eta=-1.0), ValueError, "`eta` must be at least 0, got -1"),
        (lambda: optax_sam.rwp(eta=0.1, decay=1.0), ValueError, r"`decay` must be in \[0, 1\), got 1"),
        (lambda: optax_sam.rwp(filter_axis=None), TypeError, "`filter_axis` must be a Python integer"),
        (lambda: optax_sam.mixed_rwp(0.1, -0.5), ValueError, "`lam` must be at least 0"),
        (lambda: optax_sam.mixed_rwp(0.1, 1.5), ValueError, r"`lam` is a fraction and must be in \[0, 1\]"),
        (lambda: optax_sam.rwp(optax.sgd(0.1)), TypeError, "does not take the base optimizer"),
        (lambda: optax_sam.le_sam(-0.1), ValueError, "`sigma` is the budget for a rise of the loss"),
        (lambda: optax_sam.le_sam(0.1, -0.1), ValueError, "`rho_max` is the radius of a ball"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_inject_hyperparams_may_not_change_is_said():
    with pytest.raises(TypeError, match=r"`filter_axis` must be .*static_args=\(\"filter_axis\", \"key\"\)"):
        optax.inject_hyperparams(optax_sam.rwp)(sigma=0.1).init(PROBLEM.params)
    static = optax.inject_hyperparams(optax_sam.rwp, static_args=("filter_axis", "key"))(sigma=0.1)
    updates, _ = static.update(PROBLEM.params, static.init(PROBLEM.params), PROBLEM.params, value_fn=VALUE_FN)
    tx = optax_sam.rwp(0.1)
    expected, _ = tx.update(PROBLEM.params, tx.init(PROBLEM.params), PROBLEM.params, value_fn=VALUE_FN)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)
