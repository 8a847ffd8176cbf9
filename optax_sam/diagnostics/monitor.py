"""Records norms, sharpness, curvature and alignment during training, in the optimizer's state.

    tx = optax.chain(diagnostics.monitor(optax_sam.sam(0.05), interval=100), optax.sgd(0.1))
    updates, state = tx.update(grads, state, params, value_fn=value_fn)
    optax.tree.get(state, "sharpness")

    gradient_norm       ‖g‖
    perturbation_norm   ‖ε‖
    sharpness           L(w + ε) − L(w)
    top_eigenvalue      λ_max, the top eigenvalue of the Hessian at w
    alignment           |⟨ε, v⟩| / ‖ε‖, v its eigenvector

It wraps a method rather than following it in the chain, because later transformations do not see ε; what the
method returns is passed on unchanged. When to record is decided as for a refresh (see `optax_sam.refresh`),
but by a separate argument, `record`, so that measuring never affects training:

    record=None           every `interval` steps, the first included, in a `lax.cond`
    record=True, False    in this step, or not; decided at trace time, without control flow. With False, the
                          program is the method's alone.
    a traced bool         a `lax.cond` on it
"""

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.curvature.eigenpairs import start_vector, track_eigenpair
from optax_sam.devices import AxisName
from optax_sam.diagnostics.perturbations import alignment
from optax_sam.loss import BatchLoss, GradFn, ValueFn
from optax_sam.order import current_trace
from optax_sam.refresh import refreshed
from optax_sam.shards import sums_over_shards

QUANTITIES = ("gradient_norm", "perturbation_norm", "sharpness", "alignment", "top_eigenvalue")
OF_CURVATURE = {"alignment", "top_eigenvalue"}
OF_PERTURBATION = {"perturbation_norm", "sharpness", "alignment"}
NOTHING = optax.EmptyState()


class MonitorState(NamedTuple):
    """State of `monitor`: the latest recording.

    Scalars are float32 or wider, 0 before the first recording, and NaN if they could not be measured. A
    quantity that is not asked for is `optax.EmptyState()`.

    Attributes:
      monitor_count: number of updates made; int32.
      gradient_norm: ‖g‖.
      perturbation_norm: ‖ε‖.
      sharpness: L(w + ε) − L(w).
      alignment: |⟨ε, v⟩| / ‖ε‖.
      top_eigenvalue: estimate of λ_max.
      top_eigenvector: estimate of v, of unit length, from which the next one starts; like the parameters,
        float32 or wider. Before the first recording, the random vector with which it begins, much shorter.
        `optax.EmptyState()` if no curvature is asked for.
      inner_state: state of the method.
    """

    monitor_count: jax.Array
    gradient_norm: jax.Array | optax.EmptyState
    perturbation_norm: jax.Array | optax.EmptyState
    sharpness: jax.Array | optax.EmptyState
    alignment: jax.Array | optax.EmptyState
    top_eigenvalue: jax.Array | optax.EmptyState
    top_eigenvector: optax.Params
    inner_state: optax.OptState


