"""The theory of the three newest papers as programs: numbers, pictures, verdicts.

    python -m benchmarks.experiments.theory                       measures what is missing, then reports
    python -m benchmarks.experiments.theory sde_paths             measures only this
    python -m benchmarks.experiments.theory --report-only         pictures and page from the result files

All of them take about 20 minutes on one core. Results are appended to `benchmarks/results/theory_*.jsonl` as
jobs end. If stopped, it continues where it was.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.data import sources
from benchmarks.errors import UsageError
from benchmarks.experiment import SuiteResults, measure_missing
from benchmarks.experiments.theory.adversary import Adversary
from benchmarks.experiments.theory.asymmetric_valley import AsymmetricValley
from benchmarks.experiments.theory.gradient_rate import GradientRate
from benchmarks.experiments.theory.sde_paths import SDEPaths
from benchmarks.experiments.theory.third_order import ThirdOrder
from benchmarks.experiments.theory.xsam_plane import XSAMPlane
from benchmarks.experiments.theory.xsam_two_dimensions import XSAMTwoDimensions
from benchmarks.records import RESULTS
from benchmarks.reports.claim_pages import write_page
from benchmarks.tables import DOCS
from benchmarks.workers import quiet

CLAIMS = {
    claim.name: claim
    for claim in (
        SDEPaths(),
        ThirdOrder(),
        GradientRate(),
        AsymmetricValley(),
        Adversary(),
        XSAMPlane(),
        XSAMTwoDimensions(),
    )
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The theory as programs."""

    claims: tyro.conf.Positional[tuple[Literal[*CLAIMS], ...]] = tuple(CLAIMS)
    """Which to measure. Pictures and page always show all."""
    report_only: bool = False
    """Measure nothing."""
    data_dir: Path = sources.DEFAULT_DATA_DIR
    """Folder of prepared data sets."""
    download_dir: Path | None = None
    """Folder with the raw files of MNIST, in mnist/."""
    download: bool = False
    """Let TensorFlow Datasets download them."""
    processes: int = os.cpu_count() or 1
    """Number of jobs at a time, each on its own core."""
    results: Path = RESULTS
    """Folder of the result files."""
    docs: Path = DOCS
    """Folder of theory.md; pictures are written to its subfolder theory/."""


def run(options: Options) -> None:
    """Measures and reports."""
    if not options.report_only:
        sources.prepare("mnist", options.data_dir, options.download_dir, options.download)
        for name in options.claims:
            print(name)
            measure_missing(CLAIMS[name], options.results, options.data_dir, options.processes)
    write_page("theory", CLAIMS, SuiteResults([], []), options.results, options.docs)


def main() -> None:
    """The command line."""
    options = tyro.cli(Options, prog="python -m benchmarks.experiments.theory", description=__doc__)
    quiet()
    try:
        run(options)
    except UsageError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command continues with what is missing")


if __name__ == "__main__":
    main()
