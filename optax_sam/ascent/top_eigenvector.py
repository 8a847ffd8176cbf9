"""Tilt to the top eigenvector: what Eigen-SAM adds to SAM's perturbation.

SAM lowers the top eigenvalue of the Hessian to the extent that its ε is aligned with the top eigenvector v,
and the alignment is usually small. Eigen-SAM keeps an estimate of v, refreshes it periodically, and turns ε
towards it:

    every `interval` steps, `num_iters` times, from the last v:   v ← H v / ‖H v‖       H = ∇²L(w)
    s = sign⟨ε₀, v⟩,   v⊥ = v − ⟨ε̂₀, v⟩ ε̂₀,   ε = ε₀ + α s ‖ε₀‖ v⊥        ε̂₀ = ε₀/‖ε₀‖

The Hessians of batches differ. With `decay` β a product is averaged with earlier ones, of
which v and λ are kept; 0 is the authors' rule:

    m = β λ v + (1 − β) H v,   λ ← ⟨v, m⟩,   v ← m / ‖m‖

After `steepest_ascent(rho)`, where ε₀ = ρ ĝ, this is the authors' ε = ρ (ĝ + α s v⊥). Neither v⊥ nor ε is
normalised again: ‖ε‖ = ρ (1 + α² ‖v⊥‖²)^(1/2). After another ascent the tilt is relative to its ε₀.

Symbols: ε₀ `updates`, α `alpha`, β `decay`, v `eigenvector`, λ `eigenvalue`; H v is `jax.jvp` over the
gradient.

Deviations from the authors' code (RitianLuo/EigenSAM): the step counter is global, not per epoch; before
the first refresh ε = ε₀ (theirs: ρ g, not normalised, almost surely an oversight); the Hessian belongs to
`curvature_fn`, by default the loss of the batch as passed (theirs: BatchNorm in evaluation mode).

References:
  Luo et al., `Explicit eigenvalue regularization improves sharpness-aware minimization
  <https://arxiv.org/abs/2501.12666>`_, 2024
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.curvature.eigenpairs import improved_eigenpair, start_vector
from optax_sam.curvature.krylov import SOLVERS
from optax_sam.loss import NO_LOSS, BatchLoss
from optax_sam.refresh import refreshed


class TiltToTopEigenvectorState(NamedTuple):
    """State of `tilt_to_top_eigenvector`.

    Attributes:
      eigenvalue: estimate λ of the tracked eigenvalue at the last refresh, a scalar; 0 before the first.
      failed_refreshes: number of refreshes in which ε₀ was finite, and a product with the Hessian was not, or
        was 0; int32. An earlier v is kept; if there was none, the method is SAM.
      eigenvector: unit vector v; like the parameters, float32 or wider, or in `state_dtype`: 4 bytes
        per parameter, 2 in bfloat16. Before the first refresh, the random
        vector with which it begins, so short (about 1e-18) that a tilt to it is lost in rounding. To start
        from a vector of your own: `optax.tree.set(state, eigenvector=v0)`.
    """

    eigenvalue: jax.Array
    failed_refreshes: jax.Array
    eigenvector: optax.Params


def tilt_to_top_eigenvector(
    alpha: float = 0.2,
    *,
    interval: int = 100,
    num_iters: int = 5,
    solver: str = "power",
    decay: float = 0.0,
    key: jax.Array | int = 0,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Tilts a perturbation ε₀ towards the top eigenvector of the Hessian: ε = ε₀ + α s ‖ε₀‖ v⊥.

    Args:
      alpha: strength α of the tilt; 0.2 is the authors' default, tuned over 0.05, 0.1 and 0.2. 0 is SAM.
      interval: steps from one refresh of v to the next with `refresh=None`; 100 in the paper. The first
        update refreshes.
      num_iters: Hessian-vector products per refresh; 5 in the paper.
      solver: "power", the authors', which converges to the eigenvalue of largest *magnitude*, which may be
        negative; or "lanczos", which returns the algebraically largest one, the one that the method is
        meant to lower, and needs memory for `num_iters` vectors. During a training, four Lanczos products
        gave a better vector than five power iterations (docs/evidence/eigenvectors.md).
      decay: β in [0, 1) of the running mean of the products; 0 is the authors' rule, without a mean. It needs
        `solver="power"`: a Krylov space does not change if a multiple of v is added. The first refresh has
        nothing to average. At the paper's cost, `interval=5, num_iters=1, decay=0.8` with a quarter of the
        batch in `curvature_fn` tracked better than its settings, with clean labels (docs/evidence/claims.md).
      key: of the random start vector of the first refresh; an int or a key of `jax.random`.
      state_dtype: dtype in which v is kept, as Optax's `mu_dtype`; None: float32 or wider.

    Returns:
      A gradient transformation ε₀ ↦ ε with `TiltToTopEigenvectorState`. It belongs to the extra
      argument `curvature_fn(params) -> scalar`, by default `value_fn`. It may be the loss of a part of the
      batch, or use BatchNorm in evaluation mode.

    Raises:
      ValueError: if the solver is unknown, the interval or number of iterations below 1, alpha negative,
        `decay` outside [0, 1), or not 0 with Lanczos.
      TypeError: if `num_iters` is not a Python integer.

    Cost: on refresh steps `num_iters` Hessian-vector products, of about two gradients each. On other steps
    two inner products. Memory for v: 4 bytes per parameter, 2 in bfloat16. If a product of a refresh is not
    finite, or 0, the vector before it is kept; with Lanczos that of the last refresh.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0]) * w**2)
      >>> tx = optax_sam.eigen_sam(rho=0.1, num_iters=20)
      >>> w = jnp.ones(2)
      >>> _, state = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
      >>> round(float(optax.tree.get(state, "eigenvalue")), 3)
      9.0
    """
    checks.check_number("alpha", alpha)
    checks.check_interval(interval)
    checks.check_count("num_iters", num_iters)
    checks.check_number("decay", decay, below=1.0)
    checks.check_state_dtype(state_dtype)
    if solver not in SOLVERS:
        raise ValueError(f"`solver` must be one of {sorted(SOLVERS)}, got {solver!r}.")
    if solver != "power" and not isinstance(decay, jax.core.Tracer) and decay > 0:
        raise ValueError(
            f'`decay` is for `solver="power"`, got {decay} with {solver!r}: adding a multiple of v to H v'
            " does not change the Krylov space, so Lanczos would forget the refreshes before. Leave one of"
            " the two out."
        )

    def init(params: optax.Params) -> TiltToTopEigenvectorState:
        start, like = start_vector(params, key), tree_math.zeros_like(params, state_dtype)
        return TiltToTopEigenvectorState(
            eigenvalue=jnp.zeros((), tree_math.accumulation_dtype(params)),
            failed_refreshes=jnp.zeros((), jnp.int32),
            eigenvector=tree_math.cast_like(start, like),
        )

    def update(
        updates: optax.Updates,
        state: TiltToTopEigenvectorState,
        params: optax.Params | None = None,
        *,
        loss: BatchLoss = NO_LOSS,
        step_count: jax.Array | int = 0,
        refresh: bool | jax.Array | None = None,
        grad: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, TiltToTopEigenvectorState]:
        checks.check_whole(updates)

        def track() -> TiltToTopEigenvectorState:
            last = (state.eigenvalue, tree_math.widened(state.eigenvector, params))
            (eigenvalue, eigenvector), is_usable = improved_eigenpair(
                last, loss.curvature_gradient, params, solver=solver, num_iters=num_iters, decay=decay
            )
            has_failed = ~is_usable & jnp.isfinite(tree_math.norm(loss.average(updates)))
            return TiltToTopEigenvectorState(
                eigenvalue,
                state.failed_refreshes + has_failed.astype(jnp.int32),
                tree_math.cast_like(eigenvector, state.eigenvector),
            )

        state = refreshed(refresh, step_count, interval, track, state)
        return _tilted(updates, state.eigenvector, alpha, updates if grad is None else grad), state

    return optax.GradientTransformationExtraArgs(init, update)


