"""Tables and figures of `RESULTS.md` from the result files of the suite.

    python -m benchmarks.reports.suite_report            # after `python -m benchmarks.experiments.suite tune`, `run` and `time`
    python -m benchmarks.reports.suite_report --results runs/bench --print

Writes the tables between the marks in `RESULTS.md` (the text around them is by hand) and the figures in
`docs/`. Nothing is trained here.
"""

import dataclasses
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import tyro

from benchmarks.errors import UsageError
from benchmarks.experiments.suite import RESULTS, ROWS, best
from benchmarks.reports.pages import fill_tables, table
from benchmarks.training.trials import mean_and_error, read_records

mpl.use("agg")  # the figures go to files; no display needed
import matplotlib.pyplot as plt
from matplotlib import ticker

Records = list[dict[str, Any]]

PAGE = Path(__file__).parents[1] / "RESULTS.md"
FIGURES = Path(__file__).parents[2] / "docs"
# Colours: Wong, "Points of view: Color blindness", Nature Methods 2011. Where one comes twice, the rows
# differ by marker, and by dashes.
STYLES = {
    "sgd": {"color": "#000000", "marker": "o"},
    "sgd_40": {"color": "#7F7F7F", "marker": "o", "linestyle": "--"},
    "sam": {"color": "#0072B2", "marker": "s"},
    "asam": {"color": "#E69F00", "marker": "D"},
    "fisher_sam": {"color": "#56B4E9", "marker": "X"},
    "info_sam": {"color": "#009E73", "marker": "^"},
    "eigen_sam": {"color": "#CC79A7", "marker": "v"},
    "xsam": {"color": "#D55E00", "marker": "P"},
    "xsam3": {"color": "#D55E00", "marker": "*", "linestyle": "--"},
    "asam_xsam": {"color": "#E69F00", "marker": "p", "linestyle": "--"},
    "sgd_decay": {"color": "#000000", "marker": "o", "linestyle": ":", "fillstyle": "none"},
    "sgd_40_decay": {"color": "#7F7F7F", "marker": "o", "linestyle": ":", "fillstyle": "none"},
    "sam_decay": {"color": "#0072B2", "marker": "s", "linestyle": ":", "fillstyle": "none"},
    "asam_decay": {"color": "#E69F00", "marker": "D", "linestyle": ":", "fillstyle": "none"},
}


# --- Numbers ------------------------------------------------------------------------------------------


def of(records: Records, row: str, noise: float, field: str = "test_accuracy") -> dict[int, float]:
    """Seed -> value of a field, of one row at one noise level; without networks that diverged."""
    return {
        record["seed"]: record[field]
        for record in records
        if (record["row"], record["label_noise"]) == (row, noise) and field in record
    }


