"""The claims of the three newest papers, each tested by a small program: numbers, a picture, a verdict.

    python -m benchmarks.experiments.claims                       measures what is missing, then reports
    python -m benchmarks.experiments.claims eigen_sam info_sam    measures only these
    python -m benchmarks.experiments.claims --report-only         pictures and page from the result files

All of them take about 20 minutes on one core. Results are appended to `benchmarks/results/claims_*.jsonl` as
jobs end. If stopped, it continues where it was. Results of the accuracy suite are read from its result files.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.data import sources
from benchmarks.errors import UsageError
from benchmarks.experiment import measure_missing, read_suite
from benchmarks.experiments.claims.alternatives import Alternatives
from benchmarks.experiments.claims.eigen_sam import EigenSAM
from benchmarks.experiments.claims.eigen_sam_tracked import EigenSAMTracked
from benchmarks.experiments.claims.info_sam import InfoSAM
from benchmarks.experiments.claims.info_sam_weightings import InfoSAMWeightings
from benchmarks.experiments.claims.setting import RECIPES
from benchmarks.experiments.claims.xsam_accuracy import XSAMAccuracy
from benchmarks.experiments.claims.xsam_direction import XSAMDirection
from benchmarks.records import RESULTS
from benchmarks.reports.claim_pages import write_page
from benchmarks.tables import DOCS
from benchmarks.workers import quiet

CLAIMS = {
    claim.name: claim
    for claim in (
        EigenSAM(),
        EigenSAMTracked(),
        InfoSAM(),
        InfoSAMWeightings(),
        XSAMDirection(),
        XSAMAccuracy(),
        Alternatives(),
    )
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Tests of the papers' claims."""

    claims: tyro.conf.Positional[tuple[Literal[*CLAIMS], ...]] = tuple(CLAIMS)
    """Which claims to measure. Pictures and page always show all."""
    report_only: bool = False
    """Measure nothing."""
    data_dir: Path = sources.DEFAULT_DATA_DIR
    """Folder of prepared data sets."""
    download_dir: Path | None = None
    """Folder with the raw files of Fashion-MNIST, in fashion_mnist/."""
    download: bool = False
    """Let TensorFlow Datasets download them."""
    processes: int = os.cpu_count() or 1
    """Number of networks trained at a time, each on its own core."""
    results: Path = RESULTS
    """Folder of the result files, the suite's included."""
    docs: Path = DOCS
    """Folder of claims.md; pictures are written to its subfolder claims/."""


def run(options: Options) -> None:
    """Measures and reports."""
    if not options.report_only:
        for recipe in RECIPES.values():  # prepared once, before the workers start
            sources.prepare(recipe["dataset"], options.data_dir, options.download_dir, options.download)
        for name in options.claims:
            print(name)
            measure_missing(CLAIMS[name], options.results, options.data_dir, options.processes)
    write_page("claims", CLAIMS, read_suite(options.results), options.results, options.docs)


def main() -> None:
    """The command line."""
    options = tyro.cli(Options, prog="python -m benchmarks.experiments.claims", description=__doc__)
    quiet()
    try:
        run(options)
    except UsageError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command continues with what is missing")


if __name__ == "__main__":
    main()
