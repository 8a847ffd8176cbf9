"""The one idea: a sharpness-aware method is an ascent and a descent, both gradient transformations.

At parameters w with the gradient g of a batch loss L, every such method

    finds a perturbation         ε = ascent(g)          what "the worst nearby point" means
    looks at the loss there      g' = ∇L(w + ε)
    and hands on a direction     d = descent(g')        what to do with what was learnt there

and the base optimizer behind it in the chain applies d at w. The published methods are choices of the
two slots (`optax_sam.aliases` spells each one out):

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

    value_fn, grad_fn, refresh   as the user passed them to `update`
    axis_name, m_sharpness       as given to `sharpness_aware`: what goes into state is averaged first,
                                 `optax_sam.devices.average(x, axis_name, m_sharpness)`
    grad                         the clean gradient g
    ascent_step                  0, 1, ..., num_steps - 1 (ascent only). The state after step 0 is kept.
    perturbation                 ε (descent only)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.devices import AxisName
from optax_sam.loss import GradFn, ValueFn, gradient_function_like, value_and_gradient_function


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
    axis_name: AxisName = None,
    m_sharpness: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Builds a sharpness-aware method from an ascent g ↦ ε and a descent g' ↦ d.

    With k = `num_steps` the perturbation is made of k shorter ascents, without projection,

        w_0 = w,    w_{j+1} = w_j + ascent(∇L(w_j)) / k,    ε = w_k − w,    g' = ∇L(w_k)

    so that its length is at most that of one ascent. The result goes *first* in a chain, in front of
    clipping, weight decay and any base optimizer, and `update` takes one more argument:

        tx = optax.chain(sharpness_aware(steepest_ascent(0.05)), optax.sgd(0.1, momentum=0.9))
        updates, state = tx.update(grads, state, params, value_fn=lambda params: loss(params, batch))

    `update(updates, state, params, *, value_fn=None, grad_fn=None, refresh=None, **extra_args)`:

      updates: gradient of the batch loss at `params`.
      value_fn: the loss of the same batch as a function of the parameters, a scalar. The same dropout
        key as in the first gradient; BatchNorm statistics not updated inside.
      grad_fn: replaces `jax.grad(value_fn)`: micro-batched gradients, loss scaling, own reductions.
      refresh: whether the occasional work (top eigenvector, α-search) is done now; see
        `optax_sam.refresh`. None: every `interval` steps.
      observe: function called while the step is traced, with what else is gone after it: the keyword
        arguments `perturbation` (ε), `ascent_value` (the loss there, None with `grad_fn`) and `axis_name`.
        What `optax_sam.diagnostics.monitor` looks through.
      Other extra arguments are handed on to the stages.

    Args:
      ascent: transformation of a gradient into a perturbation, such as `steepest_ascent`.
      descent: transformation of the gradient at w + ε into the direction of the base optimizer.
      num_steps: number k of ascents; Foret et al. use 1.
      axis_name: name (or tuple of names) of the `pmap`, `shard_map` or `vmap` axis over which the batch is
        split; parameters are the same along it. Gradients and losses taken inside are averaged over it.
        Not needed under `jit` with sharded arrays.
      m_sharpness: whether the gradients passed in are each device's own. False: they are averages over
        `axis_name`, and there is one perturbation for all devices; nothing passed in is averaged again.
        True: each device follows its own gradients in all ascents, without communication, and the last
        gradient is averaged, as is what is kept in state, such as a noise variance or α. None: follows
        from what is passed in. `shard_map(check_vma=True)` knows that; elsewhere the program provides for
        both, at the price of averages that may be needed: of one vector in `gradient_noise` and
        `spherical_search`, and of the gradient of each later ascent.

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
    checks.check_m_sharpness(m_sharpness, axis_name)
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
        refresh: bool | jax.Array | None = None,
        observe: Callable[..., None] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SharpnessAwareState]:
        checks.check_params(updates, params)
        if "ascent_step" in extra_args or "perturbation" in extra_args:
            raise ValueError(
                "A whole method, such as `sam(rho)`, was used as a stage of `sharpness_aware`. Stages map a"
                " gradient to a perturbation (`steepest_ascent(rho)`) or to a direction"
                " (`spherical_search(rho_max)`): `sharpness_aware(steepest_ascent(rho))` is `sam(rho)`."
            )
        evaluate = value_and_gradient_function(value_fn, grad_fn, axis_name=axis_name)
        follow = gradient_function_like(
            updates, value_fn, grad_fn, axis_name=axis_name, m_sharpness=m_sharpness
        )
        extra_args |= {
            "value_fn": value_fn,
            "grad_fn": grad_fn,
            "axis_name": axis_name,
            "m_sharpness": m_sharpness,
            "grad": updates,
        }

        epsilon, ascent_state = ascent.update(
            updates, state.ascent, params, ascent_step=0, refresh=refresh, **extra_args
        )
        perturbation = _divide(epsilon, num_steps)
        for step in range(1, num_steps):
            # The later ascents see what the first one learnt (an eigenvector, a variance) and add
            # nothing to it: statistics advance once a step, whatever num_steps.
            gradient = follow(tree_math.add(params, perturbation))
            epsilon, _ = ascent.update(
                gradient, ascent_state, params, ascent_step=step, refresh=False, **extra_args
            )
            perturbation = tree_math.add(perturbation, _divide(epsilon, num_steps))
        value, gradient = evaluate(tree_math.add(params, perturbation))

        if observe is not None:
            observe(perturbation=perturbation, ascent_value=value, axis_name=axis_name)
        direction, descent_state = descent.update(
            gradient,
            state.descent,
            params,
            perturbation=perturbation,
            refresh=refresh,
            **extra_args,
        )
        return tree_math.cast_like(direction, updates), SharpnessAwareState(
            ascent_value=_finite_or(value, state.ascent_value),
            ascent=ascent_state,
            descent=descent_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _divide(tree: optax.Params, divisor: int) -> optax.Params:
    return tree if divisor == 1 else jax.tree.map(lambda x: x / divisor, tree)


def _finite_or(value: jax.Array | None, kept: jax.Array) -> jax.Array:
    if value is None:
        return kept
    return jnp.where(jnp.isfinite(value), value.astype(kept.dtype), kept)
