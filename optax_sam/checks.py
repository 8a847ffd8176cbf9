"""Errors that say what was wrong, why it matters, and what to write instead.

`optax.inject_hyperparams` passes numbers as arrays. Under `jit` their values are unknown and not checked,
except for numbers that fix the shape of the program, which must be Python integers.
"""

import difflib
import functools
import inspect
import warnings
from collections.abc import Callable, Collection
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import descriptions

Number = int | float | np.number
# The extra arguments of `update` that users pass.
OF_UPDATE = (
    "value_fn",
    "grad_fn",
    "curvature_fn",
    "clean_value_fn",
    "clean_value",
    "refresh",
    "record",
    "axis_name",
    "m_sharpness",
    "params_axis_name",
    "keep_ascent_value",
    "observe",
)
STATE_OF_ANOTHER_CHAIN = (
    "The optimizer's state is not that of this chain: likely it is from before a method was put in front. To"
    " go on from there, put the method's state in front too: `state = (method.init(params), old_state)` for"
    " `optax.chain(method, optimizer)`."
)
# Names that others use: Optax's line searches, and what one would call a number.
NOT_MISSPELT = ("value", "curvature", "sharpness")
P = ParamSpec("P")
T = TypeVar("T")


def goes_in_front(method: Callable[P, T]) -> Callable[P, T]:
    """Decorates a method's builder: raises if it is given the base optimizer, as in PyTorch."""

    @functools.wraps(method)
    def build(*args: P.args, **kwargs: P.kwargs) -> T:
        if any(isinstance(value, optax.GradientTransformation) for value in (*args[:1], kwargs.get("rho"))):
            name = f"optax_sam.{method.__name__}"
            raise TypeError(
                f"`{name}` does not take the base optimizer: it goes in front of it,"
                f" `optax.chain({name}(rho=0.05), optax.sgd(0.1))`."
            )
        return method(*args, **kwargs)

    return build


def check_number(
    name: str, value: Any, *, low: float = 0.0, below: float = float("inf"), rounded: bool = False
) -> None:
    """Raises unless `value` is a number, or a scalar array, in [low, below).

    With `rounded` an array may be equal to `below`, to which 0.999 is rounded in bfloat16.
    """
    if not isinstance(value, Number | jax.Array | np.ndarray):
        raise TypeError(
            f"`{name}` must be a number, got {type(value).__name__}. For a schedule, wrap the method:"
            f" `optax.inject_hyperparams(method, static_args=...)({name}=schedule)`."
        )
    check_scalar(name, value)
    if isinstance(value, jax.core.Tracer):
        return
    known = np.asarray(value)
    is_array = not isinstance(value, Number)
    if not (low <= known < below or (rounded and is_array and known == below)):
        bounds = f"at least {low:g}" if below == float("inf") else f"in [{low:g}, {below:g})"
        remedy = (
            f" It may have been rounded to {known.dtype}, to which `optax.inject_hyperparams` casts it with"
            " parameters of that dtype: pass `hyperparam_dtype=jnp.float32` to it."
            if is_array and known == below
            else ""
        )
        raise ValueError(f"`{name}` must be {bounds}, got {value}.{remedy}")


def check_scalar(name: str, value: Any) -> None:
    """Raises if `value` is an array with axes, or complex."""
    if np.issubdtype(jax.dtypes.result_type(value), np.complexfloating):
        raise TypeError(f"`{name}` must be a real number, got {value}.")
    if np.shape(value) != ():
        raise ValueError(
            f"`{name}` must be one number for all parameters, got an array of shape {np.shape(value)}. To"
            " weight parameters differently, write a stage that maps a gradient to a diagonal, like"
            " `weight_magnitude`: `steepest_ascent(rho, constraint=stage)`."
        )


def check_radius(name: str, radius: Any, what: str = "the radius of a ball") -> None:
    """Raises unless `radius` is a number or scalar array of at least 0, or a schedule."""
    if callable(radius):
        return
    if isinstance(radius, bool) or not isinstance(radius, Number | jax.Array | np.ndarray):
        raise TypeError(
            f"`{name}` must be a number or a schedule (a function of the number of updates made), got"
            f" {radius if isinstance(radius, bool) else type(radius).__name__}."
        )
    check_scalar(name, radius)
    if isinstance(radius, jax.core.Tracer):
        return
    if np.isinf(np.asarray(radius)) and radius > 0:
        raise ValueError(f"`{name}` is {what} and must be finite, got {radius}.")
    if not np.asarray(radius) >= 0:
        raise ValueError(
            f"`{name}` is {what} and must be at least 0, got {radius}: a negative one"
            " would turn the ascent into a descent. To descend on purpose (Reverse-SAM), chain"
            " `optax.scale(-1.0)` behind the ascent stage:"
            " `sharpness_aware(optax.chain(steepest_ascent(rho), optax.scale(-1.0)))`."
        )