def differences(records: Records, row: str, noise: float, other: str = "sam") -> list[float]:
    """Test accuracy less that of another row, seed by seed, in percentage points."""
    ours, theirs = of(records, row, noise), of(records, other, noise)
    return [100 * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def present(records: Records) -> tuple[list[str], list[float]]:
    """The rows and noise levels that a file holds, in the order of the table."""
    rows = {record["row"] for record in records}
    return [name for name in ROWS if name in rows], sorted({record["label_noise"] for record in records})


def spread(values: Sequence[float], form: str = "{:.1f} ± {:.1f}") -> str:
    """Mean and standard error as text."""
    return form.format(*mean_and_error(values)) if values else "-"


# --- Tables -------------------------------------------------------------------------------------------


def by_noise(records: Records, cell: Callable[[str, float], str]) -> str:
    """A table of rows against noise levels."""
    rows, levels = present(records)
    titles = ["", *(f"{100 * noise:.0f} % wrong" for noise in levels)]
    return table(titles, [[ROWS[row].label, *(cell(row, noise) for noise in levels)] for row in rows])


def accuracy_table(records: Records, trials: Records, times: Records) -> str:
    """Test accuracy in per cent."""
    return by_noise(
        records, lambda row, noise: spread([100 * value for value in of(records, row, noise).values()])
    )


def difference_table(records: Records, trials: Records, times: Records) -> str:
    """Paired differences to SAM, in percentage points."""
    return differences_to("sam", records)


def tuned_difference_table(records: Records, trials: Records, times: Records) -> str:
    """The same to SGD with its weight decay tuned."""
    return differences_to("sgd_decay", records)


def differences_to(other: str, records: Records) -> str:
    """Paired differences to a row, in percentage points."""

    def cell(row: str, noise: float) -> str:
        return "0" if row == other else spread(differences(records, row, noise, other), "{:+.1f} ± {:.1f}")

    return by_noise(records, cell)


def settings_table(records: Records, trials: Records, times: Records) -> str:
    """What was chosen on validation data."""
    made = {(trial["row"], trial["label_noise"]) for trial in trials}

    def cell(row: str, noise: float) -> str:
        if (row, noise) not in made:
            return "-"
        return ", ".join(f"{name} {value:g}" for name, value in best(trials, row, noise).items())

    return by_noise(trials, cell)


def seeds_table(records: Records, trials: Records, times: Records) -> str:
    """Networks, and how many of them diverged."""
    seeds = sorted({record["seed"] for record in records})
    diverged = [record for record in records if record.get("diverged")]
    lines = [
        ["networks reported", str(len(records))],
        ["of these diverged (counted as guessing)", str(len(diverged))],
        ["seeds of each row and noise level", str(len(seeds))],
        ["trials on validation data", str(len(trials))],
        *([name, records[0]["versions"][name]] for name in records[0]["versions"]),
    ]
    return table(["", ""], lines)


def sharpness_table(records: Records, trials: Records, times: Records) -> str:
    """Largest Hessian eigenvalue on 1,000 training images."""
    return by_noise(
        records,
        lambda row, noise: spread(
            list(of(records, row, noise, "largest_hessian_eigenvalue").values()), "{:.2f} ± {:.2f}"
        ),
    )


def fitted_table(records: Records, trials: Records, times: Records) -> str:
    """Accuracy on the training labels, wrong ones included, in per cent."""
    field = "training_accuracy_on_noisy_labels"
    return by_noise(
        records, lambda row, noise: spread([100 * value for value in of(records, row, noise, field).values()])
    )


def cost_table(records: Records, trials: Records, times: Records) -> str:
    """Time of a step and of a training, relative to SGD."""
    sgd = next(time for time in times if time["row"] == "sgd")
    lines = []
    for time in times:
        a_step = time["seconds_per_step"] / sgd["seconds_per_step"]
        lines.append(
            [ROWS[time["row"]].label, f"{a_step:.2f}", f"{a_step * time['steps'] / sgd['steps']:.2f}"]
        )
    return table(["", "time of a step, SGD = 1", "time of the training, SGD = 1"], lines)


TABLES = {
    "accuracy": accuracy_table,
    "differences": difference_table,
    "differences_to_tuned": tuned_difference_table,
    "settings": settings_table,
    "cost": cost_table,
    "sharpness": sharpness_table,
    "fitted": fitted_table,
    "runs": seeds_table,
}


# --- Figures ------------------------------------------------------------------------------------------


def tidy(axes: plt.Axes) -> None:
    """No frame at the top and at the right, a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def draw_noise(records: Records, path: Path) -> None:
    """Test accuracy against the fraction of wrong labels: itself, and beside SAM's."""
    rows, levels = present(records)
    if len(levels) < 2:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", width_ratios=(2, 3))
    percent = [100 * noise for noise in levels]
    for index, row in enumerate(rows):
        # Side by side at each level, so that error bars do not cover one another.
        shifted = [x + 0.8 * (index - (len(rows) - 1) / 2) for x in percent]
        accuracy = [mean_and_error([100 * a for a in of(records, row, noise).values()]) for noise in levels]
        left.plot(percent, [mean for mean, _ in accuracy], label=ROWS[row].label, markersize=6, **STYLES[row])
        gains = [mean_and_error(differences(records, row, noise)) for noise in levels]
        if row not in ("sam", "sgd", "sgd_40"):  # the latter two would press all others together
            style = STYLES[row] | {"linestyle": "none"}
            right.errorbar(
                shifted, [g for g, _ in gains], [e for _, e in gains], capsize=2, markersize=6, **style
            )
    right.axhline(0, color=STYLES["sam"]["color"], lw=1)
    right.annotate(
        "SAM",
        (1, 0),
        (-2, 3),
        xycoords=right.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=9,
        color=STYLES["sam"]["color"],
    )
    left.set(xlabel="wrong training labels (%)", ylabel="test accuracy (%)", title="Test accuracy")
    right.set(
        xlabel="wrong training labels (%)",
        ylabel="percentage points",
        title="Less SAM's, seed by seed (mean ± standard error)",
    )
    for axes in (left, right):
        axes.set_xticks(percent)
        tidy(axes)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_radius(trials: Records, path: Path) -> None:
    """Validation accuracy against rho, at every noise level."""
    rows, levels = present(trials)
    rows = [row for row in rows if not row.endswith("_decay")]
    figure, panels = plt.subplots(1, len(levels), figsize=(13, 4.2), layout="constrained", squeeze=False)
    for axes, noise in zip(panels[0], levels, strict=True):
        for row in rows:
            searched = [dict(settings) for settings in ROWS[row].first]
            points = sorted(
                # ASAM measures in units of the weights: its radii are ten times those of the others.
                (trial["settings"]["rho"] / (10 if "asam" in row else 1), 100 * trial["validation_accuracy"])
                for trial in trials
                if (trial["row"], trial["label_noise"]) == (row, noise) and trial["settings"] in searched
            )
            if points:
                axes.plot(*zip(*points, strict=True), label=ROWS[row].label, markersize=5, **STYLES[row])
        decays = [trial for trial in trials if (trial["row"], trial["label_noise"]) == ("sgd_decay", noise)]
        usual = [
            trial["validation_accuracy"] for trial in decays if trial["settings"] == {"weight_decay": 5e-4}
        ]
        tuned = max((trial["validation_accuracy"] for trial in decays), default=float("nan"))
        for accuracy, label, dashes in (
            (usual[0] if usual else float("nan"), "SGD", "-"),
            (tuned, "SGD, decay tuned", ":"),
        ):
            axes.axhline(100 * accuracy, color="k", lw=1, ls=dashes, label=label)
        # Networks that collapsed to guessing would press all others together: they are below the picture.
        shown = [100 * trial["validation_accuracy"] for trial in trials if trial["label_noise"] == noise]
        axes.set_ylim(100 * (usual[0] if usual else min(shown) / 100) - 4, max(shown) + 1)
        axes.set(xscale="log", xlabel="rho (ASAM: rho / 10)", title=f"{100 * noise:.0f} % wrong labels")
        axes.set_xticks([0.05, 0.1, 0.2, 0.3])
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        tidy(axes)
    panels[0][0].set_ylabel("validation accuracy (%)")
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_cost(records: Records, times: Records, path: Path, noise: float = 0.4) -> None:
    """Test accuracy against the time of a training; and the rows near SAM again, larger."""
    figure, (whole, near) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    sgd = next(time["seconds_per_step"] * time["steps"] for time in times if time["row"] == "sgd")
    costs = {time["row"]: time["seconds_per_step"] * time["steps"] / sgd for time in times}
    for row, cost in costs.items():
        mean, error = mean_and_error([100 * value for value in of(records, row, noise).values()])
        style = STYLES[row] | {"linestyle": "none"}
        whole.errorbar(cost, mean, error, capsize=3, markersize=8, label=ROWS[row].label, **style)
        sam = 100 * statistics.mean(of(records, "sam", noise).values()) if "sam" in costs else mean
        if abs(mean - sam) < 3 and abs(cost - costs.get("sam", cost)) < 0.2:
            near.errorbar(cost, mean, error, capsize=3, markersize=8, **style)
    whole.set(title=f"{100 * noise:.0f} % wrong labels: what the time buys", ylabel="test accuracy (%)")
    near.set(title="The same around SAM")
    for axes in (whole, near):
        axes.set(xlabel="time of the training, SGD = 1")
        tidy(axes)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


@dataclasses.dataclass(frozen=True)
class Report:
    """Tables and figures of the suite."""

    results: Path = RESULTS
    """Folder of the suite's result files."""
    tuning_file: Path = RESULTS / "suite_tuning.jsonl"
    """The trials."""
    print: bool = False
    """Print the tables of accuracies instead of writing page and figures."""


def read(file: Path, action: str) -> Records:
    """Reads a result file."""
    records = read_records(file)
    if not records:
        raise UsageError(
            f"{file} is missing or empty; make it with python -m benchmarks.experiments.suite {action}"
        )
    return records


def main() -> None:
    """The command line."""
    report = tyro.cli(Report, prog="python -m benchmarks.reports.suite_report", description=__doc__)
    try:
        records = read(report.results / "suite.jsonl", "run")
        trials = read(report.tuning_file, "tune")
        if report.print:
            print(accuracy_table(records, trials, []), difference_table(records, trials, []), sep="\n\n")
            return
        times = read(report.results / "suite_time.jsonl", "time")
        fill_tables(PAGE, {name: make(records, trials, times) for name, make in TABLES.items()})
    except UsageError as error:
        sys.exit(f"error: {error}")
    draw_noise(records, FIGURES / "suite_noise.png")
    draw_radius(trials, FIGURES / "suite_radius.png")
    draw_cost(records, times, FIGURES / "suite_cost.png")
    print(f"{PAGE} and figures in {FIGURES} written from {len(records)} networks")


if __name__ == "__main__":
    main()
