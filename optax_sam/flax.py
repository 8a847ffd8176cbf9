"""For training loops in flax (the extra `flax`): a `value_fn` for nnx models, a `TrainState` for linen."""

import difflib
import functools
from collections.abc import Callable
from typing import Any

import flax.errors
import jax
import optax
from flax import nnx
from flax.training import train_state

__all__ = ["TrainState", "nnx_value_fn"]


def nnx_value_fn(
    loss_fn: Callable[..., Any], model: nnx.Module, *args: Any, has_aux: bool = False
) -> Callable[[optax.Params], jax.Array]:
    """Returns the batch loss as a function of the parameters: params ↦ loss_fn(model with params, *args).

    Call it *before* the clean gradient. It copies the model and the arguments, together, as they are then;
    each evaluation of the result uses another copy. So every pass draws the same dropout masks as the clean
    one, and no pass but the clean one changes BatchNorm statistics or moves a random stream on. This holds
    for random streams in the model and for `nnx.Rngs` among the arguments.

    Args:
      loss_fn: `loss_fn(model, *args)`, the function of which the clean gradient is taken.
      model: the model in its present state.
      *args: all other arguments of `loss_fn` in this step: the batch, random streams, anything else.
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
    kept = nnx.clone((model, args))

    def value_fn(params: optax.Params) -> jax.Array:
        copy, copied_args = nnx.clone(kept)
        nnx.update(copy, params)
        result = loss_fn(copy, *copied_args)
        if isinstance(result, tuple) != has_aux:
            raise TypeError(
                f"`loss_fn` returned a {type(result).__name__}. If it returns a pair of the loss and"
                " something else, write `nnx_value_fn(loss_fn, model, *args, has_aux=True)`, and leave"
                " `has_aux` out if it returns the loss alone."
            )
        return result[0] if has_aux else result

    return value_fn


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
          TypeError: on an argument that looks like a misspelt field.
        """
        fields = self.__dataclass_fields__
        extra_args = {name: value for name, value in kwargs.items() if name not in fields}
        for name in extra_args:
            if meant := difflib.get_close_matches(name, fields, 1, cutoff=0.8):
                raise TypeError(
                    f"`TrainState` has no field `{name}`, so it would go to `tx.update`, which ignores what"
                    f" it does not know. Did you mean `{meant[0]}`?"
                )
        tx = self.tx
        update = optax.with_extra_args_support(tx).update
        bound = optax.GradientTransformation(tx.init, functools.partial(update, **extra_args))
        replaced = {name: value for name, value in kwargs.items() if name in fields}
        # flax's own, which also knows parameters that are overwritten with their gradient (float8).
        state = train_state.TrainState.apply_gradients(self.replace(tx=bound), grads=grads, **replaced)
        return state.replace(tx=tx)


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

    `nnx.grad` returns variables, and `nnx.Optimizer` hands over arrays.
    """
    if isinstance(node, nnx.Variable):
        return f"a variable {type(node).__name__} of flax's nnx (`nnx.as_pure(tree)` makes them arrays)"
    return None
