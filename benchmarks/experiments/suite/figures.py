"""The pictures of the accuracy suite: what the trainings cost, and which radii work."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd

from benchmarks import figures
from benchmarks.experiments.suite.rows import Row
from benchmarks.tables import column, where

Rows = Mapping[str, Row]
NOISE = 0.4  # of the pictures, if it has been measured


class Name(NamedTuple):
    """A row's name at its point."""

    text: str
    place: Literal["right", "left", "above", "below"] = "right"


# At most eight points, so that each has its name beside it.
SHOWN = {
    "sgd": Name("SGD"),
    "sgd_decay": Name("SGD, tuned\nweight decay", "above"),
    "sgd_40_decay": Name("SGD, tuned,\ntwice as long", "below"),
    "sam": Name("SAM", "left"),
    "sam_decay": Name("SAM, tuned\nweight decay", "above"),
    "part_8": Name("SAM, ascent on\n1/16 of the batch"),
    "momentum_sam": Name("Momentum-SAM", "below"),
    "random": Name("random\nperturbation", "below"),
}


def at_one_level(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The records of one noise level, and its title."""
    levels = frame["label_noise"]
    noise = NOISE if (levels == NOISE).any() else levels.max()
    return where(frame, label_noise=noise), f"{100 * noise:.0f} % noisy labels"


def draw_cost(made: pd.DataFrame, times: pd.DataFrame, rows: Rows, path: Path) -> None:
    """Test accuracy against the measured time of the whole training, at one noise level."""
    made, title = at_one_level(made)
    cost = times.set_index("row")
    cost = cost["seconds_per_step"] * cost["steps"]
    figure, ((axes,),) = figures.panels(1, 1, "", width=5.4, height=4.0)
    for name, label in SHOWN.items():
        accuracy = 100 * where(made, row=name)["test_accuracy"]
        if accuracy.empty or name not in cost:
            continue
        look = rows[name].style()
        place = (cost[name] / cost["sgd"], accuracy.mean())
        axes.errorbar(
            *(*place, accuracy.sem()),
            capsize=2,
            lw=1,
            markersize=8,
            color=look.colour,
            marker=look.marker,
            fillstyle="none" if "decay" in name else "full",
        )
        figures.name_point(axes, place, label.text, label.place, look.colour)
    axes.set(
        xlabel="time of the training (SGD = 1)",
        ylabel="test accuracy (%)",
        title=title,
        xlim=(0.85, 2.35),
    )
    axes.margins(y=0.2)
    figures.save(figure, path)


def draw_radius(trials: pd.DataFrame, rows: Rows, path: Path) -> None:
    """Validation accuracy against rho, at one noise level."""
    trials, title = at_one_level(trials)
    shown = {
        name: rows[name].style()
        for name in ("sam", "asam", "fisher_sam", "info_sam", "eigen_sam", "xsam")
        if name in rows and (trials["row"] == name).any()
    }
    searched = {name: [dict(settings) for settings in rows[name].first] for name in shown}
    own = trials[[trial.settings in searched.get(trial.row, ()) for trial in trials.itertuples()]]
    # ASAM measures in units of the weights: its radii are ten times as large as the others'.
    own = own.assign(
        accuracy=100 * own["validation_accuracy"],
        rho=[trial.settings["rho"] / (10 if trial.row == "asam" else 1) for trial in own.itertuples()],
    )
    shown = {
        name: look._replace(label=f"{look.label}, ρ/10" if name == "asam" else look.label)
        for name, look in shown.items()
    }
    figure, ((axes,),) = figures.panels(1, 1, "", width=5.4, height=4.0)
    figures.lines(axes, own, "rho", "accuracy", shown)
    decays = where(trials, row="sgd_decay")
    usual = column(where(decays, settings={"weight_decay": 5e-4}), "validation_accuracy").max()
    tuned = column(decays, "validation_accuracy").max()
    for accuracy, label, dashes in ((usual, "SGD", "-"), (tuned, "SGD, tuned weight decay", ":")):
        axes.axhline(100 * accuracy, color="k", lw=1, ls=dashes)
        axes.annotate(label, (0.05, 100 * accuracy), (0, 3), textcoords="offset points", fontsize=9)
    # Networks that collapsed to guessing are below the picture: they would compress the scale.
    axes.set_ylim(100 * usual - 2, 100 * tuned + 1)
    figures.ticks(axes, (0.05, 0.1, 0.2, 0.3))
    axes.set(xlabel="ρ", ylabel="validation accuracy (%)", title=title)
    figures.legend_below(figure)
    figures.save(figure, path)
