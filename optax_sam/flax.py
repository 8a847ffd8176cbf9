"""For training loops in flax (the extra `flax`): a `value_fn` for nnx models, a `TrainState` for linen."""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any

import flax.errors
import jax
import optax
from flax import nnx
from flax.training import train_state

from optax_sam import checks

__all__ = ["TrainState", "nnx_value_fn"]


def nnx_value_fn(
    loss_fn: Callable[..., Any], model: nnx.Module, *args: Any, has_aux: bool = False, **kwargs: Any
) -> Callable[[optax.Params], jax.Array]:
    """Returns the batch loss as a function of the parameters: params ↦ loss_fn(model with params, *args).

    Call it *before* the clean gradient. It copies the model and the arguments, together, as they are then;
    each evaluation of the result uses another copy. So every pass draws the same dropout masks as the clean
    one, and no pass but the clean one changes BatchNorm statistics or advances a random stream. This holds
    for random streams in the model and for `nnx.Rngs` among the arguments.

    Args:
      loss_fn: `loss_fn(model, *args)`, the function of which the clean gradient is taken.
      model: the model in its present state.
      *args: all other arguments of `loss_fn` in this step: the batch, random streams, anything else.
      **kwargs: those that are passed by name.
      has_aux: whether `loss_fn` returns a pair of the loss and something else, which is dropped.

    Returns:
      A `value_fn` for `nnx.Optimizer.update`. Its argument may hold a part of the model's parameters, such
      as those that the optimizer trains.

    Raises:
      TypeError: when it is called, if the loss is a tuple and `has_aux` is False, or the other way round.

    Cost: nothing at run time under `jit`; otherwise a copy of the model and of the arguments.

    Example: a loss that draws its dropout masks from `rngs`.
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> from flax import nnx
      >>> from optax_sam.flax import nnx_value_fn
      >>> class Network(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.linear, self.dropout = nnx.Linear(8, 1, rngs=rngs), nnx.Dropout(0.5)
      ...     def __call__(self, x, rngs):
      ...         return self.linear(self.dropout(x, rngs=rngs))
      >>> def loss_fn(model, rngs, x, y):
      ...     return jnp.mean((model(x, rngs) - y) ** 2)
      >>> @nnx.jit
      ... def train_step(model, optimizer, rngs, x, y):
      ...     value_fn = nnx_value_fn(loss_fn, model, rngs, x, y)  # before the clean gradient
      ...     loss, grads = nnx.value_and_grad(loss_fn)(model, rngs, x, y)
      ...     optimizer.update(model, grads, value_fn=value_fn)
      ...     return loss
      >>> model, rngs = Network(nnx.Rngs(0)), nnx.Rngs(dropout=1)
      >>> tx = optax.chain(optax_sam.sam(rho=0.0), optax.sgd(0.1))
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> loss = train_step(model, optimizer, rngs, jnp.ones((4, 8)), jnp.ones((4, 1)))
      >>> bool(loss == optax.tree.get(optimizer.opt_state, "ascent_value")[...])  # rho = 0: the same mask
      True
    """
    if not callable(loss_fn) or isinstance(loss_fn, nnx.Module) or not _holds_variables(model):
        raise TypeError(
            "`nnx_value_fn(loss_fn, model, *args)` takes the loss function first, then the model, then all"
            f" other arguments of the loss; got a {type(loss_fn).__name__} and a {type(model).__name__}."
        )
    kept = nnx.clone((model, args, kwargs))

    @functools.wraps(loss_fn)
    def value_fn(params: optax.Params) -> jax.Array:
        copy, copied_args, copied_kwargs = nnx.clone(kept)
        given = _by_name(params)
        _check_known(given, _by_name(nnx.state(copy)))
        nnx.update(copy, params)
        result = loss_fn(copy, *copied_args, **copied_kwargs)
        after = _by_name(nnx.state(copy))
        value_fn.writes_to = [name for name in given if after[name] is not given[name]]  # type: ignore[attr-defined]
        if isinstance(result, tuple) != has_aux:
            raise TypeError(
                f"`loss_fn` returned a {type(result).__name__}. If it returns a pair of the loss and"
                " something else, write `nnx_value_fn(loss_fn, model, *args, has_aux=True)`, and leave"
                " `has_aux` out if it returns the loss alone."
            )
        return result[0] if has_aux else result

    # For the check that `value_fn` takes the parameters alone, which would see the arguments of `loss_fn`.
    value_fn.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    )
    return value_fn


