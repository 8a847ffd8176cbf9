"""A method for some of the parameters: the others are constants, whatever the method."""

import chex
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import optax_sam
from optax_sam import diagnostics
from tests.problems import network
from tests.registry import METHODS

PROBLEM = network(dtype=jnp.float32)
BATCH = jax.tree.map(lambda x: x[0], PROBLEM.batches)
LOSS = lambda params: PROBLEM.loss(params, BATCH)
HEAD = {"layer1": False, "layer2": True}
HEAD_LOSS = lambda head: LOSS(PROBLEM.params | {"layer2": head})


def updates_of(tx, loss, params, num_updates=2, **extra_args):
    """The results of a few updates at the same parameters."""
    state, found = tx.init(params), []
    for _ in range(num_updates):
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss, **extra_args)
        found.append(updates)
    return found, state


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_masked_method_is_the_method_of_the_selected_parameters(method, x64):
    params = jax.tree.map(lambda x: x.astype(jnp.float64), PROBLEM.params)
    head_loss = lambda head: LOSS(params | {"layer2": head})
    whole, state = updates_of(optax_sam.masked(method.make(0.1), HEAD), LOSS, params)
    alone, alone_state = updates_of(method.make(0.1), head_loss, params["layer2"])
    for found, expected in zip(whole, alone, strict=True):
        chex.assert_trees_all_close(found["layer2"], expected, rtol=1e-10, atol=1e-12)
        chex.assert_trees_all_close(found["layer1"], jax.grad(LOSS)(params)["layer1"], rtol=1e-12)
    leaves, expected = jax.tree.leaves(state), jax.tree.leaves(alone_state)
    assert [leaf.shape for leaf in leaves] == [leaf.shape for leaf in expected]


def test_weights_frozen_behind_a_masked_method_neither_move_nor_are_perturbed():
    seen = {}
    frozen = optax.masked(optax.set_to_zero(), {"layer1": True, "layer2": False})
    tx = optax.chain(optax_sam.masked(optax_sam.sam(0.3), HEAD), frozen, optax.sgd(0.1))
    ((updates,), _) = updates_of(tx, LOSS, PROBLEM.params, 1, observe=seen.update)
    ((expected,), _) = updates_of(
        optax.chain(optax_sam.sam(0.3), optax.sgd(0.1)), HEAD_LOSS, PROBLEM.params["layer2"], 1
    )
    chex.assert_trees_all_close(updates["layer2"], expected, rtol=1e-5)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates["layer1"]))
    assert not any(leaf.any() for leaf in jax.tree.leaves(seen["perturbation"]["layer1"]))
    np.testing.assert_allclose(optax.tree.norm(seen["perturbation"]["layer2"]), 0.3, rtol=1e-5)


def test_the_second_gradient_is_not_taken_for_the_others():
    count = lambda tx: str(
        jax.make_jaxpr(lambda p: tx.update(p, tx.init(p), p, value_fn=LOSS))(PROBLEM.params)
    ).count("dot_general")
    assert count(optax_sam.masked(optax_sam.sam(0.1), HEAD)) < count(optax_sam.sam(0.1))


ASCENTS = {
    "steepest": optax_sam.steepest_ascent(0.2),
    "adaptive": optax_sam.steepest_ascent(0.2, constraint=optax_sam.weight_magnitude()),
    "tilted": optax.chain(optax_sam.steepest_ascent(0.2), optax_sam.tilt_to_top_eigenvector(0.5, interval=2)),
    "mean": optax.chain(optax_sam.running_mean(0.9), optax_sam.steepest_ascent(0.2)),
    "noise": optax_sam.steepest_ascent(0.2, objective=optax_sam.gradient_noise()),
    "sparse": optax.chain(optax_sam.steepest_ascent(0.2), optax_sam.fisher_mask(0.5)),
    "budget": optax.chain(optax_sam.steepest_ascent(0.2), optax_sam.loss_budget(0.01)),
    "random": optax.chain(optax_sam.random_normal(), optax_sam.scale_by_filter_norm(0.2)),
    "sample": optax_sam.posterior_sample(0.2, num_examples=10**9),
}


@pytest.mark.parametrize("name", ASCENTS)
@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_masked_ascent_perturbs_the_selected_parameters_only(name, num_steps):
    """And the direction is the gradient there for all parameters, as in SAM-ON."""
    seen, expected = {}, {}
    masked = optax_sam.masked(ASCENTS[name], HEAD)
    whole = optax_sam.sharpness_aware(masked, num_steps=num_steps)
    (*_, direction), _ = updates_of(whole, LOSS, PROBLEM.params, observe=seen.update)
    alone = optax_sam.sharpness_aware(ASCENTS[name], num_steps=num_steps)
    updates_of(alone, HEAD_LOSS, PROBLEM.params["layer2"], observe=expected.update)
    chex.assert_trees_all_close(
        seen["perturbation"]["layer2"], expected["perturbation"], rtol=1e-4, atol=1e-6
    )
    assert not any(leaf.any() for leaf in jax.tree.leaves(seen["perturbation"]["layer1"]))
    moved = jax.tree.map(jnp.add, PROBLEM.params, seen["perturbation"])
    chex.assert_trees_all_close(direction, jax.grad(LOSS)(moved), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "labels", [{"layer1": "a", "layer2": "b"}, lambda params: {"layer1": "a", "layer2": "b"}]
)
def test_a_radius_per_group(labels):
    seen = {}
    radii = {"a": optax_sam.steepest_ascent(0.1), "b": optax_sam.steepest_ascent(0.02)}
    updates_of(
        optax_sam.sharpness_aware(optax_sam.partition(radii, labels)),
        LOSS,
        PROBLEM.params,
        observe=seen.update,
    )
    gradient = jax.grad(LOSS)(PROBLEM.params)
    for layer, rho in (("layer1", 0.1), ("layer2", 0.02)):
        expected = jax.tree.map(lambda g: rho * g / optax.tree.norm(gradient[layer]), gradient[layer])  # noqa: B023
        chex.assert_trees_all_close(seen["perturbation"][layer], expected, rtol=1e-5, atol=1e-8)


