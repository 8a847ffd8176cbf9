"""Bad input: the error's class, what it says was wrong, and the remedy it names."""

import functools
import inspect
import warnings

import equinox as eqx
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import optax_sam
from optax_sam import descriptions, diagnostics
from tests.registry import METHODS, every_method

PARAMS = {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}


def loss(params):
    return jnp.sum(params["w"] ** 2) + jnp.sum(params["b"] ** 2)


def update(tx, grads=PARAMS, params=PARAMS, **extra_args):
    # Traced and not run: what is wrong must be found then.
    state = tx.init(PARAMS if params is None else params)
    return jax.eval_shape(lambda grads, params: tx.update(grads, state, params, **extra_args), grads, params)


def raises(error, *parts):
    """All of `parts` in the message, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(parts))


# The published methods as they are built without options, of which the registry sets some.
PUBLISHED = {
    method.name: getattr(optax_sam, method.name) for method in METHODS if hasattr(optax_sam, method.name)
} | {"bayesian_sam": functools.partial(optax_sam.bayesian_sam, num_examples=100)}
RADII = [
    ("rho", make)
    for make in [*PUBLISHED.values(), optax_sam.steepest_ascent]
    if "rho" in inspect.signature(make).parameters
] + [
    ("rho_max", lambda rho_max: optax_sam.le_sam(0.1, rho_max)),
    ("rho_max", optax_sam.spherical_search),
    ("rho_max", lambda rho_max: optax_sam.xsam(0.1, rho_max)),
]


@pytest.mark.parametrize(("name", "make"), RADII)
@pytest.mark.parametrize("radius", [-0.1, -1, np.float32(-0.1), float("nan")])
def test_negative_radius(name, make, radius):
    with raises(ValueError, f"`{name}` is the radius", "at least 0, got", r"optax.scale\(-1.0\)"):
        make(radius)


@pytest.mark.parametrize(("name", "make"), RADII)
@pytest.mark.parametrize("radius", ["0.05", None, (0.05,), {"rho": 0.05}], ids=repr)
def test_radius_of_a_wrong_type(name, make, radius):
    with raises(TypeError, f"`{name}` must be a number or a schedule", type(radius).__name__):
        make(radius)


NUM_STEPS = [
    *(make for make in PUBLISHED.values() if "num_steps" in inspect.signature(make).parameters),
    lambda rho, num_steps: optax_sam.sharpness_aware(optax_sam.steepest_ascent(rho), num_steps=num_steps),
]
COUNTS = [("num_steps", make) for make in NUM_STEPS] + [
    ("num_iters", optax_sam.eigen_sam),
    ("num_alphas", optax_sam.xsam),
    ("num_alphas", optax_sam.spherical_search),
]


@pytest.mark.parametrize(("name", "make"), COUNTS)
@pytest.mark.parametrize("count", [0, -1])
def test_count_under_1(name, make, count):
    with raises(ValueError, f"`{name}` must be at least 1, got {count}"):
        make(0.1, **{name: count})


@pytest.mark.parametrize(("name", "make"), COUNTS)
@pytest.mark.parametrize("count", [1.0, "1", None, np.ones((), np.int32)], ids=repr)
def test_count_that_is_no_integer(name, make, count):
    what = f"`{name}` must be a Python integer", "fixes the shape", type(count).__name__
    with raises(TypeError, *what, "static_args", f'static_args=\\("{name}",\\)'):
        make(0.1, **{name: count})


def test_count_that_inject_hyperparams_turned_into_an_array():
    tx = optax.inject_hyperparams(optax_sam.sam)(rho=0.1, num_steps=2)
    with raises(TypeError, "`num_steps` must be a Python integer", "static_args"):
        tx.init(PARAMS)
    static = optax.inject_hyperparams(optax_sam.sam, static_args=("num_steps",))
    update(static(rho=0.1, num_steps=2), value_fn=loss)


INTERVALS = [
    optax_sam.eigen_sam,
    optax_sam.xsam,
    optax_sam.spherical_search,
    lambda rho, interval: optax_sam.tilt_to_top_eigenvector(interval=interval),
]


@pytest.mark.parametrize("make", INTERVALS)
@pytest.mark.parametrize("interval", [0, -5])
def test_interval_under_1(make, interval):
    with raises(ValueError, "`interval`", f"at least 1, got {interval}", "refresh=False"):
        make(0.1, interval=interval)


@pytest.mark.parametrize("make", INTERVALS)
@pytest.mark.parametrize("interval", [2.5, 3.0, "3", None], ids=repr)
def test_interval_that_is_no_integer(make, interval):
    with raises(TypeError, "`interval`", "must be an integer", "got", str(interval)):
        make(0.1, interval=interval)


DECAYS = [
    *((name, optax_sam.gradient_noise) for name in ("decay", "variance_decay")),
    *((name, lambda **kw: optax_sam.info_sam(0.1, **kw)) for name in ("decay", "variance_decay")),
    ("decay", optax_sam.tilt_to_top_eigenvector),
    ("decay", optax_sam.eigen_sam),
]


@pytest.mark.parametrize(("name", "make"), DECAYS)
@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_decay_outside_0_1(make, name, decay):
    with raises(ValueError, f"`{name}` must be in \\[0, 1\\), got {decay}"):
        make(**{name: decay})


NOT_NEGATIVE = [
    ("eta", optax_sam.weight_magnitude),
    ("eta", optax_sam.fisher_information),
    ("eta", optax_sam.asam),
    ("eta", optax_sam.fisher_sam),
    ("damping", optax_sam.gradient_noise),
    ("power", optax_sam.gradient_noise),
    ("alpha", optax_sam.tilt_to_top_eigenvector),
    ("alpha", optax_sam.eigen_sam),
    ("alpha_max", lambda alpha_max: optax_sam.spherical_search(0.1, alpha_max=alpha_max)),
]


@pytest.mark.parametrize(("name", "make"), NOT_NEGATIVE)
def test_number_that_must_not_be_negative(name, make):
    with raises(ValueError, f"`{name}` must be at least 0, got -0.5"):
        make(**{name: -0.5})


@pytest.mark.parametrize(("name", "make"), NOT_NEGATIVE)
@pytest.mark.parametrize("value", [optax.constant_schedule(0.2), "0.2"], ids=["schedule", "string"])
def test_number_that_is_a_schedule_or_a_string(name, make, value):
    what = f"`{name}` must be a number, got {type(value).__name__}"
    with raises(TypeError, what, "optax.inject_hyperparams", f"{name}=schedule"):
        make(**{name: value})


def test_remedy_for_a_schedule_of_alpha():
    static_args = ("interval", "num_iters", "solver", "key", "num_steps")
    method = optax.inject_hyperparams(optax_sam.eigen_sam, static_args=static_args)
    update(method(rho=0.1, alpha=optax.constant_schedule(0.2)), value_fn=loss)


@pytest.mark.parametrize("solver", ["arnoldi", None, 1])
def test_unknown_solver(solver):
    with raises(ValueError, "`solver` must be one of", "lanczos", "power", f"got {solver!r}"):
        optax_sam.eigen_sam(0.1, solver=solver)


@pytest.mark.parametrize("decay", [0.5, np.array(0.5)])
def test_running_mean_with_lanczos(decay):
    with raises(
        ValueError, "`decay` is for `solver=\"power\"`, got 0.5 with 'lanczos'", "Leave one of the two out"
    ):
        optax_sam.eigen_sam(0.1, solver="lanczos", decay=decay)


@every_method
def test_missing_value_fn(method):
    with raises(ValueError, "got no `value_fn`", r"value_fn=lambda params: loss\(params, batch\)"):
        update(method.make(0.1))


@every_method
def test_missing_params(method):
    with raises(
        ValueError, "perturb the parameters", r"tx.update\(grads, state, params, value_fn=value_fn\)"
    ):
        update(method.make(0.1), params=None, value_fn=loss)


@pytest.mark.parametrize(
    ("value_fn", "got"),
    [
        (lambda params: (loss(params), {"accuracy": 1.0}), "tuple"),
        (lambda params: [loss(params)], "list"),
        (lambda params: {"loss": loss(params)}, "dict"),
        (lambda params: None, "NoneType"),
    ],
    ids=["tuple", "list", "dict", "none"],
)
def test_value_fn_that_returns_more_or_less_than_the_loss(value_fn, got):
    what = "`value_fn` must return the loss alone", f"returned a {got}"
    with raises(TypeError, *what, "drop any auxiliary output", r"loss_and_aux\(params, batch\)\[0\]"):
        update(optax_sam.sam(), value_fn=value_fn)


@pytest.mark.parametrize(
    ("value_fn", "got"),
    [
        (lambda params: params["b"] ** 2, r"shape \(3,\), dtype float32"),
        (lambda params: loss(params)[None], r"shape \(1,\), dtype float32"),
        (lambda params: loss(params).astype(jnp.int32), r"shape \(\), dtype int32"),
        (lambda params: 3, r"shape \(\), dtype int32"),
        (lambda params: loss(params) > 0, r"shape \(\), dtype bool"),
        (lambda params: loss(params) + 0j, r"shape \(\), dtype complex64"),
    ],
    ids=["vector", "one entry", "integer", "python integer", "bool", "complex"],
)
def test_value_fn_that_returns_no_real_scalar(value_fn, got):
    what = "`value_fn` must return a real floating-point scalar", got
    with raises(TypeError, *what, r"losses\(params, batch\).mean\(\)"):
        update(optax_sam.sam(), value_fn=value_fn)


@pytest.mark.parametrize("value_fn", [1.5, np.float32(1.5), "loss"], ids=repr)
def test_value_fn_that_is_no_function(value_fn):
    what = "`value_fn` must be a function of the parameters", type(value_fn).__name__
    with raises(TypeError, *what, "not the loss itself"):
        update(optax_sam.sam(), value_fn=value_fn)


@pytest.mark.parametrize(
    ("curvature_fn", "what"),
    [
        (lambda params: (loss(params), 1.0), "`curvature_fn` must return the loss alone"),
        (lambda params: params["b"], "`curvature_fn` must return a real floating-point scalar"),
        (1.5, "`curvature_fn` must be a function of the parameters"),
    ],
    ids=["tuple", "vector", "no function"],
)
def test_curvature_fn_is_called_by_its_name(curvature_fn, what):
    with raises(TypeError, what, r"curvature_fn=lambda params:"):
        update(optax_sam.eigen_sam(), value_fn=loss, curvature_fn=curvature_fn, refresh=True)


@pytest.mark.parametrize(
    "grad_fn",
    [jax.value_and_grad(loss), lambda params: jax.grad(loss)(params)["w"], lambda params: None],
    ids=["value and gradient", "part", "none"],
)
def test_grad_fn_of_another_structure(grad_fn):
    what = "The result of `grad_fn` must have the tree structure of the parameters"
    with raises(ValueError, what, "no loss, no auxiliary output"):
        update(optax_sam.sam(), value_fn=loss, grad_fn=grad_fn)


def test_grad_fn_of_other_shapes():
    per_example = lambda params: jax.tree.map(lambda g: jnp.stack([g, g]), jax.grad(loss)(params))
    what = r"The result of `grad_fn` must have the shapes of the parameters, got \(2, 3\) for `params\['b'\]`"
    with raises(ValueError, what):
        update(optax_sam.sam(), value_fn=loss, grad_fn=per_example)


@every_method
def test_gradients_of_another_structure(method):
    what = "gradients passed to `update` must have the tree structure of the parameters"
    for grads in ({"w": PARAMS["w"]}, (loss(PARAMS), PARAMS), [PARAMS["b"], PARAMS["w"]]):
        with raises(ValueError, what, "with respect to all of `params`"):
            update(method.make(0.1), grads, value_fn=loss)


def test_gradients_of_other_shapes():
    what = r"gradients passed to `update` must have the shapes of the parameters, got \(3, 2\)"
    with raises(ValueError, what, r"for `params\['w'\]` of \(2, 3\)"):
        update(optax_sam.sam(), {"w": PARAMS["w"].T, "b": PARAMS["b"]}, value_fn=loss)


@every_method
def test_masked_around_a_method(method):
    masked = optax.masked(method.make(0.1), {"w": True, "b": False})
    what = "`optax.MaskedNode`s", "optax.masked", r"optax_sam\.masked\(method, mask\)", "base optimizer"
    with raises(ValueError, *what):
        update(masked, value_fn=loss)


@every_method
def test_remedy_for_masked(method):
    update(optax_sam.masked(method.make(0.1), {"w": True, "b": False}), value_fn=loss)


@pytest.mark.parametrize("dtype", ["complex64", "int32"])
def test_parameters_that_are_not_real(dtype):
    params = {"w": np.ones(2, np.float32), "b": np.ones(3, dtype)}
    with raises(
        TypeError, "parameters must be arrays of real floating-point numbers", dtype, "Complex", "Integers"
    ):
        update(optax_sam.sam(), params, params, value_fn=lambda params: jnp.sum(jnp.abs(params["b"])))


@pytest.mark.parametrize(
    "mask",
    [
        "weight",
        1,
        lambda params: "weight",
        {"w": "weight", "b": False},
        {"w": np.ones((2, 3), bool), "b": np.zeros(3, bool)},
        {"w": jnp.asarray(True), "b": jnp.asarray(False)},
    ],
    ids=["string", "number", "callable", "strings", "entries", "arrays"],
)
def test_mask_of_no_bools(mask):
    what = "`mask` must be a pytree of bools", "one for each parameter array"
    with raises(TypeError, *what, r'mask_by_name\("kernel"\)', "static_args"):
        update(optax_sam.asam(mask=mask), value_fn=loss)


@pytest.mark.parametrize("mask", [{"w": True}, {"w": True, "c": False}, [True, False]], ids=repr)
def test_mask_of_another_structure(mask):
    what = "`mask` must have the tree structure of the parameters or a prefix of it", "(is missing|a list)"
    with raises(ValueError, *what, "static_args"):
        update(optax_sam.asam(mask=mask), value_fn=loss)


@pytest.mark.parametrize("mask", [False, {"w": False, "b": False}, lambda params: {"w": False, "b": False}])
def test_mask_that_selects_nothing(mask):
    with raises(ValueError, "`mask` selects no parameter", "ASAM is SAM"):
        update(optax_sam.asam(mask=mask), value_fn=loss)


def test_mask_function_that_inject_hyperparams_took_for_a_schedule():
    mask = lambda params: jax.tree.map(lambda w: jnp.ndim(w) > 1, params)
    bare = optax.inject_hyperparams(optax_sam.asam, static_args=("num_steps",))
    with raises((TypeError, ValueError), "`mask`", "static_args"):
        update(bare(rho=0.5, mask=mask), value_fn=loss)
    named = optax.inject_hyperparams(optax_sam.asam, static_args=("mask", "num_steps"))
    update(named(rho=0.5, mask=mask), value_fn=loss)


@pytest.mark.parametrize(
    ("make", "name", "got"),
    [
        (lambda: optax_sam.sharpness_aware(0.05), "ascent", "0.05"),
        (lambda: optax_sam.sharpness_aware(None), "ascent", "None"),
        (
            lambda: optax_sam.sharpness_aware(optax_sam.steepest_ascent),
            "ascent",
            "function `steepest_ascent`",
        ),
        (
            lambda: optax_sam.sharpness_aware(optax_sam.steepest_ascent(0.1), optax_sam.spherical_search),
            "descent",
            "function `spherical_search`",
        ),
        (
            lambda: optax_sam.presam(0.1, constraint=optax_sam.weight_magnitude),
            "constraint",
            "function `weight_magnitude`",
        ),
        (
            lambda: optax_sam.steepest_ascent(0.1, objective=optax_sam.gradient_noise),
            "objective",
            "function `gradient_noise`",
        ),
        (lambda: optax_sam.presam(0.1, objective=0.9), "objective", "0.9"),
    ],
    ids=["number", "none", "ascent", "descent", "constraint", "objective", "number as objective"],
)
def test_stage_that_is_no_transformation(make, name, got):
    what = f"`{name}` must be an Optax gradient transformation, got", got
    with raises(TypeError, *what, "Stages are built by a call", r"steepest_ascent\(0.05\)"):
        make()


@pytest.mark.parametrize(
    "tx",
    [
        optax_sam.sharpness_aware(optax_sam.sam()),
        optax_sam.sharpness_aware(optax_sam.steepest_ascent(0.1), optax_sam.sam()),
        optax_sam.sharpness_aware(optax.chain(optax_sam.sam(), optax.scale(0.1))),
    ],
    ids=["ascent", "descent", "in a chain"],
)
def test_method_as_a_stage(tx):
    what = "A whole method", r"`sam\(rho\)`, was used as a stage of `sharpness_aware`"
    with raises(ValueError, *what, r"`sharpness_aware\(steepest_ascent\(rho\)\)` is `sam\(rho\)`"):
        update(tx, value_fn=loss)


def test_spherical_search_without_a_perturbation():
    what = "between the perturbation and the gradient", "got no `perturbation`"
    with raises(ValueError, *what, r"sharpness_aware\(steepest_ascent\(rho\), spherical_search\(rho_max\)\)"):
        update(optax_sam.spherical_search(0.3), value_fn=loss)


@pytest.mark.parametrize("refresh", [True, None])
def test_search_with_grad_fn_alone(refresh):
    with raises(ValueError, "compares losses", "needs `value_fn`", "value_fn=value_fn, grad_fn=grad_fn"):
        update(optax_sam.xsam(), grad_fn=jax.grad(loss), refresh=refresh)


@every_method
def test_grad_fn_alone_is_enough_where_no_loss_is_compared(method):
    if method.name == "sam_of_auto_rho":  # compares losses in every step
        return
    compares = {"refresh": False, "record": False}
    update(method.make(0.1), grad_fn=jax.grad(loss), **compares)
    if method.name not in ("xsam", "combination", "one_gradient_search", "monitored_sam"):
        update(method.make(0.1), grad_fn=jax.grad(loss))


def test_axis_name_outside_a_mapped_function():
    with raises(
        ValueError, "`axis_name='batch'` names an axis", "none of that name", "leave `axis_name` out"
    ):
        update(optax_sam.sam(), value_fn=loss, axis_name="batch")


def mapped_update(tx, gradient, **extra_args):
    """Traces an update under `shard_map`, which tracks what varies.

    `gradient` is a function of the local loss and the parameters; the functions in `extra_args` are of the
    local loss.
    """

    def step(w, x):
        value_fn = lambda w: jnp.sum((w - x) ** 2)
        made = {key: make(value_fn) if callable(make) else make for key, make in extra_args.items()}
        return tx.update(gradient(value_fn, w), tx.init(w), w, **({"value_fn": value_fn} | made))[0]

    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"in_specs": (jax.P(), jax.P("batch")), "out_specs": jax.P()}
    return jax.eval_shape(jax.shard_map(step, mesh=mesh, **specs), jnp.ones(1), jnp.ones(1))


def local_gradient(value_fn, w):
    return jax.grad(value_fn)(jax.lax.pcast(w, "batch", to="varying"))


def averaged_gradient(value_fn, w):
    return jax.lax.pmean(local_gradient(value_fn, w), "batch")


def averaging(value_fn):
    """A `grad_fn` that averages by itself."""
    return lambda w: jax.lax.pmean(jax.grad(value_fn)(w), "batch")


@every_method
@pytest.mark.parametrize("summed", ["value_fn", "grad_fn"])
def test_forgotten_axis_name_is_an_error_and_not_a_sum_over_devices(summed, method):
    functions = {"value_fn": {}, "grad_fn": {"grad_fn": jax.grad}}[summed]
    what = f"`{summed}`", "varies over the mesh axis 'batch'", "summed", "Name that axis", "axis_name='batch'"
    with raises(ValueError, *what, r"jax.lax.pmean\(loss, 'batch'\)"):
        mapped_update(
            method.make(0.1), averaged_gradient, **functions, refresh=method.is_reused, record=False
        )


def test_grad_fn_that_averages_by_itself_needs_no_axis_name():
    mapped_update(optax_sam.sam(), averaged_gradient, grad_fn=averaging)


ALONG_BATCH = {"axis_name": "batch", "m_sharpness": True}


@every_method
def test_m_sharpness_without_an_axis(method):
    what = "`m_sharpness=True` lets each device perturb for itself", "must know the axis"
    remedy = r'tx.update\(grads, ..., axis_name="batch", m_sharpness=True\)', "jax.vmap"
    with raises(ValueError, *what, *remedy):
        update(method.make(0.1), value_fn=loss, m_sharpness=True)


def test_no_m_sharpness_without_an_axis():
    """One program for all devices: nothing to average."""
    update(optax_sam.sam(), value_fn=loss, m_sharpness=False)


@pytest.mark.parametrize("value", [None, 1, "local", np.True_, jnp.asarray(False)], ids=repr)
def test_m_sharpness_that_is_no_bool(value):
    with raises(TypeError, "`m_sharpness` must be True", "False", "sends between devices; got"):
        update(optax_sam.sam(), value_fn=loss, m_sharpness=value)


@pytest.mark.parametrize("name", ["axis_name", "m_sharpness"])
@every_method
def test_methods_are_not_built_with_what_a_step_is_told(method, name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        method.make(0.1, **{name: None})


AVERAGED_OR_SUMMED = [
    r"jax.grad\(value_fn\)\(jax.lax.pcast\(params, 'batch', to='varying'\)\)",
    "`m_sharpness=False`",
]


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("gradient", [averaged_gradient, lambda value_fn, w: jax.grad(value_fn)(w)])
def test_m_sharpness_with_a_gradient_that_is_the_same_on_all_devices(gradient, num_steps):
    tx = optax_sam.sam(num_steps=num_steps)
    what = "the gradient passed to `update` is the same along the mesh axis 'batch'", "averaged, or summed"
    with raises(ValueError, *what, *AVERAGED_OR_SUMMED):
        mapped_update(tx, gradient, **ALONG_BATCH)
    mapped_update(tx, local_gradient, **ALONG_BATCH)


def test_m_sharpness_is_handed_on_by_inject_hyperparams():
    method = optax.inject_hyperparams(optax_sam.sam, static_args=("num_steps",))(rho=0.1)
    with raises(ValueError, *AVERAGED_OR_SUMMED):
        mapped_update(method, averaged_gradient, **ALONG_BATCH)
    mapped_update(method, local_gradient, **ALONG_BATCH)


def test_m_sharpness_with_a_grad_fn_that_averages():
    tx = optax_sam.sam(num_steps=2)
    what = "the result of `grad_fn` is the same along the mesh axis 'batch'"
    with raises(ValueError, what, *AVERAGED_OR_SUMMED):
        mapped_update(tx, local_gradient, grad_fn=averaging, **ALONG_BATCH)
    mapped_update(tx, local_gradient, grad_fn=jax.grad, **ALONG_BATCH)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_no_m_sharpness_with_local_gradients(num_steps):
    tx = optax_sam.sam(num_steps=num_steps)
    what = "`m_sharpness=False`, the default, says", "is an average", "varies over the mesh axis 'batch'"
    with raises(ValueError, *what, r"jax.lax.pmean\(grads, 'batch'\)", "m_sharpness=True"):
        mapped_update(tx, local_gradient, axis_name="batch")
    mapped_update(tx, averaged_gradient, axis_name="batch")


def test_no_m_sharpness_where_the_devices_are_to_be_compared():
    tx = optax_sam.info_sam(across_devices=True)
    group = lambda w: tx.update(w, tx.init(w), w, value_fn=jnp.sum, axis_name="batch")[0]
    with raises(
        ValueError, "`across_devices=True` compares", r"m_sharpness=True\)`, without `jax.lax.pmean`"
    ):
        jax.vmap(group, axis_name="batch")(jnp.ones((2, 3)))


def on_condition(tx):
    return optax.conditionally_transform(tx, lambda step, **extra_args: step < 1, forward_extra_args=True)


@pytest.mark.parametrize("wrapper", [lambda tx: optax.apply_if_finite(tx, 5), on_condition])
def test_monitor_around_a_method_in_a_cond(wrapper):
    what = "`monitor` cannot observe a method that runs inside a `lax.cond`", "around the base optimizer"
    remedy = r"optax.chain\(monitor\(optax_sam.sam\(0.05\)\), optax.apply_if_finite\(base, 5\)\)"
    for call in (lambda step: step(), lambda step: jax.jit(step)(), jax.eval_shape):
        tx = diagnostics.monitor(wrapper(optax_sam.sam()))
        with raises(ValueError, *what, remedy):
            call(lambda tx=tx: tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=loss))
    update(optax.chain(diagnostics.monitor(optax_sam.sam()), wrapper(optax.sgd(0.1))), value_fn=loss)


# What newcomers typed.


@every_method
@pytest.mark.parametrize("arguments", [{}, {"rho": 0.05}, {"num_steps": 1}], ids=str)
def test_method_around_the_base_optimizer(method, arguments):
    if method.name not in PUBLISHED:
        return
    what = f"`optax_sam.{method.name}` does not take the base optimizer"
    with raises(TypeError, what, r"optax.chain\(optax_sam.\w+\(rho=0.05\), optax.sgd\(0.1\)\)"):
        PUBLISHED[method.name](optax.sgd(0.1), **arguments)
    with raises(TypeError, what):
        PUBLISHED[method.name](rho=optax.sgd(0.1))


MODEL = eqx.nn.MLP(3, "scalar", width_size=4, depth=1, key=jax.random.key(0))
WEIGHTS = eqx.filter(MODEL, eqx.is_inexact_array)
WHOLE_MODEL = "a pytree of arrays", "`params.activation` is of type", "not a whole model", "eqx.filter"


@every_method
def test_whole_equinox_model(method):
    tx = optax.chain(method.make(0.1), optax.sgd(0.1))
    with raises(TypeError, *WHOLE_MODEL):
        tx.init(MODEL)
    state = tx.init(WEIGHTS)
    with raises(TypeError, *WHOLE_MODEL, "eqx.combine") as caught:
        tx.update(WEIGHTS, state, MODEL, value_fn=lambda model: model(jnp.ones(3)))
    assert len(str(caught.value)) < 700


def test_numbers_as_parameters():
    with raises(TypeError, r"`params\['a'\]` is of type float", r"jnp.asarray\(number\)"):
        optax_sam.sam().init({"a": 1.0})


def nnx_model():
    model = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    loss_of = lambda model: jnp.mean(model(jnp.ones((4, 3))) ** 2)
    return model, nnx.Optimizer(model, optax_sam.sam(), wrt=nnx.Param), loss_of


def test_grad_fn_that_returns_variables():
    model, optimizer, loss_of = nnx_model()
    graphdef, _, rest = nnx.split(model, nnx.Param, ...)
    gradient = lambda params: nnx.grad(loss_of)(nnx.merge(graphdef, params, rest, copy=True))
    what = "The result of `grad_fn` must have the tree structure", "there is a variable Param"
    with raises(ValueError, *what, r"`nnx.as_pure\(tree\)` makes them arrays") as caught:
        optimizer.update(model, nnx.grad(loss_of)(model), grad_fn=gradient)
    assert len(str(caught.value)) < 500
    as_pure = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure  # before flax 0.12.5
    optimizer.update(model, nnx.grad(loss_of)(model), grad_fn=lambda params: as_pure(gradient(params)))


def test_model_of_nnx_without_its_other_states():
    model, optimizer, loss_of = nnx_model()
    graphdef, _, rest = nnx.split(model, nnx.Param, ...)
    grads = nnx.grad(loss_of)(model)
    for error, states in ((ValueError, ()), (flax.errors.TraceContextError, (rest,))):
        value_fn = lambda params, states=states: loss_of(nnx.merge(graphdef, params, *states))
        with pytest.raises(error) as caught:
            optimizer.update(model, grads, value_fn=value_fn)
        assert "nnx_value_fn(loss_fn, model, *args)" in caught.value.__notes__[0]


def test_other_errors_in_value_fn_are_left_alone():
    with pytest.raises(ZeroDivisionError) as caught:
        update(optax_sam.sam(), value_fn=lambda params: 1 // 0)
    assert "nnx" not in "".join(getattr(caught.value, "__notes__", []))


MISSPELT = {
    "refesh": "refresh",
    "axis_names": "axis_name",
    "curvature_function": "curvature_fn",
    "msharpness": "m_sharpness",
    "value_func": "value_fn",
    "gradfn": "grad_fn",
    "clean_value_function": "clean_value_fn",
}


@pytest.mark.parametrize("name", MISSPELT)
@pytest.mark.parametrize(
    "make",
    [
        optax_sam.sam,
        optax_sam.gradient_norm_penalty,
        optax_sam.momentum_sam,
        lambda: optax_sam.reuse(optax_sam.sam()),
        lambda: diagnostics.monitor(optax_sam.sam()),
        lambda: optax.chain(diagnostics.wiring_check(), optax.sgd(0.1)),
    ],
)
def test_misspelt_argument(make, name):
    with raises(TypeError, f"`update` got `{name}`", f"Did you mean `{MISSPELT[name]}`"):
        update(make(), value_fn=loss, **{name: None})


def test_state_from_before_the_method_was_put_in_front():
    old = optax.adam(0.1).init(PARAMS)
    for method in (optax_sam.sam(), optax_sam.reuse(optax_sam.sam()), optax_sam.gradient_norm_penalty()):
        tx = optax.chain(method, optax.adam(0.1))
        with raises(
            TypeError, r"A method got a ScaleByAdamState.*`state = \(method.init\(params\), old_state\)`"
        ):
            tx.update(PARAMS, old, PARAMS, value_fn=loss)
        tx.update(PARAMS, (method.init(PARAMS), old), PARAMS, value_fn=loss)


def test_gradients_of_examples():
    """As for `differentially_private_aggregate`, in front of which the check is."""
    grads = jax.tree.map(lambda w: np.stack([w, w]), PARAMS)
    tx = optax.chain(
        diagnostics.wiring_check(),
        optax.contrib.differentially_private_aggregate(1.0, 0.1, key=jax.random.key(0)),
        optax_sam.sam(),
    )
    with raises(ValueError, "the shapes of the parameters", "private and not the second", "`jax.vmap` over"):
        tx.update(grads, tx.init(PARAMS), PARAMS, value_fn=loss)


@pytest.mark.parametrize("around", [lambda tx: tx, lambda tx: optax.chain(tx, optax.sgd(0.1))])
def test_split_real_and_imaginary(around):
    params = {"w": np.ones(3, np.complex64), "b": np.ones(3, np.float32)}
    tx = optax.contrib.split_real_and_imaginary(around(optax_sam.sam()))
    with raises(TypeError, "does not pass `value_fn` on", r"params\['re'\] \+ 1j \* params\['im'\]"):
        tx.init(params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_of_16_bits(dtype):
    params = optax.tree.cast(PARAMS, dtype)
    with pytest.warns(UserWarning, match=rf"16 bits \({jnp.dtype(dtype)}\).*Keep float32 parameters"):
        optax.chain(optax_sam.sam(), optax.sgd(0.1)).init(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optax_sam.sam().init(PARAMS)


def test_arguments_of_others_are_accepted():
    others = {"value": 1.0, "grad": PARAMS, "loss_fn": loss, "key": None, "grad_norm": 1.0, "sharpness": 0}
    update(optax.chain(optax_sam.sam(), optax.adam(0.1)), value_fn=loss, **others)


def test_generator_of_keys_inside_the_loss():
    """`hk.PRNGSequence` and the like keep the next key: in the check's trace, which then is over."""
    key = jax.random.key(0)

    def value_fn(params):
        nonlocal key
        key, now = jax.random.split(key)
        return loss(params) * jax.random.uniform(now)

    tx = optax.chain(diagnostics.wiring_check(), optax_sam.sam())
    with raises(ValueError, "draws random keys from a generator", "Draw the keys before the loss") as caught:
        update(tx, value_fn=value_fn)
    assert "PRNGSequence" in str(caught.value)
    with raises(ValueError, "Draw the keys before the loss"):  # The key is still that of the check's trace.
        optax_sam.sam().update(PARAMS, optax_sam.sam().init(PARAMS), PARAMS, value_fn=value_fn)


