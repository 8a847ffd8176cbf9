"""Restriction of a method, or of an ascent, to some of the parameters, and an ascent for each group of them.

`optax.masked` and `optax.partition` hand a part of the parameters to what they contain, but `value_fn` needs
all; what they leave out passes through, in an ascent as a part of ε. Here what is contained sees a loss of
its own parameters, in which the others are constants:

    masked(method, mask)             the method for the selected parameters; the gradients of the others
                                     pass through, as with `optax.masked`
    masked(ascent, mask)             in `sharpness_aware`: the others are not perturbed, ε = 0
    partition({label: ascent}, ...)  in `sharpness_aware`: an ascent, with its own norm, for each group

If some weights are frozen, restrict the method to the others. Frozen by the base optimizer alone they are
perturbed, though they are not trained, and take up most of ε.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, order
from optax_sam.loss import BatchLoss
from optax_sam.masks import Mask, resolved

FUNCTIONS = ("value_fn", "grad_fn", "curvature_fn")


class NotSelected(NamedTuple):
    """Stands where a parameter is left out; a pytree without leaves."""


def masked(inner: optax.GradientTransformation, mask: Mask) -> optax.GradientTransformationExtraArgs:
    """Restricts a method, or an ascent of `sharpness_aware`, to the parameters that a mask selects.

    Args:
      inner: a method such as `optax_sam.sam(0.05)`, or an ascent such as `steepest_ascent(0.05)`. It sees the
        selected parameters only: its norms, its state and its Hessian are theirs.
      mask: a pytree of bools with the structure of the parameters or a prefix of it, or a function from the
        parameters to one, such as `mask_by_name("kernel")`. True: selected.

    Returns:
      A gradient transformation with `optax.MaskedState`. Of a method, `update` takes the arguments of
      `sharpness_aware`, and the gradients of the other parameters pass through (with m-sharpness, averaged
      over the devices). As an ascent it returns 0 for them.

    Raises:
      TypeError, ValueError: at trace time, if the mask is no pytree of bools, does not fit the parameters, or
        selects none of them.

    Cost: as `inner` on the selected parameters alone: the second gradient is not taken for the others.

    Example: a trained head on frozen layers; norms are the head's.
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> params = {"body": jnp.ones(3), "head": jnp.ones(2)}
      >>> trained = {"body": False, "head": True}
      >>> tx = optax.chain(
      ...     optax_sam.masked(optax_sam.sam(0.05), trained),
      ...     optax.partition({True: optax.sgd(0.1), False: optax.set_to_zero()}, trained),
      ... )
      >>> loss = lambda p: jnp.sum(p["body"] ** 2) * jnp.sum(p["head"] ** 2)
      >>> updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params, value_fn=loss)
      >>> updates["body"].tolist()
      [0.0, 0.0, 0.0]

    References:
      Müller et al., `Normalization layers are all that sharpness-aware minimization needs
      <https://arxiv.org/abs/2306.04226>`_, 2023 (an ascent for some parameters)
    """
    checks.check_stage("inner", inner)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> optax.MaskedState:
        return optax.MaskedState(inner.init(_select(params, _checked(mask, params))))

    def update(
        updates: optax.Updates,
        state: optax.MaskedState,
        params: optax.Params | None = None,
        *,
        axis_name: Any = None,
        m_sharpness: bool = False,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.MaskedState]:
        checks.check_params(updates, params)
        if "perturbation" in extra_args:
            raise ValueError(
                "`masked` restricts a whole method, `masked(sam(0.05), mask)`, or its ascent, but was used as"
                " a descent. Optax's stages may be restricted there by `optax.masked`."
            )
        selected = _checked(mask, params)
        if "ascent_step" in extra_args:
            others = jax.tree.map(jnp.zeros_like, updates)
        else:
            seen = order.check_nothing_in_between(updates, params)
            if seen is not None:
                _hand_on(seen, updates, params, selected)
            named = extra_args.get("params_axis_name")
            loss = BatchLoss(axis_name=axis_name, m_sharpness=m_sharpness, params_axis_name=named)
            loss.check_passed(updates, params)
            others = loss.average(updates)
            extra_args |= {"axis_name": axis_name, "m_sharpness": m_sharpness}
        result, inner_state = inner.update(
            _select(updates, selected),
            state.inner_state,
            _select(params, selected),
            **_of_selected(extra_args, selected, params),
        )
        return _merge(result, others), optax.MaskedState(inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def partition(
    ascents: Mapping[Hashable, optax.GradientTransformation], labels: Any | Callable[[optax.Params], Any]
) -> optax.GradientTransformationExtraArgs:
    """An ascent for each group of parameters: a radius per group.

    Args:
      ascents: for each label an ascent, such as `steepest_ascent(0.05)`. It sees the parameters of its group
        only. Parameters with another label are not perturbed.
      labels: a pytree of labels with the structure of the parameters or a prefix of it, or a function from
        the parameters to one.

    Returns:
      A gradient transformation g ↦ ε for the ascent of `sharpness_aware`. Its state is a dictionary of the
      states of the ascents.

    Raises:
      ValueError: at trace time, if no parameter has the label of an ascent.

    Cost: as the ascents.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> params = {"body": jnp.ones(3), "head": jnp.ones(2)}
      >>> radii = {"body": optax_sam.steepest_ascent(0.1), "head": optax_sam.steepest_ascent(0.01)}
      >>> ascent = optax_sam.partition(radii, {"body": "body", "head": "head"})
      >>> perturbation, _ = ascent.update(params, ascent.init(params), params, ascent_step=0)
      >>> [round(float(jnp.linalg.norm(perturbation[name])), 3) for name in ("body", "head")]
      [0.1, 0.01]
    """
    for label, ascent in ascents.items():
        checks.check_stage(f"ascents[{label!r}]", ascent)

    def of_label(label: Hashable) -> Callable[[optax.Params], Any]:
        def mask(params: optax.Params) -> Any:
            return jax.tree.map(
                lambda other: bool(other == label), labels(params) if callable(labels) else labels
            )

        return mask

    stages = {label: masked(ascent, of_label(label)) for label, ascent in ascents.items()}

    def init(params: optax.Params) -> dict[Hashable, optax.OptState]:
        return {label: stage.init(params) for label, stage in stages.items()}

    def update(
        updates: optax.Updates,
        state: dict[Hashable, optax.OptState],
        params: optax.Params | None = None,
        *,
        ascent_step: int = 0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, dict[Hashable, optax.OptState]]:
        total, new = jax.tree.map(jnp.zeros_like, updates), {}
        for label, stage in stages.items():
            epsilon, new[label] = stage.update(
                updates, state[label], params, ascent_step=ascent_step, **extra_args
            )
            total = jax.tree.map(jnp.add, total, epsilon)
        return total, new

    return optax.GradientTransformationExtraArgs(init, update)


def _checked(mask: Mask, params: optax.Params) -> Any:
    """Returns the pytree of bools. Optax calls `init` with a placeholder, which has no leaves."""
    if not jax.tree.leaves(params):
        return params
    selected = resolved(mask, params)
    if not any(jax.tree.leaves(selected)):
        raise ValueError("`mask`, or a label, selects no parameter, so nothing would be perturbed.")
    return selected


def _select(tree: Any, selected: Any) -> Any:
    return jax.tree.map(lambda chosen, x: x if chosen else NotSelected(), selected, tree)


def _merge(part: Any, others: Any) -> Any:
    is_missing = lambda node: isinstance(node, NotSelected)
    return jax.tree.map(lambda x, other: other if is_missing(x) else x, part, others, is_leaf=is_missing)


def _hand_on(seen: order.HandedOn, updates: optax.Updates, params: optax.Params, selected: Any) -> None:
    """Hands on to the restricted method what a check in front of it saw."""
    observe = seen.observe

    def of_all(*, perturbation: Any = None, **what: Any) -> None:
        zeros = jax.tree.map(lambda _: jnp.zeros(()), selected)
        if observe is not None:
            observe(perturbation=None if perturbation is None else _merge(perturbation, zeros), **what)

    part = _select(updates, selected), _select(params, selected)
    order.hand_on(*part, raises=seen.raises, observe=of_all)


def _of_selected(extra_args: dict[str, Any], selected: Any, params: optax.Params) -> dict[str, Any]:
    """Returns the extra arguments of what sees the selected parameters only."""

    def restricted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if name == "grad_fn":
            return lambda part: _select(function(_merge(part, params)), selected)
        return lambda part: function(_merge(part, params))

    extra_args = dict(extra_args)
    for name in FUNCTIONS:
        if callable(extra_args.get(name)):
            extra_args[name] = restricted(name, extra_args[name])
    if "grad" in extra_args:
        extra_args["grad"] = _select(extra_args["grad"], selected)
    if (loss := extra_args.get("loss")) is not None:
        functions = {name: getattr(loss, name) for name in FUNCTIONS}
        own = {name: restricted(name, f) for name, f in functions.items() if f is not None}
        extra_args["loss"] = dataclasses.replace(loss, **own)
    if (observe := extra_args.get("observe")) is not None:

        def observe_all(*, perturbation: Any, **what: Any) -> None:
            zeros = jax.tree.map(jnp.zeros_like, params)
            observe(perturbation=None if perturbation is None else _merge(perturbation, zeros), **what)

        extra_args["observe"] = observe_all
    return extra_args
