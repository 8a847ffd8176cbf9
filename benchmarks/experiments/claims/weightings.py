"""Other ways to weight the coordinates of a noisy gradient: how much their ε raises the true loss.

The direction of a perturbation is made of the gradient g of a batch, its running mean m (decay 0.9), and two
estimates of the noise variance of g, both averaged with decay 0.99: t over time, as in `gradient_noise`, and
p from the differences between the gradients of the batch's four parts (micro-batches):

    p = Σ_i (g_i − g)² / (4 · 3)

All perturbations have the length ρ and are compared at the same parameters, given the same gradients.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_sam
from benchmarks.experiment import Job
from benchmarks.experiments.claims import increases
from benchmarks.experiments.networks import Network
from benchmarks.records import Record
from optax_sam import tree_math

PARTS = 4
OVER_TIME = optax_sam.gradient_noise(power=0.0)
AVERAGED = optax.ema(0.99)


def _mean(tree: optax.Updates) -> jax.Array:
    return tree_math.total(tree) / optax.tree.size(tree)


def _by_layer(tree: optax.Updates) -> optax.Updates:
    return jax.tree.map(lambda x: jnp.full_like(x, x.mean()), tree)


def _inverse(g: optax.Updates, variance: optax.Updates) -> optax.Updates:
    mean = _mean(variance)
    return jax.tree.map(lambda g, v: g / (v + mean), g, variance)


def _signal(g: optax.Updates, square: optax.Updates, variance: optax.Updates) -> optax.Updates:
    leaf = lambda g, s, v: g * jnp.where(s == 0, 0, s / jnp.where(s == 0, 1, s + v))
    return jax.tree.map(leaf, g, square, variance)


def _square(tree: optax.Updates) -> optax.Updates:
    return jax.tree.map(jnp.square, tree)


# g, m, t, p -> direction of ε.
DIRECTIONS: dict[str, Callable[..., optax.Updates]] = {
    "sam": lambda g, m, t, p: g,
    "info_sam": lambda g, m, t, p: _inverse(g, t),
    "signal_to_noise": lambda g, m, t, p: _signal(g, _square(m), t),
    "gradient_to_noise": lambda g, m, t, p: _signal(g, _square(g), t),
    "layer_variance": lambda g, m, t, p: _inverse(g, _by_layer(t)),
    "layer_signal_to_noise": lambda g, m, t, p: _signal(g, _by_layer(_square(m)), _by_layer(t)),
    "parts_variance": lambda g, m, t, p: _inverse(g, p),
    "parts_signal_to_noise": lambda g, m, t, p: _signal(g, _square(m), p),
    "running_mean": lambda g, m, t, p: m,
}
LAYERWISE = ("layer_variance", "layer_signal_to_noise")


class Statistics(NamedTuple):
    """What is known of the gradients so far."""

    over_time: Any
    parts: Any


def start(params: optax.Params) -> Statistics:
    """Before the first gradient."""
    return Statistics(OVER_TIME.init(params), AVERAGED.init(params))


def observe(
    parts: optax.Updates, statistics: Statistics, rho: jax.Array
) -> tuple[dict[str, optax.Updates], Statistics]:
    """Returns the perturbations of all directions, given the gradients of the parts, stacked."""
    g = jax.tree.map(lambda x: x.mean(axis=0), parts)
    between = jax.tree.map(lambda x: x.var(axis=0, ddof=1) / len(x), parts)
    _, over_time = OVER_TIME.update(g, statistics.over_time)
    p, averaged = AVERAGED.update(between, statistics.parts)
    directions = {
        name: direction(g, over_time.gradient_mean, over_time.noise_variance, p)
        for name, direction in DIRECTIONS.items()
    }
    perturbations = {name: tree_math.scale(rho, tree_math.unit(d)) for name, d in directions.items()}
    return perturbations, Statistics(over_time, averaged)


@jax.jit
def perturbations_along(gradients: jax.Array, rho: jax.Array) -> dict[str, jax.Array]:
    """The perturbations, given the gradients of the parts, one step after another."""

    def step(statistics: Statistics, parts: jax.Array) -> tuple[Statistics, dict[str, jax.Array]]:
        perturbations, statistics = observe(parts, statistics, rho)
        return statistics, perturbations

    return jax.lax.scan(step, start(gradients[0, 0]), gradients)[1]


def controlled(job: Job, ratios: Sequence[float]) -> list[Record]:
    """`increases.controlled` for the directions that do not need layers."""

    def perturbations(gradients: jax.Array, problem: increases.Quadratic) -> dict[str, jax.Array]:
        found = perturbations_along(gradients, jnp.float32(problem.rho))
        return {name: epsilons for name, epsilons in found.items() if name not in LAYERWISE}

    return increases.controlled(job, ratios, perturbations, PARTS)


@functools.cache
def compiled(loss: Callable[..., jax.Array], rho: float) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The gradient of a loss, and parameters, statistics, batch -> perturbations, statistics."""
    gradient_of = jax.jit(jax.grad(loss))

    @jax.jit
    def observe_batch(params: optax.Params, statistics: Statistics | None, batch: Any):
        parts = [jax.tree.map(lambda x, i=i: jnp.array_split(x, PARTS)[i], batch) for i in range(PARTS)]
        gradients = jax.tree.map(lambda *x: jnp.stack(x), *(gradient_of(params, part) for part in parts))
        return observe(gradients, start(params) if statistics is None else statistics, jnp.float32(rho))

    return gradient_of, observe_batch


def network(job: Job, trained: Network, warm_up: int, every: int) -> list[Record]:
    """`increases.network` for all directions."""
    return increases.network(
        job, trained, warm_up, every, observer=compiled, more=lambda statistics, true_gradient: {}
    )