def test_train_state_of_flax():
    state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=optax_sam.sam())
    with raises(ValueError, "`update` got no `value_fn`", "TrainState", "optax_sam.flax.TrainState"):
        state.apply_gradients(grads=PARAMS, value_fn=loss)


@pytest.mark.parametrize("name", ["value_fn", "grad_fn", "curvature_fn"])
def test_function_of_more_than_the_parameters(name):
    what = f"`{name}` must take the parameters alone", r"`\(params, i\)`", f"{name}=lambda params:"
    functions = {"value_fn": loss, name: lambda params, i: params}
    with raises(TypeError, *what, r"`optax.contrib.sam` calls `grad_fn\(params, i\)`"):
        update(optax_sam.eigen_sam(), **functions, refresh=True)
    for function in (lambda params, i=0: loss(params), lambda *args: loss(*args), jax.jit(loss)):
        update(optax_sam.sam(), value_fn=function)


def test_jitted_update_takes_a_partial():
    """The error of a lambda is JAX's own; this is the remedy that docs/traps.md names."""
    tx = optax_sam.sam(0.1)
    arguments = jax.tree.map(jnp.asarray, (PARAMS, tx.init(PARAMS), PARAMS))
    with raises(TypeError, "type <class 'function'>", "value_fn"):
        jax.jit(tx.update)(*arguments, value_fn=lambda params: loss(params))
    jax.jit(tx.update)(*arguments, value_fn=jax.tree_util.Partial(loss))


