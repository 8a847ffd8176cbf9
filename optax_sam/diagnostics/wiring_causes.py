"""What the numbers of two gradients say about why they differ: the messages of `wiring_check`.

v is the gradient of `value_fn`, g the one passed to `update`, w the parameters.

    kind         what the numbers show                           what is likely
    not finite   v is not finite, g is                           an overflow in `value_fn`
    constant     v = 0                                           `value_fn` ignores its argument
    zero         g = 0, v is not                                 `updates` are no gradients
    written      the forward pass writes to parameters           the optimizer holds others than those of g
    part         v = 0 in some of the parameter arrays only      `value_fn` takes those from outside
    frozen       g = 0 in some, and v = g in the others          gradients set to zero in front
    sign         v = −r g                                        the negative of the loss
    factor       v = r g                                         loss scale, sum over devices, clipping
    penalty      v − g = r w, or 0, in each array                weight decay in one of the two
    units        g = r v, another r in each array or column      adaptive clipping, a trust ratio
    clip         g = v, or ± one number where |v| is larger      elementwise clipping
    entries      signs agree, |g| is nearly the same everywhere  the scaling of Adam
    axis_name    none of these, in `jax.pmap` without a name     the loss of this device's part of the batch
    term         none of these, directions are close             another term in one of the two losses
    other        none of these                                   another batch, dropout key or state

Nothing is reported if the difference is rounding: see `optax_sam.diagnostics.wiring_measure`. An array in
which one of the two is exactly zero is reported however small the other is.
"""

import dataclasses
import math
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

from optax_sam.diagnostics.wiring_measure import Details, Products, is_16_bit, zero_in_one