def check_fraction(name: str, fraction: Any) -> None:
    """Raises unless `fraction` is a number or scalar array in [0, 1], or a schedule."""
    if callable(fraction):
        return
    if not isinstance(fraction, Number | jax.Array | np.ndarray):
        raise TypeError(f"`{name}` must be a number or a schedule, got {type(fraction).__name__}.")
    check_scalar(name, fraction)
    if not isinstance(fraction, jax.core.Tracer) and not 0 <= np.asarray(fraction) <= 1:
        raise ValueError(f"`{name}` is a fraction and must be in [0, 1], got {fraction}.")


def check_flag(name: str, value: Any) -> None:
    """Raises unless `value` is a Python bool, known when the step is traced."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(
            f"`{name}` must be True or False, because it decides which program is compiled; got {value!r}."
            f' With `optax.inject_hyperparams` name it in `static_args`: `static_args=("{name}",)`.'
        )


def check_state_dtype(state_dtype: Any) -> None:
    """Raises unless `state_dtype` is None or a floating-point dtype with the range of float32."""
    if state_dtype is None:
        return
    try:
        kind = None if isinstance(state_dtype, jax.Array | np.ndarray) else jnp.dtype(state_dtype)
    except TypeError:
        kind = None
    if kind is None or not jnp.issubdtype(kind, jnp.floating) or jnp.finfo(kind).nexp < 8:
        raise TypeError(
            '`state_dtype` is the dtype in which a state is kept: "bfloat16", "float32", "float64" or None,'
            f" got {state_dtype!r}. float16 is left out because its range is too small: what is kept would"
            ' round to 0. With `optax.inject_hyperparams` name it in `static_args`: `("state_dtype",)`.'
        )


def check_count(name: str, value: Any) -> None:
    """Raises unless `value` is a Python integer of at least 1, known when the step is traced."""
    if not isinstance(value, int | np.integer):
        raise TypeError(
            f"`{name}` must be a Python integer, because it fixes the shape of the compiled program;"
            f" got {type(value).__name__}. With `optax.inject_hyperparams` list it in `static_args`,"
            " like every argument that is not a number in the method's equation:"
            f' `optax.inject_hyperparams(method, static_args=("{name}",))(rho=rho)`.'
        )
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")


def check_not_a_stage(extra_args: dict[str, Any]) -> None:
    """Raises if a whole method is given the extra arguments of a stage."""
    if "ascent_step" in extra_args or "perturbation" in extra_args:
        raise ValueError(
            "A whole method, such as `sam(rho)`, was used as a stage of `sharpness_aware`. Stages map a"
            " gradient to a perturbation (`steepest_ascent(rho)`) or to a direction"
            " (`spherical_search(rho_max)`): `sharpness_aware(steepest_ascent(rho))` is `sam(rho)`."
        )


def check_spelling(extra_args: Collection[str]) -> None:
    """Raises if an extra argument of `update`, of which others are ignored, is nearly one of ours."""
    plain = lambda name: name.lower().replace("_", "").replace("function", "fn").replace("func", "fn")
    ours = {plain(name): name for name in OF_UPDATE}
    for name in extra_args:
        if name in OF_UPDATE or name in NOT_MISSPELT:
            continue
        if meant := difflib.get_close_matches(plain(name), ours, 1, cutoff=0.82):
            raise TypeError(
                f"`update` got `{name}`, which no method knows, so it would be ignored. Did you mean"
                f" `{ours[meant[0]]}`?"
            )


def check_interval(interval: Any, argument: str = "refresh") -> None:
    """Raises unless `interval` is an integer of at least 1, or an array. `argument` is what overrides it."""
    if not isinstance(interval, int | np.integer | jax.Array | np.ndarray):
        raise TypeError(
            f"`interval` is the number of steps from one {argument} to the next and must be an integer, got"
            f" {interval!r}."
        )
    check_scalar("interval", interval)
    if not isinstance(interval, jax.core.Tracer) and np.asarray(interval) < 1:
        raise ValueError(
            f"`interval` is the number of steps from one {argument} to the next and must be at least 1, got"
            f" {interval}. To never {argument}, pass `{argument}=False` to `update`."
        )


def check_stage(name: str, stage: Any) -> None:
    """Raises unless `stage` is a gradient transformation."""
    if not (callable(getattr(stage, "init", None)) and callable(getattr(stage, "update", None))):
        got = f"the function `{stage.__name__}`" if hasattr(stage, "__name__") else repr(stage)
        raise TypeError(
            f"`{name}` must be an Optax gradient transformation, got {got}. Stages are built by a call,"
            " as in `sharpness_aware(steepest_ascent(0.05))` or"
            " `steepest_ascent(0.5, constraint=weight_magnitude())`."
        )


def check_keeps_signs(name: str, stage: optax.GradientTransformation, what: str) -> None:
    """Raises unless a stage maps a positive gradient to a positive one, which no optimizer does.

    Tried on two numbers. A stage that cannot be, because it is made for certain parameters, passes.
    """
    check_stage(name, stage)
    stage = optax.with_extra_args_support(stage)
    with jax.ensure_compile_time_eval():
        ones = jnp.ones(2)
        try:
            result, _ = stage.update(ones, stage.init(ones), ones, grad=ones)
            is_negative = jax.tree.leaves(result) and bool(jnp.any(jax.tree.leaves(result)[0] < 0))
        except Exception:
            return
    if is_negative:
        raise TypeError(
            f"`{name}` must be {what}, but it makes a positive gradient negative, as an optimizer does. The"
            " base optimizer goes behind the method: `optax.chain(optax_sam.sam(rho=0.05), optax.sgd(0.1))`."
        )


def check_whole(updates: optax.Updates) -> None:
    """Raises if a stage was given a part of the gradient, because of `optax.masked` around it."""
    is_masked = lambda x: isinstance(x, optax.MaskedNode)
    if any(map(is_masked, jax.tree.leaves(updates, is_leaf=is_masked))):
        raise ValueError(
            "`optax.masked` or `optax.partition` was put around a stage of an ascent. What they leave out"
            " passes through, so the gradient, of any length, would be a part of the perturbation. Write"
            " `optax_sam.masked(stage, mask)`, which perturbs the selected parameters only, or"
            " `optax_sam.partition({label: ascent}, labels)` for a radius per group."
        )


def check_params(updates: optax.Updates, params: optax.Params | None) -> None:
    """Raises unless `updates` are gradients with respect to all of `params`."""
    if params is None:
        raise ValueError(
            "Sharpness-aware methods perturb the parameters, but `update` got none:"
            " call `tx.update(grads, state, params, value_fn=value_fn)`."
        )
    is_masked = lambda x: isinstance(x, optax.MaskedNode)
    if any(map(is_masked, jax.tree.leaves((updates, params), is_leaf=is_masked))):
        raise ValueError(
            "The parameters contain `optax.MaskedNode`s, so `value_fn` cannot be evaluated at them:"
            " `optax.masked` or `optax.partition` was put around a sharpness-aware method, or a stage of it."
            " Write `optax_sam.masked(method, mask)`, with the same mask, and put `optax.masked` or"
            " `optax.partition` around the base optimizer that follows."
        )
    if isinstance(params, optax.LookaheadParams):
        raise ValueError(
            "`optax.lookahead` keeps two sets of parameters, and a method needs the set at which the gradient"
            " was taken. Call the two one after the other: `direction, method_state = method.update(grads,"
            " method_state, params.fast, value_fn=value_fn)`, `lookahead.update(direction, state, params)`."
        )
    check_arrays(params)
    check_gradient("The gradients passed to `update`", updates, params)


def check_arrays(params: optax.Params) -> None:
    """Raises unless the leaves of the parameters are arrays of real numbers that can be perturbed."""
    is_split = lambda node: type(node).__name__ == "SplitRealAndImaginaryArrays"
    if any(map(is_split, jax.tree.leaves(params, is_leaf=is_split))):
        raise TypeError(
            "`optax.contrib.split_real_and_imaginary` does not pass `value_fn` on to a method inside it, and"
            " the loss would get real and imaginary parts. Make these the parameters,"
            " `params = {'re': w.real, 'im': w.imag}`, with `value_fn=lambda params: loss(params['re'] + 1j *"
            " params['im'])`."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not hasattr(leaf, "dtype"):
            raise TypeError(
                "The parameters must be a pytree of arrays, but the leaf"
                f" `params{jax.tree_util.keystr(path)}` is of type {type(leaf).__name__}. Pass the arrays"
                " that are trained, not a whole model, to `tx.init` and `tx.update`: with Equinox"
                " `eqx.filter(model, eqx.is_inexact_array)`, and a `value_fn` that puts the rest back,"
                " `eqx.combine(params, static)`. Make numbers arrays: `jnp.asarray(number)`."
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                "The parameters must be arrays of real floating-point numbers, got"
                f" {leaf.dtype}. Complex parameters: pass their real and imaginary parts. Integers: keep them"
                " out of `params`."
            )
        if jnp.finfo(leaf.dtype).bits < 16:
            raise TypeError(
                f"The parameters must have at least 16 bits, got {leaf.dtype}, in which a perturbation is"
                " rounded away. Keep float32 parameters and cast them in the loss."
            )


def check_state(state: Any, kind: type) -> None:
    """Raises if a method is given the state of another transformation."""
    if not isinstance(state, kind):
        raise TypeError(f"A method got a {type(state).__name__}. {STATE_OF_ANOTHER_CHAIN}")


def warn_of_16_bits(params: optax.Params) -> None:
    """Warns if perturbations may be rounded away in the parameters."""
    found = {str(leaf.dtype) for leaf in jax.tree.leaves(params) if jnp.finfo(leaf.dtype).bits == 16}
    if found:
        warnings.warn(
            f"The parameters have 16 bits ({', '.join(sorted(found))}), in which most of a perturbation is"
            " rounded away: an entry moves only if its perturbation is above about 1/500 (bfloat16) or 1/4000"
            " (float16) of its size. Keep float32 parameters and cast them in the loss.",
            stacklevel=3,
        )


def check_gradient(name: str, gradient: Any, params: optax.Params) -> None:
    """Raises unless `gradient` has the tree structure and shapes of `params`."""
    structures: tuple[Any, Any] = (jax.tree.structure(gradient), jax.tree.structure(params))
    if structures[0] != structures[1]:
        raise ValueError(
            f"{name} must have the tree structure of the parameters, but"
            f" {descriptions.first_difference(gradient, params)}. Pass the gradient with respect to all of"
            " `params`, and that alone (no loss, no auxiliary output)."
        )
    for (path, leaf), param in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(params), strict=True
    ):
        if jnp.shape(leaf) != jnp.shape(param):
            where = jax.tree_util.keystr(path)
            of_examples = (
                " Gradients of single examples, as `optax.contrib.differentially_private_aggregate` takes"
                " them, would make the first gradient private and not the second, from which the update is"
                " made. Take the direction of each example, `jax.vmap` over the method, and aggregate these."
                if jnp.shape(leaf)[1:] == jnp.shape(param)
                else ""
            )
            raise ValueError(
                f"{name} must have the shapes of the parameters, got {jnp.shape(leaf)} for"
                f" `params{where}` of {jnp.shape(param)}.{of_examples}"
            )


def check_loss(value_fn: Any, params: optax.Params) -> None:
    """Raises unless `value_fn` is a function, and `params` what a method takes: for what measures a loss."""
    if not callable(value_fn):
        are_swapped = (
            " The two first arguments are swapped: `f(value_fn, params)`." if callable(params) else ""
        )
        raise TypeError(
            "`value_fn` must be a function of the parameters, `value_fn(params)`, or with `batches` of a"
            f" batch too, `value_fn(params, batch)`, got {descriptions.kind(value_fn)}.{are_swapped}"
        )
    check_params(params, params)


def check_vector(name: str, vector: Any, params: optax.Params) -> None:
    """Raises unless `vector` has the tree structure and shapes of `params`, and real numbers."""
    structures: tuple[Any, Any] = (jax.tree.structure(vector), jax.tree.structure(params))
    if structures[0] != structures[1]:
        raise ValueError(
            f"{name} must have the tree structure of the parameters, but"
            f" {descriptions.first_difference(vector, params)}."
        )
    leaves = jax.tree_util.tree_leaves_with_path(vector)
    for (path, leaf), param in zip(leaves, jax.tree.leaves(params), strict=True):
        where = f"`params{jax.tree_util.keystr(path)}`"
        if jnp.shape(leaf) != jnp.shape(param):
            raise ValueError(
                f"{name} must have the shapes of the parameters, got {jnp.shape(leaf)} for {where} of"
                f" {jnp.shape(param)}."
            )
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
            raise TypeError(
                f"{name} must be made of arrays of real numbers, like the parameters, got"
                f" {type(leaf).__name__ if dtype is None else dtype} for {where}."
            )


def check_takes_params(name: str, function: Callable[..., Any]) -> None:
    """Raises if the function cannot be called with the parameters alone."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # Some callables of C have none.
        return
    try:
        signature.bind(None)
    except TypeError:
        raise TypeError(
            f"`{name}` must take the parameters alone, but its signature is `{signature}`. Close over"
            f" everything else: `{name}=lambda params: function(params, batch)`. (`optax.contrib.sam` calls"
            " `grad_fn(params, i)` with the number of the step; here it is `grad_fn(params)`.)"
        ) from None
