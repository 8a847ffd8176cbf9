"""The batch loss as a stage sees it: values and gradients, checked, and averaged over the devices.

Inside `jax.pmap`, `jax.shard_map` or `jax.vmap(axis_name=...)` each device (or group) holds its own part
of the batch, and `value_fn` is the loss of that part. The mean over the axis is the loss of the batch:

    L(w) = mean_i L_i(w)        ∇L(w) = mean_i ∇L_i(w)

Under `shard_map(check_vma=True)` JAX tracks which values vary over the axis, and it *sums*
the gradient of a varying loss with respect to parameters that do not vary. A mean taken afterwards would
change nothing, and the result would be N times too large. So the parameters are marked as varying before
the gradient is taken; the mean is then the only all-reduce.
"""

import dataclasses
import re
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.custom_derivatives import SymbolicZero

from optax_sam import checks, descriptions, device_checks, shards
from optax_sam.devices import AxisName, axis_names, unnamed_axes, varies_over, varying

ValueFn = Callable[[optax.Params], jax.Array]
GradFn = Callable[[optax.Params], optax.Updates]


@dataclasses.dataclass(frozen=True)
class BatchLoss:
    """The loss L of this step's batch, made once per step from the extra arguments of `update`.

    Attributes:
      value_fn: w ↦ L(w), a scalar; on several devices, the loss of this device's part of the batch.
      grad_fn: w ↦ ∇L(w), in place of `jax.grad(value_fn)`.
      curvature_fn: the loss whose Hessian is used; None: L.
      axis_name: mapped axis, or axes, over which the batch is split; parameters are the same along it.
      m_sharpness: whether the gradient passed to `update` is each device's own.
      params_axis_name: mapped axes along which the parameters are sharded; see `optax_sam.shards`.
    """

    value_fn: ValueFn | None = None
    grad_fn: GradFn | None = None
    curvature_fn: ValueFn | None = None
    axis_name: AxisName = None
    m_sharpness: bool = False
    params_axis_name: Any = None

    def __post_init__(self) -> None:
        device_checks.check_m_sharpness(self.m_sharpness, self.axis_name)

    def check_passed(self, gradient: optax.Updates, params: optax.Params) -> None:
        """Raises if JAX knows that the gradient passed to `update` is not what the other arguments say."""
        device_checks.check_replicated(params, self.axis_name, shards.axes_here())
        device_checks.check_summed("The gradient passed to `update`", gradient, params, shards.axes_here())
        if self.m_sharpness:
            device_checks.check_local("the gradient passed to `update`", gradient, self.axis_name)
        else:
            device_checks.check_averaged(gradient, self.axis_name)
        if not (axes := self._unnamed_axes()):
            return
        if self.axis_name is not None and self.params_axis_name is None:
            _warn_of_shards(axes)
        elif self.axis_name is None and self.grad_fn is None:
            _warn_of_unnamed(axes, "value_fn")

    def value(self, params: optax.Params) -> jax.Array:
        """Returns L(w)."""
        return self._mean(_checked(self.value_fn, "value_fn", self.axis_name)(self._varying(params)))

    def value_and_gradient(self, params: optax.Params) -> tuple[jax.Array | None, optax.Updates]:
        """Returns L(w) and ∇L(w). With `grad_fn` the value is None: it would cost a forward pass."""
        return self._mean(self._own_value_and_gradient(params))

    def gradient(self, params: optax.Params) -> optax.Updates:
        """Returns ∇L(w)."""
        return self.value_and_gradient(params)[1]

    def own_gradient(self, params: optax.Params) -> optax.Updates:
        """Returns ∇L(w); with m-sharpness this device's own gradient, like the one passed to `update`."""
        return self._value_and_own_gradient(params)[1]

    def value_and_own_gradient(self, params: optax.Params) -> tuple[jax.Array | None, optax.Updates]:
        """Returns L(w), of all devices, and what `own_gradient` returns."""
        value, gradient = self._value_and_own_gradient(params)
        return self.average(value), gradient

    def curvature_gradient(self, params: optax.Params) -> optax.Updates:
        """Returns the gradient whose Jacobian is the Hessian."""
        if self.curvature_fn is None:
            return self.gradient(params)
        checked = _checked(self.curvature_fn, "curvature_fn", self.axis_name)
        return self._mean(jax.grad(checked)(self._varying(params)))

    def average(self, tree: Any) -> Any:
        """Returns the mean over the devices of what was computed from the gradient passed to `update`.

        That is `tree` itself, unless each device passed its own gradient.
        """
        return self._mean(tree) if self.m_sharpness else tree

    def own_key(self, key: jax.Array) -> jax.Array:
        """Returns a random key that all devices share; with m-sharpness, this device's own."""
        return shards.own_key(key, axis_names(self.axis_name)) if self.m_sharpness else key

    def _value_and_own_gradient(self, params: optax.Params) -> tuple[jax.Array | None, optax.Updates]:
        if not self.m_sharpness:
            return self.value_and_gradient(params)
        value, gradient = self._own_value_and_gradient(params)
        device_checks.check_local("the result of `grad_fn`", gradient, self.axis_name)
        return value, gradient

    def _own_value_and_gradient(self, params: optax.Params) -> tuple[jax.Array | None, optax.Updates]:
        if self.grad_fn is None:
            checked = _checked(self.value_fn, "value_fn", self.axis_name)
            return jax.value_and_grad(checked)(self._varying(params))
        # The gradient is taken at parameters marked as varying over all mapped axes. One that JAX would
        # otherwise have summed then varies too, which can be detected. Over axes along which some of the
        # parameters are sharded JAX has to sum the gradient of the others.
        manual = frozenset(jax.sharding.get_abstract_mesh().manual_axes)
        axes = self.axis_name or tuple(manual - varies_over(params))
        checks.check_takes_params("grad_fn", self.grad_fn)
        if self.axis_name is None and (unnamed := self._unnamed_axes()):
            _warn_if_local(self.grad_fn, params, unnamed, self.params_axis_name is None)
        gradient = _called(self.grad_fn, varying(params, axes))
        checks.check_gradient("The result of `grad_fn`", gradient, params)
        device_checks.check_summed("The gradient returned by `grad_fn`", gradient, params, shards.axes_here())
        if self.axis_name is None:
            device_checks.check_same("The gradient returned by `grad_fn`", gradient, params)
        return None, gradient

    def _unnamed_axes(self) -> tuple[Hashable, ...]:
        return unnamed_axes((*axis_names(self.axis_name), *shards.axes_named(self.params_axis_name)))

    def _varying(self, params: optax.Params) -> optax.Params:
        return varying(params, self.axis_name)

    def _mean(self, tree: Any) -> Any:
        return tree if self.axis_name is None else jax.lax.pmean(tree, self.axis_name)


