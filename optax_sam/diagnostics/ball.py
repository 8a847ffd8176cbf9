"""The sets in which the loss near w is compared with the loss at w:  ‖T⁻¹ ε‖_p ≤ ρ,  p = 2 or ∞.

T is diagonal. In coordinates z = T⁻¹ ε the set is a plain ball, the gradient is T g, and the linear model of
the loss is largest at

    z = ρ T g / ‖T g‖  (p = 2),    z = ρ sign(T g)  (p = ∞);       ε = T z

For p = 2 that is `optax_sam.steepest_ascent`, whose `constraint` stages give T here as well.

Points w + ε are computed in float32 or wider, whatever the dtype of the parameters: in bfloat16 most of a
small ε would be lost by rounding (`effective_perturbation` computes how much). So `value_fn` gets float32
parameters.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.projections import projection_linf_ball

from optax_sam import checks, tree_math


class Norm(NamedTuple):
    """What an ascent in a ball needs of its norm.

    Attributes:
      norm: z ↦ ‖z‖.
      steepest: g ↦ argmax ⟨g, z⟩ over ‖z‖ ≤ 1.
      project: z, ρ ↦ the nearest point of the ball ‖z‖ ≤ ρ.
    """

    norm: Callable[[optax.Params], jax.Array]
    steepest: Callable[[optax.Params], optax.Params]
    project: Callable[[optax.Params, jax.Array], optax.Params]


def _shorten(z: optax.Params, radius: jax.Array) -> optax.Params:
    # Not `optax.projections.projection_l2_ball`, which is NaN at a radius of 0 and widens narrower leaves.
    return tree_math.scale(jnp.minimum(1, radius * tree_math.reciprocal_or_zero(tree_math.norm(z))), z)


@tree_math.one_program
def _largest(z: optax.Params) -> jax.Array:
    entries = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(z)]
    return jnp.max(jnp.stack(entries))


NORMS: dict[float, Norm] = {
    2: Norm(tree_math.norm, tree_math.unit, _shorten),
    math.inf: Norm(_largest, lambda g: jax.tree.map(jnp.sign, g), projection_linf_ball),
}


class Ball(NamedTuple):
    """The set ‖T⁻¹ ε‖_p ≤ ρ.

    Attributes:
      radius: ρ, a scalar.
      scales: the diagonal of T, like the parameters, float32 or wider; None is T = 1.
    """

    radius: jax.Array
    scales: optax.Params | None

    def perturbation(self, position: optax.Params) -> optax.Params:
        """Returns ε = T z. Given a gradient with respect to w, returns the one with respect to z."""
        if self.scales is None:
            return position
        return jax.tree.map(lambda t, x: t * x.astype(t.dtype), self.scales, position)

    def position(self, perturbation: optax.Params) -> optax.Params:
        """Returns z = T⁻¹ ε, and 0 where T is 0."""
        if self.scales is None:
            return perturbation
        inverse = jax.tree.map(tree_math.reciprocal_or_zero, self.scales)
        return Ball(self.radius, inverse).perturbation(perturbation)

    def steepest_ascent(self, gradient: optax.Updates, ord: float) -> optax.Params:
        """Returns z = ρ argmax ⟨T g, z⟩ over ‖z‖_p ≤ 1."""
        return tree_math.scale(self.radius, NORMS[ord].steepest(self.perturbation(gradient)))


def check_ball(rho: float | jax.Array, ord: float, constraint: optax.GradientTransformation | None) -> None:
    """Raises unless the arguments define a ball."""
    checks.check_number("rho", rho)
    check_ord(ord)
    if constraint is not None:
        checks.check_keeps_signs(
            "constraint", constraint, "a stage that maps a gradient to a positive diagonal"
        )


def check_ord(ord: float) -> None:
    """Raises unless the norm is a known one."""
    if ord not in NORMS:
        raise ValueError(
            f"`ord` is the p of the norm in ‖T⁻¹ ε‖_p ≤ ρ and must be 2 or `jnp.inf`, got {ord!r}."
        )


def make_ball(
    rho: float | jax.Array,
    constraint: optax.GradientTransformation | None,
    gradient: optax.Updates,
    params: optax.Params,
) -> Ball:
    """Returns the ball of radius ρ with the T that `constraint` computes from the gradient and w."""
    radius = jnp.asarray(rho, tree_math.accumulation_dtype(params))
    if constraint is None:
        return Ball(radius, None)
    stage = optax.with_extra_args_support(constraint)
    scales, _ = stage.update(gradient, stage.init(params), params, ascent_step=0)
    return Ball(radius, tree_math.full_precision(scales))
