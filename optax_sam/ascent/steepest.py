"""Steepest ascent: the perturbation of SAM, ASAM, Fisher SAM, infoSAM and every preSAM.

Solves the preconditioned linear model of the loss on a preconditioned ball,

    ε = argmax ⟨C g, ε⟩  subject to  ‖T⁻¹ ε‖ ≤ ρ        ⇒        ε = ρ T² C g / ‖T C g‖

with diagonal, positive C (objective) and T (constraint); C = T = I is SAM.

Multiplying the gradient by T and then normalising would be wrong: T acts twice, with a dual norm in
between. So a preconditioner is a separate stage that returns a *diagonal*, and this stage applies it.

Other balls of the same linear model:

    layerwise      ‖T⁻¹ ε‖ ≤ ρ for each parameter array        ε = ρ T² C g / ‖T C g‖, norms per array
    ord=∞          |T⁻¹ ε| ≤ ρ for each coordinate             ε = ρ T sign(C g)

Symbols: g `updates`, ρ `rho`, C `objective`, T `constraint`; D = T⁻¹ in Zhang et al.

Deviations from the authors' code: a zero gradient gives ε = 0 (theirs: NaN; ASAM's: 1e-16 added to the norm);
norms are accumulated in float32 or wider.

References:
  Foret et al., `Sharpness-aware minimization for efficiently improving generalization
  <https://arxiv.org/abs/2010.01412>`_, 2021
  Zhang, Li and Giannakis, `Preconditioned sharpness-aware minimization: unifying analysis
  and a novel learning algorithm <https://arxiv.org/abs/2501.06603>`_, 2025
  Müller et al., `Normalization layers are all that sharpness-aware minimization needs
  <https://arxiv.org/abs/2306.04226>`_, 2023 (the other balls)
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, shards, tree_math
from optax_sam.schedules import radius_at


class SteepestAscentState(NamedTuple):
    """State of `steepest_ascent`.

    Attributes:
      objective: state of the preconditioner C.
      constraint: state of the preconditioner T.
    """

    objective: optax.OptState
    constraint: optax.OptState


def steepest_ascent(
    rho: optax.ScalarOrSchedule,
    *,
    objective: optax.GradientTransformation | None = None,
    constraint: optax.GradientTransformation | None = None,
    ord: float = 2,
    layerwise: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Maps a gradient g to the perturbation ε = ρ T² C g / ‖T C g‖, the worst point of a ball.

    Norms are global, over all parameters together, unless `layerwise`. Without preconditioners ε = ρ g / ‖g‖.

    Args:
      rho: radius ρ of the ball ‖T⁻¹ ε‖ ≤ ρ, in units of T⁻¹ w; a number, or a schedule of the number of
        updates made.
      objective: a stage that maps g to the diagonal of C, such as `gradient_noise`.
      constraint: a stage that maps g to the diagonal of T, such as `weight_magnitude` or
        `fisher_information`.
      ord: order of the norm of the ball: 2, or `math.inf`, a ball for each coordinate, where ρ must be
        smaller by about the square root of the number of parameters.
      layerwise: whether each parameter array has a ball of its own, so that ‖T⁻¹ ε‖ = ρ √(number of arrays).

    Returns:
      A gradient transformation g ↦ ε with `SteepestAscentState`.

    Raises:
      ValueError: if `rho` is negative, or `ord` neither 2 nor infinite.

    Cost: one norm; no gradient and no memory. Preconditioners add their own.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> ascent = optax_sam.steepest_ascent(rho=0.1)
      >>> gradient = jnp.array([0.0, 4.0])
      >>> perturbation, _ = ascent.update(gradient, ascent.init(gradient), gradient)
      >>> perturbation
      Array([0. , 0.1], dtype=float32)
    """
    checks.check_radius("rho", rho)
    if isinstance(ord, jax.core.Tracer) or ord not in (2, math.inf):
        raise ValueError(
            "`ord` is the order of the norm of the ball and must be the number 2 or `math.inf`, because it"
            f" decides which program is compiled; got {ord!r}. With `optax.inject_hyperparams` name it in"
            ' `static_args`: `static_args=("ord", "layerwise")`.'
        )
    checks.check_flag("layerwise", layerwise)
    objective = _diagonal_stage("objective", objective)
    constraint = _diagonal_stage("constraint", constraint)

    def init(params: optax.Params) -> SteepestAscentState:
        return SteepestAscentState(
            objective=objective.init(params),
            constraint=constraint.init(params),
        )

    def update(
        updates: optax.Updates,
        state: SteepestAscentState,
        params: optax.Params | None = None,
        *,
        step_count: jax.Array | int = 0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SteepestAscentState]:
        checks.check_whole(updates)
        extra_args["step_count"] = step_count
        c, objective_state = objective.update(updates, state.objective, params, **extra_args)
        t, constraint_state = constraint.update(updates, state.constraint, params, **extra_args)
        radius = radius_at(rho, step_count)

        tcg = _multiply(t, _multiply(c, updates))
        if ord == math.inf:
            epsilon = tree_math.scale(radius, _multiply(t, jax.tree.map(jnp.sign, tcg)))
        elif layerwise:
            epsilon = shards.map_leaves(lambda x, y: _scaled(radius, x, y), tcg, _multiply(t, tcg))
        else:
            epsilon = _scaled(radius, tcg, _multiply(t, tcg))
        return tree_math.cast_like(epsilon, updates), SteepestAscentState(
            objective=objective_state,
            constraint=constraint_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _diagonal_stage(
    name: str, stage: optax.GradientTransformation | None
) -> optax.GradientTransformationExtraArgs:
    if stage is None:  # The identity matrix: no diagonal, no state.
        return optax.GradientTransformationExtraArgs(
            lambda params: optax.EmptyState(), lambda updates, state, params, **extra: (None, state)
        )
    checks.check_keeps_signs(name, stage, "a stage that maps a gradient to a positive diagonal")
    return optax.with_extra_args_support(stage)


def _scaled(radius: jax.Array, tcg: optax.Updates, direction: optax.Updates) -> optax.Updates:
    return tree_math.scale(radius * tree_math.reciprocal_or_zero(tree_math.norm(tcg)), direction)


def _multiply(diagonal: optax.Updates | None, vector: optax.Updates) -> optax.Updates:
    if diagonal is None:
        return vector
    return jax.tree.map(lambda d, x: d * x.astype(d.dtype), diagonal, vector)
