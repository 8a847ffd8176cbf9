"""The radius: its value at a step, and a schedule for it."""

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks


def radius_at(rho: optax.ScalarOrSchedule, count: jax.Array | int, name: str = "rho") -> jax.Array:
    """Returns the radius of this step: a number, or the value of a schedule after `count` updates."""
    if not callable(rho) and not isinstance(rho, jax.Array):
        return jnp.asarray(rho)
    radius = rho(jnp.asarray(count)) if callable(rho) else rho
    checks.check_scalar(name, radius)
    # Compiled, a schedule that ends at 0 may end at −1e-9, which would turn the ascent into a descent. The
    # values of arrays are unknown when a step is compiled. (`maximum` has half the derivative at 0.)
    return jnp.where(radius < 0, 0, radius)


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

    Cost: none.

    Deviations from the authors' code (juntang-zhuang/GSAM): a radius below 0 is 0.

    Example:
      >>> import optax, optax_sam
      >>> schedule = optax.linear_schedule(0.1, 0.0, 10)
      >>> rho = optax_sam.rho_following_learning_rate(schedule, (0.0, 0.1), (0.02, 0.06))
      >>> [round(float(rho(step)), 3) for step in (0, 5, 10)]
      [0.06, 0.04, 0.02]

    References:
      Zhuang et al., `Surrogate gap minimization improves sharpness-aware training
      <https://arxiv.org/abs/2203.08065>`_, 2022
    """
    (low, high), (rho_min, rho_max) = learning_rates, rhos
    if not callable(learning_rate):
        raise TypeError(
            "`learning_rate` must be the schedule of the base optimizer, a function of the step, got"
            f" {learning_rate!r}. For a constant learning rate use a constant `rho`."
        )
    if min(rhos) < 0:
        raise ValueError(
            f"`rhos` are the radii at the two learning rates and must be at least 0, got {rhos}."
        )
    if not low < high:
        raise ValueError(
            "`learning_rates` are the smallest and the largest learning rate, between which the radius is"
            f" interpolated, got {learning_rates}. For a constant learning rate use a constant `rho`."
        )

    def schedule(count: jax.Array) -> jax.Array:
        fraction = (learning_rate(count) - low) / (high - low)
        return jnp.maximum(rho_min + (rho_max - rho_min) * fraction, 0)

    return schedule
