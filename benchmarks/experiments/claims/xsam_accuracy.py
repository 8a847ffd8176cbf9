"""XSAM is more accurate than SAM, with one ascent and with three, even if it searches rarely.

Chen and Zhou, ICLR 2026 (https://arxiv.org/abs/2603.10048), figures 3 and 4. Three statements:

1. At its best radius XSAM is more accurate than SAM at its best, with k = 1 ascent and with k = 3, on the
   digits of the demonstration with 40 % wrong labels (usual recipe, ρ_max = 2 ρ, one search per epoch).
   Radii are chosen by accuracy on validation images, averaged over seeds. Compared, for each k: test
   accuracies, seed by seed.
2. With both tuned, radius and more, XSAM is more accurate than SAM in the accuracy suite
   (`benchmarks/experiments/suite.py`, Fashion-MNIST). Compared, at each fraction of wrong labels, for k = 1
   and k = 3 with SAM: test accuracies, seed by seed.
3. Accuracy hardly depends on how often α* is searched. Compared, for a search every half epoch, every five
   epochs, and none after the first: its test accuracy minus that with one search per epoch, plus one percent,
   seed by seed; positive if less than one percent is lost.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from benchmarks import figures as plots
from benchmarks.claim import Comparison, judge, number
from benchmarks.experiment import Job, Report, SuiteResults, paired, select
from benchmarks.experiments.claims.setting import ClaimOnNetworks, final_accuracy
from benchmarks.experiments.suite.rows import ROWS as SUITE_ROWS
from benchmarks.records import Record
from benchmarks.tables import table

STEPS_PER_EPOCH = 10
INTERVAL_RHO = 0.2
INTERVALS = {
    "½ epoch": STEPS_PER_EPOCH // 2,
    "1 epoch": STEPS_PER_EPOCH,
    "5 epochs": 5 * STEPS_PER_EPOCH,
    "never again": 60 * STEPS_PER_EPOCH,  # the length of the training
}
ROWS = {
    ("sam", 1): plots.style("sam", "SAM, k = 1"),
    ("xsam", 1): plots.style("xsam", "XSAM, k = 1"),
    ("sam", 3): plots.style("sam_usual", "SAM, k = 3", "--"),
    ("xsam", 3): plots.style("asam", "XSAM, k = 3", "--"),
}
SUITE_STYLES = {
    "sam": plots.style("sam", "SAM, k = 1"),
    "xsam": plots.style("xsam", "XSAM, k = 1"),
    "xsam3": plots.style("asam", "XSAM, k = 3", "--"),
}


@dataclasses.dataclass(frozen=True)
class XSAMAccuracy(ClaimOnNetworks):
    """Test accuracy by radius, and by the interval between searches."""

    name: ClassVar[str] = "xsam_accuracy"
    rows: tuple[tuple[str, int], ...] = tuple(ROWS)
    """Names in `ROWS`."""
    radii: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8)
    """The radii to choose from, for every row."""
    epochs: int = 60
    """Passes over the training data."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Networks of each row and radius."""
    interval_seeds: tuple[int, ...] = tuple(range(10))
    """Networks of each interval."""
    intervals: Mapping[str, int] = dataclasses.field(default_factory=lambda: INTERVALS)
    """Steps between searches."""

    def styles(self) -> dict[tuple[str, int], plots.Style]:
        """The styles of the rows of this measurement."""
        return {row: ROWS[row] for row in self.rows}

    def jobs(self, records: list[Record]) -> list[Job]:
        """One network each."""
        shared = {"data": "digits", "label_noise": 0.4, "epochs": self.epochs}
        radius = []
        for (method, num_steps), rho in ((row, rho) for row in self.rows for rho in self.radii):
            settings = {"rho": rho, "num_steps": num_steps}
            if method == "xsam":
                settings |= {"rho_max": 2 * rho, "refresh_every": STEPS_PER_EPOCH}
            radius += [
                {"experiment": "radius", "method": method, "settings": settings, "seed": seed} | shared
                for seed in self.seeds
            ]
        interval = [
            {
                "experiment": "interval",
                "interval": name,
                "method": "xsam",
                "settings": {"rho": INTERVAL_RHO, "rho_max": 2 * INTERVAL_RHO, "refresh_every": steps},
                "seed": seed,
            }
            | shared
            for name, steps in self.intervals.items()
            for seed in self.interval_seeds
        ]
        return radius + interval

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Trains a network."""
        return [final_accuracy(job, self.recipes, data_dir)]

    def report(self, records: list[Record], suite: SuiteResults) -> Report:
        """Verdicts and tables."""
        curves = {row: curve_of(records, *row) for row in self.rows}
        chosen = {row: best(curve) for row, curve in curves.items() if curve}
        at_best = {
            row: {r["seed"]: r["test_accuracy"] for r in curves[row][rho]} for row, rho in chosen.items()
        }
        radius = [
            Comparison(
                f"k = {k}",
                [at_best["xsam", k][seed] - at_best["sam", k][seed] for seed in at_best["sam", k]],
                scale=100,
            )
            for k in (1, 3)
            if ("xsam", k) in at_best and ("sam", k) in at_best
        ]
        networks = select(records, experiment="interval")
        interval = []
        for name in self.intervals:
            if name == "1 epoch":
                continue
            losses = paired(networks, "test_accuracy", {"interval": name}, {"interval": "1 epoch"})
            if losses:
                interval.append(Comparison(name, [x + 0.01 for x in losses], scale=100))
        verdicts = [
            judge(
                "Digits, 40 % wrong: at its best ρ, XSAM is more accurate than SAM at its best (percent)",
                radius,
            ),
            judge(
                "Fashion-MNIST: XSAM is more accurate than SAM, both tuned (accuracy suite, percent)",
                suite_comparisons(suite.networks),
            ),
            judge(
                "Digits, 40 % wrong: with another interval between searches than an epoch, less than one"
                " percent is lost (percent, plus one)",
                interval,
            ),
        ]
        accuracies = lambda own: number([100 * record["test_accuracy"] for record in own])
        lines = [
            (
                style.label,
                *(accuracies(curves[row].get(rho, [])) for rho in self.radii),
                f"{chosen[row]:g}",
            )
            for row, style in self.styles().items()
            if curves[row]
        ]
        tables = []
        if lines:
            titles = (
                "Digits, test accuracy (%)",
                *(f"ρ = {rho:g}" for rho in self.radii),
                "best on validation data",
            )
            tables.append(table(titles, lines, numbers=False))
        if networks:
            cells = [accuracies(select(networks, interval=name)) for name in self.intervals]
            tables.append(
                table(
                    ("Interval between searches", *self.intervals),
                    [("digits, test accuracy (%)", *cells)],
                    numbers=False,
                )
            )
        for noise in sorted({record["label_noise"] for record in suite.tuning}):
            of_suite = suite_curves(suite.tuning, noise)
            if set(of_suite) == set(SUITE_STYLES):
                radii = sorted(of_suite["sam"])
                title = f"Fashion-MNIST, {noise:.0%} wrong, validation accuracy (%), one seed"
                tables.append(
                    table(
                        (title, *(f"ρ = {rho:g}" for rho in radii)),
                        [
                            (style.label, *(f"{100 * of_suite[row][rho]:.1f}" for rho in radii))
                            for row, style in SUITE_STYLES.items()
                        ],
                        numbers=False,
                    )
                )
        return Report(verdicts, tables)

    def draw(self, records: list[Record], suite: SuiteResults, path: Path) -> None:
        """Accuracy by radius, on digits and in the suite, and by interval."""
        figure, axes = plots.panels(
            3, "XSAM: accuracy by radius and by interval, 40 % wrong labels (mean ± s.e.)"
        )
        for row, style in self.styles().items():
            curve = curve_of(records, *row)
            if curve:
                values = np.array([[100 * r["test_accuracy"] for r in own] for own in curve.values()]).T
                plots.curve(axes[0], list(curve), values, style)
        of_suite = suite_curves(suite.tuning, 0.4)
        for row, curve in of_suite.items():
            plots.curve(
                axes[1],
                sorted(curve),
                np.array([[100 * curve[rho] for rho in sorted(curve)]]),
                SUITE_STYLES[row],
            )
        if not of_suite:
            axes[1].text(0.5, 0.5, "not measured yet", ha="center", transform=axes[1].transAxes)
        for each, title, radii in (
            (axes[0], "Digits,\ntest, 5 seeds", self.radii),
            (axes[1], "Fashion-MNIST (suite),\nvalidation, one seed", (0.05, 0.1, 0.2, 0.3)),
        ):
            each.set(title=title, xlabel="ρ", ylabel="accuracy (%)", xscale="log", xticks=radii)
            each.set_xticklabels([f"{rho:g}" for rho in radii])
            each.minorticks_off()
        plots.legend_below(axes[0])
        networks = select(records, experiment="interval")
        for x, name in enumerate(self.intervals):
            own = [100 * record["test_accuracy"] for record in select(networks, interval=name)]
            if own:
                axes[2].scatter([x] * len(own), own, color=ROWS["xsam", 1].colour, alpha=0.5, s=16)
                error = np.std(own, ddof=1) / len(own) ** 0.5 if len(own) > 1 else 0
                axes[2].errorbar([x + 0.15], [np.mean(own)], [error], color="k", marker="o", capsize=3)
        axes[2].set(
            title=f"Digits, ρ = {INTERVAL_RHO},\ntest, {len(self.interval_seeds)} seeds",
            xlabel="interval between searches",
            ylabel="accuracy (%)",
            xticks=range(len(self.intervals)),
        )
        axes[2].set_xticklabels(self.intervals)
        plots.save(figure, path)


def curve_of(records: list[Record], method: str, num_steps: int) -> dict[float, list[Record]]:
    """Networks by radius, in the order of the seeds."""
    own = [
        record
        for record in select(records, experiment="radius", method=method)
        if record["settings"]["num_steps"] == num_steps
    ]
    radii = sorted({record["settings"]["rho"] for record in own})
    return {rho: [record for record in own if record["settings"]["rho"] == rho] for rho in radii}


def best(curve: dict[float, list[Record]]) -> float:
    """The radius with the highest validation accuracy; the first if several tie."""
    return max(curve, key=lambda rho: np.mean([record["validation_accuracy"] for record in curve[rho]]))


def suite_comparisons(networks: list[Record]) -> list[Comparison]:
    """XSAM's test accuracy minus SAM's, for each fraction of wrong labels."""
    found = []
    for noise in sorted({record["label_noise"] for record in networks}):
        for row, k in (("xsam", 1), ("xsam3", 3)):
            own = select(networks, label_noise=noise)
            gains = paired(own, "test_accuracy", {"row": row}, {"row": "sam"})
            if gains:
                found.append(Comparison(f"{noise:.0%} wrong, k = {k}", gains, scale=100))
    return found


def suite_curves(tuning: list[Record], noise: float) -> dict[str, dict[float, float]]:
    """Validation accuracies of the suite's first trials, which differ only in ρ: row -> ρ -> accuracy."""
    curves = {}
    for row in SUITE_STYLES:
        trials = select(tuning, row=row, label_noise=noise)
        own = [trial for trial in trials if trial["settings"] in SUITE_ROWS[row].first]
        if own:
            curves[row] = {record["settings"]["rho"]: record["validation_accuracy"] for record in own}
    return curves