def nowhere(params):
    return loss(PARAMS)


@pytest.mark.parametrize(
    "value_fn",
    [nowhere, jax.jit(nowhere), lambda params: loss(jax.lax.stop_gradient(params))],
    ids=["from outside", "jit", "stop_gradient"],
)
def test_value_fn_that_ignores_its_argument(value_fn):
    what = "`value_fn` does not depend on its argument", "gradient is zero", "from outside"
    with pytest.warns(UserWarning, match=".*".join(what)):
        update(optax_sam.sam(), value_fn=value_fn)


def test_value_fn_with_a_gradient_of_zero():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update(optax_sam.sam(), value_fn=lambda params: 0 * loss(params))


X = jnp.ones(2)
TREE = {"a": [1, 2], "b": {"c": 1, "d": None}}


@pytest.mark.parametrize(
    ("tree", "difference"),
    [
        ([1, 2], "at the top there is a list instead of a dict"),
        ({"a": [1, 2]}, "at the top `['b']` is missing"),
        (TREE | {"e": 1}, "at the top `['e']` does not belong there"),
        (TREE | {"a": (1, 2)}, "at `['a']` there is a tuple instead of a list"),
        (TREE | {"a": [1, None]}, "at `['a'][1]` there is nothing (None) instead of a int"),
        (TREE | {"b": {"c": {}, "d": None}}, "at `['b']['c']` there is a dict instead of a int"),
        (TREE | {"b": {"c": 1, "d": X}}, "at `['b']['d']` there is an array instead of nothing (None)"),
    ],
    ids=str,
)
def test_first_difference_of_two_trees(tree, difference):
    assert descriptions.first_difference(tree, TREE) == difference


