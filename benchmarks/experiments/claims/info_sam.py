"""Gradient noise turns SAM's perturbation away from the worst direction, and infoSAM turns it back.

Zhang, Li and Giannakis, ICASSP 2025 (https://arxiv.org/abs/2501.06603). With mini-batches SAM maximises the
loss of the batch; what its perturbation does to the *true* loss, L(w + ε) − L(w), is less than a perturbation
from the true gradient would do. All perturbations below have the same length ρ. Five statements:

1. A controlled problem: infoSAM's ε raises the true loss more than SAM's. L is a quadratic of 100 parameters
   with a known Hessian, the parameters stay where they are, and every coordinate of the gradient has noise of
   its own, with standard deviations over four orders of magnitude, at six ratios of the length of the noise
   to that of the gradient. Compared, at each ratio: infoSAM's increase less SAM's, seed by seed.
2. There, infoSAM's ε approaches the noise-free one. Compared, at each ratio: infoSAM's increase less the
   mean of SAM's and the noise-free one's; positive where half of the gap is closed.
3. A network: the same as 1 on Fashion-MNIST with 40 % wrong labels, where the true loss is that of all 10,000
   training images, and the noise that of batches of 128 or of 32. Compared, for each: every measured step
   of every seed (52 steps apart, after the first 156).
4. There, the same as 2.
5. infoSAM is more accurate than SAM with wrong labels. Compared, at each fraction of wrong labels: test
   accuracies of the two tuned rows of the accuracy suite (`benchmarks/suite.py`), seed by seed.

"infoSAM" in the statements is that of the library's defaults. The tables have other estimators beside it, and
for the network Spearman's rank correlation, over the parameters, of the squared true gradient and the noise
variance that infoSAM sees; in the controlled problem the two have nothing to do with each other. The network
is trained by SAM; all perturbations are computed at the same parameters from the same gradients.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy.stats import spearmanr

import optax_sam
from benchmarks.experiments.claims.claim import (
    Claim,
    Comparison,
    Job,
    Record,
    Report,
    SuiteResults,
    judge,
    number,
    paired,
    select,
    table,
)
from benchmarks.experiments.claims.setting import (
    batch_after,
    chunks,
    mean_loss,
    record_of,
    setting_of,
    train_steps,
    training_data,
)
from benchmarks.reports import plots
from optax_sam import tree_math

# --- The controlled problem ---------------------------------------------------------------------------
NUM_PARAMETERS = 100
RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
CONTROLLED_SEEDS = tuple(range(10))
NUM_GRADIENTS = 1000  # of which the second half is measured
CONTROLLED_RHO = 0.1  # in units of the length of the parameters

# --- The network --------------------------------------------------------------------------------------
EPOCHS = {128: 8, 32: 2}  # batch size -> passes over the data: 624 steps
RHO = 0.1
SEEDS = (0, 1, 2)
WARM_UP, EVERY = 156, 52

ESTIMATORS = {
    "sam": (None, plots.style("sam", "SAM")),
    "info_sam": ({}, plots.style("info_sam", "infoSAM")),
    "less_damping": (
        {"relative_damping": 0.01},
        plots.style("asam", "infoSAM, damping 0.01 of the mean variance", "--"),
    ),
    "square_root": ({"power": 0.5}, plots.style("xsam", "infoSAM, power ½", "--")),
    "early_code": (
        {"variance_decay": 0.0, "damping": 0.0},
        plots.style("eigen_sam", "infoSAM, the authors' early code", "--"),
    ),
}
NOISE_FREE = plots.style("sgd", "noise-free", ":")


def jobs(records: list[Record]) -> list[Job]:
    """Problems with a known Hessian, then networks."""
    controlled = [
        {
            "experiment": "controlled",
            "num_parameters": NUM_PARAMETERS,
            "rho": CONTROLLED_RHO,
            "num_gradients": NUM_GRADIENTS,
            "seed": seed,
        }
        for seed in CONTROLLED_SEEDS
    ]
    networks = [
        {
            "experiment": "network",
            "data": "fashion_mnist",
            "method": "sam",
            "settings": {"rho": RHO, "batch_size": batch_size},
            "label_noise": 0.4,
            "epochs": epochs,
            "seed": seed,
        }
        for batch_size, epochs in EPOCHS.items()
        for seed in SEEDS
    ]
    return controlled + networks


def ascents(rho: optax.ScalarOrSchedule) -> dict[str, optax.GradientTransformationExtraArgs]:
    """The stages g -> ε of all estimators."""
    return {
        name: optax_sam.steepest_ascent(
            rho, objective=None if options is None else optax_sam.gradient_noise(**options)
        )
        for name, (options, _) in ESTIMATORS.items()
    }


Stages = Mapping[str, optax.GradientTransformationExtraArgs]


def observe(
    stages: Stages, gradient: optax.Updates, states: Mapping[str, Any]
) -> tuple[dict[str, optax.Updates], dict[str, Any]]:
    """Shows a gradient to all estimators: their perturbations, their states."""
    found = {name: stage.update(gradient, states[name], gradient) for name, stage in stages.items()}
    return (
        {name: epsilon for name, (epsilon, _) in found.items()},
        {name: state for name, (_, state) in found.items()},
    )


def measure(job: Job, data_dir: Path) -> list[Record]:
    """The increases of one problem or one network."""
    return {"controlled": controlled, "network": network}[job["experiment"]](job, data_dir)


def controlled(job: Job, data_dir: Path) -> list[Record]:
    """Mean increases over the second half of the gradients, a record for each ratio and estimator."""
    size = job["num_parameters"]
    rng = np.random.default_rng(job["seed"])
    axes, _ = np.linalg.qr(rng.normal(size=(size, size)))
    hessian = axes @ np.diag(np.geomspace(0.1, 10.0, size)) @ axes.T
    w = rng.normal(size=size)
    gradient = hessian @ w
    deviation = rng.permutation(np.geomspace(0.01, 100.0, size))
    deviation *= np.linalg.norm(gradient) / np.linalg.norm(deviation)
    noise = rng.normal(size=(job["num_gradients"], size))
    rho = job["rho"] * np.linalg.norm(w)

    def increase(epsilon: np.ndarray) -> np.ndarray:
        return epsilon @ gradient + 0.5 * np.einsum("...i,ij,...j", epsilon, hessian, epsilon)

    records = []
    for ratio in RATIOS:
        noisy = jnp.asarray(gradient + ratio * deviation * noise, jnp.float32)
        perturbations = perturbations_along(noisy, jnp.float32(rho), jnp.asarray(deviation, jnp.float32))
        for name, epsilons in perturbations.items():
            values = increase(np.asarray(epsilons, np.float64))[len(noise) // 2 :]
            records.append(
                record_of(
                    job,
                    noise_ratio=ratio,
                    estimator=name,
                    increase=float(values.mean()),
                    standard_error_over_steps=float(values.std(ddof=1) / len(values) ** 0.5),
                    noise_free_increase=float(increase(rho * gradient / np.linalg.norm(gradient))),
                )
            )
    return records


@jax.jit
def perturbations_along(gradients: jax.Array, rho: jax.Array, deviation: jax.Array) -> dict[str, jax.Array]:
    """The perturbations of all estimators that see one gradient after another."""
    stages = ascents(lambda count: rho)
    # A further one, C = 1/σ² with the true σ² up to a factor, which shows what estimating it costs.
    known = optax.stateless(lambda gradient, params: deviation**-2)
    stages["known_variance"] = optax_sam.steepest_ascent(lambda count: rho, objective=known)

    def step(states: dict[str, Any], gradient: jax.Array) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        perturbations, states = observe(stages, gradient, states)
        return states, perturbations

    states = {name: stage.init(gradients[0]) for name, stage in stages.items()}
    return jax.lax.scan(step, states, gradients)[1]


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


def network(job: Job, data_dir: Path) -> list[Record]:
    """Increases along the training of a network, a record for each estimator and measured step."""
    setting = setting_of(job, data_dir)
    noisy = training_data(job, setting)
    parts = chunks(noisy)
    rho = job["settings"]["rho"]
    gradient_of, observe_batch = compiled(setting.loss, rho)

    def increase(params: optax.Params, epsilon: optax.Params, loss: float) -> float:
        return mean_loss(setting, tree_math.add(params, epsilon), parts) - loss

    records, states = [], None
    for step, state in train_steps(job, setting, noisy):
        params = state.params
        perturbations, states = observe_batch(params, states, batch_after(noisy, job, setting, step))
        if step < WARM_UP or step % EVERY:
            continue
        loss = mean_loss(setting, params, parts)
        true_gradient = tree_math.zeros_like(params)
        for part in parts:
            true_gradient = tree_math.add(true_gradient, gradient_of(params, part))
        noise_free = tree_math.scale(rho / tree_math.norm(true_gradient), true_gradient)
        noise_free_increase = increase(params, noise_free, loss)
        variance = optax.tree.get(states["info_sam"], "noise_variance")
        correlation = spearmanr(ravel_pytree(true_gradient)[0] ** 2, ravel_pytree(variance)[0]).statistic
        records += [
            record_of(
                job,
                step=step,
                estimator=name,
                loss=loss,
                increase=increase(params, epsilon, loss),
                noise_free_increase=noise_free_increase,
                rank_correlation_of_signal_and_noise=float(correlation),
                cosine_with_the_noise_free=float(tree_math.vdot(epsilon, noise_free)) / rho**2,
            )
            for name, epsilon in perturbations.items()
        ]
    return records


def differences(records: list[Record], estimator: str, *, half_of_the_gap: bool) -> list[float]:
    """Increases less SAM's, or less the mean of SAM's and the noise-free one's, one by one."""
    key = lambda record: (record["seed"], record.get("step"))
    sam = {key(record): record["increase"] for record in select(records, estimator="sam")}
    return [
        record["increase"]
        - ((sam[key(record)] + record["noise_free_increase"]) / 2 if half_of_the_gap else sam[key(record)])
        for record in select(records, estimator=estimator)
    ]


