"""What one public function refuses as parameters, all refuse: nothing is differentiated by accident."""

import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from optax_sam import curvature, diagnostics, sde
from tests.registry import BY_NAME

MODULES = [optax_sam, curvature, diagnostics, sde]
PUBLIC = {
    f"{module.__name__}.{name}".removeprefix("optax_sam."): getattr(module, name)
    for module in MODULES
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
}


def step(tx):
    """A step of a method, on parameters that stand for the gradient too."""
    return lambda loss, params: tx.update(params, tx.init(params), params, value_fn=loss)


def every_leaf(params):
    return jax.tree.map(lambda _: True, params)


METHODS = {name: step(BY_NAME[name].make(0.05)) for name in PUBLIC if name in BY_NAME} | {
    "sharpness_aware": step(optax_sam.sharpness_aware(optax_sam.steepest_ascent(0.05))),
    "one_gradient": step(optax_sam.one_gradient(optax_sam.steepest_ascent(0.05))),
    "running_fisher": step(optax_sam.running_fisher(optax_sam.random_normal())),
    "reuse": step(optax_sam.reuse(optax_sam.sam(0.05), interval=2)),
    "auto_rho": step(optax_sam.auto_rho(optax_sam.sam)),
    "masked": step(optax_sam.masked(optax_sam.sam(0.05), every_leaf)),
    "partition": step(
        optax_sam.sharpness_aware(optax_sam.partition({True: optax_sam.steepest_ascent(0.05)}, every_leaf))
    ),
    "diagnostics.monitor": step(diagnostics.monitor(optax_sam.sam(0.05))),
    "diagnostics.wiring_check": step(diagnostics.wiring_check()),
}
OF_BATCHES = {"batches": [jnp.ones(2)]}
SDE = {"rho": 0.1}
MEASURES = {
    "sample_params": lambda loss, w: optax_sam.sample_params(w, w, num_examples=10, key=0),
    "curvature.hvp": lambda loss, w: curvature.hvp(loss, w, w),
    "curvature.third_derivative": lambda loss, w: curvature.third_derivative(loss, w, w),
    "curvature.hessian_operator": curvature.hessian_operator,
    "curvature.gauss_newton_product": lambda loss, w: curvature.gauss_newton_product(loss, jnp.sum, w, w),
    "curvature.top_eigenpairs": curvature.top_eigenpairs,
    "curvature.trace": curvature.trace,
    "curvature.spectral_density": curvature.spectral_density,
    "diagnostics.sharpness": lambda loss, w: diagnostics.sharpness(loss, w, 0.1),
    "diagnostics.worst_case_sharpness": lambda loss, w: diagnostics.worst_case_sharpness(loss, w, 0.1),
    "diagnostics.average_case_sharpness": lambda loss, w: diagnostics.average_case_sharpness(loss, w, 0.1),
    "diagnostics.m_sharpness": lambda loss, w: diagnostics.m_sharpness(loss, w, 0.1, **OF_BATCHES),
    "diagnostics.alignment": lambda loss, w: diagnostics.alignment(w, w),
    "diagnostics.perturbation_gain": lambda loss, w: diagnostics.perturbation_gain(loss, w, w),
    "diagnostics.effective_perturbation": lambda loss, w: diagnostics.effective_perturbation(w, w),
    "diagnostics.loss_surface": lambda loss, w: diagnostics.loss_surface(loss, w, [w], jnp.ones(1)),
    "diagnostics.random_directions": lambda loss, w: diagnostics.random_directions(w),
    "diagnostics.filter_normalised": lambda loss, w: diagnostics.filter_normalised(w, w),
    "diagnostics.gradient_plane": lambda loss, w: diagnostics.gradient_plane(loss, w, w),
    "diagnostics.plane_through": lambda loss, w: diagnostics.plane_through([w, w, w]),
    "diagnostics.path_plane": lambda loss, w: diagnostics.path_plane([w, w, w]),
    "sde.drift": lambda loss, w: sde.drift(loss, w, jnp.ones(2), **SDE),
    "sde.noise_factors": lambda loss, w: sde.noise_factors(loss, w, jnp.ones(2), **SDE),
    "sde.simulate": lambda loss, w: sde.simulate(
        loss, w, jnp.ones(2), **SDE, learning_rate=0.1, num_steps=1, key=0
    ),
}
# Stages are called by a method that has checked the parameters; the others take none.
STAGES = ("optax_sam.ascent.", "optax_sam.descent.")
TAKE_NONE = {name for name, function in PUBLIC.items() if function.__module__.startswith(STAGES)}
TAKE_NONE -= MEASURES.keys()
TAKE_NONE |= {"rho_following_learning_rate", "mask_by_name", "curvature.gauss_newton_loss"}
FUNCTIONS = METHODS | MEASURES


