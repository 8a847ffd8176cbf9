"""Compares the gradient of `value_fn` with the gradient passed to `update`: is the training loop wired right?

    tx = optax.chain(diagnostics.wiring_check(), optax_sam.sam(0.05), optax.sgd(0.1))
    updates, state = tx.update(grads, state, params, value_fn=value_fn)
    optax.tree.get(state, "mismatch")

A sharpness-aware method takes its second gradient from `value_fn`, so at the parameters themselves

    mismatch = ‖∇value_fn(w) − g‖ / ‖g‖,   g the gradient passed in

is 0, up to rounding. If it is not, the losses differ: another batch, another dropout key, a state from after
the clean pass, another scale. Such a program runs, and trains something else. The mismatch of the last update
is in the state; one above the tolerance is reported, with the cause that the numbers suggest: the table is in
`optax_sam.diagnostics.wiring_causes`.

Not reported is a difference that the last digit of the parameters makes too, as near a minimum, where the
terms of g cancel. An array in which one of the two gradients is exactly 0 always is.

Parameters that the method perturbs though nothing moves them, frozen by the optimizer, are reported after a
few updates: `optax_sam.diagnostics.wiring_frozen`.

What stands between the check and the method would change the clean gradient alone. The method behind it
says so when the step is traced: `optax_sam.order`.
"""

import functools
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import checks, order, shards
from optax_sam.devices import AxisName, axis_names, unnamed_axes, varies_over
from optax_sam.diagnostics import wiring_frozen, wiring_measure
from optax_sam.diagnostics.wiring_causes import Cause, Comparison, likely_cause
from optax_sam.loss import DRAWS_KEYS, BatchLoss, GradFn, ValueFn
from optax_sam.platforms import is_traced
from optax_sam.refresh import refreshed

Action = Literal["warn", "raise", "record"]
T = TypeVar("T")


class WiringCheckState(NamedTuple):
    """State of `wiring_check`.

    Attributes:
      mismatch: ‖∇value_fn(w) − g‖ / ‖g‖ of the last update that was checked, a float32 scalar; 0 before the
        first, and inf if only one of the gradients is zero or not finite. It keeps its value if the gradient
        passed in is not finite.
      movement: which parameters moved, `optax_sam.diagnostics.wiring_frozen.Movement`; it is not kept with
        `action="record"`.
    """

    mismatch: jax.Array
    movement: wiring_frozen.Movement


