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
3. A network: the same as 1 on Fashion-MNIST with 40 % noisy labels, where the true loss is the mean over
   all 10,000 training images, and the noise comes from batches of 128 or 32. Compared, for each: every
   measured step of every seed (52 steps apart, after the first 156).
4. There, the same as 2.
5. infoSAM is more accurate than SAM with noisy labels. Compared, at each fraction of noisy labels: test
   accuracies of the two tuned rows of the accuracy suite (`benchmarks/experiments/suite/`),
   seed by seed.

"infoSAM" in the statements has the library's defaults. The tables also show other estimators and, for the
network, Spearman's rank correlation over the parameters of the squared true gradient and the noise variance
that infoSAM estimates; in the controlled problem the two are independent. The network is trained with SAM;
all perturbations are computed at the same parameters from the same gradients.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks import figures
from benchmarks.claim import Claim, Comparison, Report, judge
from benchmarks.experiment import Job
from benchmarks.experiments.claims import increases
from benchmarks.experiments.networks import RECIPES, Recipes, config_of, make_network
from benchmarks.records import Record, read_records
from benchmarks.tables import nested, number, paired, table, where

RHO = 0.1
CONTROLLED_RHO = 0.1  # in units of the length of the parameters
CORRELATION = "rank_correlation_of_signal_and_noise"
STYLES = {
    "sam": figures.style("sam"),
    "info_sam": figures.style("info_sam"),
    "less_damping": figures.style("info_sam", "infoSAM, damping 0.01", "--")._replace(marker="D"),
    "square_root": figures.style("info_sam", "infoSAM, power ½", ":")._replace(marker="v"),
    "early_code": figures.style("info_sam", "infoSAM, early code", "-.")._replace(marker="X"),
}
SHOWN = tuple(f"{ratio}×" for ratio in (0.1, 1, 10))  # in the table
NOISE_FREE = figures.style("sgd", "noise-free", ":")
LABELS = {name: style.label for name, style in STYLES.items()} | {
    "known_variance": "C = 1/σ² with the true σ²"
}
Groups = Mapping[str, pd.DataFrame]


