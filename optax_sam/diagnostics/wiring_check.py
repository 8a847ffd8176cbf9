"""Compares the gradient of `value_fn` with the gradient passed to `update`: is the training loop wired right?

    tx = optax.chain(diagnostics.wiring_check(), optax_sam.sam(0.05), optax.sgd(0.1))
    updates, state = tx.update(grads, state, params, value_fn=value_fn)
    optax.tree.get(state, "mismatch")

A sharpness-aware method takes its second gradient from `value_fn`, so at the parameters themselves

    mismatch = ‖∇value_fn(w) − g‖ / ‖g‖,   g the gradient passed in

is 0, up to rounding. If it is not, the losses differ: another batch, another dropout key, a state from after
the clean pass, another scale. Such a program runs, and trains something else. The mismatch of the last update
is in the state; one above the tolerance is reported, with the cause that the numbers suggest:

    the gradient of `value_fn` is 0, in all parameters or in some      they do not come from its argument
    both gradients have the same direction                             a factor: loss scale, sum for mean
    the difference is proportional to w                                an L2 penalty in one of the two
    inside `jax.pmap`, and no `axis_name`                              the loss of one device
    none of these                                                      another batch, key or state
"""

import functools
import math
import re
import warnings
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import checks, shards, tree_math
from optax_sam.devices import AxisName, unnamed_axes, varying
from optax_sam.diagnostics.wiring_causes import Comparison, likely_cause
from optax_sam.loss import BatchLoss, GradFn, ValueFn
from optax_sam.refresh import refreshed

Action = Literal["warn", "raise", "record"]


class WiringCheckState(NamedTuple):
    """State of `wiring_check`.

    Attributes:
      mismatch: ‖∇value_fn(w) − g‖ / ‖g‖ of the last update that was checked, a float32 scalar; 0 before the
        first, and inf if only one of the gradients is zero or not finite. It keeps its value if the gradient
        passed in is not finite.
    """

    mismatch: jax.Array