def by_noise(records: list[Record]) -> dict[str, list[Record]]:
    """The records of the controlled problem, by the ratio of noise to gradient."""
    own = select(records, experiment="controlled")
    ratios = sorted({record["noise_ratio"] for record in own})
    return {f"noise {ratio:g} times": select(own, noise_ratio=ratio) for ratio in ratios}


def by_batch_size(records: list[Record]) -> dict[str, list[Record]]:
    """The records of the network, by batch size."""
    own = select(records, experiment="network")
    sizes = sorted({record["settings"]["batch_size"] for record in own}, reverse=True)
    return {f"batch {size}": [r for r in own if r["settings"]["batch_size"] == size] for size in sizes}


def comparisons(groups: dict[str, list[Record]], *, half_of_the_gap: bool) -> list[Comparison]:
    """What infoSAM adds to SAM's increase in each group."""
    return [
        Comparison(name, differences(own, "info_sam", half_of_the_gap=half_of_the_gap))
        for name, own in groups.items()
    ]


def suite_comparisons(networks: list[Record]) -> list[Comparison]:
    """Test accuracies, infoSAM less SAM, for each fraction of wrong labels."""
    found = []
    for noise in sorted({record["label_noise"] for record in networks} - {0.0}):
        own = select(networks, label_noise=noise)
        gains = paired(own, "test_accuracy", {"row": "info_sam"}, {"row": "sam"})
        if gains:
            found.append(Comparison(f"{noise:.0%} wrong", gains, scale=100))
    return found


