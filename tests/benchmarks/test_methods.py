"""What the experiments measure: methods and weightings by their equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import methods
from benchmarks.experiments.claims import weightings
from benchmarks.experiments.claims.eigen_sam import perturbation_of
from benchmarks.experiments.networks import config_of, make_network, states_along_training
from benchmarks.experiments.theory import network as theory_network
from benchmarks.experiments.theory import third_order
from optax_sam import curvature
from tests.benchmarks.networks import RECIPES
from tests.problems import network


@pytest.fixture
def problem(x64):
    """Parameters, loss and the loss's gradient."""
    made = network(dtype=jnp.float64)
    batch = jax.tree.map(lambda x: x[0], made.batches)
    loss = lambda params: made.loss(params, batch)
    return made.params, loss, jax.jit(jax.grad(loss))


@functools.partial(jax.jit, static_argnums=(0, 2))
def direction(method, params, loss, rho):
    tx = methods.build(method, {"rho": rho})
    return tx.update(jax.grad(loss)(params), tx.init(params), params, value_fn=loss, refresh=False)[0]


def assert_same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected)


def test_reflected_sam_is_the_gradient_downhill_reflected(problem):
    params, loss, grad = problem
    g = grad(params)
    ahead = grad(optax.tree.add_scale(params, -0.3 / optax.tree.norm(g), g))
    assert_same(direction("reflected_sam", params, loss, 0.3), jax.tree.map(lambda a, b: 2 * a - b, g, ahead))


@pytest.mark.parametrize(
    ("method", "order"), [("reflected_sam", 2), ("gradient_norm_penalty", 2), ("reverse_sam", 1)]
)
def test_order_in_which_alternatives_differ_from_sam(problem, method, order):
    """As the docstring's table has it: the difference falls by 2^order where ρ is halved."""
    params, loss, _ = problem
    far, near = (
        float(
            optax.tree.norm(
                optax.tree.sub(direction(method, params, loss, rho), direction("sam", params, loss, rho))
            )
        )
        for rho in (1e-2, 5e-3)
    )
    assert far / near == pytest.approx(2**order, rel=0.03)


def test_perturbation_of_eigen_sam_is_the_one_of_its_step(data_dir):
    """The measurement sees where the method evaluates its second gradient."""
    settings = {"rho": 0.1, "alpha": 0.2}
    job = {"data": "digits", "method": "eigen_sam", "settings": settings, "epochs": 1, "seed": 0}
    made = make_network(config_of(job | {"label_noise": 0.0}, RECIPES), data_dir)
    state = next(iter(states_along_training(made)))[1]
    gradient = jax.grad(made.loss)(state.params, (made.noisy.images, made.noisy.labels))
    found = perturbation_of("eigen_sam", **settings)(gradient, state)
    seen = []

    def grad_fn(w):
        seen.append(w)
        return gradient

    tx = methods.build("eigen_sam", settings)
    tx.update(gradient, state.opt_state[0], state.params, grad_fn=grad_fn, refresh=False)
    moved = optax.tree.sub(seen[0], state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, moved)
    assert float(optax.tree.norm(found)) > 0.1  # tilted, so longer than ρ


def test_weightings_by_hand(x64):
    """Two steps of two parts, and two layers, transcribed."""
    rng = np.random.default_rng(0)
    steps = rng.normal(1, 1, (2, weightings.PARTS, 5))
    tree = lambda x: {"a": jnp.asarray(x[..., :2]), "b": jnp.asarray(x[..., 2:])}
    statistics = weightings.start(tree(steps[0, 0]))
    for parts in steps:
        found, statistics = weightings.observe(tree(parts), statistics, jnp.asarray(0.1))
    first, g = steps.mean(axis=1)
    m = 0.9 * first + 0.1 * g
    t = (m - g) ** 2
    between = ((steps - steps.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) / 12
    p = (0.99 * between[0] + between[1]) / 1.99
    layer = lambda x: np.concatenate([np.full(2, x[:2].mean()), np.full(3, x[2:].mean())])
    expected = {
        "sam": g,
        "info_sam": g / (t + t.mean()),
        "signal_to_noise": g * m**2 / (m**2 + t),
        "gradient_to_noise": g**3 / (g**2 + t),
        "layer_variance": g / (layer(t) + t.mean()),
        "layer_signal_to_noise": g * layer(m**2) / (layer(m**2) + layer(t)),
        "parts_variance": g / (p + p.mean()),
        "parts_signal_to_noise": g * m**2 / (m**2 + p),
        "running_mean": m,
    }
    assert found.keys() == expected.keys()
    for name, direction in expected.items():
        own = np.concatenate([found[name]["a"], found[name]["b"]])
        np.testing.assert_allclose(own, 0.1 * direction / np.linalg.norm(direction), rtol=1e-9, err_msg=name)


def test_share_is_one_where_the_perturbation_is_the_eigenvector(x64, monkeypatch):
    """The measurement of the third-order term: with one batch and u = v₁ it is ∇λ₁."""
    rng = np.random.default_rng(0)
    train = jnp.asarray(rng.normal(size=(20, 5))), jnp.asarray(rng.integers(3, size=20))
    layer = lambda *shape: {"kernel": jnp.asarray(rng.normal(size=shape)), "bias": jnp.zeros(shape[1])}
    params = {"hidden": layer(5, 4), "head": layer(4, 3)}
    pair = curvature.top_eigenpairs(lambda w: theory_network.loss(w, train), params, num_iters=35)
    vector = jax.tree.map(lambda x: x[0], pair.eigenvectors)

    along = optax.stateless(lambda gradient, params: jax.tree.map(lambda x: 0.1 * x, vector))
    monkeypatch.setattr(third_order, "ascent", lambda alpha, rho: optax.with_extra_args_support(along))
    third_order.compiled.cache_clear()
    third_order.method.cache_clear()
    _, terms = third_order.compiled(0.0, 0.1, 0.1)
    state = third_order.method(0.0, 0.1, 0.1).init(params)
    found = terms(params, state, jax.tree.map(lambda x: x[None], train), train, vector)
    third_order.compiled.cache_clear()
    third_order.method.cache_clear()
    for field in ("share", "share_at_equal_length", "alignment"):
        assert float(found[field]) == pytest.approx(1, abs=1e-6), field
