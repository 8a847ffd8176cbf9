"""What the TPU's own compiler says about training steps, without a TPU.

`libtpu` compiles for chips that are described, not there. Flops, bytes and memory are the compiler's counts
for one chip, cycles its estimates for the scheduled program (collectives have none), compile times those of
the machine that compiles. Nothing is run, so there are no times of a step.

    pip install '.[benchmarks,tpu]'
    python -m benchmarks tpu --where network=decoder_40m

A program takes minutes to compile, and one process at a time can use libtpu.
"""

import dataclasses
import importlib.util
import os
import time
import tomllib
from pathlib import Path
from typing import Any

import jax
import pandas as pd
from jax.experimental import topologies

from benchmarks.cost.published import published_program
from benchmarks.cost.schedule import read
from benchmarks.cost.tpu_programs import HAND, NETWORKS, compile_program, make_program, mesh_of
from benchmarks.cost.tpu_tables import fill
from benchmarks.errors import UsageError
from benchmarks.experiment import Experiment, Job, Tables
from benchmarks.methods import METHODS
from benchmarks.records import Record, versions

# (chip, number) -> name of a topology; one chip is the first of eight.
TOPOLOGIES = {
    ("v5e", 1): "v5e:2x4",
    ("v5e", 8): "v5e:2x4",
    ("v5e", 256): "v5e:16x16",
    ("v6e", 8): "v6e:2x4",
    ("v5p", 8): "v5p:2x2x2",
}
# Read by libtpu, which would otherwise ask the machine what it is.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
REFRESH = " refresh"  # on the command line a comma separates rows
SAM = ("base", f"sam{HAND}", "sam")
OTHERS = ("asam", "momentum_sam", "eigen_sam", "fisher_sam", "info_sam", "xsam")
PAIRS = tuple(name for method in OTHERS for name in (method + HAND, method))
REFRESHES = tuple(f"{method}{REFRESH}" for method in ("eigen_sam", "xsam"))
# Chip, number of chips, network, layout, rows: the most telling first.
PLAN: tuple[tuple[str, int, str, str, tuple[str, ...]], ...] = (
    ("v5e", 8, "decoder_40m", "data", SAM),
    ("v5e", 8, "decoder_18m", "data", (*SAM, *PAIRS)),
    ("v5e", 8, "decoder_6m", "data", SAM),
    ("v5e", 8, "decoder_6m", "local", (f"sam{HAND}", "sam")),
    ("v5e", 8, "decoder_6m", "fsdp", SAM),
    ("v5e", 256, "decoder_6m", "data", SAM),
    ("v5e", 256, "decoder_6m", "fsdp", SAM),
    ("v5e", 8, "decoder_6m", "data", REFRESHES),
    ("v5e", 1, "decoder_6m", "data", SAM),
    ("v6e", 8, "decoder_6m", "data", SAM),
    ("v5p", 8, "decoder_6m", "data", SAM),
    ("v5e", 8, "resnet18", "data", SAM),
    ("v5e", 8, "vit_b16", "data", SAM),
    ("v5e", 8, "decoder_100m", "data", SAM),
    ("v5e", 8, "decoder_1b", "fsdp", SAM),
    ("v5e", 8, "decoder_18m", "data", REFRESHES),
    ("v5e", 8, "decoder_40m", "data", (*PAIRS, *REFRESHES)),
    ("v5e", 8, "resnet50", "data", SAM),
    ("v5e", 8, "wide_resnet28_10", "data", SAM),
    ("v5e", 256, "decoder_1b", "fsdp", SAM),
)
CONFIGS = Path(__file__).parents[1] / "configs"


@dataclasses.dataclass(frozen=True)
class TPU(Experiment):
    """The measurement."""

    name: str = "tpu"
    is_alone: bool = True
    plan: tuple[tuple[str, int, str, str, tuple[str, ...]], ...] = PLAN
    # Files of published settings, each compiled for one chip.
    configs: tuple[str, ...] = tuple(sorted(file.stem for file in CONFIGS.glob("*.toml")))

    def jobs(self, records: list[Record]) -> list[Job]:
        """One program each."""
        found = [
            {"chip": chip, "chips": chips, "network": network, "layout": layout, "row": row}
            for chip, chips, network, layout, rows in self.plan
            for row in rows
        ]
        return found + [
            {"chip": "v5e", "chips": 1, "config": config, "row": row}
            for config in self.configs
            for row in ("step", *((f"step{REFRESH}",) if is_occasional(config) else ()))
        ]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """Compiles one training step and reads what the compiler says."""
        devices = chips(job["chip"], job["chips"])
        refresh = job["row"].endswith(REFRESH)
        if "config" in job:
            program = published_program(CONFIGS / f"{job['config']}.toml", devices[0], refresh)
        else:
            row = job["row"].removesuffix(REFRESH)
            needs = refresh if row in METHODS and METHODS[row].occasional else None
            program = make_program(NETWORKS[job["network"]], mesh_of(devices), job["layout"], row, needs)
        stamp = {
            "parameter_bytes": program.parameter_bytes,
            "batch_size_per_chip": program.batch_size,
            "device": devices[0].device_kind,
            "versions": versions("optax_sam", "jax", "optax", "flax", "libtpu"),
        }
        wall, processor = time.perf_counter(), time.process_time()
        try:
            compiled = compile_program(program)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return [{"fits": False, "message": str(error).splitlines()[0], **stamp}]
        seconds = {
            "compile_seconds": time.perf_counter() - wall,
            "compile_processor_seconds": time.process_time() - processor,
        }
        return [{"fits": True, **counts(compiled), **seconds, **stamp}]

    def tables(self, frame: pd.DataFrame, results: Path) -> Tables:
        """The tables of one page."""
        return {"docs/evidence/tpu.md": fill(frame)}


def is_occasional(config: str) -> bool:
    """Whether the method of a file of published settings has steps that do more."""
    return METHODS[tomllib.loads((CONFIGS / f"{config}.toml").read_text())["method"]].occasional


def chips(chip: str, number: int) -> list[Any]:
    """Describes chips to compile for.

    Raises:
        UsageError: if the compiler is not installed, or another process uses it.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(
            "the TPU's compiler is not installed: it is the package `libtpu`, which `pip install 'jax[tpu]'` "
            "brings, or `pip install '.[benchmarks,tpu]'` here; it needs Linux, and no TPU"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # there is no TPU to start
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip, number])
    except Exception as error:
        if "libtpu" not in str(error):
            raise
        raise UsageError(
            f"another process uses the TPU's compiler; wait for its end, or set ALLOW_MULTIPLE_LIBTPU_LOAD=1 "
            f"for both ({error})"
        ) from error
    return list(found.devices[:number])


def counts(compiled: jax.stages.Compiled) -> Record:
    """What the compiler says; loops are counted as often as they run."""
    own, costs, memory = read(compiled.as_text()), compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "flops": costs["flops"] * own.pop("flops_factor"),
        "bytes_accessed": costs["bytes accessed"] * own.pop("bytes_factor"),
        **own,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
    }
