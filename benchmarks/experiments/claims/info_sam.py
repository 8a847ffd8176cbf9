"""Gradient noise turns SAM's perturbation away from the worst direction, and infoSAM turns it back.

Zhang, Li and Giannakis, ICASSP 2025 (https://arxiv.org/abs/2501.06603). With mini-batches SAM maximises the
loss of the batch. Its perturbation raises the *true* loss, by L(w + ε) − L(w), less than one from the true
gradient would. All perturbations below have the same length ρ. Five statements:

1. A controlled problem: infoSAM's ε raises the true loss more than SAM's. L is a quadratic of 100 parameters
   with a known Hessian, the parameters stay fixed, and every coordinate of the gradient has its own noise,
   with standard deviations over four orders of magnitude, at six ratios of the length of the noise to that
   of the gradient. Compared, at each ratio: infoSAM's increase minus SAM's, seed by seed.
2. There, infoSAM's ε approaches the noise-free one. Compared, at each ratio: infoSAM's increase minus the
   mean of SAM's and the noise-free one's; positive if more than half of the gap is closed.
3. A network: the same as 1 on Fashion-MNIST with 40 % wrong labels, where the true loss is that of all 10,000
   training images, and the noise that of batches of 128 or of 32. Compared, for each: every measured step
   of every seed (52 steps apart, after the first 156).
4. There, the same as 2.
5. infoSAM is more accurate than SAM with wrong labels. Compared, at each fraction of wrong labels: test
   accuracies of the two tuned rows of the accuracy suite (`benchmarks/experiments/suite.py`),
   seed by seed.

"infoSAM" in the statements has the library's defaults. The tables also show other estimators and, for the
network, Spearman's rank correlation over the parameters of the squared true gradient and the noise variance
that infoSAM estimates; in the controlled problem the two are independent. The network is trained with SAM;
all perturbations are computed at the same parameters from the same gradients.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from benchmarks import figures as plots
from benchmarks.claim import Comparison, judge, number
from benchmarks.experiment import Job, Report, SuiteResults, paired, select
from benchmarks.experiments.claims import increases
from benchmarks.experiments.claims.setting import ClaimOnNetworks, setting_of
from benchmarks.records import Record
from benchmarks.tables import table

RHO = 0.1
CONTROLLED_RHO = 0.1  # in units of the length of the parameters
STYLES = {
    "sam": plots.style("sam", "SAM"),
    "info_sam": plots.style("info_sam", "infoSAM"),
    "less_damping": plots.style("asam", "infoSAM, damping 0.01 of the mean variance", "--"),
    "square_root": plots.style("xsam", "infoSAM, power ½", "--"),
    "early_code": plots.style("eigen_sam", "infoSAM, the authors' early code", "--"),
}
NOISE_FREE = plots.style("sgd", "noise-free", ":")
LABELS = {name: style.label for name, style in STYLES.items()} | {
    "known_variance": "C = 1/σ² with the true σ²"
}


@dataclasses.dataclass(frozen=True)
class InfoSAM(ClaimOnNetworks):
    """How much the perturbations of SAM and infoSAM raise the true loss."""

    name: ClassVar[str] = "info_sam"
    num_parameters: int = 100
    """Number of parameters of the controlled problem."""
    ratios: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    """Lengths of its noise, relative to the length of the gradient."""
    num_gradients: int = 1000
    """Number of gradients, of which the second half is measured."""
    controlled_seeds: tuple[int, ...] = tuple(range(10))
    """Controlled problems."""
    epochs: Mapping[int, int] = dataclasses.field(default_factory=lambda: {128: 8, 32: 2})
    """For the networks: batch size -> passes over the data."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Networks of each batch size."""
    warm_up: int = 156
    """First step of a training that is measured."""
    every: int = 52
    """Steps between two measurements."""

    def jobs(self, records: list[Record]) -> list[Job]:
        """Problems with a known Hessian, then networks."""
        controlled = [
            {
                "experiment": "controlled",
                "num_parameters": self.num_parameters,
                "rho": CONTROLLED_RHO,
                "num_gradients": self.num_gradients,
                "seed": seed,
            }
            for seed in self.controlled_seeds
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
            for batch_size, epochs in self.epochs.items()
            for seed in self.seeds
        ]
        return controlled + networks

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """The increases of one problem or one network."""
        if job["experiment"] == "controlled":
            return increases.controlled(job, self.ratios)
        return increases.network(job, setting_of(job, self.recipes, data_dir), self.warm_up, self.every)

    def report(self, records: list[Record], suite: SuiteResults) -> Report:
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
            ("Increase of the true loss, % of the noise-free one's: known Hessian", noise, LABELS),
            (f"The same, network {on_network}", batches, STYLES),
        ):
            if groups:
                tables.append(table((title, *groups), closed(groups, list(names), LABELS), numbers=False))
        if batches:
            field = "rank_correlation_of_signal_and_noise"
            cells = [number([r[field] for r in select(own, estimator="sam")]) for own in batches.values()]
            tables.append(
                table(
                    ("", *batches),
                    [("rank correlation of squared gradient and noise", *cells)],
                    numbers=False,
                )
            )
        return Report(verdicts, tables)

    def draw(self, records: list[Record], suite: SuiteResults, path: Path) -> None:
        """Increases by noise, and during the training of the network."""
        groups = by_batch_size(records)
        figure, axes = plots.panels(1 + len(groups), "What a perturbation of length ρ does to the true loss")
        own = select(records, experiment="controlled")
        ratios = sorted({record["noise_ratio"] for record in own})
        relative = lambda record: record["increase"] / record["noise_free_increase"]
        for name, style in STYLES.items():
            seeds = sorted({record["seed"] for record in own})
            values = [
                [relative(*select(own, seed=seed, noise_ratio=ratio, estimator=name)) for ratio in ratios]
                for seed in seeds
            ]
            plots.curve(axes[0], ratios, np.array(values), style)
        axes[0].axhline(1, color=NOISE_FREE.colour, ls=NOISE_FREE.line)
        axes[0].set(
            xscale="log",
            title=f"Known Hessian,\n{self.num_parameters} parameters",
            xlabel="length of the noise / length of the gradient",
            ylabel="increase / the noise-free ε's",
        )
        for each, (title, group) in zip(axes[1:], groups.items(), strict=True):
            steps = sorted({record["step"] for record in group})
            seeds = sorted({record["seed"] for record in group})
            get = lambda seed, step, name, group=group: select(group, seed=seed, step=step, estimator=name)[0]
            for name, style in STYLES.items():
                values = [[get(seed, step, name)["increase"] for step in steps] for seed in seeds]
                plots.curve(each, steps, np.array(values), style)
            free = [[get(seed, step, "sam")["noise_free_increase"] for step in steps] for seed in seeds]
            plots.curve(each, steps, np.array(free), NOISE_FREE)
            each.set(
                title=f"Fashion-MNIST,\n40 % wrong labels, {title}", xlabel="step", ylabel="L(w + ε) − L(w)"
            )
            each.set_ylim(0, None)
        plots.legend_below(axes[-1])
        plots.save(figure, path)


