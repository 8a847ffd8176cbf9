"""The idea: a sharpness-aware method is an ascent and a descent, both gradient transformations.

At parameters w with the gradient g of a batch loss L, every such method

    computes a perturbation      ε = ascent(g)          which defines "the worst nearby point"
    takes the gradient there     g' = ∇L(w + ε)
    and returns a direction      d = descent(g')        which uses that gradient

and the base optimizer that follows in the chain applies d at w. The published methods are choices of the
two (each is written out in `optax_sam.methods`):

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

A stage is an Optax gradient transformation, from here or from Optax, that may read these extra arguments:

    loss               the batch loss, an `optax_sam.loss.BatchLoss`: `loss.value(w)`, `loss.gradient(w)`, ...
    grad               the clean gradient g
    step_count         number of updates made before this one, for schedules and for `optax_sam.refresh`
    refresh            whether the periodic work is done in this step: `optax_sam.refresh`
    ascent_step        0, 1, ..., num_steps - 1 (ascent only). Statistics are updated at 0 only.
    perturbation       ε (descent only)
    ascent_gradients   ∇L(w_1), ..., ∇L(w_{k-1}), taken on the way to w + ε = w_k (descent only)

The later ascents of a step see the state that the first one returned. If the equation of a stage has the
old statistic in every ascent, its state has a method `for_later_ascents(new)` that returns the old one. The
field `count` of Optax's stages, by which their schedules go, keeps the value from before the step.

On several devices the arguments of a stage are averages over them. With `m_sharpness=True` they are the
device's own: the method is computed on each device, as if it were alone, and d is averaged at the end. An
ascent must then average what it keeps in its state, `loss.average(x)`, so that it is the same everywhere. A
descent that keeps numbers in its state is given averages instead, unless the state has a property
`is_shared`, which says that they are the same on all devices anyway.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, order, tree_math
from optax_sam.devices import AxisName
from optax_sam.loss import BatchLoss, GradFn, ValueFn
from optax_sam.platforms import except_on_tpu
from optax_sam.shards import sums_over_shards


class SharpnessAwareState(NamedTuple):
    """State of `sharpness_aware`.

    Attributes:
      step_count: number of updates made; int32. The stages get it as an extra argument.
      ascent_value: the loss at w + ε of the last update, a by-product of the second gradient: SAM's
        estimate of the worst loss nearby. A scalar, float32 or wider; 0 before the first update. It keeps
        its value if the loss is not finite, with `grad_fn`, which returns no loss, and on TPUs, where it
        costs memory, unless `update` is asked for it: `keep_ascent_value=True`.
      ascent: state of the ascent stage.
      descent: state of the descent stage.
    """

    step_count: jax.Array
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

    With k = `num_steps` the perturbation is the sum of k shorter ascents, without projection,

        w_0 = w,    w_{j+1} = w_j + ascent(∇L(w_j)) / k,    ε = w_k − w,    g' = ∇L(w_k)

    so it is at most as long as one ascent. The result goes *first* in a chain, in front of
    clipping, weight decay and the base optimizer, and `update` takes one more argument:

        tx = optax.chain(sharpness_aware(steepest_ascent(0.05)), optax.sgd(0.1, momentum=0.9))
        updates, state = tx.update(grads, state, params, value_fn=lambda params: loss(params, batch))

    `update(updates, state, params, *, value_fn=None, grad_fn=None, curvature_fn=None, refresh=None,
    axis_name=None, m_sharpness=False, params_axis_name=None, keep_ascent_value=None, **extra_args)`:

      updates: gradient of the batch loss at `params`.
      value_fn: the loss of the same batch as a function of the parameters, a scalar. Use the same dropout
        key and the same scale as in the first gradient, and do not update BatchNorm statistics inside.
        `optax_sam.diagnostics.wiring_check` tells whether it is right.
      grad_fn: replaces `jax.grad(value_fn)`: for micro-batches, loss scaling, or your own reductions.
      curvature_fn: the loss whose Hessian is used; None: `value_fn`.
      refresh: whether the periodic work (top eigenvector, α-search) is done in this step; see
        `optax_sam.refresh`. None: every `interval` steps.
      axis_name: name (or tuple of names) of the `pmap`, `shard_map` or `vmap` axis over which the batch is
        split; parameters are the same along it. Gradients and losses taken inside are averaged over it.
        Not needed under `jit` with sharded arrays.
      m_sharpness: False: the gradients passed in are averages over `axis_name`, and there is one
        perturbation for all devices. True: they are each device's own, and each device makes its own
        perturbation and direction without communication; the mean of the directions is returned, and what
        is kept in the state is a mean too. Under `shard_map(check_vma=True)` a wrong value is an error.
        Under `pmap`, `vmap` and `check_vma=False` it goes undetected: with True, averaged gradients cost
        redundant communication, and everything later is local; with False, local gradients let the devices'
        states drift apart.
      params_axis_name: names of the axes along which the parameters are sharded *inside* `shard_map` or
        `pmap` (FSDP, tensor parallelism by hand), over which norms and inner products must run too. None:
        the axes along which JAX knows that a parameter varies, right under `shard_map(check_vma=True)`.
        Where nothing is tracked (`pmap`, `vmap`, `check_vma=False`) say it: one name, or a tuple of names,
        for all parameters, or a pytree with their structure or a prefix of it, such as the `in_specs`. `()`:
        none, if each device trains its own model. See docs/devices.md.
      keep_ascent_value: whether the state gets the loss at w + ε. None: except on TPUs, whose compiler
        keeps the outputs of the model for it, in float32 as for the clean loss, though the gradient does not
        need them: with the logits of a large vocabulary the step then needs far more memory. On CPUs and
        GPUs it is free.
      observe: function called while the step is traced, with values that `update` does not return: the
        keyword arguments `perturbation` (ε) and `ascent_value` (the loss there, None with `grad_fn`). Used
        by `optax_sam.diagnostics.monitor`.
      Other extra arguments are passed on to the stages.

    Args:
      ascent: transformation of a gradient into a perturbation, such as `steepest_ascent`.
      descent: transformation of the gradient at w + ε into the direction for the base optimizer.
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
        checks.check_arrays(params)
        checks.warn_of_16_bits(params)
        return SharpnessAwareState(
            step_count=jnp.zeros((), jnp.int32),
            ascent_value=jnp.zeros((), tree_math.accumulation_dtype(params)),
            ascent=ascent.init(params),
            descent=descent.init(params),
        )

    @sums_over_shards
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
        params_axis_name: Any = None,
        keep_ascent_value: bool | None = None,
        observe: Callable[..., None] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SharpnessAwareState]:
        checks.check_params(updates, params)
        checks.check_state(state, SharpnessAwareState)
        checks.check_not_a_stage(extra_args)
        checks.check_spelling(extra_args)
        observe = order.observers(observe, order.check_nothing_in_between(updates, params))
        loss = BatchLoss(value_fn, grad_fn, curvature_fn, axis_name, m_sharpness, params_axis_name)
        loss.check_passed(updates, params)
        extra_args |= {"loss": loss, "grad": updates, "step_count": state.step_count}

        epsilon, ascent_state = ascent.update(
            updates, state.ascent, params, ascent_step=0, refresh=refresh, **extra_args
        )
        perturbation, ascent_gradients = _divide(epsilon, num_steps), []
        # They use the statistics of the first ascent (an eigenvector, a variance) without updating them.
        learnt = _for_later_ascents(state.ascent, ascent_state) if num_steps > 1 else ascent_state
        for step in range(1, num_steps):
            gradient = loss.own_gradient(tree_math.add(params, perturbation))
            ascent_gradients.append(gradient)
            epsilon, _ = ascent.update(
                gradient, learnt, params, ascent_step=step, refresh=False, **extra_args
            )
            perturbation = tree_math.add(perturbation, _divide(epsilon, num_steps))
        value, gradient = loss.value_and_own_gradient(tree_math.add(params, perturbation))

        if observe is not None:
            observe(perturbation=perturbation, ascent_value=value)
        learnt = {"perturbation": perturbation, "ascent_gradients": tuple(ascent_gradients)}
        is_own = _takes_what_is_own(state.descent)
        if not is_own:
            gradient, updates_seen, learnt = loss.average((gradient, updates, learnt))
            extra_args["grad"] = updates_seen
        direction, descent_state = descent.update(
            gradient, state.descent, params, refresh=refresh, **extra_args, **learnt
        )
        if is_own:
            direction = loss.average(direction)
        kept = state.ascent_value
        if value is not None and keep_ascent_value is not False:
            new = tree_math.finite_or(value, kept)
            kept = new if keep_ascent_value else except_on_tpu(new, kept)
        return tree_math.cast_like(direction, updates), SharpnessAwareState(
            step_count=optax.safe_increment(state.step_count),
            ascent_value=kept,
            ascent=ascent_state,
            descent=descent_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _takes_what_is_own(state: optax.OptState) -> bool:
    """Returns whether a descent may be given each device's own: it keeps no numbers that come of it."""
    is_shared = lambda node: getattr(node, "is_shared", False)
    kept = [node for node in jax.tree.leaves(state, is_leaf=is_shared) if not is_shared(node)]
    return not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in kept)


def _divide(tree: optax.Params, divisor: int) -> optax.Params:
    return tree if divisor == 1 else jax.tree.map(lambda x: x / divisor, tree)


def _for_later_ascents(old: optax.OptState, new: optax.OptState) -> optax.OptState:
    """Returns what the later ascents of this step see: the new state, unless a stage says otherwise."""
    decides = lambda state: hasattr(state, "for_later_ascents")

    def seen(path: tuple[Any, ...], old: Any, new: Any) -> Any:
        if decides(old):
            return old.for_later_ascents(new)
        return old if path and getattr(path[-1], "name", None) == "count" else new

    return jax.tree_util.tree_map_with_path(seen, old, new, is_leaf=decides)
