"""RWP, random weight perturbation: one gradient per step, at weights with noise."""

import jax
import optax

from optax_sam import checks
from optax_sam.ascent.filter_norm import scale_by_filter_norm
from optax_sam.ascent.random_normal import random_normal
from optax_sam.filters import FilterAxis
from optax_sam.running_fisher import running_fisher
from optax_sam.sharpness_aware import sharpness_aware


@checks.goes_in_front
def rwp(
    sigma: optax.ScalarOrSchedule = 0.015,
    *,
    eta: float | None = None,
    decay: float = 0.99,
    filter_axis: FilterAxis = -1,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Random weight perturbation: d = g' = ∇L(w + ε) with ε_f = σ ‖w_f‖ n_f, n standard normal.

    f is a filter, the part of a weight array that computes one output, or an array with one axis. What is
    minimised is the mean of L(w + ε) over the noise, an average case, where SAM minimises a worst case.

    With η the noise of a filter is divided by √(1 + η F_f) (the adaptive form, ARWP), F a running sum of g'²
    (see `running_fisher`): weights with small gradients get more noise than others.

    Symbols: σ `sigma`, η `eta`, β `decay`, F `running_fisher` of the state.

    Args:
      sigma: σ, a number or a schedule of the number of updates made; 0.015 for CIFAR-100 in the authors'
        runs with two gradients. With one they let it grow along a cosine, from 0.001 to 0.011.
      eta: η of the adaptive form, 0.1 in the authors' runs. None: noise that does not adapt.
      decay: β of the adaptive form, in [0, 1); 0.99 in the authors' runs.
      filter_axis: the axis that counts the filters: −1, the last, in Flax; 0 in Equinox. For stacked layers,
        a function; see `scale_by_filter_norm`.
      key: of the noise; an int or a key of `jax.random`, see `random_normal`.

    Returns:
      A gradient transformation to put in front of a base optimizer. Return no clean loss from the step, and
      log `ascent_value`, the loss at w + ε; see `one_gradient`.

    Raises:
      ValueError: if sigma or eta is negative, or the decay outside [0, 1).

    Cost: as the base optimizer and a random number per parameter, under `jit`; without `jit` two
    gradients, since Python computes the clean one. Memory for ε; with η for F, 4 bytes per parameter.

    On several devices there is one ε for all; with `m_sharpness=True` each device has its own.

    Deviations from the authors' code (nblt/mARWP): see `optax_sam.ascent.filter_norm` and
    `optax_sam.running_fisher`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(optax_sam.rwp(sigma=0.015), optax.sgd(0.1))
      >>> loss = lambda w: jnp.sum(w**2)
      >>> w = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
      >>> abs(float(optax.tree.get(state, "ascent_value")) - 25) < 3  # the loss at w + ε
      True

    References:
      Li et al., `Efficient generalization improvement guided by random weight perturbation
      <https://arxiv.org/abs/2211.11489>`_, 2022
      Li et al., `Revisiting random weight perturbation for efficiently improving generalization
      <https://arxiv.org/abs/2404.00357>`_, 2024
    """
    noise = optax.chain(random_normal(key=key), scale_by_filter_norm(sigma, filter_axis=filter_axis))
    if eta is None:
        return sharpness_aware(noise)
    return running_fisher(noise, eta=eta, decay=decay, filter_axis=filter_axis)
