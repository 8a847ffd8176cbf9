"""How much perturbations from noisy gradients raise the true loss: L(w + ε) − L(w), all ε of length ρ.

Measured on a controlled problem, and on a network during training. Each estimator of the gradient noise gets
the same gradients, one after another.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy.stats import spearmanr

import optax_sam
from benchmarks.experiment import Job
from benchmarks.experiments.networks import Network, batch_after, mean_loss, recorded, states_along_training
from benchmarks.records import Record
from benchmarks.training.sharpness import chunks
from optax_sam import tree_math

# Options of `gradient_noise`; None is SAM.
ESTIMATORS: dict[str, dict[str, float] | None] = {
    "sam": None,
    "info_sam": {},
    "less_damping": {"damping": 0.01},
    "square_root": {"power": 0.5},
    "early_code": {"variance_decay": 0.0, "damping": 0.0},
}


def ascents(rho: optax.ScalarOrSchedule) -> dict[str, optax.GradientTransformationExtraArgs]:
    """The stages g -> ε of all estimators."""
    return {
        name: optax_sam.steepest_ascent(
            rho, objective=None if options is None else optax_sam.gradient_noise(**options)
        )
        for name, options in ESTIMATORS.items()
    }


Stages = Mapping[str, optax.GradientTransformationExtraArgs]


def observe(
    stages: Stages, gradient: optax.Updates, states: Mapping[str, Any]
) -> tuple[dict[str, optax.Updates], dict[str, Any]]:
    """Passes a gradient to all estimators; returns their perturbations and their states."""
    found = {name: stage.update(gradient, states[name], gradient) for name, stage in stages.items()}
    return (
        {name: epsilon for name, (epsilon, _) in found.items()},
        {name: state for name, (_, state) in found.items()},
    )


class Quadratic(NamedTuple):
    """A controlled problem: the gradient at some parameters, a known Hessian, known noise."""

    gradient: np.ndarray  # g, without noise
    hessian: np.ndarray  # its eigenvalues are 0.1 to 10, in random directions
    deviation: np.ndarray  # standard deviations of the noise of each coordinate; as long as g
    rho: float  # length of the perturbations

    def increase(self, epsilon: np.ndarray) -> np.ndarray:
        """L(w + ε) − L(w)."""
        return epsilon @ self.gradient + 0.5 * np.einsum("...i,ij,...j", epsilon, self.hessian, epsilon)

    def noise_free_increase(self) -> float:
        """That of the ε along the gradient without noise."""
        return float(self.increase(self.rho * self.gradient / np.linalg.norm(self.gradient)))


def quadratic(job: Job, rng: np.random.Generator) -> Quadratic:
    """The problem of a job. The noise is like the gradient, as in a network, if the job says so."""
    size = job["num_parameters"]
    axes, _ = np.linalg.qr(rng.normal(size=(size, size)))
    hessian = axes @ np.diag(np.geomspace(0.1, 10.0, size)) @ axes.T
    w = rng.normal(size=size)
    gradient = hessian @ w
    deviation = rng.permutation(np.geomspace(0.01, 100.0, size))
    if job.get("noise") == "like the gradient":
        deviation = np.sort(deviation)[np.argsort(np.argsort(np.abs(gradient)))]
    deviation *= np.linalg.norm(gradient) / np.linalg.norm(deviation)
    return Quadratic(gradient, hessian, deviation, job["rho"] * np.linalg.norm(w))


@jax.jit
def perturbations_along(gradients: jax.Array, rho: jax.Array, deviation: jax.Array) -> dict[str, jax.Array]:
    """The perturbations of all estimators, given one gradient after another."""
    stages = ascents(lambda count: rho)
    # One more: C = 1/σ² with the true σ², up to a factor, which shows the cost of estimating it.
    known = optax.stateless(lambda gradient, params: deviation**-2)
    stages["known_variance"] = optax_sam.steepest_ascent(lambda count: rho, objective=known)

    def step(states: dict[str, Any], gradient: jax.Array) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        perturbations, states = observe(stages, gradient, states)
        return states, perturbations

    states = {name: stage.init(gradients[0]) for name, stage in stages.items()}
    return jax.lax.scan(step, states, gradients)[1]


def of_estimators(gradients: jax.Array, problem: Quadratic) -> dict[str, jax.Array]:
    """The perturbations of all estimators, and of one that knows the variance."""
    return perturbations_along(
        gradients, jnp.float32(problem.rho), jnp.asarray(problem.deviation, jnp.float32)
    )


def controlled(
    job: Job,
    ratios: Sequence[float],
    perturbations: Callable[[jax.Array, Quadratic], Mapping[str, jax.Array]] = of_estimators,
    num_parts: int | None = None,
) -> list[Record]:
    """Mean increases over the second half of the gradients, a record for each ratio and estimator.

    Args:
        job: size, seed and kind of the problem.
        ratios: lengths of the noise, in lengths of the gradient.
        perturbations: gradients of all steps, problem -> ε of all steps, for each estimator.
        num_parts: gives the gradients of so many equal parts of the batch, not of the batch.
    """
    rng = np.random.default_rng(job["seed"])
    problem = quadratic(job, rng)
    parts = () if num_parts is None else (num_parts,)
    noise = (num_parts or 1) ** 0.5 * rng.normal(size=(job["num_gradients"], *parts, job["num_parameters"]))

    records = []
    for ratio in ratios:
        noisy = jnp.asarray(problem.gradient + ratio * problem.deviation * noise, jnp.float32)
        for name, epsilons in perturbations(noisy, problem).items():
            values = problem.increase(np.asarray(epsilons, np.float64))[len(noise) // 2 :]
            records.append(
                {
                    "noise_ratio": ratio,
                    "estimator": name,
                    "increase": float(values.mean()),
                    "standard_error_over_steps": float(values.std(ddof=1) / len(values) ** 0.5),
                    "noise_free_increase": problem.noise_free_increase(),
                }
            )
    return records


@functools.cache
def compiled(loss: Callable[..., jax.Array], rho: float) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The gradient of a loss, and parameters, states, batch -> perturbations, states."""
    stages = ascents(rho)
    gradient_of = jax.jit(jax.grad(loss))

    @jax.jit
    def observe_batch(params: optax.Params, states: dict[str, Any] | None, batch: Any):
        if states is None:
            states = {name: stage.init(params) for name, stage in stages.items()}
        return observe(stages, gradient_of(params, batch), states)

    return gradient_of, observe_batch


