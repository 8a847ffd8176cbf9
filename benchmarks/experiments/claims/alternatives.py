"""Neither Reverse-SAM nor a penalty on the gradient's norm replaces SAM.

Luo et al., NeurIPS 2024 (https://arxiv.org/abs/2501.12666), compare SAM with two methods that a
lower-order theory in ρ cannot distinguish from it. With the clean gradient g, H = ∇²L and T = ∇³L(ĝ, ĝ, ·):

    SAM                      ∇L(w + ρ ĝ)         = g + ρ H ĝ + ½ ρ² T + ...
    gradient norm penalty    ∇(L + ρ ‖∇L‖)       = g + ρ H ĝ
    Reverse-SAM              ∇L(w − ρ ĝ)         = g − ρ H ĝ + ½ ρ² T − ...
    Reflected SAM            2g − ∇L(w − ρ ĝ)    = g + ρ H ĝ − ½ ρ² T + ...

Whether the paper's Reverse-SAM is the third or the fourth could not be confirmed, so both are here. Two
statements, on Fashion-MNIST with 40 % wrong labels:

1. At its best radius, SAM is more accurate than each of the others at theirs. Radii come from one grid and
   are chosen by accuracy on validation images, with a seed that is not used again. Compared: SAM's test
   accuracy minus each of the others', seed by seed.
2. Its minima are flatter. Compared: λ_max of each of the others minus SAM's, seed by seed, at the end of
   training on the first 1,000 training images.

The methods are functions of a few lines in `benchmarks/methods.py`.
"""

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from benchmarks import figures as plots
from benchmarks import methods
from benchmarks.claim import Comparison, judge, number
from benchmarks.experiment import Job, Report, SuiteResults, is_done, paired, select
from benchmarks.experiments.claims.setting import ClaimOnNetworks, final_accuracy
from benchmarks.records import Record
from benchmarks.tables import table

TUNING_SEED = 1000
OTHERS = ("gradient_norm_penalty", "reverse_sam", "reflected_sam")
STYLES = {
    "sgd": plots.style("sgd", "SGD"),
    "sam": plots.style("sam", "SAM"),
    "gradient_norm_penalty": plots.style("asam", methods.METHODS["gradient_norm_penalty"].label),
    "reverse_sam": plots.style("xsam", methods.METHODS["reverse_sam"].label),
    "reflected_sam": plots.style("info_sam", methods.METHODS["reflected_sam"].label),
}


@dataclasses.dataclass(frozen=True)
class Alternatives(ClaimOnNetworks):
    """SAM compared with a penalty on the gradient's norm, Reverse-SAM and Reflected SAM."""

    name: ClassVar[str] = "alternatives"
    radii: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    """The radii to choose from, for every method."""
    epochs: int = 12
    """Passes over the training data."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Networks that are compared."""

    def jobs(self, records: list[Record]) -> list[Job]:
        """Trials on validation data; when these are complete, also the networks that are compared."""
        shared = {"data": "fashion_mnist", "label_noise": 0.4, "epochs": self.epochs}
        trials = [
            {"experiment": "trial", "method": method, "settings": {"rho": rho}, "seed": TUNING_SEED} | shared
            for method in ("sam", *OTHERS)
            for rho in self.radii
        ]
        if not all(is_done(trial, records) for trial in trials):
            return trials
        return trials + [
            {"experiment": "test", "method": method, "settings": best(records, method), "seed": seed} | shared
            for method in STYLES
            for seed in self.seeds
        ]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Trains a network."""
        return [final_accuracy(job, self.recipes, data_dir, sharpness=job["experiment"] == "test")]

    def report(self, records: list[Record], suite: SuiteResults) -> Report:
        """Verdicts and table."""
        tests = select(records, experiment="test")

        def comparisons(field: str, sign: int, scale: float) -> list[Comparison]:
            found = [
                (methods.METHODS[other].label, paired(tests, field, {"method": "sam"}, {"method": other}))
                for other in OTHERS
            ]
            return [
                Comparison(f"against {name}", [sign * x for x in values], scale)
                for name, values in found
                if values
            ]

        verdicts = [
            judge(
                "At its best ρ, SAM is more accurate than the gradient norm penalty, Reverse-SAM and"
                " Reflected SAM at theirs (percent)",
                comparisons("test_accuracy", 1, 100),
            ),
            judge("Its λ_max is lower than theirs", comparisons("largest_hessian_eigenvalue", -1, 1)),
        ]
        lines = []
        for method, style in STYLES.items():
            own = select(tests, method=method)
            if not own:
                continue
            trials = [
                select(records, experiment="trial", method=method, settings={"rho": rho})
                for rho in self.radii
            ]
            lines.append(
                (
                    style.label,
                    *(f"{100 * trial[0]['validation_accuracy']:.1f}" if trial else "–" for trial in trials),
                    f"{own[0]['settings'].get('rho', '–')}",
                    number([100 * record["test_accuracy"] for record in own]) + " %",
                    number(
                        [r["largest_hessian_eigenvalue"] for r in own if "largest_hessian_eigenvalue" in r]
                    ),
                )
            )
        titles = ("", *(f"validation, ρ = {rho}" for rho in self.radii), "best ρ", "test accuracy", "λ_max")
        return Report(verdicts, [table(titles, lines, numbers=False)])

    def draw(self, records: list[Record], suite: SuiteResults, path: Path) -> None:
        """Validation accuracy by radius; test accuracy against λ_max."""
        figure, axes = plots.panels(2, f"Fashion-MNIST with 40 % wrong labels, {self.epochs} epochs")
        for method, style in STYLES.items():
            trials = select(records, experiment="trial", method=method)
            if trials:
                values = [100 * trial["validation_accuracy"] for trial in trials]
                plots.curve(
                    axes[0], [trial["settings"]["rho"] for trial in trials], np.array([values]), style
                )
            own = [
                r
                for r in select(records, experiment="test", method=method)
                if "largest_hessian_eigenvalue" in r
            ]
            axes[1].scatter(
                [record["largest_hessian_eigenvalue"] for record in own],
                [100 * record["test_accuracy"] for record in own],
                label=style.label,
                color=style.colour,
                marker=style.marker,
            )
        axes[0].set(
            title="Choosing ρ\n(one seed)",
            xlabel="ρ",
            ylabel="validation accuracy (%)",
            xscale="log",
            xticks=self.radii,
        )
        axes[0].set_xticklabels([f"{rho:g}" for rho in self.radii])
        axes[0].minorticks_off()
        axes[1].set(
            title="At the best ρ\n(each point a network)",
            xlabel="largest eigenvalue λ_max of the Hessian",
            ylabel="test accuracy (%)",
            xscale="log",
            xticks=(3, 5, 10, 20),
        )
        axes[1].xaxis.set_major_formatter("{x:g}")
        axes[1].minorticks_off()
        plots.legend_below(axes[1])
        plots.save(figure, path)


def best(records: list[Record], method: str) -> dict[str, float]:
    """The radius with the highest validation accuracy; the first if several tie."""
    if method == "sgd":
        return {}
    trials = select(records, experiment="trial", method=method)
    return max(trials, key=lambda trial: trial["validation_accuracy"])["settings"]
