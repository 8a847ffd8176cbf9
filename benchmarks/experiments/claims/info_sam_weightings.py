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

import pandas as pd

from benchmarks import figures
from benchmarks.claim import Report, judge
from benchmarks.experiment import Job
from benchmarks.experiments.claims import weightings
from benchmarks.experiments.claims.info_sam import InfoSAM, by_batch_size, closed, comparisons
from benchmarks.experiments.networks import config_of, make_network
from benchmarks.records import Record
from benchmarks.tables import where

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
IN_THE_TABLE = ("sam", "running_mean", "signal_to_noise", "layer_signal_to_noise")
STYLES = {
    "sam": figures.style("sam"),
    "info_sam": figures.style("info_sam"),
    "signal_to_noise": figures.style("presam", "signal to noise"),
    "running_mean": figures.style("vasso", "running mean (VaSSO)"),
}


@dataclasses.dataclass(frozen=True)
class InfoSAMWeightings(InfoSAM):
    """How much the perturbations of other weightings raise the true loss."""

    name: str = "info_sam_weightings"
    picture: str = "Rise of the true loss against the gradient's noise, for four weightings"

    def jobs(self, records: list[Record]) -> list[Job]:
        """Those of infoSAM, the controlled problems with both kinds of noise, the networks seed by seed."""
        jobs = super().jobs(records)
        known = [job for job in jobs if job["experiment"] == "controlled"]
        controlled = [job | {"noise": noise} for noise in NOISE for job in known]
        return controlled + sorted(jobs[len(known) :], key=lambda job: job["seed"])

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """The increases of one problem or one network."""
        if job["experiment"] == "controlled":
            return weightings.controlled(job, self.ratios)
        network = make_network(config_of(job, self.recipes), data_dir)
        return weightings.network(job, network, self.warm_up, self.every)

    def report(self, frame: pd.DataFrame, results: Path) -> Report:
        """Verdicts and tables."""
        batches = by_batch_size(frame)
        verdicts = [
            judge(
                f"{LABELS[name]} beats g",
                comparisons(batches, name),
            )
            for name in LABELS
            if name not in ("sam", "running_mean", "info_sam")
        ]
        title = "Rise of the true loss on the network, % of the noise-free one's"
        return Report(verdicts, [closed(title, batches, IN_THE_TABLE, LABELS)])

    def draw(self, frame: pd.DataFrame, results: Path, docs: Path) -> None:
        """Increases by noise, with known Hessians."""
        frame = frame.assign(relative=frame["increase"] / frame["noise_free_increase"])
        title = "Known Hessian: rise of the true loss / the noise-free ε's"
        figure, (axes,) = figures.panels(1, len(NOISE), title, width=2.7, height=3.4)
        for panel, noise in zip(axes, NOISE, strict=True):
            own = where(frame, noise=noise)
            figures.lines(panel, own, "noise_ratio", "relative", STYLES, "estimator")
            panel.set(xscale="log", title=f"noise {noise}", xlabel="noise / gradient")
        self.save(figure, docs)
