"""The one idea: a sharpness-aware method is an ascent and a descent, both gradient transformations.

At parameters w with the gradient g of a batch loss L, every such method

    finds a perturbation         ε = ascent(g)          what "the worst nearby point" means
    looks at the loss there      g' = ∇L(w + ε)
    and hands on a direction     d = descent(g')        what to do with what was learnt there

and the base optimizer behind it in the chain applies d at w. The published methods are choices of the
two slots (`optax_sam.methods` spells each one out):

    method        ascent                                                descent
    sam           steepest_ascent(rho)                                  identity
    asam          steepest_ascent(rho, constraint=weight_magnitude())   identity
    fisher_sam    steepest_ascent(rho, constraint=fisher_information()) identity
    info_sam      steepest_ascent(rho, objective=gradient_noise())      identity
    eigen_sam     steepest_ascent(rho), tilt_to_top_eigenvector()       identity
    xsam          steepest_ascent(rho)                                  spherical_search(rho_max)

and any other combination is a method too:

    sharpness_aware(
        optax.chain(
            steepest_ascent(rho, objective=gradient_noise(), constraint=weight_magnitude()),
            tilt_to_top_eigenvector(),
        ),
        spherical_search(0.3),
        num_steps=2,
    )

A stage is an Optax gradient transformation, ours or Optax's own, that may read these extra arguments:

    loss           the batch loss, an `optax_sam.loss.BatchLoss`: `loss.value(w)`, `loss.gradient(w)`, ...
    grad           the clean gradient g
    perturbation   ε (descent only)
    refresh        whether the occasional work is done now: `optax_sam.refresh`
    ascent_step    0, 1, ..., num_steps - 1 (ascent only). What is learnt is learnt at 0.

On several devices, what a descent reads is averaged over them. What an ascent reads may be the device's own
(`m_sharpness=True`): what it keeps in state it averages first, `loss.average(x)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.devices import AxisName
from optax_sam.loss import BatchLoss, GradFn, ValueFn


class SharpnessAwareState(NamedTuple):
    """State of `sharpness_aware`.

    Attributes:
      ascent_value: the loss at w + ε of the last update, a by-product of the second gradient: SAM's
        estimate of the worst loss nearby. A scalar, float32 or wider; 0 before the first update. A
        non-finite loss leaves it as it was, and so does `grad_fn`, which returns no loss.
      ascent: state of the ascent stage.
      descent: state of the descent stage.
    """

    ascent_value: jax.Array
    ascent: optax.OptState
    descent: optax.OptState


def sharpness_aware(
    ascent: optax.GradientTransformation,
    descent: optax.GradientTransformation = optax.identity(),  # noqa: B008 (immutable)
    *,
    num_steps: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Builds a sharpness-aware method from an ascent g ↦ ε and a descent g' ↦ d.

    With k = `num_steps` the perturbation is made of k shorter ascents, without projection,

        w_0 = w,    w_{j+1} = w_j + ascent(∇L(w_j)) / k,    ε = w_k − w,    g' = ∇L(w_k)

    so that its length is at most that of one ascent. The result goes *first* in a chain, in front of
    clipping, weight decay and any base optimizer, and `update` takes one more argument:

        tx = optax.chain(sharpness_aware(steepest_ascent(0.05)), optax.sgd(0.1, momentum=0.9))
        updates, state = tx.update(grads, state, params, value_fn=lambda params: loss(params, batch))

    `update(updates, state, params, *, value_fn=None, grad_fn=None, curvature_fn=None, refresh=None,
    axis_name=None, m_sharpness=False, **extra_args)`:

      updates: gradient of the batch loss at `params`.
      value_fn: the loss of the same batch as a function of the parameters, a scalar. The same dropout
        key as in the first gradient; BatchNorm statistics not updated inside.
      grad_fn: replaces `jax.grad(value_fn)`: micro-batched gradients, loss scaling, own reductions.
      curvature_fn: the loss whose Hessian is looked at; None: `value_fn`.
      refresh: whether the occasional work (top eigenvector, α-search) is done now; see
        `optax_sam.refresh`. None: every `interval` steps.
      axis_name: name (or tuple of names) of the `pmap`, `shard_map` or `vmap` axis over which the batch is
        split; parameters are the same along it. Gradients and losses taken inside are averaged over it.
        Not needed under `jit` with sharded arrays.
      m_sharpness: False: the gradients passed in are averages over `axis_name`, and there is one
        perturbation for all devices. True: they are each device's own, which it follows in all ascents
        without communication; the last gradient is averaged, as is what is kept in state. Where JAX knows
        better, under `shard_map(check_vma=True)`, a wrong word is an error. Under `pmap`, `vmap` and
        `check_vma=False` it goes undetected: averages called local cost redundant communication, local
        gradients called averages let the states of the devices drift apart.
      observe: function called while the step is traced, with what else is gone after it: the keyword
        arguments `perturbation` (ε) and `ascent_value` (the loss there, None with `grad_fn`). What
        `optax_sam.diagnostics.monitor` looks through.
      Other extra arguments are handed on to the stages.

    Args:
      ascent: transformation of a gradient into a perturbation, such as `steepest_ascent`.
      descent: transformation of the gradient at w + ε into the direction of the base optimizer.
      num_steps: number k of ascents; Foret et al. use 1.

    Returns:
      A gradient transformation. Its result has the structure, shapes and dtypes of `updates`.

    Raises:
      ValueError, TypeError: at construction or at trace time, with a remedy; see `optax_sam.checks`.

    Cost: k gradients more than the base optimizer, and memory for ε; nothing else.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> loss = lambda params: jnp.sum(jnp.array([1.0, 10.0]) * params**2)
      >>> tx = optax.chain(
      ...     optax_sam.sharpness_aware(optax_sam.steepest_ascent(0.05)), optax.sgd(0.01)
      ... )
      >>> params = jnp.array([1.0, 1.0])
      >>> state = tx.init(params)
      >>> for _ in range(100):
      ...     grads = jax.grad(loss)(params)
      ...     updates, state = tx.update(grads, state, params, value_fn=loss)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(loss(params) < 0.05)
      True

    References:
      Foret et al., `Sharpness-aware minimization for efficiently improving generalization
      <https://arxiv.org/abs/2010.01412>`_, 2021
    """
    checks.check_count("num_steps", num_steps)
    checks.check_stage("ascent", ascent)
    checks.check_stage("descent", descent)
    ascent = optax.with_extra_args_support(ascent)
    descent = optax.with_extra_args_support(descent)

    def init(params: optax.Params) -> SharpnessAwareState:
        return SharpnessAwareState(
            ascent_value=jnp.zeros((), tree_math.accumulation_dtype(params)),
            ascent=ascent.init(params),
            descent=descent.init(params),
        )

    def update(
        updates: optax.Updates,
        state: SharpnessAwareState,
        params: optax.Params | None = None,
        *,
        value_fn: ValueFn | None = None,
        grad_fn: GradFn | None = None,
        curvature_fn: ValueFn | None = None,
        refresh: bool | jax.Array | None = None,
        axis_name: AxisName = None,
        m_sharpness: bool = False,
        observe: Callable[..., None] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SharpnessAwareState]:
        checks.check_params(updates, params)
        checks.check_not_a_stage(extra_args)
        loss = BatchLoss(value_fn, grad_fn, curvature_fn, axis_name, m_sharpness)
        loss.check_passed(updates)
        extra_args |= {"loss": loss, "grad": updates}

        epsilon, ascent_state = ascent.update(
            updates, state.ascent, params, ascent_step=0, refresh=refresh, **extra_args
        )
        perturbation = _divide(epsilon, num_steps)
        for step in range(1, num_steps):
            # The later ascents see what the first one learnt (an eigenvector, a variance) and add nothing
            # to it; their schedules stay at this step.
            learnt = jax.tree.map(_unless_count, state.ascent, ascent_state)
            gradient = loss.ascent_gradient(tree_math.add(params, perturbation))
            epsilon, _ = ascent.update(
                gradient, learnt, params, ascent_step=step, refresh=False, **extra_args
            )
            perturbation = tree_math.add(perturbation, _divide(epsilon, num_steps))
        value, gradient = loss.value_and_gradient(tree_math.add(params, perturbation))

        if observe is not None:
            observe(perturbation=perturbation, ascent_value=value)
        extra_args |= {"grad": loss.average(updates), "perturbation": loss.average(perturbation)}
        direction, descent_state = descent.update(
            gradient, state.descent, params, refresh=refresh, **extra_args
        )
        kept = state.ascent_value
        return tree_math.cast_like(direction, updates), SharpnessAwareState(
            ascent_value=kept if value is None else tree_math.finite_or(value, kept),
            ascent=ascent_state,
            descent=descent_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _divide(tree: optax.Params, divisor: int) -> optax.Params:
    return tree if divisor == 1 else jax.tree.map(lambda x: x / divisor, tree)


def _unless_count(old: jax.Array, new: jax.Array) -> jax.Array:
    """Returns what a stage has learnt, but the number of steps, an integer, as it was."""
    return old if jnp.issubdtype(new.dtype, jnp.integer) else new