def loss(params, *batch):
    return sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(params))


def test_no_public_function_is_left_out():
    assert FUNCTIONS.keys() | TAKE_NONE == PUBLIC.keys()
    assert not FUNCTIONS.keys() & TAKE_NONE


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jnp.array([1 + 1j, 2.0]), "real floating-point numbers, got complex"),
        (jnp.array(2), "real floating-point numbers, got int"),
        (jnp.array([True]), "real floating-point numbers, got bool"),
        (1.0, "must be a pytree of arrays, but the leaf .* is of type float"),
        (jnp.ones(2, jnp.float8_e4m3fn), "at least 16 bits"),
        (optax.MaskedNode(), "contain `optax.MaskedNode`s"),
    ],
    ids=["complex", "integer", "bool", "number", "float8", "masked"],
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_leaves_that_cannot_be_perturbed_are_refused(name, leaf, message):
    params = {"w": jnp.ones(3), "other": leaf}
    with pytest.raises((TypeError, ValueError), match=message):
        FUNCTIONS[name](loss, params)


@pytest.mark.parametrize("name", MEASURES)
def test_parameters_that_can_be_perturbed_are_not(name):
    MEASURES[name](loss, {"w": jnp.ones(3), "half": jnp.ones(2, jnp.bfloat16)})


OF_A_LOSS = [name for name in MEASURES if "value_fn" in inspect.signature(PUBLIC[name]).parameters]


@pytest.mark.parametrize("name", OF_A_LOSS)
def test_swapped_arguments_are_named(name):
    arguments = "`value_fn` must be a function of .*got"
    with pytest.raises(TypeError, match=arguments):
        FUNCTIONS[name](jnp.ones(3), loss)


VECTORS = {
    "hvp": ("vector", lambda w, v: curvature.hvp(loss, w, v)),
    "third_derivative": ("vector", lambda w, v: curvature.third_derivative(loss, w, v)),
    "hessian_operator": ("vector", lambda w, v: curvature.hessian_operator(loss, w)(v)),
    "top_eigenpairs": ("start", lambda w, v: curvature.top_eigenpairs(loss, w, start=v)),
    "worst_case_sharpness": (
        "start",
        lambda w, v: diagnostics.worst_case_sharpness(loss, w, 0.1, start=v),
    ),
    "alignment": ("eigenvector", lambda w, v: diagnostics.alignment(w, v)),
    "perturbation_gain": ("perturbation", lambda w, v: diagnostics.perturbation_gain(loss, w, v)),
    "effective_perturbation": ("perturbation", lambda w, v: diagnostics.effective_perturbation(w, v)),
    "gradient_plane": ("perturbation", lambda w, v: diagnostics.gradient_plane(loss, w, v)),
    "filter_normalised": ("direction", lambda w, v: diagnostics.filter_normalised(v, w)),
    "loss_surface": ("Each of `directions", lambda w, v: diagnostics.loss_surface(loss, w, [v], jnp.ones(1))),
    "sample_params": (
        "precision",
        lambda w, v: optax_sam.sample_params(w, v, num_examples=10, key=0),
    ),
}


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize(
    ("vector", "error", "message"),
    [
        ({"w": jnp.ones(4)}, ValueError, r"must have the shapes of the parameters, got \(4,\).*of \(3,\)"),
        (jnp.ones(3), ValueError, "must have the tree structure of the parameters, but at the top"),
        ({"v": jnp.ones(3)}, ValueError, "must have the tree structure of the parameters"),
        ({"w": jnp.ones(3) * 1j}, TypeError, r".*arrays of real numbers.*got complex64 for `params\['w'\]`"),
        ({"w": jnp.ones(3, bool)}, TypeError, r".*arrays of real numbers.*got bool"),
    ],
    ids=["shape", "tree", "name", "complex", "bool"],
)
def test_vectors_are_like_the_parameters(name, vector, error, message):
    argument, call = VECTORS[name]
    with pytest.raises(error, match=f"{argument}` {message}"):
        call({"w": jnp.ones(3)}, vector)