def monitor(
    method: optax.GradientTransformation,
    *,
    interval: int = 100,
    quantities: Collection[str] = ("gradient_norm", "perturbation_norm", "sharpness"),
    num_iters: int = 5,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Records in its state what a method does, every `interval` steps.

    Args:
      method: the method to observe: `optax_sam.sam(0.05)`, or a chain or `optax.inject_hyperparams` with one
        inside. With `optax.identity()`, in front of plain SGD, quantities that do not need ε can be recorded.
      interval: steps from one recording to the next with `record=None`. The first update records.
      quantities: which to record: "gradient_norm", "perturbation_norm", "sharpness", and, at a higher cost,
        "alignment" and "top_eigenvalue".
      num_iters: Hessian-vector products per recording of the last two: steps of Lanczos from the eigenvector
        of the last recording, which converges over the first few recordings.
      key: of the random start vector of the first recording, a random key or an integer.

    Returns:
      A gradient transformation with `MonitorState`, to use in place of `method`. Its `update` also takes the
      extra argument `record`, a bool, see above; and, for curvature, `curvature_fn`, as in
      `optax_sam.tilt_to_top_eigenvector`. If each device has its own ε, means over the devices are
      recorded. Where the Hessian is not finite, `top_eigenvalue` and `alignment` are NaN. If the gradient or
      a loss is not finite either, the last recording is kept, and so are quantities of ε on steps in which
      the method computes none, as `look_sam` on most steps.

    Raises:
      ValueError: if a quantity is unknown, or the interval or number of iterations below 1; at trace time, on
        a monitor in a monitor, and on quantities of ε if the method has none or runs inside a `lax.cond`,
        as with `optax.apply_if_finite`: put that around the base optimizer.

    Cost: when it records, a forward pass for the sharpness, and for curvature `num_iters` Hessian-vector
      products, of about two gradients each. Nothing on other steps (see `record`). For curvature, memory
      for v.

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
    track = functools.partial(track_eigenpair, solver="lanczos", num_iters=num_iters)

    def init(params: optax.Params) -> MonitorState:
        checks.check_arrays(params)
        # One array for each: a buffer that appears twice in the state cannot be donated.
        zero = lambda name: jnp.zeros((), tree_math.accumulation_dtype(params)) if name in asked else NOTHING
        return MonitorState(
            monitor_count=jnp.zeros((), jnp.int32),
            **{name: zero(name) for name in QUANTITIES},
            top_eigenvector=start_vector(params, key) if asked & OF_CURVATURE else NOTHING,
            inner_state=method.init(params),
        )

    @sums_over_shards
    def update(
        updates: optax.Updates,
        state: MonitorState,
        params: optax.Params | None = None,
        *,
        value_fn: ValueFn | None = None,
        grad_fn: GradFn | None = None,
        curvature_fn: ValueFn | None = None,
        record: bool | jax.Array | None = None,
        axis_name: AxisName = None,
        m_sharpness: bool = False,
        params_axis_name: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MonitorState]:
        checks.check_params(updates, params)
        if "observe" in extra_args:
            raise ValueError(
                "A `monitor` was put around another one, and both would see the same: ask one of them for all"
                " `quantities`."
            )
        loss = BatchLoss(value_fn, grad_fn, curvature_fn, axis_name, m_sharpness, params_axis_name)
        seen: dict[str, Any] = {}
        observe = lambda **what: seen.update(what, trace=current_trace())
        direction, inner_state = method.update(
            updates, state.inner_state, params, observe=observe, **extra_args | vars(loss)
        )
        if asked & OF_PERTURBATION:
            _check_seen(seen, asked & OF_PERTURBATION)

        kept = {name: getattr(state, name) for name in sorted(asked)}, state.top_eigenvector
        known = asked if seen.get("perturbation") is not None else asked - OF_PERTURBATION

        def measure() -> tuple[dict[str, jax.Array], optax.Params]:
            old, vector = kept
            # It stays so if no product with the Hessian is finite.
            value = jnp.full((), -jnp.inf, tree_math.accumulation_dtype(params))
            if asked & OF_CURVATURE:
                value, vector = track((value, vector), loss.curvature_gradient, params)
            found = _quantities(loss, params, updates, seen, value, vector)
            new = {name: found[name]().astype(old[name].dtype) for name in known}
            # Where the loss or its gradient is not finite, all of the step is broken: nothing is recorded.
            first_order = [found["gradient_norm"](), *(new[name] for name in known - OF_CURVATURE)]
            is_sound = jnp.all(jnp.isfinite(jnp.stack(first_order)))
            return tree_math.where(is_sound, old | new, old), vector

        recorded, eigenvector = refreshed(record, state.monitor_count, interval, measure, kept)
        return direction, state._replace(
            monitor_count=optax.safe_increment(state.monitor_count),
            **recorded,
            top_eigenvector=eigenvector,
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _quantities(
    loss: BatchLoss,
    params: optax.Params,
    gradient: optax.Updates,
    seen: dict[str, Any],
    eigenvalue: jax.Array,
    eigenvector: optax.Params,
) -> dict[str, Callable[[], jax.Array]]:
    """Returns how each quantity is computed."""
    epsilon, ascent_value = seen.get("perturbation"), seen.get("ascent_value")
    if_measured = lambda x: jnp.where(jnp.isfinite(eigenvalue), x, jnp.nan)
    return {
        "gradient_norm": lambda: tree_math.norm(loss.average(gradient)),
        "perturbation_norm": lambda: loss.average(tree_math.norm(epsilon)),
        "sharpness": lambda: _rise(loss, params, epsilon, ascent_value),
        "alignment": lambda: loss.average(if_measured(alignment(epsilon, eigenvector))),
        "top_eigenvalue": lambda: if_measured(eigenvalue),
    }


def _rise(
    loss: BatchLoss, params: optax.Params, epsilon: optax.Updates, ascent_value: jax.Array | None
) -> jax.Array:
    """Returns L(w + ε) − L(w)."""
    at_epsilon = loss.value(tree_math.add(params, epsilon)) if ascent_value is None else ascent_value
    return at_epsilon - loss.value(params)


def _check_seen(seen: dict[str, Any], names: frozenset[str]) -> None:
    """Raises unless a method was observed and its values can be used here."""
    if not seen:
        raise ValueError(
            f"`monitor` was asked for {sorted(names)}, but it contains no method of `optax_sam` that computes"
            " a perturbation. Write `monitor(optax_sam.sam(0.05))`, or ask for other quantities:"
            ' `monitor(method, quantities=("gradient_norm",))`.'
        )
    if seen["trace"] != current_trace():
        raise ValueError(
            "`monitor` cannot observe a method that runs inside a `lax.cond`. `optax.apply_if_finite` and"
            " `optax.conditionally_transform` belong around the base optimizer:"
            " `optax.chain(monitor(optax_sam.sam(0.05)), optax.apply_if_finite(base, 5))`. `look_sam` and"
            " `reuse` decide in a `cond` under `jit`, unless `update` gets a Python bool:"
            " `refresh=step % 5 == 0`, with `refresh` among the `static_argnames` of the step."
        )


def _checked_quantities(quantities: Collection[str]) -> frozenset[str]:
    names = frozenset([quantities] if isinstance(quantities, str) else quantities)
    if not names or names - set(QUANTITIES):
        raise ValueError(f"`quantities` must be some of {QUANTITIES}, got {quantities!r}.")
    return names
