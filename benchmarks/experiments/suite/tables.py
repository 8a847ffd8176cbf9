"""The tables of `RESULTS.md`, from the suite's records of networks, trials on validation data and times."""

import functools
from collections.abc import Callable

from benchmarks.experiments.suite.numbers import differences, of, present, spread
from benchmarks.experiments.suite.rows import ROWS, best
from benchmarks.records import Record, mean_and_error
from benchmarks.tables import table

Records = list[Record]


def by_noise(records: Records, cell: Callable[[str, float], str], *groups: str) -> str:
    """A table of rows, by default of all groups, against noise levels."""
    rows, levels = present(records, *groups)
    titles = ["", *(f"{100 * noise:.0f} % wrong" for noise in levels)]
    return table(titles, [[ROWS[row].label, *(cell(row, noise) for noise in levels)] for row in rows])


def accuracy_table(records: Records, trials: Records, times: Records) -> str:
    """Test accuracy in per cent."""
    return by_noise(records, functools.partial(accuracy, records), "methods", "family")


def accuracy(records: Records, row: str, noise: float) -> str:
    """Test accuracy in per cent, mean and standard error."""
    return spread([100 * value for value in of(records, row, noise).values()])


def difference_table(records: Records, trials: Records, times: Records) -> str:
    """Paired differences to SAM, in percentage points."""
    return differences_to("sam", records)


def tuned_difference_table(records: Records, trials: Records, times: Records) -> str:
    """Paired differences to SGD with tuned weight decay."""
    return differences_to("sgd_decay", records)


def differences_to(other: str, records: Records) -> str:
    """Paired differences to a row, in percentage points."""

    def cell(row: str, noise: float) -> str:
        return "0" if row == other else spread(differences(records, row, noise, other), "{:+.1f} ± {:.1f}")

    return by_noise(records, cell, "methods", "family")


def cheap_table(records: Records, trials: Records, times: Records) -> str:
    """What less than two gradients buy: time, accuracy, and the share of SAM's gain over SGD."""
    rows, levels = present(records, "cheap", "controls")
    seconds = {time["row"]: time["seconds_per_step"] for time in times}
    titles = ["", "time of a step, SGD = 1", *(f"{100 * noise:.0f} % wrong" for noise in levels)]
    noisy = [noise for noise in levels if noise > 0]
    titles += [f"share of the gain, {100 * noise:.0f} %" for noise in noisy]
    lines = []
    for row in ("sgd", "sam", *rows):
        time = f"{seconds[row] / seconds['sgd']:.2f}" if row in seconds else "-"
        shares = [share_of_gain(records, row, noise) for noise in noisy]
        lines.append([ROWS[row].label, time, *(accuracy(records, row, noise) for noise in levels), *shares])
    return table(titles, lines)


def share_of_gain(records: Records, row: str, noise: float) -> str:
    """(row − SGD)/(SAM − SGD) of the mean accuracies in per cent; the error is that of row − SAM."""
    gain, _ = mean_and_error(differences(records, "sam", noise, "sgd"))
    if row in ("sgd", "sam"):
        return "100" if row == "sam" else "0"
    missing, error = mean_and_error(differences(records, row, noise))
    return f"{100 * (1 + missing / gain):.0f} ± {100 * error / gain:.0f}"


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
    "cheap": cheap_table,
    "differences": difference_table,
    "differences_to_tuned": tuned_difference_table,
    "settings": settings_table,
    "cost": cost_table,
    "sharpness": sharpness_table,
    "fitted": fitted_table,
    "runs": seeds_table,
}
