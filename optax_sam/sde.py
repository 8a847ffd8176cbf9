"""The stochastic differential equations (SDEs) of SAM, of second and of third order in ρ.

    SAM:   x⁺ = x − η ∇f_γ(x + ρ u_γ),      γ drawn uniformly from M mini-batches
    SDE:   dX = −E[G_γ(X)] dt + √η Cov(G_γ(X))^½ dW,      a step of SAM takes the time η

    G_γ = ∇f_γ + ρ ∇²f_γ u_γ + (ρ²/2) ∇³f_γ(u_γ, u_γ)      without the last term in the second order
    u_γ = ∇f_γ/‖∇f_γ‖ (SAM),   u_γ = ∇f_γ (USAM, the unnormalised SAM)

G_γ is the Taylor expansion of SAM's gradient ∇f_γ(x + ρ u_γ) in ρ, so its error is O(ρ²) in the second order
and O(ρ³) in the third. u_γ is held constant: the third term is not the gradient of (ρ²/2) uᵀ∇²f u through
u(x). Where u = ±v₁, a top eigenvector, it is (ρ²/2) ∇λ₁: this term regularises the top eigenvalue as far
as u is aligned with v₁, which is what Eigen-SAM improves. The second order can be written as a gradient,
E[∇f_γ + ρ ∇²f_γ u_γ] = ∇(f + ρ E‖∇f_γ‖), for USAM ∇(f + (ρ/2) E‖∇f_γ‖²).

The third derivatives of networks with ReLU do not see the kinks: use a smooth activation if the expansion
should be right.

Symbols ↔ names: f_γ `value_fn(params, batch)`, γ one of `batches`, ρ `rho`, η `learning_rate`.

References:
  Luo et al., `Explicit eigenvalue regularization improves sharpness-aware minimization
  <https://arxiv.org/abs/2501.12666>`_, 2024 (the third order; theorem and figure 2)
  Compagnoni et al., `An SDE for modeling SAM: theory and insights <https://arxiv.org/abs/2301.08203>`_, 2023
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.batches import stacked
from optax_sam.curvature.products import derivatives_along
from optax_sam.loss import BatchLoss

__all__ = ["drift", "noise_factors", "simulate"]

LossOfBatch = Callable[[optax.Params, Any], jax.Array]
Gradients = Callable[[optax.Params, Any], optax.Updates]


def drift(
    value_fn: LossOfBatch,
    params: optax.Params,
    batches: Any,
    *,
    rho: float | jax.Array,
    order: int = 3,
    normalized: bool = True,
    sequential: bool = False,
) -> optax.Updates:
    """Computes the drift of SAM's SDE, dX/dt without noise: −E[G_γ].

        G_γ = ∇f_γ + ρ ∇²f_γ u_γ + (ρ²/2) ∇³f_γ(u_γ, u_γ)

    Args:
      value_fn: f_γ, the mean loss of the examples of a mini-batch, `value_fn(params, batch)`, a scalar.
      params: parameters x, a pytree.
      batches: all M mini-batches γ, each equally probable, of the same shapes: arrays with a leading axis of
        M (one, or a tuple or dictionary of some), or an iterable of mini-batches, such as a list, a data
        loader or `optax_sam.Batches`.
      rho: radius ρ.
      order: 2 (Compagnoni et al.) or 3 (Luo et al.).
      normalized: whether u_γ is the unit vector of ∇f_γ (SAM), or ∇f_γ itself (USAM).
      sequential: whether mini-batches are computed one after another, in memory that does not grow with M,
        instead of all at once. On CPU do so only without convolutions, whose gradients are slow in loops.

    Returns:
      A pytree like `params`, float32 or wider. With a zero gradient u_γ = 0.

    Raises:
      ValueError: if `order` is not 2 or 3, if `rho` is negative, if the arrays of `batches` have no common
        leading axis, or if its mini-batches have different shapes.
      TypeError: if `batches` is an iterator, or if `rho` is a schedule.

    Cost: for each mini-batch about 3 gradients in the second order and 6 in the third; memory of all
      mini-batches' activations and G_γ, or with `sequential=True` of one and its G_γ.

    Example: for ⅓ x³ at x = 2, the gradient at 2 + ρ is 4 + 4ρ + ρ².
      >>> import jax.numpy as jnp
      >>> from optax_sam import sde
      >>> value_fn = lambda x, batch: batch * x**3 / 3
      >>> [float(sde.drift(value_fn, jnp.array(2.0), jnp.ones(1), rho=0.5, order=n)) for n in (2, 3)]
      [-6.0, -6.25]

    References:
      Luo et al., `Explicit eigenvalue regularization improves sharpness-aware minimization
      <https://arxiv.org/abs/2501.12666>`_, 2024
    """
    gradients = _expansion(value_fn, rho, order, normalized)
    params, batches, num = _checked(params, batches)
    weights = jnp.full(num, -1 / num, tree_math.accumulation_dtype(params))
    return _weighted_sum(gradients, params, batches, weights, sequential)


def noise_factors(
    value_fn: LossOfBatch,
    params: optax.Params,
    batches: Any,
    *,
    rho: float | jax.Array,
    order: int = 3,
    normalized: bool = True,
    sequential: bool = False,
) -> optax.Updates:
    """Computes the factors of the noise covariance in SAM's SDE: (G_γ − E[G_γ]) / √M.

    The sum of their outer products over γ is Cov(G_γ), so Σ_γ factor_γ dW_γ, with M independent Brownian
    motions, is noise of the same law as Cov^½ dW. No matrix and no square root is needed.

    Args:
      value_fn: f_γ, the mean loss of the examples of a mini-batch, `value_fn(params, batch)`, a scalar.
      params: parameters x, a pytree.
      batches: all M mini-batches γ, see `drift`.
      rho: radius ρ.
      order: 2 or 3, see `drift`.
      normalized: whether u_γ is the unit vector of ∇f_γ (SAM), or ∇f_γ itself (USAM).
      sequential: see `drift`. The result itself takes the memory of M copies of `params` in any case.

    Returns:
      A pytree like `params` with a leading axis of M, float32 or wider.

    Raises:
      ValueError: see `drift`.
      TypeError: see `drift`.

    Cost: as `drift`, and memory for M copies of `params`.

    Example: SGD, ρ = 0, of ½ (x − γ)²: the covariance of the gradient is the covariance of γ.
      >>> import jax.numpy as jnp
      >>> from optax_sam import sde
      >>> value_fn = lambda x, batch: 0.5 * (x - batch) ** 2
      >>> factors = sde.noise_factors(value_fn, jnp.array(0.0), jnp.array([1.0, 2.0, 3.0, 6.0]), rho=0.0)
      >>> factors.tolist(), float(jnp.sum(factors**2))
      ([1.0, 0.5, 0.0, -1.5], 3.5)
    """
    gradients = _expansion(value_fn, rho, order, normalized)
    params, batches, num = _checked(params, batches)
    of_batch = lambda batch: gradients(params, batch)
    each = jax.lax.map(of_batch, batches) if sequential else jax.vmap(of_batch)(batches)
    return jax.tree.map(lambda g: (g - jnp.mean(g, axis=0)) / num**0.5, each)


def simulate(
    value_fn: LossOfBatch,
    params: optax.Params,
    batches: Any,
    *,
    learning_rate: float | jax.Array,
    rho: float | jax.Array,
    order: int = 3,
    num_steps: int,
    key: jax.Array | int,
    normalized: bool = True,
    substeps: int = 1,
    sequential: bool = False,
) -> optax.Params:
    """Simulates a path of SAM's SDE by the Euler–Maruyama method.

        X ← X − E[G_γ] dt + √η Σ_γ factor_γ ξ_γ √dt,      dt = η / substeps,   ξ_γ standard normal

    With one substep a step has the mean and the covariance of SAM's step, up to the expansion in ρ; with
    more, the path approaches the SDE's, which differs from SAM by O(η).

    Why not diffrax: for it the noise would be a matrix of M columns, so M copies of `params` in each step,
    while here the sum over γ is taken in one pass. Its solvers of higher order need noise that commutes,
    which this does not, or the areas between M Brownian motions; and the SDE itself is right to first order
    in η only.

    Args:
      value_fn: f_γ, the mean loss of the examples of a mini-batch, `value_fn(params, batch)`, a scalar.
      params: parameters at the start, a pytree.
      batches: all M mini-batches γ, see `drift`.
      learning_rate: η, the learning rate of SAM with SGD, and the time of a step.
      rho: radius ρ.
      order: 2 or 3, see `drift`.
      num_steps: number of steps of length `learning_rate`.
      key: of the noise, a random key or an integer.
      normalized: whether u_γ is the unit vector of ∇f_γ (SAM), or ∇f_γ itself (USAM).
      substeps: number of Euler–Maruyama steps in each step.
      sequential: see `drift`.

    Returns:
      The path, a pytree like `params` with a leading axis of `num_steps + 1`, float32 or wider: entry 0 is
      the start, entry n the state after n steps, and the last entry the end. To compile it once for many
      keys or starting points, write `jax.jit(lambda params, key: sde.simulate(...))`; to keep less of a long
      path, call that again from the last entry, with another key.

    Raises:
      ValueError: see `drift`; or if `learning_rate` is negative, or `num_steps` or `substeps` is under 1.
      TypeError: see `drift`.

    Cost: `num_steps * substeps` times `drift`, and memory for the path. The steps are a loop in the
      compiled program: on CPU, gradients of convolutions are slow there; use fully connected networks.

    Example: without noise (M = 1) and with ρ = 0, gradient descent on ½ x².
      >>> import jax.numpy as jnp
      >>> from optax_sam import sde
      >>> path = sde.simulate(lambda x, batch: batch * x**2 / 2, jnp.array(1.0), jnp.ones(1),
      ...                     learning_rate=0.5, rho=0.0, num_steps=2, key=0)
      >>> path.tolist()
      [1.0, 0.5, 0.25]
    """
    gradients = _expansion(value_fn, rho, order, normalized)
    start, batches, num = _checked(params, batches)
    _check_constant("learning_rate", learning_rate)
    checks.check_count("num_steps", num_steps)
    checks.check_count("substeps", substeps)
    dtype = tree_math.accumulation_dtype(start)
    eta = jnp.asarray(learning_rate, dtype)
    dt = eta / substeps

    def step(x: optax.Params, key: jax.Array) -> tuple[optax.Params, None]:
        normal = jax.random.normal(key, (num,), dtype)
        # Σ_γ (G_γ − E[G]) ξ_γ = Σ_γ G_γ (ξ_γ − mean ξ)
        weights = dt / num + jnp.sqrt(eta * dt / num) * (normal - jnp.mean(normal))
        change = _weighted_sum(gradients, x, batches, weights, sequential)
        return jax.tree.map(jnp.subtract, x, change), None

    def point(x: optax.Params, keys: jax.Array) -> tuple[optax.Params, optax.Params]:
        x, _ = jax.lax.scan(step, x, keys)
        return x, x

    keys = jax.random.split(tree_math.random_key(key), num_steps * substeps)
    keys = keys.reshape(num_steps, substeps, *keys.shape[1:])
    _, path = jax.lax.scan(point, start, keys)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, path)


def _expansion(value_fn: LossOfBatch, rho: float | jax.Array, order: int, normalized: bool) -> Gradients:
    """Returns (params, batch) ↦ G_γ."""
    if not callable(value_fn):
        raise TypeError(
            "`value_fn` must be a function of parameters and a mini-batch, `value_fn(params, batch)`, got"
            f" {type(value_fn).__name__}."
        )
    if order not in (2, 3):
        raise ValueError(
            f"`order` must be 2 (the SDE of Compagnoni et al.) or 3 (that of Luo et al.), got {order!r}. For"
            " SGD, the first order, write `rho=0`."
        )
    if not isinstance(normalized, bool):
        raise TypeError(f"`normalized` must be True (SAM) or False (USAM), got {normalized!r}.")
    _check_constant("rho", rho)

    def of_batch(x: optax.Params, batch: Any) -> optax.Updates:
        gradient = BatchLoss(lambda w: value_fn(w, batch)).gradient
        first = gradient(x)
        u = tree_math.unit(first) if normalized else first
        if order == 2:
            return _taylor(rho, *jax.jvp(gradient, (x,), (u,)))
        return _taylor(rho, *derivatives_along(gradient, x, u))

    return of_batch


def _taylor(rho: float | jax.Array, first: optax.Updates, *higher: optax.Updates) -> optax.Updates:
    """Returns first + ρ second + ρ²/2 third."""

    def leaf(total: jax.Array, *terms: jax.Array) -> jax.Array:
        radius = jnp.asarray(rho, total.dtype)
        for factor, term in zip((radius, radius**2 / 2), terms, strict=False):
            total = total + factor * term
        return total

    return jax.tree.map(leaf, first, *higher)


def _weighted_sum(
    gradients: Gradients, params: optax.Params, batches: Any, weights: jax.Array, sequential: bool
) -> optax.Updates:
    """Returns Σ_γ weight_γ G_γ."""
    if sequential:

        def add(total: optax.Updates, one: tuple[Any, jax.Array]) -> tuple[optax.Updates, None]:
            batch, weight = one
            found = gradients(params, batch)
            return jax.tree.map(lambda t, g: t + weight.astype(g.dtype) * g, total, found), None

        return jax.lax.scan(add, tree_math.zeros_like(params), (batches, weights))[0]
    each = jax.vmap(lambda batch: gradients(params, batch))(batches)
    # Products of entries, not a dot, which would be rounded to bfloat16 on a TPU.
    factor = lambda g: weights.astype(g.dtype).reshape(-1, *(1,) * (g.ndim - 1))
    return jax.tree.map(lambda g: jnp.sum(factor(g) * g, axis=0), each)


def _checked(params: optax.Params, batches: Any) -> tuple[optax.Params, Any, int]:
    """Returns the parameters in float32 or wider, the mini-batches stacked, and M."""
    checks.check_params(params, params)
    batches = stacked(batches)
    leaves = jax.tree.leaves(batches)
    lengths = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            "The arrays of `batches` must have the same first axis, with one entry for each mini-batch, got"
            f" shapes {[jnp.shape(leaf) for leaf in leaves]}. For a single mini-batch, the noiseless"
            " equation, add an axis: `jax.tree.map(lambda x: x[None], batch)`."
        )
    return tree_math.full_precision(params), batches, leaves[0].shape[0]


def _check_constant(name: str, value: Any) -> None:
    """Raises unless `value` is a number of at least 0."""
    if callable(value):
        raise TypeError(
            f"`{name}` is a constant of the equation, got a schedule. Simulate in pieces, each from the end"
            f" of the one before with its own `{name}`."
        )
    checks.check_number(name, value)