DRAWS_KEYS = (
    "`value_fn` or `grad_fn` changes something outside when it is called, and uses it in the next call:"
    " likely it draws random keys from a generator that keeps the next key, such as `hk.PRNGSequence`. So the"
    " second gradient has other dropout masks than the clean one. Draw the keys before the loss, once a step:"
    " `key = next(generator)`, then `loss(params, batch, key)` in both."
)

# For a stage used on its own: there is no loss and nothing to average.
NO_LOSS = BatchLoss()


def _checked(value_fn: ValueFn | None, name: str, axis_name: AxisName) -> ValueFn:
    """Returns `value_fn` with checks for mistakes that would otherwise go undetected or fail elsewhere."""
    if value_fn is None:
        raise ValueError(
            "Sharpness-aware methods evaluate the loss at perturbed parameters, but `update` got no"
            f" `{name}`. Pass this batch's loss as a function of the parameters:"
            f" `tx.update(grads, state, params, {name}=lambda params: loss(params, batch))`. (flax's"
            " `TrainState.apply_gradients` does not pass it on; that of `optax_sam.flax.TrainState` does."
            " `optax.lookahead` around the method does not either: call the method first, with `params.fast`,"
            " then `lookahead.update(direction, state, params)`. Nor does"
            " `optax.MultiSteps(...).gradient_transformation()`: write `optax.chain(method,"
            " optax.MultiSteps(optimizer, k))`.)"
        )
    if not callable(value_fn):
        raise TypeError(
            f"`{name}` must be a function of the parameters, got {type(value_fn).__name__}."
            f" Pass `{name}=lambda params: loss(params, batch)`, not the loss itself."
        )
    checks.check_takes_params(name, value_fn)

    def checked(params: optax.Params) -> jax.Array:
        value: Any = _called(value_fn, params)
        if value is None or isinstance(value, tuple | list | dict):
            raise TypeError(
                f"`{name}` must return the loss alone, a scalar, but it returned a"
                f" {type(value).__name__}: return the loss and drop any auxiliary output (as of"
                f" `has_aux=True`), as in `{name}=lambda params: loss_and_aux(params, batch)[0]`."
            )
        value = jnp.asarray(value)
        if value.ndim != 0 or not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(
                f"`{name}` must return a real floating-point scalar, the loss of the whole batch, but it"
                f" returned shape {value.shape}, dtype {value.dtype}. Reduce the losses of the examples,"
                f" as in `{name}=lambda params: losses(params, batch).mean()`."
            )
        device_checks.check_same(f"The result of `{name}`", value, params)
        device_checks.check_one_loss(f"The result of `{name}`", value, shards.axes_here())
        if jax.tree.leaves(params):
            value = _warns_if_constant(name)(value, jax.tree.leaves(params)[0])
        # If `value_fn` averages the loss itself, the loss does not vary, and its gradient with respect to
        # varying parameters would be N times too small. Marking the loss as varying gives the gradient
        # of the local loss, as under `pmap`.
        return varying(value, axis_name)

    return checked


