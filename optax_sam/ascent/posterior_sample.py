"""The ascent of Bayesian SAM: along the gradient at a sample of the posterior.

The parameters w are the mean of a Gaussian with the diagonal covariance 1/(N s). The scaled precision s is
learnt, and says how far each coordinate may be perturbed:

    θ = w + n/√(N s),   n ~ N(0, 1)         ε = ρ ∇L(θ)/s
    s ← β s + (1 − β) (√s |∇L(θ)| + δ + λ)

The gradient at w, `updates`, is not read.

Symbols: N `num_examples`, s `precision`, ρ `rho`, β `precision_decay`, δ `damping`, λ `weight_decay`.

Deviations from the authors' code (team-approx-bayes/bayesian-sam): with m-sharpness all devices share the
sample θ (theirs: one for each group); a gradient that is not finite leaves s as it is.

References:
  Möllenhoff and Khan, `SAM as an optimal relaxation of Bayes <https://arxiv.org/abs/2210.01620>`_, 2023
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, keys, tree_math
from optax_sam.loss import NO_LOSS, BatchLoss
from optax_sam.schedules import radius_at


class PosteriorSampleState(NamedTuple):
    """State of `posterior_sample`.

    Attributes:
      precision: scaled precision s of the posterior; like the parameters, float32 or wider: 4 bytes
        per parameter.
    """

    precision: optax.Params

    def for_later_ascents(self, new: "PosteriorSampleState") -> "PosteriorSampleState":
        """Returns the s of the step before, which every ε of the step is divided by."""
        return self


def posterior_sample(
    rho: optax.ScalarOrSchedule,
    *,
    num_examples: int,
    precision_decay: float = 0.999,
    damping: float = 0.1,
    weight_decay: float = 2e-4,
    initial_precision: float = 1.0,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Maps any gradient to the perturbation ε = ρ ∇L(θ)/s, with θ a sample of the posterior of precision N s.

    Args:
      rho: ρ, a number or a schedule of the number of updates made; 0.01 in the authors' experiments.
      num_examples: number N of training examples; with data augmentation the authors multiply it by 4.
      precision_decay: β in [0, 1); 0.999 in the authors' code.
      damping: δ; 0.1 in the authors' code.
      weight_decay: λ, the prior's precision divided by N; 40/200,000 in the authors' experiments.
      initial_precision: s at first; 1 in the authors' code.
      key: of the samples; an int or a key of `jax.random`. Each step draws anew.

    Returns:
      A gradient transformation with `PosteriorSampleState`, for the ascent of `sharpness_aware`. It reads the
      extra argument `loss`.

    Raises:
      ValueError: if a number is negative, the decay not below 1 or `num_examples` below 1.

    Cost: a gradient, in place of the clean one, which under `jit` is not computed if nothing else reads it.
    Memory for s, one copy of the parameters.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> from optax_sam.loss import BatchLoss
      >>> stage = optax_sam.posterior_sample(0.5, num_examples=10**12, initial_precision=4.0)
      >>> w = jnp.array([3.0])
      >>> loss = BatchLoss(lambda w: jnp.sum(w**2))
      >>> epsilon, _ = stage.update(w, stage.init(w), w, loss=loss)
      >>> round(float(epsilon[0]), 3)  # 0.5 · 6 / 4
      0.75
    """
    checks.check_radius("rho", rho)
    checks.check_count("num_examples", num_examples)
    checks.check_number("precision_decay", precision_decay, below=1.0)
    checks.check_number("damping", damping)
    checks.check_number("weight_decay", weight_decay)
    checks.check_number("initial_precision", initial_precision, low=1e-12)

    def init(params: optax.Params) -> PosteriorSampleState:
        precision = jax.tree.map(lambda x: jnp.full_like(x, initial_precision), tree_math.zeros_like(params))
        return PosteriorSampleState(precision)

    def update(
        updates: optax.Updates,
        state: PosteriorSampleState,
        params: optax.Params | None = None,
        *,
        loss: BatchLoss = NO_LOSS,
        step_count: jax.Array | int = 0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, PosteriorSampleState]:
        checks.check_whole(updates)
        precision = state.precision
        key_now = keys.fold_in(tree_math.random_key(key), step_count)
        gradient = loss.own_gradient(_sample(key_now, params, precision, num_examples))
        radius = radius_at(rho, step_count)
        epsilon = jax.tree.map(lambda g, s: radius * g.astype(s.dtype) / s, gradient, precision)

        size = jax.tree.map(lambda g, s: jnp.sqrt(s) * jnp.abs(g.astype(s.dtype)), gradient, precision)
        size = jax.tree.map(lambda x: x + damping + weight_decay, loss.average(size))
        learnt = tree_math.mix(jnp.asarray(precision_decay), precision, size)
        precision = tree_math.where(jnp.isfinite(tree_math.total(size)), learnt, precision)
        return tree_math.cast_like(epsilon, updates), PosteriorSampleState(precision)

    return optax.GradientTransformationExtraArgs(init, update)


def sample_params(
    params: optax.Params, precision: optax.Params, *, num_examples: int, key: jax.Array | int
) -> optax.Params:
    """Returns a sample θ = w + n/√(N s) of the posterior, for evaluation: average the predictions of several.

    Args:
      params: the mean w.
      precision: s, `optax.tree.get(state, "precision")`; like `params`.
      num_examples: N, as for `bayesian_sam`.
      key: a random key, or an integer; another one for each sample.

    Returns:
      Parameters with the structure, shapes and dtypes of `params`.

    Raises:
      ValueError: if `precision` is not like `params`, or if `num_examples` is below 1.

    Cost: a random number for each parameter.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> w, s = jnp.zeros(10_000), jnp.full(10_000, 4.0)
      >>> theta = optax_sam.sample_params(w, s, num_examples=25, key=0)
      >>> round(float(theta.std()), 2)  # 1/√(25 · 4)
      0.1
    """
    checks.check_params(params, params)
    checks.check_vector("`precision`", precision, params)
    checks.check_number("num_examples", num_examples, low=1)
    return _sample(tree_math.random_key(key), params, tree_math.full_precision(precision), num_examples)


def _sample(key: jax.Array, params: optax.Params, precision: optax.Params, num_examples: int) -> optax.Params:
    noise = tree_math.random_vector(key, precision)
    scaled = jax.tree.map(
        lambda n, s: n * jax.lax.rsqrt(jnp.asarray(num_examples, s.dtype) * s), noise, precision
    )
    return tree_math.add(params, scaled)