def closed(groups: dict[str, list[Record]], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows of a table: mean increases in percent of the noise-free one, by group and estimator."""
    rows = []
    for name in names:
        cells = [
            number([100 * r["increase"] / r["noise_free_increase"] for r in select(own, estimator=name)])
            for own in groups.values()
        ]
        rows.append((labels()[name], *cells))
    return rows


def labels() -> dict[str, str]:
    """Names of the estimators in tables and pictures."""
    return {name: style.label for name, (_, style) in ESTIMATORS.items()} | {
        "known_variance": "C = 1/σ² with the true σ²"
    }


def report(records: list[Record], suite: SuiteResults) -> Report:
    """Verdicts and tables."""
    noise, batches = by_noise(records), by_batch_size(records)
    on_network = "on Fashion-MNIST, 40 % wrong labels"
    verdicts = [
        judge(
            "Known Hessian: infoSAM's ε raises the true loss more than SAM's",
            comparisons(noise, half_of_the_gap=False),
        ),
        judge(
            "Known Hessian: it closes at least half of the gap to the noise-free ε",
            comparisons(noise, half_of_the_gap=True),
        ),
        judge(
            f"Network {on_network}: infoSAM's ε raises the true loss more than SAM's",
            comparisons(batches, half_of_the_gap=False),
        ),
        judge(
            "Network: it closes at least half of the gap to the noise-free ε",
            comparisons(batches, half_of_the_gap=True),
        ),
        judge(
            "infoSAM is more accurate than SAM with wrong labels, both tuned (accuracy suite, percent)",
            suite_comparisons(suite.networks),
        ),
    ]
    tables = []
    for title, groups, names in (
        ("Increase of the true loss, % of the noise-free one's: known Hessian", noise, labels()),
        (f"The same, network {on_network}", batches, ESTIMATORS),
    ):
        if groups:
            tables.append(table((title, *groups), closed(groups, list(names))))
    if batches:
        field = "rank_correlation_of_signal_and_noise"
        cells = [number([r[field] for r in select(own, estimator="sam")]) for own in batches.values()]
        tables.append(table(("", *batches), [("rank correlation of squared gradient and noise", *cells)]))
    return Report(verdicts, tables)


def draw(records: list[Record], suite: SuiteResults, path: Path) -> None:
    """Increases by noise, and along the training of the network."""
    groups = by_batch_size(records)
    figure, axes = plots.panels(1 + len(groups), "What a perturbation of length ρ does to the true loss")
    own = select(records, experiment="controlled")
    ratios = sorted({record["noise_ratio"] for record in own})
    relative = lambda record: record["increase"] / record["noise_free_increase"]
    for name, (_, style) in ESTIMATORS.items():
        seeds = sorted({record["seed"] for record in own})
        values = [
            [relative(*select(own, seed=seed, noise_ratio=ratio, estimator=name)) for ratio in ratios]
            for seed in seeds
        ]
        plots.curve(axes[0], ratios, np.array(values), style)
    axes[0].axhline(1, color=NOISE_FREE.colour, ls=NOISE_FREE.line)
    axes[0].set(
        xscale="log",
        title=f"Known Hessian, {NUM_PARAMETERS} parameters",
        xlabel="length of the noise / length of the gradient",
        ylabel="increase, relative to the noise-free ε's",
    )
    for each, (title, group) in zip(axes[1:], groups.items(), strict=True):
        steps = sorted({record["step"] for record in group})
        seeds = sorted({record["seed"] for record in group})
        get = lambda seed, step, name, group=group: select(group, seed=seed, step=step, estimator=name)[0]
        for name, (_, style) in ESTIMATORS.items():
            values = [[get(seed, step, name)["increase"] for step in steps] for seed in seeds]
            plots.curve(each, steps, np.array(values), style)
        free = [[get(seed, step, "sam")["noise_free_increase"] for step in steps] for seed in seeds]
        plots.curve(each, steps, np.array(free), NOISE_FREE)
        each.set(title=f"Fashion-MNIST, 40 % wrong labels, {title}", xlabel="step", ylabel="L(w + ε) − L(w)")
        each.set_ylim(0, None)
    plots.legend_below(axes[-1])
    plots.save(figure, path)


CLAIM = Claim("info_sam", jobs, measure, report, draw)
