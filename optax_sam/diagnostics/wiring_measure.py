"""The numbers from which `wiring_check` concludes: products of two gradients and the parameters, by array.

v is the gradient of `value_fn`, g the one passed to `update`, w the parameters, d = v − g. Squares of numbers
below 1e-19 or above 1e19 leave float32, so each factor is divided by a scale first.

A difference is rounding if v changes about as much when the parameters change in their last digit:

    ‖v − g‖  ≤  room · ‖v(w̃) − v(w)‖,      w̃ = w ± 2 eps (|w| + rms(w))

Near a minimum, where the terms of g cancel, that is far more than a part of ‖g‖. Measured for a mean over
micro-batches beside the mean over the batch, ‖v − g‖ is at most that change; where v is computed in 16 bits,
0.02 times.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp

from optax_sam import tree_math
from optax_sam.devices import AxisName, varying
from optax_sam.shards import Axes

Leaves = list[jax.Array]


class Products(NamedTuple):
    """One row for each parameter array; under `axis_name` means (largest entries: maxima) over the devices.

    Attributes:
      products: ‖v‖², ‖g‖², ⟨v, g⟩, ‖d‖², ⟨d, w⟩ and ‖w‖², shape (arrays, 6), of scaled v, d and g.
      largest: the largest |v| and |g|, shape (arrays, 2).
      scales: the scale of v and d, and that of g.
    """

    products: jax.Array
    largest: jax.Array
    scales: jax.Array


class Details(NamedTuple):
    """What tells causes apart, computed where the gradients differ. One row for each parameter array.

    Attributes:
      change: ‖v(w̃) − v(w)‖², in units of the scale of v.
      units: the part of ‖g‖² that is left if each unit (column, filter) of v has a factor of its own.
      counts: numbers of entries: where v and g have opposite signs, where |g| is larger, where they are
        equal, where |g| is the largest of all, and where g is not 0.
      sums: the sums of |v| and of |g|.
    """

    change: jax.Array
    units: jax.Array
    counts: jax.Array
    sums: jax.Array


def products(
    gradient: Leaves, passed: Leaves, params: Leaves, axis_name: AxisName, axes: list[Axes]
) -> Products:
    """Returns the numbers from which the mismatch is computed."""
    dtype = tree_math.accumulation_dtype(gradient, passed, params)
    gradient, passed, params = (_cast(leaves, dtype) for leaves in (gradient, passed, params))
    largest = [list(map(_largest, leaves)) for leaves in (gradient, passed)]
    pairs = [jnp.stack(pair) for pair in zip(*largest, strict=True)]
    by_array = jnp.stack(over_shards(jax.lax.pmax, pairs, axes) or [jnp.zeros(2, dtype)])
    by_array = _over_devices(jax.lax.pmax, by_array, axis_name)
    of_v, of_g = jnp.max(jnp.where(jnp.isfinite(by_array), by_array, 0), 0)
    scales = jnp.stack([jnp.maximum(of_v, of_g), of_g])
    scales = jnp.where(scales > 0, scales, 1)

    def row(v: jax.Array, g: jax.Array, w: jax.Array) -> jax.Array:
        v, d, g = v / scales[0], (v - g) / scales[0], g / scales[1]
        return jnp.stack([jnp.sum(x * y) for x, y in ((v, v), (g, g), (v, g), (d, d), (d, w), (w, w))])

    rows = list(map(row, gradient, passed, params))
    table = jnp.stack(over_shards(jax.lax.psum, rows, axes) or [jnp.zeros(6, dtype)])
    return Products(_over_devices(jax.lax.pmean, table, axis_name), by_array, scales)


def mismatch(numbers: Products) -> jax.Array:
    """Returns ‖v − g‖ / ‖g‖, and NaN if g is not finite, so that there is nothing to compare with."""
    _, passed, _, difference, _, _ = jnp.sum(numbers.products, 0)
    ratio = jnp.sqrt(difference / jnp.where(passed == 0, 1, passed)) * (numbers.scales[0] / numbers.scales[1])
    ratio = jnp.where((passed == 0) & (difference > 0) | ~jnp.isfinite(difference), jnp.inf, ratio)
    return jnp.where(jnp.isfinite(passed), ratio, jnp.nan)


def zero_in_one(largest: Any, eps: float) -> tuple[Any, Any]:
    """Returns in which arrays v alone is exactly 0, and in which g alone is, beyond what is rounding."""
    of_all = largest.max(0)
    of_v, of_g = largest.T
    return (of_v == 0) & (of_g > 4 * eps * of_all[1]), (of_g == 0) & (of_v > 4 * eps * of_all[0])


def details(
    gradient: Leaves,
    passed: Leaves,
    changed: Leaves,
    numbers: Products,
    axis_name: AxisName,
    axes: list[Axes],
) -> Details:
    """Returns what tells causes apart. `changed`: v at parameters changed in their last digit."""
    dtype = numbers.products.dtype
    scale, top = numbers.scales[0], jnp.max(numbers.largest[:, 1])

    def row(v: jax.Array, g: jax.Array, changed: jax.Array) -> jax.Array:
        change = jnp.sum(((changed - v) / scale) ** 2)
        size_v, size_g = jnp.abs(v), jnp.abs(g)
        counts = (
            jnp.sign(v) * jnp.sign(g) < 0,
            size_g > 1.01 * size_v,
            jnp.abs(v - g) <= 0.01 * size_v,
            (size_g >= top * (1 - 1e-6)) & (size_g > 0),
            g != 0,
        )
        v, g = v / scale, g / numbers.scales[1]
        over = tuple(range(v.ndim - 1)) if v.ndim > 1 and v.size >= 4 * v.shape[-1] else None
        vv, vg, gg = (jnp.sum(x * y, over) for x, y in ((v, v), (v, g), (g, g)))
        units = jnp.sum(gg - vg**2 / jnp.where(vv > 0, vv, 1))
        sums = jnp.sum(jnp.abs(v)), jnp.sum(jnp.abs(g))
        return jnp.stack([change, units, *(jnp.sum(x, dtype=dtype) for x in counts), *sums])

    leaves = (_cast(leaves, dtype) for leaves in (gradient, passed, changed))
    rows = over_shards(jax.lax.psum, list(map(row, *leaves)), axes)
    table = jnp.stack(rows or [jnp.zeros(9, dtype)])
    table = _over_devices(jax.lax.pmean, table, axis_name)
    return Details(table[:, 0], table[:, 1], table[:, 2:7], table[:, 7:])


def last_digit_changed(params: Leaves, eps: float) -> Leaves:
    """Returns w̃."""

    def leaf(w: jax.Array) -> jax.Array:
        if not w.size:
            return w
        wide = w.astype(tree_math.accumulation_dtype(w))
        # Signs without order, by multiplicative hashing: random numbers would cost more than all the rest.
        # The indices of each axis by themselves, so that a sharded array is not gathered.
        mixed = jnp.zeros_like(w, jnp.uint32)
        for axis in range(w.ndim):
            index = jax.lax.broadcasted_iota(jnp.uint32, w.shape, axis)
            mixed = (mixed + index + 1) * jnp.uint32(2654435769)
        size = 2 * eps * (jnp.abs(wide) + jnp.sqrt(jnp.mean(wide**2)))
        return (wide + jnp.where(mixed >> 31, size, -size)).astype(w.dtype)

    return list(map(leaf, params))


def precision(program: jax.extend.core.ClosedJaxpr) -> float:
    """Returns the spacing of numbers in the narrowest floating-point type in which anything is computed."""
    names = set(re.findall(r"\b(b?f16|f32|f64|f8\w*)\[", str(program)))
    if any(name.startswith("f8") for name in names):
        return 2.0**-3
    widths = {"bf16": 2.0**-8, "f16": 2.0**-11, "f32": 2.0**-23, "f64": 2.0**-52}
    return max((widths[name] for name in names), default=2.0**-23)


def is_16_bit(eps: float) -> bool:
    """Returns whether numbers of this spacing have 16 bits or fewer."""
    return eps > 1e-6


def _cast(leaves: Leaves, dtype: jnp.dtype) -> Leaves:
    return [jax.lax.stop_gradient(leaf).astype(dtype) for leaf in leaves]


def _largest(x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x), initial=0)


def over_shards(reduce: Any, rows: Leaves, axes: list[Axes]) -> Leaves:
    """Returns each array's numbers for all its shards."""
    return [_over_devices(reduce, x, along or None) for x, along in zip(rows, axes, strict=True)]


def _over_devices(reduce: Any, x: jax.Array, axis_name: AxisName) -> jax.Array:
    return x if axis_name is None else reduce(varying(x, axis_name), axis_name)
