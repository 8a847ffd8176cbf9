"""GSAM, surrogate gap guided SAM: SAM's ε, then d = g' − α g⊥, which lowers L(w + ε) − L(w) too."""

import optax

from optax_sam import checks
from optax_sam.ascent.steepest import steepest_ascent
from optax_sam.descent.surrogate_gap import surrogate_gap
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def gsam(
    rho: optax.ScalarOrSchedule = 0.05, alpha: float = 0.4, *, num_steps: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Surrogate gap guided SAM: ε = ρ g/‖g‖, then d = g' − α g⊥.

        g⊥ = g − ⟨g, ĝ'⟩ ĝ',   ĝ' = g'/‖g'‖

    Symbols: g the clean gradient, g' the gradient at w + ε, ρ `rho`, α `alpha`.

    Args:
      rho: radius ρ. In the paper it follows the learning rate: `rho_following_learning_rate`.
      alpha: α; 0.4 in the authors' example. 0 is SAM.
      num_steps: number of ascents that make up ε; see `sharpness_aware`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Cost: as `sam`.

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