WRAPPED = [
    lambda stage: optax.masked(stage, HEAD),
    lambda stage: optax.partition({True: stage, False: optax.identity()}, HEAD),
]


@pytest.mark.parametrize("wrap", WRAPPED, ids=["masked", "partition"])
@pytest.mark.parametrize("name", ASCENTS)
def test_optax_masked_around_an_ascent_is_an_error(wrap, name):
    """What it leaves out passed through, so ε contained the gradient itself, of any length."""
    tx = optax_sam.sharpness_aware(wrap(ASCENTS[name]))
    with pytest.raises(ValueError, match=r"(?s)`optax.masked` or `optax.partition` .*optax_sam.masked\("):
        updates_of(tx, LOSS, PROBLEM.params, 1)


@pytest.mark.parametrize("wrap", WRAPPED, ids=["masked", "partition"])
def test_optax_masked_around_a_method_is_an_error_whose_remedy_works(wrap):
    with pytest.raises(ValueError, match=r"optax_sam.masked\(method, mask\)"):
        updates_of(wrap(optax_sam.sam(0.1)), LOSS, PROBLEM.params, 1)


def test_monitor_sees_a_masked_method():
    tx = diagnostics.monitor(optax_sam.masked(optax_sam.sam(0.1), HEAD))
    _, state = updates_of(tx, LOSS, PROBLEM.params, 1)
    np.testing.assert_allclose(optax.tree.get(state, "perturbation_norm"), 0.1, rtol=1e-5)


class Attention(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.MultiHeadDotProductAttention(num_heads=2)(linen.LayerNorm()(x))


def parameters_of(library):
    x = jnp.ones((1, 4, 8))
    if library == "linen":
        return Attention().init(jax.random.key(0), x)["params"], ("kernel",), ("bias", "scale")
    if library == "nnx":
        model = nnx.Sequential(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.LayerNorm(8, rngs=nnx.Rngs(0)))
        return nnx.state(model, nnx.Param), ("kernel",), ("bias", "scale")
    if library == "nnx pure":
        state = parameters_of("nnx")[0]
        return (nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure)(state), ("kernel",), ("bias", "scale")
    if library == "equinox":
        model = eqx.nn.MLP(8, 8, 8, 1, key=jax.random.key(0))
        return eqx.filter(model, eqx.is_inexact_array), ("weight",), ("bias",)
    network = hk.transform(lambda x: hk.Linear(3)(hk.LayerNorm(-1, True, True)(x)))
    return network.init(jax.random.key(0), x), ("w",), ("b", "scale", "offset")


@pytest.mark.parametrize("library", ["linen", "nnx", "nnx pure", "equinox", "haiku"])
def test_a_mask_by_name_finds_what_is_named_so_in_every_library(library):
    params, matrices, others = parameters_of(library)
    chosen, left = (jax.tree.leaves(optax_sam.mask_by_name(*names)(params)) for names in (matrices, others))
    assert any(chosen)
    assert all(a != b for a, b in zip(chosen, left, strict=True))
    loss = lambda params: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    tx = optax.chain(optax_sam.masked(optax_sam.sam(0.1), optax_sam.mask_by_name(*matrices)), optax.sgd(0.1))
    updates_of(tx, loss, params, 2)
    updates_of(optax_sam.asam(0.1, mask=optax_sam.mask_by_name(*matrices)), loss, params, 1)


def test_a_mask_by_name_says_which_names_there_are():
    with pytest.raises(ValueError, match=r"named 'kernels'\. There are: bias, layer1, layer2, weight"):
        optax_sam.mask_by_name("bias", "kernels")(PROBLEM.params)


def test_a_mask_that_can_be_called_is_still_a_mask():
    """An Equinox module of bools was called with the parameters."""
    model = eqx.filter(eqx.nn.MLP(8, "scalar", 6, 1, key=jax.random.key(0)), eqx.is_inexact_array)
    mask = jax.tree.map(lambda w: w.ndim > 1, model)
    assert callable(mask)
    for given in (mask, lambda params: mask):
        stage = optax_sam.weight_magnitude(mask=given)
        diagonal, _ = stage.update(model, stage.init(model), model)
        assert all((leaf == 1).all() for leaf in jax.tree.leaves(diagonal) if leaf.ndim < 2)


@pytest.mark.parametrize(
    "mask", [{"layer1": False, "layer2": False}, {"layer1": 1.0, "layer2": True}, {"other": True}]
)
def test_a_mask_that_is_none(mask):
    with pytest.raises((ValueError, TypeError), match="`mask`"):
        optax_sam.masked(optax_sam.sam(0.1), mask).init(PROBLEM.params)