def _holds_variables(model: Any) -> bool:
    is_variable = lambda node: isinstance(node, nnx.Variable)
    try:
        return any(map(is_variable, jax.tree.leaves(nnx.state(model), is_leaf=is_variable)))
    except (TypeError, ValueError, IndexError):  # It is neither a module nor a container of some.
        return False


def _by_name(tree: Any) -> dict[str, Any]:
    """Returns the arrays of a state of nnx, or of a dictionary, by the names on their paths."""
    is_variable = lambda node: isinstance(node, nnx.Variable)
    name = lambda key: str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
    value = lambda leaf: leaf.get_value() if is_variable(leaf) else leaf
    leaves = jax.tree.leaves_with_path(tree, is_leaf=is_variable)
    return {"/".join(map(name, path)): value(leaf) for path, leaf in leaves}


def _check_known(params: Collection[str], known: Collection[str]) -> None:
    """Raises if there are parameters that the model does not have: `nnx.update` would add them, unused."""
    for name in params:
        if name not in known:
            meant = difflib.get_close_matches(name, known, 1)
            raise ValueError(
                f"The parameters have `{name}`, which the model that was passed to `nnx_value_fn` has not"
                f"{f'; it has `{meant[0]}`' if meant else ''}. They are those of another model."
            )


class TrainState(train_state.TrainState):
    """`flax.training.train_state.TrainState` with an `apply_gradients` that takes `value_fn`.

    Attributes:
      step, apply_fn, params, tx, opt_state: as in flax's, from which it differs in `apply_gradients` alone.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> from flax import linen as nn
      >>> from optax_sam.flax import TrainState
      >>> model, x, y = nn.Dense(1), jnp.ones((4, 8)), jnp.ones((4, 1))
      >>> params = model.init(jax.random.key(0), x)["params"]
      >>> tx = optax.chain(optax_sam.sam(rho=0.05), optax.sgd(0.1))
      >>> state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
      >>> value_fn = lambda params: jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)
      >>> grads = jax.grad(value_fn)(state.params)
      >>> state = state.apply_gradients(grads=grads, value_fn=value_fn)
      >>> state.step
      1
    """

    def apply_gradients(self, *, grads: optax.Updates, **kwargs: Any) -> "TrainState":
        """Returns the state after `tx.update` and `optax.apply_updates`.

        Args:
          grads: gradient of the batch loss at `params`.
          **kwargs: fields of the state get the new value given here, as in flax: `batch_stats=...`. All
            others go to `tx.update`: `value_fn`, `grad_fn`, `refresh`, `axis_name`, ...

        Raises:
          TypeError: on an argument that is neither a field nor known to any transformation in `tx`.
          ValueError: if `optax.MultiSteps` is around a method, or the optimizer's state is one without it.
        """
        fields = self.__dataclass_fields__
        extra_args = {name: value for name, value in kwargs.items() if name not in fields}
        replaced = {name: value for name, value in kwargs.items() if name in fields}
        checks.check_spelling(extra_args)
        known = {*checks.OF_UPDATE, *OF_OPTAX}
        for name in extra_args:
            if name not in known and name not in _names_read_by(self.tx.update):
                meant = difflib.get_close_matches(name, [*fields, *known], 1, cutoff=0.75)
                raise TypeError(
                    f"`apply_gradients` got `{name}`, which is no field of `{type(self).__name__}`, and no"
                    " transformation in `tx` reads it, so it would be dropped."
                    f"{f' Did you mean `{meant[0]}`?' if meant else ''}"
                )
        tx = self.tx
        if isinstance(tx, optax.MultiSteps) or isinstance(
            getattr(tx.update, "__self__", None), optax.MultiSteps
        ):
            extra_args = dict.fromkeys(extra_args.keys() & {"value_fn", "grad_fn"}, _in_multi_steps)
            update = tx.update
        else:
            update = optax.with_extra_args_support(tx).update
        bound = optax.GradientTransformation(tx.init, functools.partial(update, **extra_args))
        try:
            # flax's own, which also knows parameters that are overwritten with their gradient (float8).
            state = train_state.TrainState.apply_gradients(
                self.replace(tx=bound), grads=grads, **{"tx": tx} | replaced
            )
        except ValueError as error:
            if "Make sure you have called init first" in str(error):
                raise ValueError(checks.STATE_OF_ANOTHER_CHAIN) from error
            raise
        return state


