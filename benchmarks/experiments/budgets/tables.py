"""The tables of the page about equal budgets, from its records."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from benchmarks.experiments.budgets.differences import Difference, differences
from benchmarks.experiments.budgets.search import mean
from benchmarks.tables import spread, table, where

TEST = "test_accuracy"
OTHERS = ("sgd", "sam")  # with which all rows are compared
UNITS = {"ema": "average", "learning_rate": "rate", "weight_decay": "decay", "label_smoothing": "smoothing"}


def title(noise: float) -> str:
    """Name of a noise level in the names of tables."""
    return f"{100 * noise:.0f}"


def labels(noise: float) -> str:
    """What a noise level is called in a table."""
    return f"{100 * noise:.0f} % noisy" if noise else "clean"


def words(settings: Mapping[str, float]) -> str:
    """Settings but the epochs as text."""
    rest = {name: value for name, value in settings.items() if name != "epochs"}
    return ", ".join(f"{UNITS.get(name, name)} {value:g}" for name, value in rest.items()) or "–"


def tables(frame: pd.DataFrame, experiment: Any) -> dict[str, str]:
    """By name: the result at each measured noise level, and the searches of all of them."""
    records, made = frame.to_dict("records"), where(frame, part="network")
    found: dict[str, str] = {}
    measured: list[tuple[str, float]] = []
    for noise in experiment.noise:
        own = where(made, label_noise=noise)
        names = [name for name in experiment.rows if (own["row"] == name).any()]
        if names:
            if {"sgd", "sam"} <= set(names):
                found[f"sentence_{title(noise)}"] = sentence(own)
            found[f"accuracy_{title(noise)}"] = accuracy(own, names, experiment.rows)
            measured += [(name, noise) for name in names]
    if measured:
        found["epochs"] = by_epochs(records, measured, experiment)
        found["search"] = search(records, measured, experiment)
        found["runs"] = runs(frame)
    return found


def compared(own: pd.DataFrame, names: list[str]) -> dict[tuple[str, str, str], Difference]:
    """Every row minus SGD and minus SAM, corrected together; the two between themselves once."""
    pairs = [(TEST, name, other) for other in OTHERS for name in names if other in names]
    return differences(own, [pair for pair in pairs if pair != (TEST, "sgd", "sam")])


def sentence(own: pd.DataFrame) -> str:
    """SAM and SGD, each at its best, in a sentence."""
    words = {}
    for name in OTHERS:
        one = where(own, row=name)
        epochs, gradients = one["settings"].iloc[0]["epochs"], one["gradients"].max()
        words[name] = f"{spread(100 * one[TEST])} % ({epochs:.0f} epochs, {gradients:,.0f} gradients)"
    values = compared(own, list(own["row"].unique()))[TEST, "sam", "sgd"]
    return f"SAM has {words['sam']}, SGD {words['sgd']}; SAM minus SGD {values.text('better', 'worse')}"


def accuracy(own: pd.DataFrame, names: list[str], rows: Mapping[str, Any]) -> str:
    """The result: what was chosen, what it costs, and how it compares."""
    found, lines = compared(own, names), []
    for name in names:
        one = where(own, row=name)
        cells = [found.get((TEST, name, other)) for other in OTHERS]
        settings = one["settings"].iloc[0]
        lines.append(
            [
                rows[name].label,
                words(settings),
                f"{settings['epochs']:.0f}",
                f"{one['gradients'].iloc[0]:,.0f}",
                spread(100 * one[TEST]),
                *("–" if cell is None else cell.text("better", "worse", no_word="") for cell in cells),
            ]
        )
    labels = [rows[other].label for other in OTHERS]
    head = ["", "chosen", "epochs", "gradients", "test accuracy (%)"]
    return table([*head, *(f"minus {label}" for label in labels)], lines)


def trials(records: list[dict[str, Any]], name: str, noise: float) -> list[dict[str, Any]]:
    """The trials of a row at a noise level."""
    return [r for r in records if (r["part"], r["row"], r["label_noise"]) == ("trial", name, noise)]


def search(records: list[dict[str, Any]], measured: list[tuple[str, float]], experiment: Any) -> str:
    """What validation labels as noisy as the training's would have chosen, where it is something else."""
    noisy, others = [at for at in measured if at[1]], []
    for name, noise in noisy:
        walked, own = experiment.walk(records, name, noise), trials(records, name, noise)
        score = lambda settings, field: mean(own, settings, experiment.tuning_seeds, field)  # noqa: B023
        other = max(walked.tried, key=lambda settings: score(settings, "noisy_validation_accuracy"))
        if other != walked.chosen:
            best, kept = (score(settings, "validation_accuracy") for settings in (walked.chosen, other))
            costs = 100 * (best - kept)
            what = f"{other['epochs']:.0f} epochs, {words(other)}"
            others.append(f"{experiment.rows[name].label}, {labels(noise)}: {what}, which costs {costs:.2f}")
    return "; ".join([f"other settings in {len(others)} of {len(noisy)} searches", *others])


def by_epochs(records: list[dict[str, Any]], measured: list[tuple[str, float]], experiment: Any) -> str:
    """The best validation accuracy at each number of epochs that was tried, of how many settings."""
    best: dict[tuple[str, float, float], float] = {}
    tried = {}
    for name, noise in measured:
        own, walked = trials(records, name, noise), experiment.walk(records, name, noise)
        tried[name, noise] = str(len(walked.tried))
        for settings in walked.tried:
            score = mean(own, settings, experiment.tuning_seeds, "validation_accuracy")
            key = (name, noise, settings["epochs"])
            best[key] = max(score, best.get(key, 0.0))
    epochs = sorted({number for *_, number in best})
    cells = lambda *at: (f"{100 * best[*at, n]:.1f}" if (*at, n) in best else "–" for n in epochs)
    lines = [[experiment.rows[at[0]].label, labels(at[1]), tried[at], *cells(*at)] for at in measured]
    return table(["", "labels", "settings tried", *(f"{number:.0f} epochs" for number in epochs)], lines)


def runs(frame: pd.DataFrame) -> str:
    """How many trainings, how many of them diverged, and the versions of the first."""
    made = where(frame, part="network")
    diverged = int(frame["diverged"].fillna(False).sum()) if "diverged" in frame else 0
    lines = [
        ["networks reported", str(len(made))],
        ["trainings of the searches", str(len(frame) - len(made))],
        ["of all these diverged (counted as guessing)", str(diverged)],
        *([name, version] for name, version in made["versions"].iloc[0].items()),
    ]
    return table(["", ""], lines)
