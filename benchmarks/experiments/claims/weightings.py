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
import numpy as np
import optax

import optax_sam
from benchmarks.experiments.claims.increases import quadratic, summed
from benchmarks.experiments.claims.setting import (
    Setting,
    batch_after,
    mean_loss,
    states_along_training,
    training_data,
)
from benchmarks.reports.claims import Job, record_of
from benchmarks.reports.records import Record
from benchmarks.training.sharpness import chunks
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
    """As `increases.controlled`, without the directions that need layers."""
    rng = np.random.default_rng(job["seed"])
    problem = quadratic(job, rng)
    gradient, deviation, rho = problem.gradient, problem.deviation, problem.rho
    noise = PARTS**0.5 * rng.normal(size=(job["num_gradients"], PARTS, job["num_parameters"]))

    records = []
    for ratio in ratios:
        noisy = jnp.asarray(gradient + ratio * deviation * noise, jnp.float32)
        for name, epsilons in perturbations_along(noisy, jnp.float32(rho)).items():
            if name in LAYERWISE:
                continue
            values = problem.increase(np.asarray(epsilons, np.float64))[len(noise) // 2 :]
            records.append(
                record_of(
                    job,
                    noise_ratio=ratio,
                    estimator=name,
                    increase=float(values.mean()),
                    noise_free_increase=problem.noise_free_increase(),
                )
            )
    return records


@functools.cache
def compiled(loss: Callable[..., jax.Array], rho: float) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The gradient of a loss, and parameters, statistics, batch -> perturbations, statistics."""
    gradient_of = jax.jit(jax.grad(loss))

    @jax.jit
    def observe_batch(params: optax.Params, statistics: Statistics, batch: Any):
        parts = [jax.tree.map(lambda x, i=i: jnp.array_split(x, PARTS)[i], batch) for i in range(PARTS)]
        gradients = [gradient_of(params, part) for part in parts]
        return observe(jax.tree.map(lambda *x: jnp.stack(x), *gradients), statistics, jnp.float32(rho))

    return gradient_of, observe_batch


def network(job: Job, setting: Setting, warm_up: int, every: int) -> list[Record]:
    """As `increases.network`."""
    noisy = training_data(setting)
    parts = chunks(noisy)
    rho = job["settings"]["rho"]
    gradient_of, observe_batch = compiled(setting.loss, rho)
    increase = lambda params, epsilon: mean_loss(setting, tree_math.add(params, epsilon), parts)

    records, statistics = [], None
    for step, state in states_along_training(setting, noisy):
        params = state.params
        statistics = start(params) if statistics is None else statistics
        batch = batch_after(setting, noisy, step)
        perturbations, statistics = observe_batch(params, statistics, batch)
        if step < warm_up or step % every:
            continue
        loss = mean_loss(setting, params, parts)
        true_gradient = summed(gradient_of, params, parts)
        noise_free = tree_math.scale(rho / tree_math.norm(true_gradient), true_gradient)
        noise_free_increase = increase(params, noise_free) - loss
        records += [
            record_of(
                job,
                setting.config,
                step=step,
                estimator=name,
                loss=loss,
                increase=increase(params, epsilon) - loss,
                noise_free_increase=noise_free_increase,
                cosine_with_the_noise_free=float(tree_math.vdot(epsilon, noise_free)) / rho**2,
            )
            for name, epsilon in perturbations.items()
        ]
    return records
