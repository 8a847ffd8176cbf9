"""The published methods, each one a choice of stages for `sharpness_aware`.

Every one goes first in a chain and takes `value_fn` at `update`:

    tx = optax.chain(optax_sam.sam(rho=0.05), optax.sgd(0.1, momentum=0.9))
    updates, state = tx.update(grads, state, params, value_fn=lambda params: loss(params, batch))

`num_steps`, `axis_name` and `m_sharpness` mean the same in all of them: see `sharpness_aware`.
"""

import optax

from optax_sam.ascent.fisher import fisher_information
from optax_sam.ascent.gradient_noise import gradient_noise
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.ascent.top_eigenvector import tilt_to_top_eigenvector
from optax_sam.ascent.weight_magnitude import Mask, weight_magnitude
from optax_sam.descent.spherical_search import spherical_search
from optax_sam.devices import AxisName
from optax_sam.sharpness_aware import sharpness_aware


def sam(
    rho: optax.ScalarOrSchedule = 0.05,
    *,
    num_steps: int = 1,
    axis_name: AxisName = None,
    m_sharpness: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Sharpness-aware minimisation: ε = ρ g/‖g‖, d = ∇L(w + ε).

    Args:
      rho: radius ρ; 0.05 in the paper (0.1 for CIFAR-100), a number or a schedule.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.
      axis_name: mapped axis over which the batch is split; see `sharpness_aware`.
      m_sharpness: whether the gradients passed in are each device's own; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: `num_steps` gradients more than the base optimizer.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(optax_sam.sam(rho=0.05), optax.adam(0.1))
      >>> loss = lambda w: jnp.sum(w**2)
      >>> w = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
      >>> round(float(optax.tree.get(state, "ascent_value")), 4)  # (5 + 0.05)²
      25.5025

    References:
      Foret et al., `Sharpness-aware minimization for efficiently improving generalization
      <https://arxiv.org/abs/2010.01412>`_, 2021
    """
    return sharpness_aware(
        steepest_ascent(rho), num_steps=num_steps, axis_name=axis_name, m_sharpness=m_sharpness
    )


def asam(
    rho: optax.ScalarOrSchedule = 0.5,
    eta: float = 0.01,
    *,
    mask: Mask | None = None,
    num_steps: int = 1,
    axis_name: AxisName = None,
    m_sharpness: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adaptive SAM: ε = ρ T² g/‖T g‖ with T = |w| + η, a ball that scales with the weights.

    Args:
      rho: radius ρ in units relative to the weights; 0.5 in the paper (1.0 for CIFAR-100).
      eta: η; 0.01 in the paper.
      mask: where T = |w| + η, else T = 1; see `weight_magnitude`. None: everywhere.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.
      axis_name: mapped axis over which the batch is split; see `sharpness_aware`.
      m_sharpness: whether the gradients passed in are each device's own; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: that of `sam`.

    Example:
      >>> import jax, optax, optax_sam
      >>> weight_matrices = lambda params: jax.tree.map(lambda w: w.ndim > 1, params)
      >>> tx = optax.chain(optax_sam.asam(rho=0.5, mask=weight_matrices), optax.sgd(0.1))

    References:
      Kwon et al., `ASAM: Adaptive sharpness-aware minimization for scale-invariant learning of deep
      neural networks <https://arxiv.org/abs/2102.11600>`_, 2021
    """
    ascent = steepest_ascent(rho, constraint=weight_magnitude(eta, mask=mask))
    return sharpness_aware(ascent, num_steps=num_steps, axis_name=axis_name, m_sharpness=m_sharpness)


def fisher_sam(
    rho: optax.ScalarOrSchedule = 0.1,
    eta: float = 1.0,
    *,
    num_steps: int = 1,
    axis_name: AxisName = None,
    m_sharpness: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Fisher SAM: ε = ρ F⁻¹ g/(gᵀ F⁻¹ g)^(1/2) with the diagonal F = 1 + η g².

    Args:
      rho: radius ρ in the metric F; 0.1 in the paper.
      eta: η; 1 in the community's code.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.
      axis_name: mapped axis over which the batch is split; see `sharpness_aware`.
      m_sharpness: whether the gradients passed in are each device's own; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: that of `sam`.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.fisher_sam(rho=0.1), optax.sgd(0.1))

    References:
      Kim et al., `Fisher SAM: Information geometry and sharpness aware minimisation
      <https://arxiv.org/abs/2206.04920>`_, 2022
    """
    ascent = steepest_ascent(rho, constraint=fisher_information(eta))
    return sharpness_aware(ascent, num_steps=num_steps, axis_name=axis_name, m_sharpness=m_sharpness)


def presam(
    rho: optax.ScalarOrSchedule,
    *,
    objective: optax.GradientTransformation | None = None,
    constraint: optax.GradientTransformation | None = None,
    num_steps: int = 1,
    axis_name: AxisName = None,
    m_sharpness: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Preconditioned SAM: ε = ρ T² C g/‖T C g‖ for preconditioners of your choice.

    Args:
      rho: radius ρ of the ball ‖T⁻¹ ε‖ ≤ ρ.
      objective: a stage g ↦ diagonal of C; see `steepest_ascent`.
      constraint: a stage g ↦ diagonal of T; see `steepest_ascent`. Zhang et al. write D = T⁻¹.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.
      axis_name: mapped axis over which the batch is split; see `sharpness_aware`.
      m_sharpness: whether the gradients passed in are each device's own; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: that of `sam` and of the preconditioners.

    Example: infoSAM's objective on ASAM's ball.
      >>> import optax, optax_sam
      >>> method = optax_sam.presam(
      ...     0.5,
      ...     objective=optax_sam.gradient_noise(),
      ...     constraint=optax_sam.weight_magnitude(),
      ... )
      >>> tx = optax.chain(method, optax.sgd(0.1))

    References:
      Zhang, Li and Giannakis, `Preconditioned sharpness-aware minimization: unifying
      analysis and a novel learning algorithm <https://arxiv.org/abs/2501.06603>`_, 2025
    """
    ascent = steepest_ascent(rho, objective=objective, constraint=constraint)
    return sharpness_aware(ascent, num_steps=num_steps, axis_name=axis_name, m_sharpness=m_sharpness)


def info_sam(
    rho: optax.ScalarOrSchedule = 0.05,
    decay: float = 0.9,
    *,
    variance_decay: float = 0.99,
    damping: float | None = None,
    relative_damping: float = 1.0,
    power: float = 1.0,
    across_devices: bool = False,
    num_steps: int = 1,
    axis_name: AxisName = None,
    m_sharpness: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """InfoSAM: ε = ρ C g/‖C g‖ with C the damped inverse of the gradient's noise variance.

    Args:
      rho: radius ρ.
      decay: of the running mean of the gradient; see `gradient_noise`.
      variance_decay: of the running mean of the variance; 0 in the authors' early code.
      damping: added to the variance; None: relative to its mean; 0 in the authors' early code.
      relative_damping: see `gradient_noise`.
      power: C = (σ² + δ)^(-power).
      across_devices: whether to estimate σ² from the local gradients of the devices of `axis_name`.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.
      axis_name: mapped axis over which the batch is split; see `sharpness_aware`.
      m_sharpness: whether the gradients passed in are each device's own; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: that of `sam`, and memory for two copies of the parameters.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.info_sam(rho=0.1), optax.sgd(0.1))

    References:
      Zhang, Li and Giannakis, `Preconditioned sharpness-aware minimization: unifying
      analysis and a novel learning algorithm <https://arxiv.org/abs/2501.06603>`_, 2025
    """
    noise = gradient_noise(
        decay,
        variance_decay=variance_decay,
        damping=damping,
        relative_damping=relative_damping,
        power=power,
        across_devices=across_devices,
    )
    ascent = steepest_ascent(rho, objective=noise)
    return sharpness_aware(ascent, num_steps=num_steps, axis_name=axis_name, m_sharpness=m_sharpness)


def eigen_sam(
    rho: optax.ScalarOrSchedule = 0.05,
    alpha: float = 0.2,
    *,
    interval: int = 100,
    num_iters: int = 5,
    solver: str = "power",
    seed: int = 0,
    num_steps: int = 1,
    axis_name: AxisName = None,
    m_sharpness: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Eigen-SAM: SAM's ε tilted to the top eigenvector of the Hessian.

    Args:
      rho: radius ρ before the tilt; 0.05 is the authors' default, 0.1 their choice for CIFAR-100.
      alpha: strength of the tilt; 0.2 is the authors' default. 0 is SAM.
      interval: steps from one refresh of the eigenvector to the next where `refresh=None`; 100.
      num_iters: Hessian-vector products at a refresh; 5.
      solver: "power" (the authors') or "lanczos"; see `tilt_to_top_eigenvector`.
      seed: of the start vector.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.
      axis_name: mapped axis over which the batch is split; see `sharpness_aware`.
      m_sharpness: whether the gradients passed in are each device's own; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: that of `sam`, memory for one copy of the parameters, and on refresh steps about
    2 `num_iters` gradients more.

    Example: the refresh decided on the host, which is fastest.
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(optax_sam.eigen_sam(rho=0.1, alpha=0.2), optax.sgd(0.1))
      >>> loss = lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2)
      >>> w = jnp.ones(2)
      >>> state = tx.init(w)
      >>> for step in range(200):
      ...     refresh = step % 100 == 0
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss, refresh=refresh)
      ...     w = optax.apply_updates(w, updates)
      >>> round(float(optax.tree.get(state, "eigenvalue")), 2)
      6.0

    References:
      Luo et al., `Explicit eigenvalue regularization improves sharpness-aware minimization
      <https://arxiv.org/abs/2501.12666>`_, 2024
    """
    tilt = tilt_to_top_eigenvector(alpha, interval=interval, num_iters=num_iters, solver=solver, seed=seed)
    ascent = optax.chain(steepest_ascent(rho), tilt)
    return sharpness_aware(ascent, num_steps=num_steps, axis_name=axis_name, m_sharpness=m_sharpness)


def xsam(
    rho: optax.ScalarOrSchedule = 0.15,
    rho_max: optax.ScalarOrSchedule = 0.3,
    *,
    alpha_max: float = 2.0,
    num_alphas: int = 21,
    interval: int = 100,
    num_steps: int = 1,
    axis_name: AxisName = None,
    m_sharpness: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """XSAM: SAM's ε, then the direction of the worst point on the arc through ε and ∇L(w + ε).

    Args:
      rho: radius ρ of the ascents together; 0.15 in the paper (CIFAR-100, ResNet-18).
      rho_max: distance at which the losses on the arc are compared; 0.3 in the paper.
      alpha_max: end of the arc; 2 in the paper.
      num_alphas: number of losses at a search; 21 in the paper.
      interval: steps from one search to the next where `refresh=None`; see `spherical_search`.
      num_steps: number of ascents that make up ε; 1 and 3 in the paper.
      axis_name: mapped axis over which the batch is split; see `sharpness_aware`.
      m_sharpness: whether the gradients passed in are each device's own; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: that of `sam`, and on refresh steps `num_alphas` forward passes.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.xsam(rho=0.15, rho_max=0.3), optax.sgd(0.1))

    References:
      Chen and Zhou, `Revisiting sharpness-aware minimization: a more faithful and
      effective implementation <https://arxiv.org/abs/2603.10048>`_, 2026
    """
    search = spherical_search(rho_max, alpha_max=alpha_max, num_alphas=num_alphas, interval=interval)
    return sharpness_aware(
        steepest_ascent(rho), search, num_steps=num_steps, axis_name=axis_name, m_sharpness=m_sharpness
    )