def _warn_if_local(
    grad_fn: GradFn, params: optax.Params, axes: tuple[Hashable, ...], may_be_shards: bool
) -> None:
    """Warns if `grad_fn` averages nothing over the devices, where nothing else does, or gathers shards."""
    program = str(jax.make_jaxpr(lambda params: _called(grad_fn, params))(params))
    if may_be_shards and re.search(r"\b(all_gather|reduce_scatter)\w*\[", program):
        _warn_of_shards(axes)
    if not re.search(r"\b(psum|all_gather|all_to_all|reduce_scatter|ppermute)\w*\[", program):
        _warn_of_unnamed(axes, "grad_fn")


def _warn_of_unnamed(axes: tuple[Hashable, ...], argument: str) -> None:
    names = ", ".join(map(repr, axes))
    warnings.warn(
        f"`update` runs inside `jax.pmap` or `jax.shard_map` over the axis {names}, but got no `axis_name`."
        " So the second gradient is that of each device's own part of the batch, and the devices drift apart."
        f" Write `tx.update(grads, state, params, {argument}={argument}, axis_name={names})`. If the"
        f" parameters are sharded along it, norms are those of a shard: write `params_axis_name={names}`."
        " (If each device trains a model of its own:"
        " `warnings.filterwarnings('ignore', '`update` runs inside')`.)",
        stacklevel=3,
    )


def _warn_of_shards(axes: tuple[Hashable, ...]) -> None:
    names = ", ".join(map(repr, axes))
    warnings.warn(
        f"`update` runs inside `jax.pmap` or `jax.shard_map` over the axis {names}, but got neither"
        " `axis_name` nor `params_axis_name` for it. If the parameters are sharded along it, norms are"
        f" those of a shard, and ε is too long: write `tx.update(..., params_axis_name={names})`. If they"
        " are the same along it: `params_axis_name=()`.",
        stacklevel=3,
    )


def _called(function: Callable[[optax.Params], Any], params: optax.Params) -> Any:
    """Returns `function(params)`; adds the remedy to errors that do not name it."""
    try:
        return function(params)
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(DRAWS_KEYS) from error
    except Exception as error:
        if note := descriptions.note_of_flax(error):
            error.add_note(note)
        raise


def _warns_if_constant(name: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns (value, param) ↦ value, which warns if a gradient is taken of a value that is constant.

    The derivative of such a value is a symbolic zero, which only a custom rule gets to see. The rule is
    skipped if all derivatives are, hence the second argument.
    """

    @jax.custom_jvp
    def identity(value: jax.Array, param: jax.Array) -> jax.Array:
        return value

    def jvp(primals: tuple[jax.Array, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, Any]:
        if isinstance(tangents[0], SymbolicZero):
            warnings.warn(
                f"`{name}` does not depend on its argument, so its gradient is zero and nothing is trained:"
                " it probably uses parameters, or a model, from outside. Compute the loss from the argument:"
                f" `{name}=lambda params: loss(params, batch)`.",
                stacklevel=2,
            )
        return primals[0], tangents[0]

    identity.defjvp(jvp, symbolic_zeros=True)
    return identity
