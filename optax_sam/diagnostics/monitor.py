"""What a method does, seen while it trains: norms, sharpness, curvature, alignment, in the optimizer's state.

    tx = optax.chain(diagnostics.monitor(optax_sam.sam(0.05), interval=100), optax.sgd(0.1))
    updates, state = tx.update(grads, state, params, value_fn=value_fn)
    optax.tree.get(state, "sharpness")

    gradient_norm       ‖g‖
    perturbation_norm   ‖ε‖
    sharpness           L(w + ε) − L(w)
    top_eigenvalue      λ_max, the top eigenvalue of the Hessian at w
    alignment           |⟨ε, v⟩| / ‖ε‖, v its eigenvector

It stands around a method, not behind it in the chain, because ε is gone by then; what the method returns is
handed on untouched. When to record is decided as for a refresh (see `optax_sam.refresh`), by an argument of
its own, `record`, so that looking does not change what is looked at:

    record=None           every `interval` steps, the first included, in a `lax.cond`
    record=True, False    now, not now; decided at trace time, without control flow. With False, the program
                          is that of the method alone.
    a traced bool         a `lax.cond` on it
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.curvature.eigenpairs import track_eigenpair
from optax_sam.devices import AxisName, average
from optax_sam.diagnostics.perturbations import alignment
from optax_sam.loss import GradFn, ValueFn, value_function
from optax_sam.refresh import refreshed

QUANTITIES = ("gradient_norm", "perturbation_norm", "sharpness", "alignment", "top_eigenvalue")
OF_CURVATURE = {"alignment", "top_eigenvalue"}
OF_PERTURBATION = {"perturbation_norm", "sharpness", "alignment"}


class MonitorState(NamedTuple):
    """State of `monitor`: the latest recording. Scalars are float32 or wider.

    Attributes:
      count: number of updates made; int32.
      gradient_norm: ‖g‖; this and the next four: NaN before the first recording, and where not asked for.
      perturbation_norm: ‖ε‖.
      sharpness: L(w + ε) − L(w).
      alignment: |⟨ε, v⟩| / ‖ε‖.
      top_eigenvalue: estimate of λ_max.
      top_eigenvector: estimate of v, of unit length, from which the next one starts; like the parameters,
        float32 or wider, 0 before the first recording. An empty state where no curvature is asked for.
      inner_state: state of the method.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in Optax
    gradient_norm: jax.Array
    perturbation_norm: jax.Array
    sharpness: jax.Array
    alignment: jax.Array
    top_eigenvalue: jax.Array
    top_eigenvector: optax.Params
    inner_state: optax.OptState


