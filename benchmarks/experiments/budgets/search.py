"""A search whose choice is never at an edge: a walk on grids that go on in both directions.

The walk starts at settings that are given. All neighbours of where it stands are tried: one number moved one
place up or down its grid. It goes to the best of them, until none is better than where it stands; that is
what is chosen. What was tried before is not tried again.
"""

from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.records import Record

Settings = dict[str, float]


def decades(*digits: float) -> tuple[float, ...]:
    """A grid of these first digits in every power of ten from 1e-5 to 1e3."""
    return tuple(round(digit * 10.0**power, 9) for power in range(-5, 4) for digit in digits)


RADII, COARSE = decades(1, 1.5, 2, 3, 5, 7), decades(1, 2, 5)
GRIDS: Mapping[str, tuple[float, ...]] = {
    "epochs": (1, 2, 5, 10, 20, 40, 80, 160, 320),
    "learning_rate": COARSE,
    "weight_decay": COARSE,
    "label_smoothing": (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98),
    "ema": (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995),
    "rho": RADII,
    "rho_max": RADII,
    "alpha": COARSE,
    "sigma": RADII,
}


class Walk(NamedTuple):
    """How far a search has come."""

    tried: list[Settings]  # in the order of the walk, those that are to be tried now included
    chosen: Settings | None  # None until it is known


def neighbours(settings: Settings, grids: Mapping[str, tuple[float, ...]] = GRIDS) -> list[Settings]:
    """One number moved one place, down and up."""
    moved = []
    for name, value in settings.items():
        place = grids[name].index(value)
        if not 0 < place < len(grids[name]) - 1:
            raise ValueError(f"the grid of {name} ends at {value}; give it more values")
        moved += [settings | {name: grids[name][other]} for other in (place - 1, place + 1)]
    return moved


def walk(
    trials: list[Record],
    start: Settings,
    seeds: tuple[int, ...],
    field: str,
    grids: Mapping[str, tuple[float, ...]] = GRIDS,
) -> Walk:
    """The walk as far as its trials are known.

    Args:
        trials: records of one row at one noise level, with `settings` and `seed`.
        start: where it starts.
        seeds: with which all settings are tried; their mean is compared.
        field: what is compared, the higher the better.
        grids: of each number.
    """
    tried: list[Settings] = []
    here = start
    while True:
        around = [here, *neighbours(here, grids)]
        tried += [settings for settings in around if settings not in tried]
        scores = [mean(trials, settings, seeds, field) for settings in around]
        if None in scores:
            return Walk(tried, None)
        best = around[max(range(len(around)), key=lambda i: scores[i])]  # the first, so `here`, of equals
        if best == here:
            return Walk(tried, here)
        here = best


def mean(trials: list[Record], settings: Settings, seeds: tuple[int, ...], field: str) -> float | None:
    """The mean over the seeds; None unless all were tried."""
    own = {trial["seed"]: trial[field] for trial in trials if trial["settings"] == settings}
    return sum(own[seed] for seed in seeds) / len(seeds) if set(seeds) <= set(own) else None