def summed(
    gradient_of: Callable[..., optax.Updates], params: optax.Params, parts: Iterable[Any]
) -> optax.Updates:
    """The sum of the gradients of the parts of a data set."""
    total = tree_math.zeros_like(params)
    for part in parts:
        total = tree_math.add(total, gradient_of(params, part))
    return total


def rank_correlation(states: Mapping[str, Any], true_gradient: optax.Updates) -> dict[str, float]:
    """That of the squared gradient and the noise variance, over all coordinates."""
    variance = optax.tree.get(states["info_sam"], "noise_variance")
    found = spearmanr(ravel_pytree(true_gradient)[0] ** 2, ravel_pytree(variance)[0]).statistic
    return {"rank_correlation_of_signal_and_noise": float(found)}


def network(
    job: Job,
    trained: Network,
    warm_up: int,
    every: int,
    observer: Callable[..., tuple[Callable[..., Any], Callable[..., Any]]] = compiled,
    more: Callable[..., Mapping[str, float]] = rank_correlation,
) -> list[Record]:
    """Increases during the training of a network, a record for each estimator and measured step.

    Args:
        job: what to train.
        trained: the network of the job.
        warm_up: first step that is measured.
        every: steps between two measurements.
        observer: what `compiled` is for `ESTIMATORS`.
        more: states, true gradient -> further fields of the records.
    """
    parts = chunks(trained.noisy)
    rho = job["settings"]["rho"]
    gradient_of, observe_batch = observer(trained.loss, rho)

    def increase(params: optax.Params, epsilon: optax.Params, loss: float) -> float:
        return mean_loss(trained, tree_math.add(params, epsilon), parts) - loss

    records, states = [], None
    for step, state in states_along_training(trained):
        params = state.params
        perturbations, states = observe_batch(params, states, batch_after(trained, step))
        if step < warm_up or step % every:
            continue
        loss = mean_loss(trained, params, parts)
        true_gradient = summed(gradient_of, params, parts)
        noise_free = tree_math.scale(rho / tree_math.norm(true_gradient), true_gradient)
        noise_free_increase = increase(params, noise_free, loss)
        fields = more(states, true_gradient)
        records += [
            {
                "step": step,
                "estimator": name,
                "loss": loss,
                "increase": increase(params, epsilon, loss),
                "noise_free_increase": noise_free_increase,
                **fields,
                "cosine_with_the_noise_free": float(tree_math.vdot(epsilon, noise_free)) / rho**2,
            }
            | recorded(trained.config)
            for name, epsilon in perturbations.items()
        ]
    return records