def _in_multi_steps(params: optax.Params) -> Any:
    raise ValueError(
        "`optax.MultiSteps` is around a method: its gradient would be the mean over the micro-batches, and"
        " `value_fn` the loss of the last one. Put it around the optimizer behind the method,"
        " `optax.chain(method, optax.MultiSteps(optimizer, k))`, where each micro-batch has its perturbation;"
        " or accumulate in the gradient and in `grad_fn`, and leave it out."
    )


# Extra arguments of Optax's own transformations (line searches, Polyak steps, Sophia).
OF_OPTAX = ("value", "grad", "obj_fn", "loss", "loss_fn", "key")


def _names_read_by(update: Callable[..., Any]) -> set[str]:
    """Returns the names that a chain may read from its extra arguments.

    A chain hands all of them on to all that it is made of. Each part is a function in a closure, and reads
    them as named arguments or as constants, `extra_args["name"]`.
    """
    found: set[str] = set()
    seen: set[int] = set()
    waiting: list[Any] = [update]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, functools.partial):
            waiting += [node.func, *node.args, *node.keywords.values()]
        elif isinstance(node, list | tuple):
            waiting += node
        elif isinstance(node, dict):
            waiting += node.values()
        elif inspect.ismethod(node):
            waiting += [node.__func__, vars(node.__self__) if hasattr(node.__self__, "__dict__") else ()]
        elif hasattr(node, "__wrapped__"):
            waiting.append(node.__wrapped__)
        elif inspect.iscode(node):
            found.update(node.co_varnames[: node.co_argcount + node.co_kwonlyargcount])
            found.update(x for x in node.co_consts if isinstance(x, str))
            waiting += filter(inspect.iscode, node.co_consts)
        elif inspect.isfunction(node):
            code = node.__code__
            waiting += [code, *(cell.cell_contents for cell in node.__closure__ or () if _is_filled(cell))]
            if code.co_flags & inspect.CO_VARKEYWORDS:  # It may hand them on to functions of its module.
                waiting += [node.__globals__[x] for x in code.co_names if x in node.__globals__]
        elif hasattr(node, "__dict__") and callable(getattr(node, "update", None)):
            waiting += [node.update]
    return found


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # A name that is assigned later.
        return False


def note(error: Exception) -> str | None:
    """Returns the remedy if this is an error of flax about a model called or merged inside `value_fn`."""
    if isinstance(error, flax.errors.TraceContextError) or "Incorrect number of leaves" in str(error):
        return (
            "A model of flax's nnx was merged or called inside `value_fn` or `grad_fn`. It needs all"
            " states, not the parameters alone, and copies of all that it changes (BatchNorm statistics,"
            " random streams). Before the clean gradient write"
            " `value_fn = optax_sam.flax.nnx_value_fn(loss_fn, model, *args)`."
        )
    return None


def describe(node: Any) -> str | None:
    """Returns what to call a variable of nnx in an error, and what to do with it; None for anything else.

    `nnx.grad` returns variables, and `nnx.Optimizer` passes arrays.
    """
    if isinstance(node, nnx.Variable):
        return f"a variable {type(node).__name__} of flax's nnx (`nnx.as_pure(tree)` makes them arrays)"
    return None
