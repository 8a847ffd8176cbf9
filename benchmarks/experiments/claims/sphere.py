"""Losses on a sphere around w: along XSAM's arc from ε to the gradient at w + ε, and at the worst point.

Measured on random quadratics, and on batches during the training of a network.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from benchmarks.experiment import Job
from benchmarks.experiments.networks import Network, batch_after, recorded, states_along_training
from benchmarks.records import Record
from optax_sam import tree_math

ASCENT_RATE = 0.3
RADII = (0.5, 1.0, 2.0, 4.0)  # in units of ρ_max: α* at each, for the picture
QUADRATIC_RADII = (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 100.0)  # in units of ρ


def quadratics(job: Job) -> list[Record]:
    """α* of random positive definite quadratics, one record per radius."""
    rng = np.random.default_rng(0)
    size = (job["num_quadratics"], 20)
    axes, _ = np.linalg.qr(rng.normal(size=(*size, size[-1])))
    spectra = np.exp(rng.uniform(np.log(0.1), np.log(10.0), size=size))
    hessians = axes @ (spectra[..., None] * np.swapaxes(axes, 1, 2))
    points = rng.normal(size=size)

    def search(hessian: jax.Array, w: jax.Array, radius: float) -> jax.Array:
        rho = job["rho"] * jnp.linalg.norm(w)
        # Radii are schedules, because they depend on w.
        tx = optax_sam.xsam(rho=lambda count: rho, rho_max=lambda count: radius * rho)
        value_fn = lambda w: 0.5 * w @ hessian @ w
        _, state = tx.update(jax.grad(value_fn)(w), tx.init(w), w, value_fn=value_fn, refresh=True)
        return optax.tree.get(state, "alpha")

    records = []
    with jax.enable_x64(True):
        for radius in QUADRATIC_RADII:
            alphas = np.asarray(jax.vmap(search, (0, 0, None))(hessians, points, radius))
            records.append({"radius": radius, "alphas": [round(float(alpha), 2) for alpha in alphas]})
    return records


class Probes(NamedTuple):
    """Compiled functions of a loss."""

    # Params, kept α, batch -> loss; losses at v(0), v(1), v(kept α), v(α*) at distance ρ_max; α* at all
    # radii; ρ_max v(α*).
    look: Callable[..., Any]
    value_and_gradient: Callable[..., Any]  # params, batch -> loss, gradient
    ascend: Callable[..., Any]  # ε on the sphere, gradient there -> the next ε on the sphere


@functools.cache
def probes(loss: Callable[..., jax.Array], rho: float, rho_max: float) -> Probes:
    """The functions, compiled once per process."""
    stage = optax_sam.spherical_search(rho_max)
    alphas = jnp.linspace(0.0, 2.0, 21)

    @jax.jit
    def look(params: optax.Params, kept: jax.Array, batch: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
        value, gradient = jax.value_and_grad(loss)(params, batch)
        epsilon = tree_math.scale(rho / tree_math.norm(gradient), gradient)
        ahead = jax.grad(loss)(tree_math.add(params, epsilon), batch)
        start = stage.init(params)

        def point(alpha: jax.Array, radius: float) -> optax.Updates:
            """Radius · v(α), as the stage computes it from a kept α."""
            state = optax.tree.set(start, alpha=alpha)
            direction, _ = stage.update(ahead, state, params, perturbation=epsilon, refresh=False)
            return tree_math.scale(radius / tree_math.norm(ahead), direction)

        def loss_at(alpha: jax.Array, radius: float = rho_max) -> jax.Array:
            return loss(tree_math.add(params, point(alpha, radius)), batch)

        best = []
        for multiple in RADII:
            losses = jax.lax.map(lambda alpha, radius=multiple * rho_max: loss_at(alpha, radius), alphas)
            best.append(alphas[jnp.argmax(losses)])
        found = best[RADII.index(1.0)]
        on_the_arc = {"v(0)": jnp.zeros(()), "v(1)": jnp.ones(()), "v(kept)": kept, "v(alpha*)": found}
        losses = {name: loss_at(alpha) for name, alpha in on_the_arc.items()}
        return value, losses, jnp.stack(best), point(found, rho_max)

    @jax.jit
    def ascend(epsilon: optax.Params, gradient: optax.Updates) -> optax.Params:
        rate = ASCENT_RATE * rho_max / tree_math.norm(gradient)
        moved = tree_math.add(epsilon, tree_math.scale(rate, gradient))
        return tree_math.scale(rho_max / tree_math.norm(moved), moved)

    return Probes(look, jax.jit(jax.value_and_grad(loss)), ascend)


def worst_found(
    probes: Probes, params: optax.Params, epsilon: optax.Params, batch: Any, ascent_steps: int
) -> float:
    """The largest loss during a projected ascent on the sphere from ε."""
    losses = []
    for _ in range(ascent_steps + 1):
        value, gradient = probes.value_and_gradient(tree_math.add(params, epsilon), batch)
        losses.append(float(value))
        epsilon = probes.ascend(epsilon, gradient)
    return max(losses)


def network(job: Job, trained: Network, per_epoch: int, ascent_steps: int) -> list[Record]:
    """Losses on the sphere during the training of a network, a record for each batch measured.

    Args:
        job: what to train.
        trained: the network of the job.
        per_epoch: measurements in an epoch, of two batches each.
        ascent_steps: steps of the ascent on the sphere to the worst point found.
    """
    probe = probes(trained.loss, job["settings"]["rho"], job["settings"]["rho_max"])
    interval = max(1, trained.program.steps_per_epoch // per_epoch)

    records = []
    for step, state in states_along_training(trained):
        if step % interval:
            continue
        kept = optax.tree.get(state.opt_state, "alpha")
        for index in range(2):
            batch = batch_after(trained, step + index)
            loss, losses, best, epsilon = probe.look(state.params, kept, batch)
            records.append(
                {
                    "step": step,
                    "batch": index,
                    "loss": float(loss),
                    "loss_at": {name: float(value) for name, value in losses.items()}
                    | {"worst found": worst_found(probe, state.params, epsilon, batch, ascent_steps)},
                    "kept_alpha": round(float(kept), 2),
                    "alphas": [round(float(alpha), 2) for alpha in best],
                }
                | recorded(trained.config)
            )
    return records
