"""GSAM, surrogate gap guided SAM: SAM's ε, then d = g' − α g⊥, which lowers L(w + ε) − L(w) too."""

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.descent.surrogate_gap import surrogate_gap
from optax_sam.sharpness_aware import sharpness_aware


def gsam(
    rho: optax.ScalarOrSchedule = 0.05, alpha: float = 0.4, *, num_steps: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Surrogate gap guided SAM: ε = ρ g/‖g‖, then d = g' − α g⊥.

        g⊥ = g − ⟨g, ĝ'⟩ ĝ',   ĝ' = g'/‖g'‖

    Symbols: g the clean gradient, g' the gradient at w + ε, ρ `rho`, α `alpha`.

    Args:
      rho: radius ρ. In the paper it follows the learning rate: `rho_following_learning_rate`.
      alpha: α; 0.4 in the paper for vision transformers, 0.01 to 0.1 for residual networks. 0 is SAM.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: that of `sam`.

    Deviations from the authors' code (juntang-zhuang/GSAM): see `optax_sam.descent.surrogate_gap`.

    Example:
      >>> import optax, optax_sam
      >>> learning_rate = optax.cosine_decay_schedule(0.1, decay_steps=1000)
      >>> rho = optax_sam.rho_following_learning_rate(learning_rate, (0.0, 0.1), (0.02, 0.1))
      >>> tx = optax.chain(optax_sam.gsam(rho, alpha=0.4), optax.sgd(learning_rate))

    References:
      Zhuang et al., `Surrogate gap minimization improves sharpness-aware training
      <https://arxiv.org/abs/2203.08065>`_, 2022
    """
    return sharpness_aware(steepest_ascent(rho), surrogate_gap(alpha), num_steps=num_steps)


def rho_following_learning_rate(
    learning_rate: optax.Schedule, learning_rates: tuple[float, float], rhos: tuple[float, float]
) -> optax.Schedule:
    """A radius that is a linear function of the learning rate, as in GSAM.

        ρ_t = ρ_min + (ρ_max − ρ_min) (η_t − η_min)/(η_max − η_min)

    Args:
      learning_rate: schedule η of the base optimizer, a function of the step.
      learning_rates: its smallest and its largest value (η_min, η_max).
      rhos: the radii (ρ_min, ρ_max) at these.

    Returns:
      A schedule for `rho`, never below 0.

    Raises:
      ValueError: if η_min is not smaller than η_max.

    Example:
      >>> import optax, optax_sam
      >>> schedule = optax.linear_schedule(0.1, 0.0, 10)
      >>> rho = optax_sam.rho_following_learning_rate(schedule, (0.0, 0.1), (0.02, 0.06))
      >>> [round(float(rho(step)), 3) for step in (0, 5, 10)]
      [0.06, 0.04, 0.02]
    """
    (low, high), (rho_min, rho_max) = learning_rates, rhos
    checks.check_radius("rhos", rho_min)
    checks.check_radius("rhos", rho_max)
    if not low < high:
        raise ValueError(
            "`learning_rates` are the smallest and the largest learning rate, between which the radius is"
            f" interpolated, got {learning_rates}. For a constant learning rate use a constant `rho`."
        )

    def schedule(count: jax.Array) -> jax.Array:
        fraction = (learning_rate(count) - low) / (high - low)
        return jnp.maximum(rho_min + (rho_max - rho_min) * fraction, 0)

    return schedule
