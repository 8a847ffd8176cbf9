"""A radius that needs no tuning: one number, chosen on one setting, is used unchanged on all others.

    python -m benchmarks radius --where part=trial
    python -m benchmarks radius --where setting=part_16,clean

The protocol was written before the numbers. Then one network of the baseline (ascent on 16 images, seed 0)
was trained to time it.

Candidates. The same `rho` everywhere, the baseline. ASAM with one `rho`. ρ = c‖w‖, of all weights or of each
array. LE-SAM, ρ = σ/‖g‖ without a largest radius, as in its authors' example. A controller that holds the
relative rise of the batch loss, (L(w + ε) − L(w))/L(w), at c: a step below c multiplies ρ by 1.02, others
divide it; ρ starts at 0.05.

Settings, of the accuracy suites. The number is chosen on the strided CNN with 40 % noisy labels, and kept
there with an ascent on 16 of 128 images, with clean labels, on a transformer with AdamW and on a residual
network on CIFAR-10, both with what was tuned without SAM for the optimizer. If time is short, settings are
cut from the end, for all candidates; text fine-tuning and other levels of noise are cut.

How it is chosen. By validation accuracy after the last epoch, with the one seed of the suites' trials. `rho`
of SAM and ASAM is the best of the suite's trials. The others walk from a start to the best neighbour on the
grid 1, 2, 5 of each power of ten (`budgets/search.py`). They start at c = 0.01, SAM's usual 0.1 at the
initial weights, at σ = 0.1 and at a rise of 0.1.

What is reported. Test accuracy minus the suite's SAM with the `rho` tuned on that very setting, seed by
seed, for three seeds. Networks that a suite has with a candidate's settings are not trained again. On the
transformer and the residual network the tuned `rho` is the smallest that was tried.

The rule. A candidate loses the mean, over the settings but the one where its number was chosen, of tuned
SAM's accuracy minus its own. It passes if that is less than half of what the same `rho` everywhere loses.
Settings where a candidate is missing are shown, not counted. The rule does not use the standard error.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optax
import pandas as pd

from benchmarks.experiment import Experiment, Job, Tables, is_result_of, read
from benchmarks.experiments import networks
from benchmarks.experiments.budgets.search import COARSE, Settings, Walk, walk
from benchmarks.experiments.networks import Network
from benchmarks.experiments.suite.rows import best, of_row
from benchmarks.experiments.suite.settings import SUITES
from benchmarks.experiments.suite.suite import TUNING_SEED, Suite, where_part
from benchmarks.records import RESULTS, Record
from benchmarks.tables import mean_and_error, spread, table, where

CHOSEN_BY = "validation_accuracy"


class Candidate(NamedTuple):
    """A rule for the radius with one number."""

    label: str
    method: str  # its name in `methods.METHODS`
    start: Settings | None = None  # where the search begins; None: the best trial of the suite's row `method`
    fixed: Mapping[str, Any] = {}  # options that are not searched


class Setting(NamedTuple):
    """A row of a suite, which is SAM with the radius tuned there."""

    label: str
    suite: str
    row: str
    noise: float = 0.0


FIXED, TUNED_ON = "fixed", "noisy"
CANDIDATES = {
    FIXED: Candidate("the same ρ", "sam"),
    "held_rise": Candidate("relative rise held", "held_rise_sam", {"c": 0.1}),
    "relative": Candidate("ρ = c‖w‖", "relative_sam", {"c": 0.01}),
    "le_sam": Candidate("ρ = σ/‖g‖ (LE-SAM)", "le_sam", {"sigma": 0.1}, {"rho_max": 999.0}),
    "layerwise": Candidate("ρ = c‖w‖, per array", "relative_sam", {"c": 0.01}, {"layerwise": True}),
    "asam": Candidate("ASAM, the same ρ", "asam"),
}
SETTINGS = {
    TUNED_ON: Setting("40 % noisy labels", "suite", "sam", 0.4),
    "part_16": Setting("ascent on 16 of 128", "suite", "part_16", 0.4),
    "clean": Setting("clean labels", "suite", "sam"),
    "vit": Setting("transformer", "suite_fashion_vit_fitted", "sam_tuned"),
    "resnet": Setting("residual network", "suite_cifar_resnet_fitted", "sam_tuned"),
}


@dataclasses.dataclass(frozen=True)
class Radius(Experiment):
    """Candidates with one number on several settings."""

    name: str = "radius"
    seeds: tuple[int, ...] = (0, 1, 2)
    datasets: tuple[str, ...] = ("fashion_mnist", "cifar10_subset")
    candidates: Mapping[str, Candidate] = dataclasses.field(default_factory=lambda: CANDIDATES)
    settings: Mapping[str, Setting] = dataclasses.field(default_factory=lambda: SETTINGS)
    suites: Mapping[str, Suite] = dataclasses.field(default_factory=lambda: {own.name: own for own in SUITES})

    @property
    def files(self) -> Mapping[str, str]:
        """One file for the trials, one for the networks that are reported."""
        return {"trial": "radius_tuning", "network": self.name}

    def walk(self, records: list[Record], name: str) -> Walk:
        """The search for a candidate's number."""
        candidate = self.candidates[name]
        if candidate.start is None:
            trials = self.suite_trials(TUNED_ON, candidate.method)
            only_rho = [trial for trial in trials if trial["settings"].keys() == {"rho"}]
            return Walk([], max(only_rho, key=lambda trial: trial[CHOSEN_BY])["settings"])
        own = [record for record in records if (record["part"], record["candidate"]) == ("trial", name)]
        grids = dict.fromkeys(candidate.start, COARSE)
        return walk(own, candidate.start, (TUNING_SEED,), CHOSEN_BY, grids)

    def jobs(self, records: list[Record]) -> list[Job]:
        """The trials, as far as they are known, then setting by setting the networks no suite has."""
        walks = {name: self.walk(records, name) for name in self.candidates}
        trial = {"part": "trial", "setting": TUNED_ON, "seed": TUNING_SEED}
        trials = ({"candidate": name, "settings": own} for name in walks for own in walks[name].tried)
        jobs = [trial | own for own in trials]
        for at, (name, found) in itertools.product(self.settings, walks.items()):
            if found.chosen is not None and at != TUNED_ON:
                made = self.of_suite(at, name, found.chosen)
                job = {"part": "network", "setting": at, "candidate": name, "settings": found.chosen}
                jobs += [job | {"seed": seed} for seed in self.seeds if seed not in made]
        return jobs

    def suite_trials(self, at: str, row: str) -> list[Record]:
        """The trials that the suite of a setting has of one of its rows."""
        setting = self.settings[at]
        records = read(self.suites[setting.suite], RESULTS)
        return of_row(where_part(records, "trial"), row, setting.noise)

    def tuned(self, at: str) -> tuple[Settings, float]:
        """The settings of the optimizer at a setting, and SAM's tuned radius there."""
        setting = self.settings[at]
        trials = self.suite_trials(at, setting.row)
        chosen = dict(best(trials, setting.row, setting.noise, self.suites[setting.suite].rows))
        return chosen, chosen.pop("rho")

    def of_suite(self, at: str, name: str, own: Settings) -> dict[int, float]:
        """The test accuracies, by seed, of a suite's networks that have a candidate's settings."""
        setting, candidate = self.settings[at], self.candidates[name]
        rows = self.suites[setting.suite].rows
        what = lambda row: (row.method, {**row.fixed}, row.epochs)
        base = rows[setting.row]
        candidate_row = base._replace(method=candidate.method, fixed={**base.fixed, **candidate.fixed})
        wanted = {"part": "network", "label_noise": setting.noise, "settings": self.tuned(at)[0] | own}
        records = read(self.suites[setting.suite], RESULTS)
        made = [r for r in records if is_result_of(r, wanted) and what(rows[r["row"]]) == what(candidate_row)]
        return {record["seed"]: record["test_accuracy"] for record in made}

    def network(self, job: Job, data_dir: Path) -> Network:
        """The network of a job."""
        setting, candidate = self.settings[job["setting"]], self.candidates[job["candidate"]]
        suite = self.suites[setting.suite]
        config = suite.row_config(setting.row, setting.noise)
        config = dataclasses.replace(config, method=candidate.method, seed=job["seed"])
        for own in (self.tuned(job["setting"])[0], candidate.fixed, job["settings"]):
            config = networks.with_settings(config, own)
        return networks.make_network(config, data_dir, suite.with_more_test_images)

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Trains a network; its validation accuracy, and if it is no trial its test accuracy."""
        network = self.network(job, data_dir)
        state = networks.trained(network)
        splits = ("validation", "test") if job["part"] == "network" else ("validation",)
        record = networks.recorded(network.config) | networks.accuracies(network, state, *splits)
        radius = optax.tree.get(state.opt_state, "current_rho")  # the controller's, after the last step
        return [record | ({} if radius is None else {"last_radius": float(radius)})]

    def diverged(self, job: Job) -> Record:
        """No better than guessing; trials have no test accuracy."""
        record = super().diverged(job)
        return {key: x for key, x in record.items() if (job["part"], key) != ("trial", "test_accuracy")}

    def differences(self, made: pd.DataFrame, at: str, name: str, own: Settings) -> list[float]:
        """Test accuracy minus tuned SAM's in percentage points, seed by seed."""
        tuned = self.of_suite(at, FIXED, {"rho": self.tuned(at)[1]})
        found = self.of_suite(at, name, own)
        for record in where(made, setting=at, candidate=name, settings=own).to_dict("records"):
            found[record["seed"]] = record["test_accuracy"]
        return [100 * (found[seed] - tuned[seed]) for seed in self.seeds if seed in found and seed in tuned]

    def tables(self, frame: pd.DataFrame, results: Path) -> Tables:
        """Accuracies against tuned SAM with the verdicts, and the radii that are tuned."""
        records, made = frame.to_dict("records"), where(frame, part="network")
        numbers = {name: own for name in self.candidates if (own := self.walk(records, name).chosen)}
        others = [at for at in self.settings if at != TUNED_ON]
        cells = {n: {at: self.differences(made, at, n, own) for at in others} for n, own in numbers.items()}
        is_complete = lambda at, name: name in cells and len(cells[name][at]) == len(self.seeds)
        shown = [at for at in others if any(own[at] for own in cells.values())]
        counted = [at for at in shown if all(is_complete(at, name) for name in self.candidates)]
        losses = {name: loss([own[at] for at in counted]) for name, own in cells.items() if counted}
        lines = [
            [
                *(self.candidates[name].label, ", ".join(f"{value:g}" for value in numbers[name].values())),
                *(spread(own[at], "{:+.1f} ± {:.1f}") for at in shown),
                "{:.2f} ± {:.2f}".format(*losses[name]) if counted else "-",
                verdict(losses[name][0], losses[FIXED][0]) if name != FIXED and counted else "-",
            ]
            for name, own in cells.items()
        ]
        titles = [self.settings[at].label + ("" if at in counted else ", not counted") for at in shown]
        compared = table(["", "its number", *titles, "mean loss", "less than half"], lines)
        return {"docs/evidence/radius.md": {"radius": compared, "tuned_radii": self.tuned_radii()}}

    def tuned_radii(self) -> str:
        """SAM's radius on each setting, whether it is at an edge of what was tried, and its accuracy."""
        lines = []
        for at, setting in self.settings.items():
            rho = self.tuned(at)[1]
            tried = sorted({trial["settings"]["rho"] for trial in self.suite_trials(at, setting.row)})
            edge = {tried[0]: ", the smallest", tried[-1]: ", the largest"}.get(rho, "")
            made = self.of_suite(at, FIXED, {"rho": rho})
            shown = spread(100 * made[seed] for seed in self.seeds if seed in made)
            lines.append([setting.label, f"{rho:g}{edge}", ", ".join(map("{:g}".format, tried)), shown])
        return table(["", "tuned ρ", "tried", "test accuracy (%)"], lines)


def loss(differences: list[list[float]]) -> tuple[float, float]:
    """What is lost in the mean over settings, with its standard error."""
    means, errors = zip(*map(mean_and_error, differences), strict=True)
    return -sum(means) / len(means), sum(error**2 for error in errors) ** 0.5 / len(errors)


def verdict(own: float, fixed: float) -> str:
    """Whether a candidate loses less than half of what the same radius everywhere loses."""
    return "yes" if fixed > 0 and own < fixed / 2 else "no"