def monitor(
    method: optax.GradientTransformation,
    *,
    interval: int = 100,
    quantities: Collection[str] = ("gradient_norm", "perturbation_norm", "sharpness"),
    num_iters: int = 5,
    seed: int = 0,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Records in its state what a method does, every `interval` steps.

    Args:
      method: the method to look at: `optax_sam.sam(0.05)`, or a chain or `optax.inject_hyperparams` with one
        inside. Around `optax.identity()`, in front of plain SGD, the quantities without ε can be recorded.
      interval: steps from one recording to the next where `record=None`. The first update records.
      quantities: which to record: "gradient_norm", "perturbation_norm", "sharpness", and at a price
        "alignment" and "top_eigenvalue".
      num_iters: Hessian-vector products at a recording of the last two: steps of Lanczos from the
        eigenvector of the last recording, which converges over the first few.
      seed: of the random start vector of the first recording.
      axis_name: mapped axis over which the batch is split. Left out: that of the method, if it has one.

    Returns:
      A gradient transformation with `MonitorState`, in the place of `method`. `update` takes the extra
      argument `record` as well, a bool, see above; and, for curvature, `curvature_fn`, as in
      `optax_sam.tilt_to_top_eigenvector`. Where each device has its own ε, means over the devices are
      recorded. A result that is not finite leaves the last one.

    Raises:
      ValueError: on an unknown quantity, an interval or number of iterations under 1, a monitor in a monitor;
        at trace time, on quantities of ε where the method has none.

    Cost: when it records, a forward pass for the sharpness; for curvature `num_iters` Hessian-vector
      products, of about two gradients each. Nothing on other steps (see `record`). Memory for v, with
      curvature.

    Example: λ_max of a quadratic, recorded twice, decided on the host.
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> from optax_sam import diagnostics
      >>> method = diagnostics.monitor(optax_sam.sam(0.1), quantities=("sharpness", "top_eigenvalue"))
      >>> tx = optax.chain(method, optax.sgd(0.1))
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0]) * w**2)
      >>> w = jnp.ones(2)
      >>> state = tx.init(w)
      >>> for step in range(20):
      ...     record = step % 10 == 0
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss, record=record)
      ...     w = optax.apply_updates(w, updates)
      >>> round(float(optax.tree.get(state, "top_eigenvalue")), 3)
      9.0

    References:
      Luo et al., `Explicit eigenvalue regularization improves sharpness-aware minimization
      <https://arxiv.org/abs/2501.12666>`_, 2024, figure 1
    """
    checks.check_stage("method", method)
    checks.check_interval(interval, "record")
    checks.check_count("num_iters", num_iters)
    asked = _checked_quantities(quantities)
    method = optax.with_extra_args_support(method)

    def init(params: optax.Params) -> MonitorState:
        dtype = tree_math.accumulation_dtype(params)
        return MonitorState(
            count=jnp.zeros((), jnp.int32),
            # One array for each: a buffer that is in the state twice cannot be donated.
            **{name: jnp.full((), jnp.nan, dtype) for name in QUANTITIES},
            top_eigenvector=tree_math.zeros_like(params) if asked & OF_CURVATURE else optax.EmptyState(),
            inner_state=method.init(params),
        )

    def update(
        updates: optax.Updates,
        state: MonitorState,
        params: optax.Params | None = None,
        *,
        value_fn: ValueFn | None = None,
        grad_fn: GradFn | None = None,
        curvature_fn: ValueFn | None = None,
        record: bool | jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MonitorState]:
        checks.check_params(updates, params)
        if "observe" in extra_args:
            raise ValueError(
                "A `monitor` was put around another, which sees what it sees: ask one of them for all"
                " `quantities`."
            )
        seen: dict[str, Any] = {}
        extra_args |= {"value_fn": value_fn, "grad_fn": grad_fn, "curvature_fn": curvature_fn}
        direction, inner_state = method.update(
            updates, state.inner_state, params, observe=seen.update, **extra_args
        )
        if asked & OF_PERTURBATION and not seen:
            raise ValueError(
                f"`monitor` was asked for {sorted(asked & OF_PERTURBATION)}, but there is no method of"
                " `optax_sam` inside, which would make a perturbation. Write `monitor(optax_sam.sam(0.05))`,"
                ' or ask for other quantities: `monitor(method, quantities=("gradient_norm",))`.'
            )
        axis = seen.get("axis_name") if axis_name is None else axis_name
        epsilon, ascent_value = seen.get("perturbation"), seen.get("ascent_value")

        def rise() -> jax.Array:
            loss = value_function(value_fn, axis_name=axis)
            at_epsilon = loss(tree_math.add(params, epsilon)) if ascent_value is None else ascent_value
            return at_epsilon - loss(params)

        def measure() -> tuple[dict[str, jax.Array], optax.Params]:
            eigenpair = state.top_eigenvalue, state.top_eigenvector
            if asked & OF_CURVATURE:
                eigenpair = track_eigenpair(
                    eigenpair,
                    params,
                    value_fn=value_fn,
                    grad_fn=grad_fn,
                    curvature_fn=curvature_fn,
                    axis_name=axis,
                    solver="lanczos",
                    num_iters=num_iters,
                    seed=seed,
                )
            quantity = {
                "gradient_norm": lambda: tree_math.norm(average(updates, axis)),
                "perturbation_norm": lambda: average(tree_math.norm(epsilon), axis),
                "sharpness": rise,
                "alignment": lambda: average(alignment(epsilon, eigenpair[1]), axis),
                "top_eigenvalue": lambda: eigenpair[0],
            }
            return {name: _finite_or(quantity[name](), kept[0][name]) for name in kept[0]}, eigenpair[1]

        kept = {name: getattr(state, name) for name in sorted(asked)}, state.top_eigenvector
        recorded, eigenvector = refreshed(record, state.count, interval, measure, kept)
        return direction, state._replace(
            count=optax.safe_increment(state.count),
            **recorded,
            top_eigenvector=eigenvector,
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _checked_quantities(quantities: Collection[str]) -> frozenset[str]:
    names = frozenset([quantities] if isinstance(quantities, str) else quantities)
    if not names or names - set(QUANTITIES):
        raise ValueError(f"`quantities` must be some of {QUANTITIES}, got {quantities!r}.")
    return names


def _finite_or(value: jax.Array, kept: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(value), value.astype(kept.dtype), kept)
