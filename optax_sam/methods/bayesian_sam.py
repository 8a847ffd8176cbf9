"""Bayesian SAM: SAM as variational inference, with a learnt precision s: ε = ρ ∇L(θ)/s, d = m/s."""

from typing import Any

import jax
import optax

from optax_sam import checks, tree_math
from optax_sam.ascent.posterior_sample import posterior_sample
from optax_sam.descent.posterior_momentum import posterior_momentum
from optax_sam.sharpness_aware import SharpnessAwareState, sharpness_aware


@checks.goes_in_front
def bayesian_sam(
    rho: optax.ScalarOrSchedule = 0.01,
    *,
    num_examples: int,
    decay: float = 0.9,
    precision_decay: float = 0.999,
    damping: float = 0.1,
    weight_decay: float = 2e-4,
    initial_precision: float = 1.0,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Bayesian SAM: the posterior mean w and precision N s of a Gaussian, learnt as SAM and Adam would.

        θ = w + n/√(N s),   n ~ N(0, 1)         ε = ρ ∇L(θ)/s
        m ← a m + (1 − a) (∇L(w + ε) + λ w)     d = m/s                         (m_0 = 0)
        s ← β s + (1 − β) (√s |∇L(θ)| + δ + λ)

    It contains momentum and weight decay, so a learning rate is all that follows it. To predict, average over
    samples of the posterior: `sample_params`.

    Symbols: N `num_examples`, ρ `rho`, a `decay`, β `precision_decay`, δ `damping`, λ `weight_decay`, s
    `precision` of the state.

    Args:
      rho: ρ; 0.01 in the authors' experiments.
      num_examples: number N of training examples; with data augmentation the authors multiply it by 4.
      decay: decay a of the momentum, in [0, 1); 0.9 in the authors' code.
      precision_decay: β in [0, 1); 0.999 in the authors' code.
      damping: δ; 0.1 in the authors' code.
      weight_decay: λ, the prior's precision divided by N; 40/200,000 in the authors' experiments.
      initial_precision: s at first; 1 in the authors' code.
      key: of the samples θ; an int or a key of `jax.random`.

    Returns:
      A gradient transformation to put in front of `optax.scale_by_learning_rate`; 0.5 in the authors'
      experiments.

    Raises:
      ValueError: if a number is negative, a decay not below 1 or `num_examples` below 1.

    Cost: two gradients, and a random number for each parameter; under `jit` the clean one is not computed
    (see `one_gradient`). Memory for s and m, two copies of the parameters.

    Deviations from the authors' code: see `optax_sam.ascent.posterior_sample`.

    Example: train, then average the predictions of samples.
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(
      ...     optax_sam.bayesian_sam(num_examples=100), optax.scale_by_learning_rate(0.5)
      ... )
      >>> loss = lambda w: jnp.sum(w**2)
      >>> w = jnp.array([3.0, 4.0])
      >>> state = tx.init(w)
      >>> for _ in range(20):
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
      ...     w = optax.apply_updates(w, updates)
      >>> precision = optax.tree.get(state, "precision")
      >>> sample = optax_sam.sample_params(w, precision, num_examples=100, key=0)

    References:
      Möllenhoff and Khan, `SAM as an optimal relaxation of Bayes <https://arxiv.org/abs/2210.01620>`_, 2023
    """
    ascent = posterior_sample(
        rho,
        num_examples=num_examples,
        precision_decay=precision_decay,
        damping=damping,
        weight_decay=weight_decay,
        initial_precision=initial_precision,
        key=key,
    )

    method = sharpness_aware(ascent, posterior_momentum(decay, weight_decay=weight_decay))

    def update(
        updates: optax.Updates,
        state: SharpnessAwareState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SharpnessAwareState]:
        precision = state.ascent.precision  # before this step changes it
        mean, state = method.update(updates, state, params, **extra_args)
        direction = jax.tree.map(lambda m, s: m.astype(s.dtype) / s, mean, precision)
        return tree_math.cast_like(direction, updates), state

    return optax.GradientTransformationExtraArgs(method.init, update)