def wiring_check(
    *, tolerance: float | None = None, action: Action = "warn"
) -> optax.GradientTransformationExtraArgs:
    """Checks that the gradient passed to `update` is the gradient of `value_fn`, and passes it on unchanged.

    It goes *first* in a chain. Run the first steps of a new training loop with it, then take it out or pass
    `record=False`. It sees one point only: a loss that is wrong elsewhere, or that changes BatchNorm's
    statistics, passes.

    `update` reads the arguments of `sharpness_aware`: with `grad_fn` the gradient comes from `grad_fn`,
    with `axis_name` they are averages over the devices, with `m_sharpness=True` each device compares its own
    (and the state has their root mean square). Two more are its own:

      record: None, the default, and True: check in this update. False: do not; nothing is computed. A traced
        bool: in a `lax.cond`, which is slow for convolutions on CPU; see `optax_sam.refresh`.
      clean_value_fn: the loss whose gradient is passed in, if it differs on purpose, as with an
        ascent on a part of the batch: `tx.update(grads_of_part, state, params, value_fn=loss_of_batch,
        clean_value_fn=loss_of_part)`.

    Args:
      tolerance: the largest mismatch that is not reported. None: 0.01, and 0.2 where anything is computed in
        16 bits or fewer, which leaves room for rounding that differs between two compiled programs.
      action: "warn": a `UserWarning`, once for each cause in a compiled program (without `jit`, for a
        `value_fn`). "raise": a `ValueError`. Under `jit` both come from a callback on the host: the warning
        when the step has run, the error, as a `jax.errors.JaxRuntimeError`, when its result is waited for.
        "record": neither, and no callback in the program (for `jax.export`, and for devices that have none);
        only what is known when the step is traced is warned of.

    Returns:
      A gradient transformation with `WiringCheckState`. Its result is `updates`.

    Raises:
      ValueError: on an unknown `action` or a negative tolerance; when the step is traced, if a call of
        `value_fn` changes what the next one computes, as one that draws keys from a generator.

    Cost: a gradient in each update that is checked, at most: XLA computes only once what is the same in both.
      Where they differ one more, in a `lax.cond`, to tell rounding from a cause. Under `pmap` and `shard_map`
      an all-reduce for each, and one of a few numbers.

    Example: `value_fn` of another batch.
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> from optax_sam import diagnostics
      >>> check = diagnostics.wiring_check(action="record")
      >>> tx = optax.chain(check, optax_sam.sam(0.05), optax.sgd(0.1))
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> w, state = jnp.ones(2), tx.init(jnp.ones(2))
      >>> x, other = jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 1.0]])
      >>> _, state = tx.update(jax.grad(loss)(w, x), state, w, value_fn=lambda w: loss(w, x))
      >>> float(optax.tree.get(state, "mismatch"))
      0.0
      >>> _, state = tx.update(jax.grad(loss)(w, x), state, w, value_fn=lambda w: loss(w, other))
      >>> round(float(optax.tree.get(state, "mismatch")), 2)
      0.63
    """
    if tolerance is not None:
        checks.check_number("tolerance", tolerance)
    if action not in get_args(Action):
        raise ValueError(f"`action` must be one of {get_args(Action)}, got {action!r}.")
    reported = Reported()

    def init(params: optax.Params) -> WiringCheckState:
        reported.forget()
        return WiringCheckState(jnp.zeros((), jnp.float32), wiring_frozen.init(params))

    @shards.sums_over_shards
    def update(
        updates: optax.Updates,
        state: WiringCheckState,
        params: optax.Params | None = None,
        *,
        value_fn: ValueFn | None = None,
        grad_fn: GradFn | None = None,
        clean_value_fn: ValueFn | None = None,
        record: bool | jax.Array | None = None,
        axis_name: AxisName = None,
        m_sharpness: bool = False,
        params_axis_name: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WiringCheckState]:
        checks.check_spelling(extra_args)
        functions = {"clean_value_fn": clean_value_fn, "grad_fn": grad_fn, "value_fn": value_fn}
        name = next((name for name, function in functions.items() if function is not None), "value_fn")

        def measure() -> WiringCheckState:
            checks.check_params(updates, params)
            clean = (value_fn, grad_fn) if clean_value_fn is None else (clean_value_fn, None)
            loss = BatchLoss(*clean, None, axis_name, m_sharpness, params_axis_name)
            loss.check_passed(updates, params)
            axes = shards.axes_of(params)
            program = _traced(loss, params)
            eps = wiring_measure.precision(program)
            gradient_at = jax.extend.core.jaxpr_as_fun(program)
            passed, leaves = jax.tree.leaves(updates), jax.tree.leaves(params)
            gradient = gradient_at(*leaves)
            numbers = wiring_measure.products(gradient, passed, leaves, axis_name, axes)
            mismatch = wiring_measure.mismatch(numbers)
            mismatch_or_last = jnp.where(jnp.isnan(mismatch), state.mismatch, mismatch.astype(jnp.float32))
            if action == "record":
                return state._replace(mismatch=mismatch_or_last)

            def details() -> wiring_measure.Details:
                changed = gradient_at(*wiring_measure.last_digit_changed(leaves, eps))
                return wiring_measure.details(gradient, passed, changed, numbers, axis_name, axes)

            limit = tolerance
            if limit is None:
                limit = 0.2 if wiring_measure.is_16_bit(eps) else 0.01
            differ = (mismatch > limit) | jnp.any(jnp.stack(wiring_measure.zero_in_one(numbers.largest, eps)))
            found = _where(differ, details) if _is_the_same_everywhere(numbers, axis_name) else None
            comparison = Comparison(
                name,
                tuple(jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)),
                tuple(leaf.size for leaf in leaves),
                _num_devices(axis_name),
                axis_name is not None,
                unnamed_axes() if axis_name is None else (),
                tuple(getattr(functions[name], "writes_to", ())),
                eps,
            )
            once = reported.in_this_program((passed, leaves), functions[name])
            report = functools.partial(_report, comparison, action, once)
            jax.debug.callback(report, limit, mismatch, numbers, found)
            movement = wiring_frozen.watched(state.movement, leaves, numbers, axes)
            return WiringCheckState(mismatch_or_last, movement)

        count = jnp.zeros((), jnp.int32)  # `record=None`: in every update
        new = refreshed(record, count, 1, measure, state)
        if record is not False:
            observe = None
            if action != "record":
                once = reported.in_this_program((updates, params), functions[name])
                say = functools.partial(_say, action, once)
                observe = wiring_frozen.observer(params, new.movement.unmoved, shards.axes_of(params), say)
            order.hand_on(updates, params, raises=action == "raise", observe=observe)
        return updates, new

    return optax.GradientTransformationExtraArgs(init, update)


