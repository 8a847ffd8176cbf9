"""Neither Reverse-SAM nor a penalty on the gradient's norm replaces SAM.

Luo et al., NeurIPS 2024 (https://arxiv.org/abs/2501.12666), compare SAM with two methods that a
lower-order theory in ρ cannot distinguish from it. With the clean gradient g, H = ∇²L and T = ∇³L(ĝ, ĝ, ·):

    SAM                      ∇L(w + ρ ĝ)         = g + ρ H ĝ + ½ ρ² T + ...
    gradient norm penalty    ∇(L + ρ ‖∇L‖)       = g + ρ H ĝ
    Reverse-SAM              ∇L(w − ρ ĝ)         = g − ρ H ĝ + ½ ρ² T − ...
    Reflected SAM            2g − ∇L(w − ρ ĝ)    = g + ρ H ĝ − ½ ρ² T + ...

Whether the paper's Reverse-SAM is the third or the fourth could not be confirmed, so both are here. Two
statements, on Fashion-MNIST with 40 % noisy labels, 12 epochs:

1. At its best radius, SAM is more accurate than each of the others at theirs. Radii come from one grid and
   are chosen by accuracy on validation images, with a seed that is not used again. Compared: SAM's test
   accuracy minus each of the others', seed by seed.
2. Its minima are flatter. Compared: λ_max of each of the others minus SAM's, seed by seed, at the end of
   training on the first 1,000 training images.

The grid of radii was extended downwards, and seeds were added, when all had chosen its smallest, 0.05.
The methods are functions of a few lines in `benchmarks/methods.py`.
"""

import dataclasses
from pathlib import Path

import pandas as pd

from benchmarks.claim import Claim, Comparison, Report, judge
from benchmarks.experiment import Job, is_done
from benchmarks.experiments.networks import RECIPES, Recipes, config_of, make_network, train_and_evaluate
from benchmarks.methods import METHODS
from benchmarks.records import Record
from benchmarks.tables import column, number, paired, table, where

TUNING_SEED = 1000
SHARPNESS = "largest_hessian_eigenvalue"
OTHERS = ("gradient_norm_penalty", "reverse_sam", "reflected_sam")
SHOWN = ("sgd", "sam", *OTHERS)


@dataclasses.dataclass(frozen=True)
class Alternatives(Claim):
    """SAM compared with a penalty on the gradient's norm, Reverse-SAM and Reflected SAM."""

    name: str = "alternatives"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    datasets: tuple[str, ...] = ("fashion_mnist",)
    recipes: Recipes = dataclasses.field(default_factory=lambda: RECIPES)  # how the networks are trained
    radii: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)  # to choose from, for every method
    epochs: int = 12  # passes over the training data

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
            for method in SHOWN
            for seed in self.seeds
        ]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Trains a network."""
        network = make_network(config_of(job, self.recipes), data_dir)
        return [train_and_evaluate(network, sharpness=job["experiment"] == "test")]

    def report(self, frame: pd.DataFrame, results: Path) -> Report:
        """Verdicts and table."""
        tests = where(frame, experiment="test")

        def comparisons(field: str, sign: int, scale: float) -> list[Comparison]:
            return [
                Comparison(
                    f"against {METHODS[other].label}",
                    sign * paired(tests, field, {"method": "sam"}, {"method": other}),
                    scale,
                )
                for other in OTHERS
            ]

        verdicts = [
            judge(
                "At its best ρ, SAM is more accurate than the gradient norm penalty, Reverse-SAM and"
                " Reflected SAM at theirs (percent)",
                comparisons("test_accuracy", 1, 100),
            ),
            judge("SAM's λ_max is the lowest", comparisons(SHARPNESS, -1, 1)),
        ]
        lines = []
        for method in SHOWN:
            own = where(tests, method=method)
            if own.empty:
                continue
            lines.append(
                (
                    METHODS[method].label,
                    f"{own['settings'].iloc[0].get('rho', '–')}",
                    number(100 * own["test_accuracy"]) + " %",
                    number(column(own, SHARPNESS)),
                )
            )
        titles = ("", "best ρ", "test accuracy", "λ_max")
        return Report(verdicts, [table(titles, lines, numbers=False)])


def best(records: list[Record], method: str) -> dict[str, float]:
    """The radius with the highest validation accuracy; the first if several tie."""
    if method == "sgd":
        return {}
    trials = [r for r in records if (r["experiment"], r["method"]) == ("trial", method)]
    return max(trials, key=lambda trial: trial["validation_accuracy"])["settings"]