# Directions are the same if their angle is less than this part of the mismatch.
SAME_DIRECTION = 0.1
# Rounding does not make two vectors of at least this many entries parallel.
MANY = 8


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is known when the step is traced.

    Attributes:
      name: the argument of `update` that v comes from.
      paths: names of the parameter arrays.
      sizes: their numbers of entries.
      num_devices: over how many a sum or a mean may be taken.
      is_averaged: whether `update` was told an axis to average over.
      unnamed_axes: axes of `jax.pmap` or `jax.shard_map` here, if `update` was told none.
      writes_to: names of parameters to which the function of that name writes when it is called.
      eps: the spacing of numbers in the narrowest type in which v is computed.
    """

    name: str
    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    num_devices: int
    is_averaged: bool
    unnamed_axes: tuple[Hashable, ...]
    writes_to: tuple[str, ...]
    eps: float


class Cause(NamedTuple):
    """A likely cause: its kind in the table above, the numbers that suggest it, and what to change."""

    kind: str
    numbers: str
    explanation: str


def likely_cause(
    comparison: Comparison, numbers: Products, details: Details | None, is_above: bool
) -> Cause | None:
    """Returns why v and g probably differ; None if they do not, or if it is rounding.

    Args:
      comparison: what was compared.
      numbers: as measured, in NumPy and float64.
      details: the same, or None if they could not be measured.
      is_above: whether the mismatch is above the tolerance.
    """
    name, eps = comparison.name, comparison.eps
    scale, scale_g = numbers.scales
    # All in units of the scale of v.
    ratio, unit = scale_g / scale, 1 / scale
    table = np.asarray(numbers.products) * np.array([1, ratio**2, ratio, 1, unit, unit**2])
    vv, gg, vg, dd = table.sum(axis=0)[:4]
    if not math.isfinite(vv):
        return Cause(
            "not finite",
            f"the gradient of `{name}` is not finite",
            f"The one passed in is. Likely a loss scale in `{name}` alone, or a division by zero there.",
        )
    # In 16 bits programs differ by far less: their parameters are rounded alike.
    room = (0.02 if is_16_bit(eps) else 2.0) ** 2
    change = np.zeros(len(table)) if details is None else room * details.change
    is_rounding = details is not None and dd <= change.sum()
    constant, frozen = zero_in_one(numbers.largest, eps)
    constant, frozen = constant & (table[:, 1] > change), frozen & (table[:, 0] > change)
    if not is_above and not constant.any() and not frozen.any():
        return None
    if (vv == 0 or gg == 0) and is_rounding:
        return None
    if vv == 0:
        return Cause(
            "constant",
            f"the gradient of `{name}` is zero",
            f"Likely `{name}` ignores its argument and uses parameters, or a model, from outside. Compute the"
            f" loss from the argument: `{name}=lambda params: loss(params, batch)`. In float16, likely an"
            " underflow: unscale in `grad_fn`.",
        )
    if gg == 0:
        return Cause(
            "zero",
            "the gradient passed in is zero",
            "Pass the gradient of the batch loss, `tx.update(grads, state, params, value_fn=value_fn)`.",
        )
    cosine, ratio = vg / math.sqrt(vv * gg), math.sqrt(vv / gg)
    largest = int(table[:, 3].argmax())
    text = (
        f"cosine {cosine:.3f}, ratio of the norms {ratio:.3g}, {table[largest, 3] / dd:.0%} of the squared"
        f" difference in `params{comparison.paths[largest]}`"
    )
    cause = lambda kind, explanation: Cause(kind, text, explanation)

    if comparison.writes_to and not is_rounding:
        return cause(
            "written",
            f"The forward pass writes to the parameters (`{comparison.writes_to[0]}`), as nnx.SpectralNorm"
            " and nnx.WeightNorm do. So after the clean pass the model holds others than those of the"
            " gradient. Put them back: before the clean pass"
            " `before = nnx.clone(nnx.state(model, nnx.Param))`, after it `nnx.update(model, before)`. If"
            " they are back, another batch, dropout key or state is likely.",
        )
    if constant.any():
        return cause(
            "part",
            f"The gradient of `{name}` is zero in {_listed(comparison, constant)}: likely `{name}` takes them"
            " from a model outside, and not from its argument.",
        )
    if frozen.any() and table[~frozen, 3].sum() <= 1e-4 * gg:
        return cause(
            "frozen",
            f"The gradient passed in is zero in {_listed(comparison, frozen)}, and the same elsewhere: likely"
            " it was set to zero to freeze them. The second gradient is not zero there, so they would be"
            " trained. Pass the whole gradient, and freeze behind the method:"
            " `optax.chain(method, optimizer, freeze)`. Or let `params` be the trained part alone.",
        )
    many = sum(comparison.sizes) >= MANY
    if is_rounding and not many:
        return None
    if _sine(cosine) < SAME_DIRECTION * min(1, math.sqrt(dd / gg)):
        return cause(*_factor(comparison, math.copysign(ratio, cosine)))
    if (decay := _decay(table)) is not None:
        return cause(
            "penalty",
            f"The difference is {decay:.3g} times the parameters"
            f"{'' if _differs(table).all() else ', or zero, in each array'}: likely weight decay (an L2"
            " penalty) is in one of the two only. Leave it to the optimizer, behind the method:"
            " `optax.add_decayed_weights`, `optax.adamw`.",
        )
    if is_rounding:
        return None
    if details is not None and (found := _by_entry(numbers, details)):
        return cause(*found)
    if comparison.unnamed_axes:
        axes = ", ".join(map(repr, comparison.unnamed_axes))
        return cause(
            "axis_name",
            f"Likely `axis_name` is missing: the step is mapped over {axes}, and `{name}` is the loss of this"
            f" device's part of the batch. Write `tx.update(..., axis_name={axes})`.",
        )
    return cause(*_other(comparison, cosine))


def _factor(comparison: Comparison, factor: float) -> tuple[str, str]:
    """Returns the kind and the explanation for v = factor · g."""
    name, size = comparison.name, abs(factor)
    if factor < 0:
        return "sign", (
            f"Their directions are opposite: `{name}` must be the loss that is minimised, and an optimizer"
            " goes behind the method."
        )
    larger = f"`{name}`'s is" if size > 1 else "The one passed in is"
    times = max(size, 1 / size)
    what = f"{larger} {times:.4g} times the other, in the same direction."
    if comparison.num_devices > 1 and _is_close(times, comparison.num_devices):
        return "factor", (
            f"{what} That is the number of devices: likely one is a sum over them and the other a mean"
            " (`jax.lax.psum` for `jax.lax.pmean`)."
        )
    if times > 8 and _is_close(math.log2(times), round(math.log2(times)), 1e-3):
        remedy = (
            "the gradient passed in is unscaled already, as those of jmp and of flax's `DynamicScale`: leave"
            f" the scale out of `{name}`, or unscale in `grad_fn`."
            if size > 1
            else f"unscale the gradient before `update`, or give `{name}` the same scale."
        )
        return "factor", f"{what} Likely a sum in place of a mean, or a loss scale. If so, {remedy}"
    return "factor", (
        f"{what} Likely a sum over the batch, or over micro-batches, in place of a mean, a loss scale, or"
        " clipping in front of the method (it goes behind it)."
    )


def _decay(table: np.ndarray) -> float | None:
    """Returns r if v − g = r w in every array in which they differ."""
    _, _, _, dd, dw, ww = table[_differs(table)].T
    if not (ww > 0).all():
        return None
    ratios, sines = dw / ww, np.sqrt(np.maximum(0, 1 - dw**2 / (dd * ww)))
    overall = dw.sum() / ww.sum()
    same = np.abs(ratios - overall) <= SAME_DIRECTION * abs(overall)
    return overall if same.all() and (sines < SAME_DIRECTION).all() else None


def _differs(table: np.ndarray) -> np.ndarray:
    result: np.ndarray = table[:, 3] > 1e-4 * table[:, 3].sum()
    return result


def _by_entry(numbers: Products, details: Details) -> tuple[str, str] | None:
    """Returns the kind and the explanation if g is a function of v entry by entry, or unit by unit."""
    opposed, larger, equal, at_top, nonzero = details.counts.sum(0)
    squares = numbers.products[:, :2].sum(0)
    behind = "It goes behind the method, where it changes what is applied."
    agree = max(opposed, nonzero - opposed) / max(nonzero, 1)
    if at_top >= 2 and opposed == 0 and larger == 0 and equal + at_top >= 0.99 * nonzero and equal > 0:
        return "clip", (
            f"{at_top:.0f} of {nonzero:.0f} entries of the gradient passed in are ± one number and the others"
            f" are equal: likely elementwise clipping, `optax.clip`, in front. {behind}"
        )
    if opposed == 0 and details.units.sum() <= 1e-4 * squares[1]:
        return "units", (
            "In each array, or in each column of one, the gradient passed in is the other times a factor:"
            " likely `optax.adaptive_grad_clip`, clipping by array, or a trust ratio (LARS, LAMB) is in"
            f" front. {behind}"
        )
    evenness = details.sums.sum(0) ** 2 / (max(nonzero, 1) * squares)
    if nonzero >= MANY and agree > 0.8 and evenness[1] > max(0.5, 1.2 * evenness[0]):
        return "entries", (
            "The signs agree, but the entries of the gradient passed in are nearly of one size: likely the"
            f" scaling of Adam, RMSprop or signs is in front. {behind}"
        )
    return None


def _other(comparison: Comparison, cosine: float) -> tuple[str, str]:
    name = comparison.name
    term = (
        "another term or weighting of the loss in one of the two (label smoothing, an auxiliary loss, class"
        " weights)"
    )
    devices = (
        " If the devices have different numbers of examples (padding, masks), a mean of means is not the"
        f" mean: let `{name}` return its sum times the number of devices, divided by the global count,"
        " `jax.lax.psum(count, axis_name)`."
        if comparison.is_averaged
        else ""
    )
    first = f"Likely there is {term}, or `{name}` uses" if cosine > 0.8 else f"Likely `{name}` uses"
    last = "" if cosine > 0.8 else f" Or there is {term}."
    return "term" if cosine > 0.8 else "other", (
        f"{first} another batch, another dropout key (a random stream that the clean pass has"
        " moved on: with flax's nnx take `optax_sam.flax.nnx_value_fn` before the clean pass) or a state from"
        f" after the clean pass (close over the old one).{devices}{last} Or `optax.MultiSteps` is around the"
        " method, or something in front of `wiring_check`: clipping, noise, an optimizer. If the gradient is"
        " that of a part of the batch on purpose, pass that part's loss as `clean_value_fn`."
    )


def _listed(comparison: Comparison, chosen: np.ndarray) -> str:
    names = [path for path, is_chosen in zip(comparison.paths, chosen, strict=True) if is_chosen]
    more = f" and {len(names) - 1} more arrays" if names[1:] else ""
    return f"`params{names[0]}`{more}"


def _sine(cosine: float) -> float:
    return math.sqrt(max(0.0, 1 - cosine**2))


def _is_close(a: float, b: float, tolerance: float = 0.01) -> bool:
    return abs(a - b) <= tolerance * b