def test_first_difference_in_what_is_static():
    half = jax.tree.map(lambda leaf: leaf, MODEL)
    object.__setattr__(half, "use_bias", False)
    trees = eqx.filter(MODEL, eqx.is_inexact_array), eqx.filter(half, eqx.is_inexact_array)
    assert jax.tree.structure(trees[0]) != jax.tree.structure(trees[1])
    assert descriptions.first_difference(*trees) == "nodes of the same types have different static parts"


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.adam(1e-3), optax.adamw(1e-3)])
@pytest.mark.parametrize(
    "use",
    [
        lambda optimizer: optax_sam.steepest_ascent(0.1, constraint=optimizer),
        lambda optimizer: optax_sam.steepest_ascent(0.1, objective=optimizer),
        lambda optimizer: optax_sam.sparse_sam(0.1, optimizer),
        lambda optimizer: diagnostics.sharpness(loss, PARAMS, 0.1, constraint=optimizer),
        lambda optimizer: diagnostics.worst_case_sharpness(loss, PARAMS, 0.1, constraint=optimizer),
        lambda optimizer: update(optax_sam.reuse(optimizer), value_fn=loss),
    ],
    ids=["constraint", "objective", "mask", "sharpness", "worst case", "reuse"],
)
def test_an_optimizer_where_a_stage_or_a_method_is_meant(use, optimizer):
    with raises(TypeError, "(as an optimizer does|no second gradient)", r"optax\.chain\("):
        use(optimizer)


def test_arguments_that_were_accepted_silently():
    with raises(TypeError, "`layerwise` must be True or False", "static_args"):
        optax_sam.steepest_ascent(0.1, layerwise="no")
    for make in (optax_sam.gsam, optax_sam.steepest_ascent, optax_sam.spherical_search):
        with raises(ValueError, "must be finite, got inf"):
            make(float("inf"))
        with raises(TypeError, "must be a number or a schedule", "got True"):
            make(True)
    for drop_rate in (-1.0, 2.0):
        with raises(ValueError, r"`drop_rate` is a fraction and must be in \[0, 1\], got"):
            optax_sam.dynamic_mask(0.5, drop_rate)
    with raises(ValueError, "`rhos` are the radii at the two learning rates"):
        optax_sam.rho_following_learning_rate(lambda count: 0.1, (0.0, 0.1), (-0.02, 0.06))
    with raises(TypeError, "`learning_rate` must be the schedule"):
        optax_sam.rho_following_learning_rate(0.1, (0.0, 0.1), (0.02, 0.06))
    with raises(ValueError, "`alpha` is a length relative to the gradient", "interval=5"):
        optax_sam.reuse(optax_sam.sam(0.1), 5)
