"""Mixed RWP: the clean gradient and the one at weights with noise, d = λ g' + (1 − λ) g."""

import jax
import optax

from optax_sam import checks
from optax_sam.ascent.filter_norm import scale_by_filter_norm
from optax_sam.ascent.random_normal import random_normal
from optax_sam.descent.extrapolation import extrapolation
from optax_sam.filters import FilterAxis
from optax_sam.running_fisher import running_fisher
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def mixed_rwp(
    sigma: optax.ScalarOrSchedule = 0.015,
    lam: float = 0.5,
    *,
    eta: float | None = None,
    decay: float = 0.99,
    filter_axis: FilterAxis = -1,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Mixed random weight perturbation: d = λ g' + (1 − λ) g with ε_f = σ ‖w_f‖ n_f, n standard normal.

    ε is as in `rwp`, adaptive with η. The clean gradient steadies the direction, so the noise may be larger
    than in `rwp`. ε does not depend on g: the two gradients do not wait for each other.

    The authors take the two gradients of two batches: pass the gradient of the first as `updates`, and the
    loss of the second as `value_fn`.

    Symbols: g the clean gradient, g' the gradient at w + ε, σ `sigma`, λ `lam`, η `eta`, β `decay`.

    Args:
      sigma: σ, a number or a schedule of the number of updates made; 0.015 in the authors' runs.
      lam: λ, in [0, 1]; 0.5 in the authors' runs. 1 is `rwp`, at twice its price; 0 the base optimizer.
      eta: η of the adaptive form, 0.1 in the authors' runs. None: noise that does not adapt.
      decay: β of the adaptive form, in [0, 1); 0.99 in the authors' runs.
      filter_axis: the axis that counts the filters: −1, the last, in Flax; 0 in Equinox. For stacked layers,
        a function; see `scale_by_filter_norm`.
      key: of the noise; an int or a key of `jax.random`, see `random_normal`.

    Returns:
      A gradient transformation to put in front of a base optimizer.

    Raises:
      ValueError: if sigma or eta is negative, lam outside [0, 1], or the decay outside [0, 1).

    Cost: two gradients, as `sam`, and a random number per parameter. Memory for ε; with η for F, 4 bytes
    per parameter.

    Deviations from the authors' code (nblt/mARWP): see `optax_sam.ascent.filter_norm` and
    `optax_sam.running_fisher`.

    Example: the two gradients of two halves of a batch.
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(optax_sam.mixed_rwp(sigma=0.01), optax.sgd(0.1))
      >>> loss = lambda w, batch: jnp.mean((batch - w) ** 2)
      >>> batch, w = jnp.arange(8.0), jnp.array(1.0)
      >>> first, second = batch[::2], batch[1::2]
      >>> grads = jax.grad(loss)(w, first)
      >>> updates, _ = tx.update(grads, tx.init(w), w, value_fn=lambda w: loss(w, second))

    References:
      Li et al., `Revisiting random weight perturbation for efficiently improving generalization
      <https://arxiv.org/abs/2404.00357>`_, 2024
    """
    checks.check_number("lam", lam)
    checks.check_fraction("lam", lam)
    noise = optax.chain(random_normal(key=key), scale_by_filter_norm(sigma, filter_axis=filter_axis))
    if eta is None:
        return sharpness_aware(noise, extrapolation(lam))
    return running_fisher(
        noise,
        extrapolation(lam),
        eta=eta,
        decay=decay,
        filter_axis=filter_axis,
    )
