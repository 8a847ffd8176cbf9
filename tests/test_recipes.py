"""Recipes that are methods of a paper: the programs of the documents compute what the paper says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_sam
from tests.test_docs import SETUP, python_blocks, run, section_at

PAGE = "docs/recipes/fine_tuning.md"


def first_program(section):
    """Returns the names that the first block of a section defines."""
    namespace = {"__name__": "page"}
    run(SETUP, namespace)
    exec(next(code for code, line in python_blocks(PAGE) if section_at(PAGE, line) == section), namespace)
    return namespace


@pytest.fixture(scope="module")
def functional_sam():
    return first_program("Functional SAM")


@pytest.mark.parametrize("num_steps", [1, 3])
def test_functional_sam_is_the_jacobian_there_of_the_logits_gradient_here(functional_sam, num_steps):
    logits_fn, loss_of_logits = functional_sam["logits_fn"], functional_sam["loss_of_logits"]
    rho = 0.3
    with jax.enable_x64(True):
        as_float64 = lambda tree: jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree)
        w, x = as_float64((functional_sam["weights"], functional_sam["x"]))
        labels = jnp.asarray(np.asarray(functional_sam["labels"]))
        loss, grads, value_fn = functional_sam["functional"](w, x, labels)
        method = optax_sam.sam(rho, num_steps=num_steps)
        direction, _ = method.update(grads, method.init(w), w, value_fn=value_fn)

        cotangent = jax.grad(loss_of_logits)(logits_fn(w, x), labels)
        pull_back = lambda w: jax.vjp(lambda w: logits_fn(w, x), w)[1](cotangent)[0]
        there = w
        for _ in range(num_steps):
            uphill = pull_back(there)
            scale = rho / num_steps / jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(uphill)))
            there = optax.tree.add_scale(there, scale, uphill)
        expected = pull_back(there)

        of_loss = lambda w: loss_of_logits(logits_fn(w, x), labels)
        np.testing.assert_allclose(loss, of_loss(w), rtol=1e-12)
        for g, exact in zip(jax.tree.leaves(grads), jax.tree.leaves(jax.grad(of_loss)(w)), strict=True):
            np.testing.assert_allclose(g, exact, rtol=0, atol=1e-12)
        for d, exact in zip(jax.tree.leaves(direction), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(d, exact, rtol=0, atol=1e-10)
        sam, _ = method.update(grads, method.init(w), w, value_fn=of_loss)
        assert optax.tree.norm(jax.tree.map(jnp.subtract, sam, direction)) > 0.05 * optax.tree.norm(sam)


def test_functional_sam_in_nnx_is_the_same():
    namespace = {"__name__": "page"}
    run(SETUP, namespace)
    run(PAGE, namespace, "Functional SAM")
    loss_of_logits, rho = namespace["loss_of_logits"], 0.3
    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(namespace["x"]), jnp.float64)
        labels = jnp.asarray(np.asarray(namespace["labels"]))
        rngs = nnx.Rngs(0)
        linear = functools.partial(nnx.Linear, rngs=rngs, param_dtype=jnp.float64)
        model = nnx.Sequential(linear(8, 16), nnx.tanh, linear(16, 3))
        graph, w = nnx.split(nnx.clone(model))  # `model` itself is trained below
        logits_fn = lambda w: nnx.merge(graph, w)(x)
        cotangent = jax.grad(loss_of_logits)(logits_fn(w), labels)
        pull_back = lambda w: jax.vjp(logits_fn, w)[1](cotangent)[0]
        uphill = pull_back(w)
        expected = pull_back(optax.tree.add_scale(w, rho / optax.tree.norm(uphill), uphill))

        optimizer = nnx.Optimizer(model, optax.chain(optax_sam.sam(rho), optax.sgd(1.0)), wrt=nnx.Param)
        namespace["train_step"](model, optimizer, x, labels)  # w − d
        for old, new, exact in zip(*map(jax.tree.leaves, (w, nnx.state(model), expected)), strict=True):
            np.testing.assert_allclose(old - new, exact, rtol=0, atol=1e-10)


def test_flat_lora_perturbs_each_output_in_proportion_to_its_weights():
    namespace = first_program("Flat-LoRA")
    weight = jnp.arange(1.0, 4.0) * jax.random.normal(jax.random.key(0), (20_000, 3))  # inputs × outputs
    noise = namespace["noise_of"](weight, 0.1, jax.random.key(1))
    lengths = lambda a: np.linalg.norm(np.asarray(a, np.float64), axis=0)
    np.testing.assert_allclose(lengths(noise), 0.1 * lengths(weight), rtol=0.03)
    key, adapter = jax.random.key(2), namespace["adapter"]
    clean = namespace["noisy_loss"](adapter, namespace["x"], namespace["y"], 0.0, key)
    noisy = namespace["noisy_loss"](adapter, namespace["x"], namespace["y"], 0.5, key)
    assert clean != noisy
