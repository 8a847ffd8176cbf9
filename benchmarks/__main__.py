"""Measures what is missing of an experiment, then fills its pages and draws its pictures.

    python -m benchmarks suite                  the accuracy suite: trials, networks, tables and pictures
    python -m benchmarks claims theory          every claim on these pages
    python -m benchmarks eigen_sam --report-only
    python -m benchmarks suite --again 3        trains three recorded networks again: the same numbers?

If it is stopped, by Ctrl-C or otherwise, the same command continues with what is missing. Results are kept in
`benchmarks/results`, one line per network or measurement. With another folder for `--results` the tables are
printed and the pictures written beside the results, and no page is changed.
"""

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import tyro

from benchmarks import experiment
from benchmarks.claim import Claim, summary
from benchmarks.cost.compile_time import CompileTime
from benchmarks.cost.step_cost import StepCost
from benchmarks.cost.tpu import TPU
from benchmarks.data import sources
from benchmarks.errors import UsageError
from benchmarks.experiment import Experiment, Job, Tables
from benchmarks.experiments.budgets.equal_budgets import EqualBudgets
from benchmarks.experiments.budgets.robustness import Robustness
from benchmarks.experiments.claims.alternatives import Alternatives
from benchmarks.experiments.claims.eigen_sam import EigenSAM
from benchmarks.experiments.claims.eigen_sam_tracked import EigenSAMTracked
from benchmarks.experiments.claims.info_sam import InfoSAM
from benchmarks.experiments.claims.info_sam_weightings import InfoSAMWeightings
from benchmarks.experiments.claims.xsam_accuracy import XSAMAccuracy
from benchmarks.experiments.claims.xsam_direction import XSAMDirection
from benchmarks.experiments.demo import Demo
from benchmarks.experiments.eigenvector_solvers import EigenvectorSolvers
from benchmarks.experiments.fine_tuning import FineTuning
from benchmarks.experiments.radius import Radius
from benchmarks.experiments.suite.settings import SUITES
from benchmarks.experiments.theory.sde_paths import SDEPaths
from benchmarks.experiments.theory.third_order import ThirdOrder
from benchmarks.experiments.theory.xsam_plane import XSAMPlane
from benchmarks.experiments.trackers import Trackers
from benchmarks.records import RESULTS, ROOT
from benchmarks.tables import fill_tables

CLAIMS = (
    *(EigenSAM(), EigenSAMTracked(), InfoSAM(), InfoSAMWeightings(), XSAMDirection(), XSAMAccuracy()),
    Alternatives(),
)
THEORY = (SDEPaths(), ThirdOrder(), XSAMPlane())
OTHERS = (
    EqualBudgets(),
    Robustness(),
    FineTuning(),
    Radius(),
    Demo(),
    EigenvectorSolvers(),
    Trackers(),
    StepCost(),
    CompileTime(),
    TPU(),
)
EXPERIMENTS = {own.name: own for own in (*SUITES, *CLAIMS, *THEORY, *OTHERS)}
GROUPS = {"claims": [own.name for own in CLAIMS], "theory": [own.name for own in THEORY]}


@dataclasses.dataclass(frozen=True)
class Options:
    """Experiments."""

    names: tyro.conf.Positional[tuple[Literal[*EXPERIMENTS, *GROUPS], ...]]
    """Which experiments, or all claims, or all of the theory."""
    report_only: bool = False
    """Measure nothing."""
    again: int = 0
    """Only do this many of the recorded jobs again, and say where their numbers differ."""
    seeds: tuple[int, ...] = ()
    """Seeds of the networks or runs. Left out: the experiment's."""
    where: tuple[str, ...] = ()
    """Only the jobs with these values, for example: label_noise=0.4 row=sgd,sam"""
    processes: int = os.cpu_count() or 1
    """Number of jobs at a time, each on its own core."""
    results: Path = RESULTS
    """Folder of the result files."""
    data_dir: Path = sources.DEFAULT_DATA_DIR
    """Folder of prepared data sets."""
    download_dir: Path | None = None
    """Folder with raw files that you already have, in <download-dir>/<dataset>/."""
    download: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Let TensorFlow Datasets download raw files that are missing."""


def is_wanted(job: Job, conditions: Mapping[str, list[str]]) -> bool:
    """Whether a job has one of the values of each condition; a field that it lacks does not count."""
    return all(str(job.get(name, values[0])) in values for name, values in conditions.items())


def measure(names: Iterable[str], options: Options) -> None:
    """Does what is missing, or again what is recorded."""
    pairs = (condition.partition("=")[::2] for condition in options.where)
    conditions = {key: text.split(",") for key, text in pairs}
    wanted = lambda job: is_wanted(job, conditions)
    for name in names:
        own = EXPERIMENTS[name]
        if options.seeds:
            own = dataclasses.replace(own, seeds=options.seeds)
        for dataset in own.datasets:  # prepared once, before the workers start
            sources.prepare(dataset, options.data_dir, options.download_dir, options.download)
        print(name)
        place = options.results, options.data_dir, options.processes
        if options.again:
            for job, differences in experiment.measure_again(own, *place, options.again, wanted):
                print(f"\n{job}\n    " + ("; ".join(differences) or "the same numbers"))
            continue
        added = experiment.measure_missing(own, *place, wanted)
        diverged = sum(record.get("diverged", False) for record in added)
        print(f"{len(added)} new records" + (f", {diverged} of them diverged" if diverged else ""))


def frame_of(own: Experiment, results: Path) -> pd.DataFrame:
    """The records of an experiment."""
    return pd.DataFrame(experiment.read(own, results))


def tables(names: Iterable[str], results: Path) -> Tables:
    """The tables of experiments that have records; for claims with the summary at the top of their page."""
    found: Tables = {}
    verdicts = {page: [] for page in GROUPS}
    for name in names:
        own, frame = EXPERIMENTS[name], frame_of(EXPERIMENTS[name], results)
        if frame.empty:
            continue
        for page, texts in own.tables(frame, results).items():
            found.setdefault(page, {}).update(texts)
        if isinstance(own, Claim):
            verdicts[own.page] += [(name, verdict) for verdict in own.report(frame, results).verdicts]
    for page, claims in GROUPS.items():
        if set(claims) <= set(names):
            found[f"docs/evidence/{page}.md"]["summary"] = summary(verdicts[page])
    return found


def report(names: Iterable[str], results: Path) -> None:
    """Fills the pages and draws the pictures; for one claim of a page all of the page."""
    names = dict.fromkeys(
        other
        for name in names
        for other in next((group for group in GROUPS.values() if name in group), [name])
    )
    found = tables(names, results)
    for page, texts in found.items():
        if results == RESULTS:
            fill_tables(ROOT / page, texts)
            print(f"filled {page}")
        else:
            print(*(f"{title}\n\n{text}\n" for title, text in texts.items()), sep="\n")
    for name in names:
        frame = frame_of(EXPERIMENTS[name], results)
        if not frame.empty:
            EXPERIMENTS[name].draw(frame, results, ROOT / "docs" if results == RESULTS else results)


def main() -> None:
    """The command line."""
    options = tyro.cli(Options, prog="python -m benchmarks", description=__doc__)
    experiment.quiet()
    names = dict.fromkeys(one for name in options.names for one in GROUPS.get(name, [name]))
    try:
        if not options.report_only:
            measure(names, options)
        if not options.again:
            report(names, options.results)
    except UsageError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command continues with what is missing")


if __name__ == "__main__":
    main()
