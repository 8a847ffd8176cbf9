"""What the products of two gradients say about why they differ: the messages of `wiring_check`.

v is the gradient of `value_fn`, g the one passed to `update`, w the parameters.

    kind         what the products show                          what is likely
    not finite   v is not finite, g is                           an overflow in `value_fn`
    constant     v = 0                                           `value_fn` ignores its argument
    zero         g = 0, v is not                                 `updates` are no gradients
    part         v = 0 in some of the parameter arrays only      `value_fn` takes those from outside
    sign         v = −r g                                        the negative of the loss
    factor       v = r g                                         loss scale, sum over devices, clipping
    penalty      v − g = r w                                     an L2 penalty in one of the two losses only
    axis_name    none of these, in `jax.pmap` without a name     the loss of this device's part of the batch
    other        none of these                                   another batch, dropout key or state
"""

import dataclasses
import math
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

# Directions are the same if their angle is less than this part of the mismatch.
SAME_DIRECTION = 0.1


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is known when the step is traced.

    Attributes:
      name: the argument of `update` that v comes from.
      paths: names of the parameter arrays.
      num_devices: over how many a sum or a mean may be taken.
      unnamed_axes: axes of `jax.pmap` or `jax.shard_map` here, if `update` was told none.
    """

    name: str
    paths: tuple[str, ...]
    num_devices: int
    unnamed_axes: tuple[Hashable, ...]


class Cause(NamedTuple):
    """A likely cause: its kind in the table above, the numbers that suggest it, and what to change."""

    kind: str
    numbers: str
    explanation: str


def likely_cause(comparison: Comparison, products: np.ndarray) -> Cause:
    """Returns why v and g probably differ.

    Args:
      comparison: what was compared.
      products: ‖v‖², ‖g‖², ⟨v, g⟩, ‖v − g‖², ⟨v − g, w⟩ and ‖w‖² of each parameter array.
    """
    name = comparison.name
    vv, gg, vg, dd, dw, ww = products.sum(axis=0)
    if not math.isfinite(vv):
        return Cause(
            "not finite",
            f"the gradient of `{name}` is not finite",
            f"The one passed in is. Likely a loss scale in `{name}` alone, or a division by zero there.",
        )
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
    largest = int(np.argmax(products[:, 3]))
    numbers = (
        f"cosine {cosine:.3f}, ratio of the norms {ratio:.3g}, {products[largest, 3] / dd:.0%} of the squared"
        f" difference in `params{comparison.paths[largest]}`"
    )
    cause = lambda kind, explanation: Cause(kind, numbers, explanation)

    constant = [
        path for path, row in zip(comparison.paths, products, strict=True) if row[0] == 0 and row[1] > 0
    ]
    if constant:
        return cause(
            "part",
            f"The gradient of `{name}` is zero in `params{constant[0]}`"
            f"{f' and {len(constant) - 1} more arrays' if constant[1:] else ''}: likely `{name}` takes them"
            " from a model outside, and not from its argument.",
        )
    if _sine(cosine) < SAME_DIRECTION * min(1, math.sqrt(dd / gg)):
        return cause(*_factor(comparison, math.copysign(ratio, cosine)))
    if ww > 0 and _sine(dw / math.sqrt(dd * ww)) < SAME_DIRECTION:
        return cause(
            "penalty",
            f"The difference is {dw / ww:.3g} times the parameters: likely weight decay (an L2 penalty) is in"
            " one of the two losses only. Leave it to the optimizer: `optax.add_decayed_weights`,"
            " `optax.adamw`.",
        )
    if comparison.unnamed_axes:
        axes = ", ".join(map(repr, comparison.unnamed_axes))
        return cause(
            "axis_name",
            f"Likely `axis_name` is missing: the step is mapped over {axes}, and `{name}` is the loss of this"
            f" device's part of the batch. Write `tx.update(..., axis_name={axes})`.",
        )
    return cause(
        "other",
        f"Likely `{name}` uses another batch, another dropout key (a random stream that the clean pass has"
        " moved on: with flax's nnx take `optax_sam.flax.nnx_value_fn` before the clean pass) or a state from"
        " after the clean pass (close over the old one). Or `optax.MultiSteps` is around the method, or"
        " something in front of `wiring_check`. If the gradient is that of a part of the batch on purpose,"
        " pass that part's loss as `clean_value_fn`.",
    )


def _factor(comparison: Comparison, factor: float) -> tuple[str, str]:
    """Returns the kind and the explanation for v = factor · g."""
    name, size = comparison.name, abs(factor)
    if factor < 0:
        return "sign", f"Their directions are opposite: `{name}` must be the loss that is minimised."
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


def _sine(cosine: float) -> float:
    return math.sqrt(max(0.0, 1 - cosine**2))


def _is_close(a: float, b: float, tolerance: float = 0.01) -> bool:
    return abs(a - b) <= tolerance * b
