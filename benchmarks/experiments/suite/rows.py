"""The rows of the accuracy suite: methods, trials on validation data, and choosing the best trial."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Literal, NamedTuple

from benchmarks.records import Record

BATCH_SIZE = 128


class Row(NamedTuple):
    """One row of the tables.

    Attributes:
        method: its name in `methods.METHODS`.
        label: its name in tables and figures.
        first: four settings, of which the best on validation data is kept; empty if nothing is chosen.
        then: changes to the best of the four, for a fifth trial.
        epochs: passes over the training data.
        refresh_every: steps between refreshes, as in the method's paper.
        fixed: settings of this row that are not chosen.
        group: the table and the pictures in which it appears.
        starts_from: another row, with whose best settings all settings of this row are completed.
    """

    method: str
    label: str
    first: Sequence[Mapping[str, float]] = ()
    then: Mapping[str, float] | None = None
    epochs: int = 20
    refresh_every: int = 100
    fixed: Mapping[str, float] = MappingProxyType({})
    group: Literal["methods", "family", "cheap", "controls"] = "methods"
    starts_from: str | None = None


def radii(*factors: float, **units: float) -> list[dict[str, float]]:
    """Multiples of the units."""
    return [{name: round(factor * unit, 6) for name, unit in units.items()} for factor in factors]


FOUR = (0.5, 1, 2, 3)
SGD_DECAYS = [{"weight_decay": decay} for decay in (5e-4, 2e-3, 5e-3, 1e-2)]
SAM_DECAYS = [settings | {"weight_decay": 2e-3} for settings in radii(0.5, 1, 2, 4, rho=0.1)]
ASAM_DECAYS = [settings | {"weight_decay": 2e-3} for settings in radii(0.5, 1, 2, 4, rho=1.0)]
STRONGER = {"weight_decay": 5e-3}
FASTER = {"learning_rate": 0.1}
# rho_max is twice rho, as in XSAM's paper; the fifth trial has another value.
XSAM_RADII = radii(*FOUR, rho=0.1, rho_max=0.2)
OTHER_RHO_MAX = {"rho_max": 0.15}
EPOCH = 10_000 // BATCH_SIZE

# The best radius grows as the part shrinks.
PART_RADII = radii(1, 2, 3, 4, rho=0.1)


family = partial(Row, group="family")
cheap = partial(Row, group="cheap")
control = partial(Row, group="controls")


def part(size: int) -> dict[str, float]:
    """The ascent on a part of the batch."""
    return {"ascent_batch": size}


OUTSIDE = part(16) | {"ascent_outside": True}

ROWS = {
    "sgd": Row("sgd", "SGD"),
    "sgd_40": Row("sgd", "SGD, 40 epochs", epochs=40),
    "sam": Row("sam", "SAM", radii(*FOUR, rho=0.1), {"rho": 0.15}),
    "asam": Row("asam", "ASAM", radii(*FOUR, rho=1.0), {"eta": 0.1}),
    "fisher_sam": Row("fisher_sam", "Fisher SAM", radii(*FOUR, rho=0.1), {"eta": 0.1}),
    "info_sam": Row("info_sam", "infoSAM", radii(*FOUR, rho=0.1), {"power": 0.5}),
    "eigen_sam": Row("eigen_sam", "Eigen-SAM", radii(*FOUR, rho=0.1), {"alpha": 0.5}),
    "xsam": Row("xsam", "XSAM", XSAM_RADII, OTHER_RHO_MAX, refresh_every=EPOCH),
    "xsam3": Row("xsam3", "XSAM, 3 steps", XSAM_RADII, OTHER_RHO_MAX, refresh_every=EPOCH),
    "asam_xsam": Row(
        "asam_xsam",
        "ASAM with XSAM's search",
        radii(*FOUR, rho=1.0, rho_max=0.2),
        OTHER_RHO_MAX,
        refresh_every=EPOCH,
    ),
    "sgd_decay": Row("sgd", "SGD, decay tuned", SGD_DECAYS, FASTER),
    "sgd_40_decay": Row("sgd", "SGD, 40 epochs, decay tuned", SGD_DECAYS, FASTER, epochs=40),
    "sam_decay": Row("sam", "SAM, decay tuned", SAM_DECAYS, STRONGER),
    "asam_decay": Row("asam", "ASAM, decay tuned", ASAM_DECAYS, STRONGER),
    # The wider family.
    "vasso": family("vasso", "VaSSO", radii(*FOUR, rho=0.1), {"theta": 0.4}),
    "friendly_sam": family("friendly_sam", "Friendly SAM", radii(*FOUR, rho=0.1), {"decay": 0.6}),
    "gsam": family("gsam", "GSAM", radii(*FOUR, rho=0.1), {"alpha": 0.1}),
    # The weight of the sharpness is nine times SAM's at gamma 0.9, so the radii are smaller.
    "wsam": family("wsam", "WSAM", radii(*FOUR, rho=0.02), {"gamma": 0.7}),
    "stable_sam": family("stable_sam", "StableSAM", radii(*FOUR, rho=0.1), {"rho": 0.15}),
    "sparse_sam": family("sparse_sam", "Sparse SAM", radii(*FOUR, rho=0.1), {"sparsity": 0.8}),
    # Two ascents of this radius each.
    "lookbehind_sam": family("lookbehind_sam", "Lookbehind-SAM", radii(*FOUR, rho=0.05), {"alpha": 0.8}),
    # At the price of less than two gradients.
    "part_32": cheap("sam", "SAM, ascent on 32 of 128", radii(*FOUR, rho=0.1), {"rho": 0.4}, fixed=part(32)),
    "part_16": cheap("sam", "SAM, ascent on 16 of 128", PART_RADII, {"rho": 0.6}, fixed=part(16)),
    "part_8": cheap("sam", "SAM, ascent on 8 of 128", PART_RADII, {"rho": 0.6}, fixed=part(8)),
    "look_sam": cheap("look_sam", "LookSAM", radii(*FOUR, rho=0.1), {"alpha": 0.5}, refresh_every=5),
    "every_5th": cheap(
        "look_sam",
        "SAM, every 5th step",
        radii(1, 2, 4, 6, rho=0.1),
        {"rho": 0.3},
        refresh_every=5,
        fixed={"alpha": 0.0},
    ),
    "one_gradient": cheap(
        "one_gradient", "One gradient, uphill", radii(0.5, 1, 2, 4, rho=0.1), {"decay": 0.8}
    ),
    "momentum_sam": cheap("momentum_sam", "Momentum-SAM", radii(0.5, 1, 2, 3, rho=1.0), {"rho": 1.5}),
    # An ascent on examples that are not in the batch, and a random direction.
    "outside_16": control("sam", "Ascent on 16 others", PART_RADII, {"rho": 0.6}, fixed=OUTSIDE),
    "random": control("random_direction", "Random direction", radii(1, 3, 10, 30, rho=0.1), {"rho": 0.5}),
}


def best(trials: list[Record], name: str, noise: float, rows: Mapping[str, Row] = ROWS) -> dict[str, float]:
    """Settings with the highest validation accuracy of a row at a noise level; the first if several tie."""
    if not rows[name].first:
        return start(trials, name, noise, rows)
    own = [trial for trial in trials if (trial["row"], trial["label_noise"]) == (name, noise)]
    return max(own, key=lambda trial: trial["validation_accuracy"])["settings"]


def start(trials: list[Record], name: str, noise: float, rows: Mapping[str, Row]) -> dict[str, float]:
    """What a row takes from another one."""
    other = rows[name].starts_from
    return {} if other is None else best(trials, other, noise, rows)


def missing_trials(
    trials: list[Record], name: str, noise: float, rows: Mapping[str, Row] = ROWS
) -> list[tuple[str, dict[str, float]]]:
    """The trials that a row lacks at a noise level, as far as they can be told already.

    Returns:
        Rows and settings: those of the row from which this one starts, as long as it lacks any; then its own
        first ones; then the last one. Empty if the row's settings are known.
    """
    row = rows[name]
    if row.starts_from is not None and (before := missing_trials(trials, row.starts_from, noise, rows)):
        return before
    if not row.first:
        return []
    own = [trial for trial in trials if (trial["row"], trial["label_noise"]) == (name, noise)]
    made = [trial["settings"] for trial in own]
    given = start(trials, name, noise, rows)
    wanted = [{**given, **settings} for settings in row.first]
    missing = [settings for settings in wanted if settings not in made]
    if not missing and row.then is not None:
        first = [trial for trial in own if trial["settings"] in wanted]
        last = {**best(first, name, noise, rows), **row.then}
        missing = [] if last in made else [last]
    return [(name, settings) for settings in missing]
