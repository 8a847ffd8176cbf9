"""What the compilers for accelerators say about training steps, without an accelerator.

`libtpu` compiles for chips that are described, not there. Flops, bytes and memory are the compiler's counts
for one chip, cycles its estimates for the scheduled program (collectives have none), compile times those of
the machine that compiles. Nothing is run, so there are no times of a step.

    pip install '.[benchmarks,tpu]'
    python -m benchmarks tpu --where network=decoder_40m

A program takes minutes to compile, and one process at a time can use libtpu. The rows for a GPU need JAX's
plug-in for CUDA, `pip install 'jax[cuda12]'`.
"""

import dataclasses
import time
import tomllib
from pathlib import Path

import jax
import pandas as pd

from benchmarks.cost.chips import chips, compiler
from benchmarks.cost.published import published_program
from benchmarks.cost.schedule import read
from benchmarks.cost.tpu_programs import HAND, NETWORKS, compile_program, make_program, mesh_of
from benchmarks.cost.tpu_tables import fill
from benchmarks.experiment import Experiment, Job, Tables
from benchmarks.methods import METHODS
from benchmarks.records import Record, versions

REFRESH = " refresh"  # on the command line a comma separates rows
SAM = ("base", f"sam{HAND}", "sam")
OTHERS = ("asam", "momentum_sam", "eigen_sam", "fisher_sam", "info_sam", "xsam")
PAIRS = tuple(name for method in OTHERS for name in (method + HAND, method))
REFRESHES = (f"eigen_sam{REFRESH}{HAND}", *(f"{method}{REFRESH}" for method in ("eigen_sam", "xsam")))
# Chip, number of chips, network, layout, rows: the most telling first.
PLAN: tuple[tuple[str, int, str, str, tuple[str, ...]], ...] = (
    ("v5e", 8, "decoder_40m", "data", SAM),
    ("v5e", 8, "decoder_18m", "data", (*SAM, *PAIRS)),
    ("v5e", 8, "decoder_6m", "data", SAM),
    ("v5e", 8, "decoder_6m", "local", SAM),
    ("v5e", 8, "decoder_6m", "fsdp", SAM),
    ("v5e", 256, "decoder_6m", "data", SAM),
    ("v5e", 8, "decoder_6m", "data", REFRESHES),
    ("v5e", 1, "decoder_6m", "data", SAM),
    ("v6e", 8, "decoder_6m", "data", SAM),
    ("v5p", 8, "decoder_6m", "data", SAM),
    ("h100", 8, "decoder_18m", "data", (*SAM, *PAIRS, *REFRESHES)),
    ("h100", 8, "resnet18", "data", SAM),
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
PUBLISHED = "published"  # the networks of the files of published settings
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
            {"chip": "v5e", "chips": 1, "network": PUBLISHED, "config": config, "row": row}
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
            "versions": versions("optax_sam", "jax", "optax", "flax", compiler(job["chip"])),
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


def counts(compiled: jax.stages.Compiled) -> Record:
    """What the compiler says; loops are counted as often as they run. That for GPUs counts no flops."""
    own, memory = read(compiled.as_text()), compiled.memory_analysis()
    flops, moved = own.pop("flops_factor"), own.pop("bytes_factor")
    if costs := compiled.cost_analysis():
        own |= {"flops": costs["flops"] * flops, "bytes_accessed": costs["bytes accessed"] * moved}
    return {
        **own,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
    }
