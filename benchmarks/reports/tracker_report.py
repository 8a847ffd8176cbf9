"""Tables and picture of the comparison of eigenvector trackers, for `docs/curvature.md`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import figures as plots
from benchmarks.claim import number
from benchmarks.experiment import select
from benchmarks.records import Record
from benchmarks.tables import table

TUNING_SEED = 1000
CELLS = {
    "SAM, right labels": {"training": "sam", "label_noise": 0.0},
    "SAM, 40 % wrong": {"training": "sam", "label_noise": 0.4},
    "Eigen-SAM, right labels": {"training": "eigen_sam", "label_noise": 0.0},
    "Eigen-SAM, 40 % wrong": {"training": "eigen_sam", "label_noise": 0.4},
}
STYLES = {
    "paper": plots.style("eigen_sam", "5 power iterations every 100 steps (the paper's)"),
    "lanczos": plots.style("asam", "5 Lanczos products every 100 steps"),
    "spread": plots.style("info_sam", "1 product every 20 steps"),
    "part_32": plots.style("sam", "1 on a quarter of the batch every 5 steps, running mean"),
    "differences": plots.style("xsam", "no product: g' − g, running mean", "--"),
}


def reported(records: list[Record]) -> list[Record]:
    """The records of the seeds that chose nothing."""
    return [record for record in records if record["seed"] != TUNING_SEED]


def chosen(records: list[Record], name: str, decays: tuple[float, ...]) -> float:
    """The `decay` with the best mean alignment with the span for the tuning seed; the first without any."""

    def quality(decay: float) -> float:
        own = select(records, seed=TUNING_SEED, tracker=name, decay=decay)
        return float(np.mean([np.mean(record["span"]) for record in own])) if own else 0.0

    return max(decays, key=quality)


def means(records: list[Record], field: str, **values: Any) -> list[float]:
    """Means of a field over training, seed by seed."""
    return [float(np.mean(record[field])) for record in select(records, **values)]


def errors(records: list[Record], cell: Mapping[str, Any], **values: Any) -> list[float]:
    """Mean relative errors of the tracked eigenvalue, seed by seed, in percent."""
    found = []
    for record in select(records, **cell, **values):
        (exact,) = select(records, **cell, seed=record["seed"], tracker="exact")
        top = np.array(exact["eigenvalues"])[:, 0]
        found.append(float(100 * np.mean(np.abs(np.array(record["eigenvalue"]) / top - 1))))
    return found


def tracker_table(records: list[Record], trackers: Mapping[str, Any]) -> str:
    """One line per tracker: budget, alignment with v₁ and with the span for each training."""
    lines = []
    for name, tracker in trackers.items():
        decay = chosen(records, name, tracker.decays)
        own = {"tracker": name, "decay": decay}
        cells = []
        for cell in CELLS.values():
            first, span = (means(reported(records), field, **cell, **own) for field in ("alignment", "span"))
            cells.append(f"{number(first)} ({np.mean(span):.2f})" if first else "–")
        every = [errors(reported(records), cell, **own) for cell in CELLS.values()]
        error = np.concatenate(every)
        lines.append(
            (
                tracker.label,
                str(tracker.examples),
                f"{tracker.num_iters} every {tracker.interval}" if tracker.cost() else "none",
                f"{decay:g}",
                *cells,
                f"{error.mean():.0f} %" if error.size and tracker.cost() else "–",
            )
        )
    titles = ("", "examples", "products, steps", "decay", *CELLS, "error of λ₁")
    return table(titles, lines)


def decay_table(records: list[Record], trackers: Mapping[str, Any]) -> str:
    """Alignment with v₁ (and the span) for every `decay`: means over trainings and the reported seeds."""
    lines = []
    for name, tracker in trackers.items():
        if len(tracker.decays) == 1:
            continue
        for decay in tracker.decays:
            own = {"tracker": name, "decay": decay}
            found = [
                f"{np.mean(first):.2f} ({np.mean(means(reported(records), 'span', **cell, **own)):.2f})"
                if (first := means(reported(records), "alignment", **cell, **own))
                else "–"
                for cell in CELLS.values()
            ]
            lines.append((tracker.label, str(tracker.examples), str(tracker.interval), str(decay), *found))
    return table(("", "examples", "every", "decay", *CELLS), lines)


def gap_table(records: list[Record]) -> str:
    """λ₂/λ₁ and λ₃/λ₁ of the reference: means over training."""
    lines = []
    for label, cell in CELLS.items():
        own = select(reported(records), **cell, tracker="exact")
        if own:
            ratios = [np.mean([np.array(x) / x[0] for x in record["eigenvalues"]], axis=0) for record in own]
            top = [float(np.mean(np.array(record["eigenvalues"])[:, 0])) for record in own]
            lines.append((label, number(top), *(number([float(x[i]) for x in ratios]) for i in (1, 2))))
    return table(("", "λ₁", "λ₂/λ₁", "λ₃/λ₁"), lines)


def tables(records: list[Record], trackers: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page, with the picture."""
    if not records:
        return dict.fromkeys(("trackers", "tracker_decays", "tracker_gaps"), "No measurements yet.")
    picture = "![Alignment of the tracked vectors along training](trackers.png)"
    return {
        "trackers": f"{tracker_table(records, trackers)}\n\n{picture}",
        "tracker_decays": decay_table(records, trackers),
        "tracker_gaps": gap_table(records),
    }


def draw(records: list[Record], trackers: Mapping[str, Any], path: Path) -> None:
    """Alignment along training: with v₁ above, with the span below."""
    figure, axes = plots.grid(2, len(CELLS), "Tracked top eigenvector along training, equal cost", 3.0, 2.8)
    for (label, cell), column in zip(CELLS.items(), axes.T, strict=True):
        for panel, field in zip(column, ("alignment", "span"), strict=True):
            for name, style in STYLES.items():
                decay = chosen(records, name, trackers[name].decays)
                own = select(reported(records), **cell, tracker=name, decay=decay)
                if own:
                    (exact, *_) = select(records, **cell, seed=own[0]["seed"], tracker="exact")
                    plots.curve(panel, exact["steps"], np.array([record[field] for record in own]), style)
            panel.set(ylim=(0, 1.02))
        column[0].set(title=label)
        column[1].set(xlabel="step")
    axes[0, 0].set(ylabel="alignment with v₁")
    axes[1, 0].set(ylabel="with the span of v₁, v₂, v₃")
    plots.legend_below(axes[0, 0])
    plots.save(figure, path)