@dataclasses.dataclass(frozen=True)
class InfoSAM(Claim):
    """How much the perturbations of SAM and infoSAM raise the true loss."""

    name: str = "info_sam"
    picture: str = "Rise of the true loss against the gradient's noise, for SAM and infoSAM"
    seeds: tuple[int, ...] = (0, 1, 2)
    datasets: tuple[str, ...] = ("fashion_mnist",)
    recipes: Recipes = dataclasses.field(default_factory=lambda: RECIPES)  # how the networks are trained
    num_parameters: int = 100  # of the controlled problem
    # Lengths of its noise, relative to the length of the gradient.
    ratios: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    num_gradients: int = 1000  # of which the second half is measured
    controlled_seeds: tuple[int, ...] = tuple(range(10))  # of the controlled problems
    # For the networks: batch size -> passes over the data.
    epochs: Mapping[int, int] = dataclasses.field(default_factory=lambda: {128: 8, 32: 2})
    warm_up: int = 156  # first step of a training that is measured
    every: int = 52  # steps between two measurements

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
        network = make_network(config_of(job, self.recipes), data_dir)
        return increases.network(job, network, self.warm_up, self.every)

    def report(self, frame: pd.DataFrame, results: Path) -> Report:
        """Verdicts and tables."""
        noise, batches = by_noise(frame), by_batch_size(frame)
        on_network = "on Fashion-MNIST, 40 % noisy labels"
        suite = pd.DataFrame(read_records(results / "suite.jsonl"))
        levels = sorted(set(suite["label_noise"]) - {0.0}) if len(suite) else ()
        gains = {
            level: paired(
                where(suite, label_noise=level), "test_accuracy", {"row": "info_sam"}, {"row": "sam"}
            )
            for level in levels
        }
        verdicts = [
            judge(
                "Known Hessian, noise in multiples of the gradient: infoSAM's ε raises the true loss"
                " more than SAM's",
                comparisons(noise, "info_sam"),
            ),
            judge(
                "Known Hessian: it closes at least half of the gap to the noise-free ε",
                comparisons(noise, "info_sam", half_of_the_gap=True),
            ),
            judge(
                f"Network {on_network}: infoSAM's ε raises the true loss more than SAM's",
                comparisons(batches, "info_sam"),
            ),
            judge(
                "Network: it closes at least half of the gap to the noise-free ε",
                comparisons(batches, "info_sam", half_of_the_gap=True),
            ),
            judge(
                "infoSAM is more accurate than SAM with noisy labels, both tuned (accuracy suite, percent)",
                [Comparison(f"{level:.0%} noisy", gain, scale=100) for level, gain in gains.items()],
            ),
        ]
        first = "Rise of the true loss, % of the noise-free one's: known Hessian"
        correlations = [number(where(own, estimator="sam")[CORRELATION]) for own in batches.values()]
        some = {name: own for name, own in noise.items() if name in SHOWN}
        tables = [
            closed(first, some, [name for name in LABELS if name != "early_code"], LABELS),
            closed(
                f"Network {on_network}", batches, [name for name in STYLES if name != "early_code"], LABELS
            )
            + "\n"
            + " | ".join(("| rank correlation of g² and noise", *correlations))
            + " |",
        ]
        return Report(verdicts, tables)

    def draw(self, frame: pd.DataFrame, results: Path, docs: Path) -> None:
        """Increases by noise, with a known Hessian."""
        frame = frame.assign(relative=frame["increase"] / frame["noise_free_increase"])
        figure, ((axes,),) = figures.panels(1, 1, "", width=5.4, height=4.2)
        controlled = where(frame, experiment="controlled")
        shown = {name: style for name, style in STYLES.items() if name != "early_code"}
        figures.lines(axes, controlled, "noise_ratio", "relative", shown, "estimator")
        axes.axhline(1, color=NOISE_FREE.colour, ls=NOISE_FREE.line, label=NOISE_FREE.label)
        axes.set(
            xscale="log",
            title=f"Known Hessian, {self.num_parameters} parameters",
            xlabel="length of the noise / length of the gradient",
            ylabel="rise of the true loss / the noise-free ε's",
        )
        self.save(figure, docs)


def by_noise(frame: pd.DataFrame) -> Groups:
    """The records of the controlled problem, by the ratio of noise to gradient."""
    own = where(frame, experiment="controlled")
    return {f"{ratio:g}×": group for ratio, group in own.groupby("noise_ratio")}


def by_batch_size(frame: pd.DataFrame) -> Groups:
    """The records of the network, by batch size, the largest first."""
    own = where(frame, experiment="network")
    sizes = nested(own, "settings", "batch_size")
    return {f"batch {size}": own[sizes == size] for size in sorted(sizes.unique(), reverse=True)}


def comparisons(groups: Groups, estimator: str, *, half_of_the_gap: bool = False) -> list[Comparison]:
    """Increases minus SAM's, or minus the mean of SAM's and the noise-free one's, in each group."""
    found = []
    for name, group in groups.items():
        on = ["seed", "step"] if "step" in group and group["step"].notna().any() else "seed"
        gains = paired(group, "increase", {"estimator": estimator}, {"estimator": "sam"}, on)
        if half_of_the_gap and len(gains):
            sam = where(group, estimator="sam").set_index(on)
            gains = gains - (sam["noise_free_increase"] - sam["increase"]) / 2
        found.append(Comparison(name, gains))
    return found


def closed(title: str, groups: Groups, names: Sequence[str], labels: Mapping[str, str]) -> str:
    """A table of mean increases in percent of the noise-free one, by group and estimator."""
    relative = lambda own: 100 * own["increase"] / own["noise_free_increase"]
    rows = [
        (labels[name], *(number(relative(where(own, estimator=name))) for own in groups.values()))
        for name in names
    ]
    return table((title, *groups), rows, numbers=False)
