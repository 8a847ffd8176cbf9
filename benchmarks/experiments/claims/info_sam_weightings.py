"""What would raise the true loss more than SAM's ε, where infoSAM's inverse variance does not.

infoSAM (Zhang, Li and Giannakis, ICASSP 2025) divides by the noise variance of each coordinate. In a network
that makes ε worse than SAM's, because signal and noise go together (claim `info_sam`). One statement for each
of six other weightings (`weightings.py` has the equations):

    On the network, this ε raises the true loss more than SAM's.

Compared at each batch size, as in statement 3 of `info_sam`: every measured step of every seed. The rule was
written before any number was seen. The weightings: by the ratio of signal to noise, with the squared running
mean or the squared gradient as the signal, for each coordinate or for each layer; by the inverse variance
of each layer; and with the variance between four micro-batches of the step in place of that over time.

The tables also have the known Hessian, with noise that is independent of the gradient and with noise that is
largest where the gradient is, and the running mean of the gradients (VaSSO's direction), which averages the
noise instead of weighting it. A weighting that holds at every batch size is trained with, too.
"""

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from benchmarks import figures as plots
from benchmarks.claim import Comparison, judge
from benchmarks.experiment import Job, Report, SuiteResults, select
from benchmarks.experiments.claims import weightings
from benchmarks.experiments.claims.info_sam import InfoSAM, by_batch_size, by_noise, closed, differences
from benchmarks.experiments.claims.setting import setting_of
from benchmarks.records import Record
from benchmarks.tables import table

NOISE = ("independent", "like the gradient")
LABELS = {
    "sam": "SAM: g",
    "running_mean": "running mean: m",
    "info_sam": "infoSAM: g/(t + mean of t)",
    "parts_variance": "g/(p + mean of p)",
    "layer_variance": "g/(t + mean of t), t of each layer",
    "signal_to_noise": "g m²/(m² + t)",
    "parts_signal_to_noise": "g m²/(m² + p)",
    "gradient_to_noise": "g g²/(g² + t)",
    "layer_signal_to_noise": "g m²/(m² + t), m² and t of each layer",
}
STYLES = {
    "sam": plots.style("sam", "SAM"),
    "info_sam": plots.style("info_sam", "infoSAM"),
    "signal_to_noise": plots.style("asam", "signal to noise"),
    "layer_signal_to_noise": plots.style("xsam", "signal to noise of each layer", "--"),
    "running_mean": plots.style("eigen_sam", "running mean", "--"),
}


@dataclasses.dataclass(frozen=True)
class InfoSAMWeightings(InfoSAM):
    """How much the perturbations of other weightings raise the true loss."""

    name: ClassVar[str] = "info_sam_weightings"
    seeds: tuple[int, ...] = (0, 1, 2)
    """Networks of each batch size."""

    def jobs(self, records: list[Record]) -> list[Job]:
        """Those of infoSAM, the controlled problems with both kinds of noise, the networks seed by seed."""
        jobs = super().jobs(records)
        known = select(jobs, experiment="controlled")
        controlled = [job | {"noise": noise} for noise in NOISE for job in known]
        return controlled + sorted(select(jobs, experiment="network"), key=lambda job: job["seed"])

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """The increases of one problem or one network."""
        if job["experiment"] == "controlled":
            return weightings.controlled(job, self.ratios)
        setting = setting_of(job, self.recipes, data_dir)
        return weightings.network(job, setting, self.warm_up, self.every)

    def report(self, records: list[Record], suite: SuiteResults) -> Report:
        """Verdicts and tables."""
        batches = by_batch_size(records)
        verdicts = [
            judge(
                f"Network on Fashion-MNIST, 40 % wrong: {LABELS[name]} raises the true loss more than g",
                [
                    Comparison(title, differences(own, name, half_of_the_gap=False))
                    for title, own in batches.items()
                ],
            )
            for name in LABELS
            if name not in ("sam", "running_mean", "info_sam")
        ]
        tables = []
        for noise in NOISE:
            groups = by_noise(select(records, noise=noise))
            if groups:
                title = f"Increase, % of the noise-free one's: known Hessian, noise {noise}"
                rows = closed(groups, [name for name in LABELS if name not in weightings.LAYERWISE], LABELS)
                tables.append(table((title, *groups), rows, numbers=False))
        if batches:
            rows = closed(batches, list(LABELS), LABELS)
            tables.append(table(("The same, network", *batches), rows, numbers=False))
        return Report(verdicts, tables)

    def draw(self, records: list[Record], suite: SuiteResults, path: Path) -> None:
        """Increases by noise, and during the training of the network."""
        batches = by_batch_size(records)
        figure, axes = plots.panels(len(NOISE) + len(batches), "Other weightings of a noisy gradient")
        relative = lambda found: [r["increase"] / r["noise_free_increase"] for r in found]
        for each, noise in zip(axes, NOISE, strict=False):
            own = select(records, noise=noise)
            ratios = sorted({record["noise_ratio"] for record in own})
            for name, style in STYLES.items():
                values = [relative(select(own, noise_ratio=ratio, estimator=name)) for ratio in ratios]
                if values and values[0]:
                    plots.curve(each, ratios, np.array(values).T, style)
            each.set(xscale="log", title=f"Known Hessian,\nnoise {noise}", xlabel="noise / gradient")
        axes[0].set_ylabel("increase / the noise-free ε's")
        for each, (title, own) in zip(axes[len(NOISE) :], batches.items(), strict=True):
            steps = sorted({record["step"] for record in own})
            for name, style in STYLES.items():
                values = [relative(select(own, step=step, estimator=name)) for step in steps]
                plots.curve(each, steps, np.array(values).T, style)
            each.set(title=f"Fashion-MNIST, 40 % wrong,\n{title}", xlabel="step")
        plots.legend_below(axes[-1])
        plots.save(figure, path)
