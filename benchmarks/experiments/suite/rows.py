"""The rows of the accuracy suites: methods, trials on validation data, and choosing the best trial."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from benchmarks.figures import Style
from benchmarks.methods import BLUE, GREY, METHODS, radii
from benchmarks.records import Record

BATCH_SIZE = 128
EPOCH = 10_000 // BATCH_SIZE
FOUR = (0.5, 1, 2, 3)


class Row(NamedTuple):
    """One row of the tables."""

    method: str  # its name in `methods.METHODS`
    label: str  # its name in tables and figures
    # Four settings, of which the best on validation data is kept; empty if nothing is chosen.
    first: Sequence[Mapping[str, float]] = ()
    then: Mapping[str, float] | None = None  # changes to the best of the four, for a fifth trial
    epochs: int = 20  # passes over the training data
    interval: int = 100  # steps between refreshes, as in the method's paper
    fixed: Mapping[str, float] = {}  # settings of this row that are not chosen
    # The table and the pictures in which it appears.
    group: Literal["methods", "family", "cheap", "controls"] = "methods"
    # Another row, with whose best settings all settings of this row are completed.
    starts_from: str | None = None
    num_seeds: int | None = None  # how many of the suite's seeds are trained; left out: all
    looks: Mapping[str, str] = {}  # what differs from the method's colour, marker and line

    def style(self) -> Style:
        """How it is drawn."""
        method = METHODS[self.method]
        return Style(self.label, method.colour, method.marker, method.line)._replace(**self.looks)


def searched(method: str, *factors: float, then: Mapping[str, float] | None = None, **more: Any) -> Row:
    """A row that tries these multiples of the method's radius, then another hyper-parameter of it."""
    row = METHODS[method]
    first, then = radii(row.options, *(factors or FOUR)), row.other if then is None else then
    return Row(method, row.label, first, then)._replace(**more)


def part(size: int) -> dict[str, float]:
    """The ascent on a part of the batch."""
    return {"ascent_batch": size}


SGD_DECAYS = [{"weight_decay": decay} for decay in (5e-4, 2e-3, 5e-3, 1e-2)]
STRONGER, FASTER = {"weight_decay": 5e-3}, {"learning_rate": 0.1}
LONGER, DOTTED = {"colour": GREY, "line": "--"}, {"line": ":"}
CHEAP = {"group": "cheap"}


def with_decay(method: str) -> Row:
    """A method at stronger weight decays."""
    trials = [settings | {"weight_decay": 2e-3} for settings in radii(METHODS[method].options, 0.5, 1, 2, 4)]
    return Row(method, f"{METHODS[method].label}, decay tuned", trials, STRONGER, looks=DOTTED)


ROWS = {
    "sgd": Row("sgd", "SGD"),
    "sgd_40": Row("sgd", "SGD, 40 epochs", epochs=40, looks=LONGER),
    **{name: searched(name) for name in ("sam", "asam", "fisher_sam", "info_sam", "eigen_sam")},
    **{name: searched(name, interval=EPOCH) for name in ("xsam", "xsam3", "asam_xsam")},
    "sgd_decay": Row("sgd", "SGD, decay tuned", SGD_DECAYS, FASTER, looks=DOTTED),
    "sgd_40_decay": Row(
        *("sgd", "SGD, 40 epochs, decay tuned", SGD_DECAYS, FASTER, 40), looks=LONGER | DOTTED
    ),
    "sam_decay": with_decay("sam"),
    "asam_decay": with_decay("asam"),
    **{
        name: searched(name, group="family")
        for name in (
            *("vasso", "friendly_sam", "gsam", "wsam", "stable_sam", "sparse_sam", "lookbehind_sam"),
        )
    },
    # At the price of less than two gradients. The best radius grows as the part shrinks.
    "part_32": searched("sam", then={"rho": 0.4}, label="SAM, ascent on 32 of 128", fixed=part(32), **CHEAP),
    "part_16": searched(
        *("sam", 1, 2, 3, 4), then={"rho": 0.6}, label="SAM, ascent on 16 of 128", fixed=part(16), **CHEAP
    ),
    "part_8": searched(
        *("sam", 1, 2, 3, 4), then={"rho": 0.6}, label="SAM, ascent on 8 of 128", fixed=part(8), **CHEAP
    ),
    "look_sam": searched("look_sam", interval=5, **CHEAP),
    "every_5th": searched(
        *("look_sam", 1, 2, 4, 6),
        then={"rho": 0.3},
        label="SAM, every 5th step",
        interval=5,
        fixed={"alpha": 0.0},
        looks={"marker": "<"},
        **CHEAP,
    ),
    "one_gradient": searched("one_gradient", 0.5, 1, 2, 4, **CHEAP),
    "momentum_sam": searched("momentum_sam", **CHEAP),
    # An ascent on examples that are not in the batch, and a random direction.
    "outside_16": searched(
        *("sam", 1, 2, 3, 4),
        then={"rho": 0.6},
        label="Ascent on 16 others",
        fixed=part(16) | {"ascent_outside": True},
        group="controls",
        looks={"colour": GREY, "marker": "h"},
    ),
    "random": searched("random_direction", 1, 3, 10, 30, group="controls"),
}
for size, marker in ((32, "p"), (16, "h"), (8, "8")):
    ROWS[f"part_{size}"] = ROWS[f"part_{size}"]._replace(looks={"colour": BLUE, "marker": marker})


def of_row(trials: list[Record], name: str, noise: float) -> list[Record]:
    """The trials of a row at a noise level."""
    return [trial for trial in trials if (trial["row"], trial["label_noise"]) == (name, noise)]


def best(trials: list[Record], name: str, noise: float, rows: Mapping[str, Row] = ROWS) -> dict[str, float]:
    """Settings with the highest validation accuracy of a row at a noise level; the first if several tie."""
    if not rows[name].first:
        return settings_of_parent_row(trials, name, noise, rows)
    own = of_row(trials, name, noise)
    return max(own, key=lambda trial: trial["validation_accuracy"])["settings"]


def settings_of_parent_row(
    trials: list[Record], name: str, noise: float, rows: Mapping[str, Row]
) -> dict[str, float]:
    """What a row takes from another one."""
    other = rows[name].starts_from
    return {} if other is None else best(trials, other, noise, rows)


def known_trials(
    trials: list[Record], name: str, noise: float, rows: Mapping[str, Row] = ROWS
) -> tuple[list[dict[str, float]], bool]:
    """The settings that a row tries at a noise level, and whether all have been tried.

    Trials that depend on others which have not been made are not known yet: the trials of the row from which
    this one starts come first, then its own four, then the last one.
    """
    row = rows[name]
    if row.starts_from is not None and not known_trials(trials, row.starts_from, noise, rows)[1]:
        return [], False
    given = settings_of_parent_row(trials, name, noise, rows)
    wanted = [{**given, **settings} for settings in row.first]
    own = of_row(trials, name, noise)
    made = [trial["settings"] for trial in own]
    if any(settings not in made for settings in wanted):
        return wanted, False
    if not wanted or row.then is None:
        return wanted, True
    first = [trial for trial in own if trial["settings"] in wanted]
    last = {**best(first, name, noise, rows), **row.then}
    return [*wanted, *([] if last in wanted else [last])], last in made