@jax.custom_jvp
def _tilted(
    epsilon: optax.Updates, eigenvector: optax.Params, alpha: float | jax.Array, grad: optax.Updates
) -> optax.Updates:
    """Returns ε₀ + α s ‖ε₀‖ v⊥. The gradient g counts for the derivative at ε₀ = 0 alone."""
    length = tree_math.norm(epsilon)
    along = tree_math.vdot(epsilon, eigenvector)
    tilt = alpha * jnp.sign(along)
    return tree_math.combine(
        1 - tilt * along * tree_math.reciprocal_or_zero(length), epsilon, tilt * length, eigenvector
    )


@_tilted.defjvp
def _tilted_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """At ρ = 0 the derivative is that from the right: as if ε₀ had the direction of g."""

    def along_gradient(epsilon: Any, eigenvector: Any, alpha: Any, grad: Any) -> Any:
        unit = tree_math.unit(grad)
        length, along = tree_math.vdot(epsilon, unit), tree_math.vdot(unit, eigenvector)
        tilt = alpha * jnp.sign(along)
        return tree_math.combine(1 - tilt * along, epsilon, tilt * length, eigenvector)

    result, tangent = jax.jvp(_tilted.fun, primals, tangents)
    _, tangent_at_zero = jax.jvp(along_gradient, primals, tangents)
    is_zero = tree_math.norm(primals[0]) == 0
    return result, tree_math.where(is_zero, tangent_at_zero, tangent)