def wiring_check(
    *, tolerance: float | None = None, action: Action = "warn"
) -> optax.GradientTransformationExtraArgs:
    """Checks that the gradient passed to `update` is that of `value_fn`, and hands it on unchanged.

    It goes *first* in a chain. Run the first steps of a new training loop with it, then take it out or pass
    `record=False`. It sees one point only: a loss that is wrong elsewhere, as one that changes the statistics
    of BatchNorm, passes.

    `update` reads the arguments of `sharpness_aware`: with `grad_fn` the gradients are those of `grad_fn`,
    with `axis_name` they are averages over the devices, with `m_sharpness=True` each device compares its own
    (and the state has their root mean square). Two more are its own:

      record: None, the default, and True: check in this update. False: do not; nothing is computed. A traced
        bool: in a `lax.cond`, which is slow for convolutions on CPU; see `optax_sam.refresh`.
      clean_value_fn: the loss whose gradient is passed in, if that is another one on purpose, as with an
        ascent on a part of the batch: `tx.update(grads_of_part, state, params, value_fn=loss_of_batch,
        clean_value_fn=loss_of_part)`.

    Args:
      tolerance: the largest mismatch that is not reported. None: 0.01, and 0.2 where anything is computed in
        16 bits or fewer, which leaves room for rounding that differs between two compiled programs.
      action: "warn": a `UserWarning`, once for each cause. "raise": a `ValueError`. Under `jit` both come
        from a callback on the host: the warning when the step has run, the error, as a
        `jax.errors.JaxRuntimeError`, when its result is waited for. "record": neither, and no callback in
        the program (for `jax.export`, and for devices that have none).

    Returns:
      A gradient transformation with `WiringCheckState`. Its result is `updates`.

    Raises:
      ValueError: on an unknown `action` or a negative tolerance.

    Cost: a gradient in each update that is checked, at most: XLA computes only once what is the same in both.
      Under `pmap` and `shard_map` an all-reduce for it, and one of a few numbers.

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
    reported: set[str] = set()

    def report(limit: float, comparison: Comparison, mismatch: np.ndarray, products: np.ndarray) -> None:
        if not mismatch > limit:
            return
        cause = likely_cause(comparison, np.asarray(products, np.float64))
        message = (
            f"The gradient passed to `update` is not that of `{comparison.name}` at `params`: relative"
            f" mismatch {mismatch:.3g}, {cause.numbers}. {cause.explanation}"
        )
        if action == "raise":
            raise ValueError(message)
        if cause.kind not in reported:
            reported.add(cause.kind)
            warnings.warn(message, stacklevel=2)

    def init(params: optax.Params) -> WiringCheckState:
        return WiringCheckState(mismatch=jnp.zeros((), jnp.float32))

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
        def measure() -> jax.Array:
            checks.check_params(updates, params)
            functions = (value_fn, grad_fn) if clean_value_fn is None else (clean_value_fn, None)
            loss = BatchLoss(*functions, None, axis_name, m_sharpness, params_axis_name)
            loss.check_passed(updates, params)
            traced = jax.make_jaxpr(loss.ascent_gradient)(params)
            limit = _default_tolerance(str(traced)) if tolerance is None else tolerance
            gradient = jax.extend.core.jaxpr_as_fun(traced)(*jax.tree.leaves(params))
            products = _products(gradient, updates, params)
            if axis_name is not None:  # The state is the same on all devices.
                products = jax.lax.pmean(varying(products, axis_name), axis_name)
            mismatch = _mismatch(products)
            if action != "record":
                named = "clean_value_fn" if clean_value_fn else "grad_fn" if grad_fn else "value_fn"
                paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
                axes = unnamed_axes() if axis_name is None else ()
                comparison = Comparison(named, tuple(paths), _num_devices(axis_name), axes)
                jax.debug.callback(functools.partial(report, limit, comparison), mismatch, products)
            return jnp.where(jnp.isnan(mismatch), state.mismatch, mismatch.astype(jnp.float32))

        count = jnp.zeros((), jnp.int32)  # `record=None`: in every update
        return updates, WiringCheckState(refreshed(record, count, 1, measure, state.mismatch))

    return optax.GradientTransformationExtraArgs(init, update)


def _default_tolerance(program: str) -> float:
    return 0.2 if re.search(r"\b(b?f16|f8\w*)\[", program) else 0.01


def _products(gradient: list[jax.Array], updates: optax.Updates, params: optax.Params) -> jax.Array:
    """Returns ‖v‖², ‖g‖², ⟨v, g⟩, ‖v − g‖², ⟨v − g, w⟩ and ‖w‖² of each array, shape (arrays, 6)."""
    dtype = tree_math.accumulation_dtype(gradient, updates, params)

    def leaf(v: jax.Array, g: jax.Array, w: jax.Array, axes: shards.Axes) -> jax.Array:
        v, g, w = (jax.lax.stop_gradient(x).astype(dtype) for x in (v, g, w))
        d = v - g
        row = jnp.stack([jnp.sum(x * y) for x, y in ((v, v), (g, g), (v, g), (d, d), (d, w), (w, w))])
        return jax.lax.psum(row, axes) if axes else row

    rows = list(
        map(leaf, gradient, jax.tree.leaves(updates), jax.tree.leaves(params), shards.axes_of(params))
    )
    return jnp.stack(rows) if rows else jnp.zeros((0, 6), dtype)


def _mismatch(products: jax.Array) -> jax.Array:
    """Returns ‖v − g‖ / ‖g‖, and NaN if g is not finite, so that there is nothing to compare with."""
    _, passed, _, difference, _, _ = jnp.sum(products, 0)
    ratio = jnp.sqrt(difference / jnp.where(passed == 0, 1, passed))
    ratio = jnp.where((passed == 0) & (difference > 0) | ~jnp.isfinite(difference), jnp.inf, ratio)
    return jnp.where(jnp.isfinite(passed), ratio, jnp.nan)


def _num_devices(axis_name: AxisName) -> int:
    """Returns over how many devices (or groups) a sum or a mean would be taken."""
    if axis_name is not None:
        return int(jax.lax.psum(1, axis_name))
    mesh = jax.sharding.get_abstract_mesh()
    axes = mesh.manual_axes
    return math.prod(mesh.shape[name] for name in axes) if axes else jax.device_count()