class Reported:
    """The kinds of causes reported so far: in a compiled program, or without `jit` for one `value_fn`.

    A step that is traced again is another program: who edits the loop and runs it again is told again.
    """

    def __init__(self) -> None:
        self.without_jit: dict[Any, set[str]] = {}

    def forget(self) -> None:
        """Begins another run."""
        self.without_jit.clear()

    def in_this_program(self, arrays: Any, function: Callable[..., Any] | None) -> set[str]:
        """Returns the kinds that were reported in the program that is being traced, to be added to."""
        if is_traced(arrays):
            return set()
        while isinstance(function, functools.partial):
            function = function.func
        function = inspect.unwrap(function) if function is not None else None
        # A lambda is another object in every step, but its code is the same until it is written again.
        return self.without_jit.setdefault(getattr(function, "__code__", None), set())


def _report(
    comparison: Comparison,
    action: Action,
    reported: set[str],
    limit: Any,
    mismatch: Any,
    numbers: wiring_measure.Products,
    details: wiring_measure.Details | None,
) -> None:
    """Runs on the host, where JAX must not compute: NumPy alone."""
    limit, mismatch, numbers, details = jax.tree.map(
        lambda x: np.asarray(x, np.float64), (limit, mismatch, numbers, details)
    )
    if np.isnan(mismatch):
        return
    cause = likely_cause(comparison, numbers, details, bool(mismatch > limit))
    if cause is None:
        return
    what = (
        f"The gradient passed to `update` is not that of `{comparison.name}` at `params`: relative mismatch"
        f" {mismatch:.3g}, {cause.numbers}"
    )
    _say(action, reported, cause._replace(numbers=what))


def _say(action: Action, reported: set[str], cause: Cause) -> None:
    message = f"{cause.numbers}. {cause.explanation}"
    if action == "raise":
        raise ValueError(message)
    if cause.kind not in reported:
        reported.add(cause.kind)
        warnings.warn(message, stacklevel=3)


def _traced(loss: BatchLoss, params: optax.Params) -> jax.extend.core.ClosedJaxpr:
    """Returns the program of the gradient; raises if a call of the loss changes what the next computes."""
    program = jax.make_jaxpr(loss.own_gradient)(params)
    again = jax.make_jaxpr(loss.gradient if loss.value_fn is None else loss.value)(params)
    closed_over = set(map(id, program.consts))
    if any(isinstance(x, jax.core.Tracer) and id(x) not in closed_over for x in again.consts):
        raise ValueError(DRAWS_KEYS)
    return program


def _where(condition: jax.Array, compute: Callable[[], T]) -> T:
    """Returns `compute()` where the condition is true, and zeros otherwise."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute))
    return refreshed(condition, jnp.zeros((), jnp.int32), 1, compute, zeros)


def _is_the_same_everywhere(numbers: wiring_measure.Products, axis_name: AxisName) -> bool:
    """Returns whether all devices take the same branch of a `cond` on these numbers: it may communicate."""
    manual = set(jax.sharding.get_abstract_mesh().manual_axes)
    known = {*axis_names(axis_name), *shards.axes_here()}
    return manual <= known and not varies_over(numbers)


def _num_devices(axis_name: AxisName) -> int:
    """Returns over how many devices (or groups) a sum or a mean would be taken."""
    if axis_name is not None:
        return int(jax.lax.psum(1, axis_name))
    mesh = jax.sharding.get_abstract_mesh()
    axes = mesh.manual_axes
    return math.prod(mesh.shape[name] for name in axes) if axes else jax.device_count()