def differences(records: list[Record], estimator: str, *, half_of_the_gap: bool) -> list[float]:
    """Increases minus SAM's, or minus the mean of SAM's and the noise-free one's, one by one."""
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
    """InfoSAM's increase minus what it is compared with, in each group."""
    return [
        Comparison(name, differences(own, "info_sam", half_of_the_gap=half_of_the_gap))
        for name, own in groups.items()
    ]


def suite_comparisons(networks: list[Record]) -> list[Comparison]:
    """Test accuracies, infoSAM minus SAM, for each fraction of wrong labels."""
    found = []
    for noise in sorted({record["label_noise"] for record in networks} - {0.0}):
        own = select(networks, label_noise=noise)
        gains = paired(own, "test_accuracy", {"row": "info_sam"}, {"row": "sam"})
        if gains:
            found.append(Comparison(f"{noise:.0%} wrong", gains, scale=100))
    return found


def closed(
    groups: dict[str, list[Record]], names: Sequence[str], labels: Mapping[str, str]
) -> list[tuple[str, ...]]:
    """Rows of a table: mean increases in percent of the noise-free one, by group and estimator."""
    rows = []
    for name in names:
        cells = [
            number([100 * r["increase"] / r["noise_free_increase"] for r in select(own, estimator=name)])
            for own in groups.values()
        ]
        rows.append((labels[name], *cells))
    return rows
