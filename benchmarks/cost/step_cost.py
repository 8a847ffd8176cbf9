"""What a step of every method costs, compared with SAM by hand, `optax.contrib.sam` and PyTorch's SAM.

    python -m benchmarks.cost.step_cost             # the whole table
    python -m benchmarks.cost.step_cost --quick     # a part of it, nothing is stored
    python -m benchmarks.cost.step_cost --models mlp --batch-sizes 512
    python -m benchmarks.cost.step_cost --resume    # only what the result file lacks
    python -m benchmarks.cost.step_cost --reuse     # writes docs/cost.md from the result file

All rows of a network and batch size are measured in one run, taking turns, on `jax.devices()[0]`. Flops,
bytes and temporary memory are counted by the compiler and are the same on every run. Times are medians over
the rounds, and their ratios are taken within a round. Rows of PyTorch appear if it is installed:
`pip install torch==2.13.0 pytorch_optimizer==4.1.0` (`torch_rows.py`).

- "by hand" is SAM in one jitted function, the least that SAM can cost: two gradients, one norm.
- Rows without a remark are steps with `refresh=False`, that is, nearly all steps. "refresh" rows are steps
  with `refresh=True`, "automatic" rows are those of the program that decides by itself (`refresh=None`),
  timed between refreshes.
- "automatic refresh" is a refresh within that program, in a `cond`.
- One forward pass and one gradient are shown as units for the refreshes.
"""

import dataclasses
import functools
import importlib.util
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.cost.steps import (
    FOR_ACCELERATORS,
    LEARNING_RATE,
    MOMENTUM,
    NETWORKS,
    RHO,
    SLOW,
    compile_step,
    counts,
    make_loss,
    make_steps,
)
from benchmarks.records import RESULTS, Record, read_records, versions, write_records
from benchmarks.reports import step_cost_table
from benchmarks.tables import DOCS, fill_tables

RESULT_FILE = RESULTS / "step_cost.jsonl"
DOCUMENT = DOCS / "cost.md"
BATCH_SIZES = {
    "mlp": (32, 128, 512),
    "strided_cnn": (32, 128, 512),
    "resnet8": (32, 128),
    "transformer": (32, 128),
    "resnet18": (128,),
}
# Refreshes are measured with this batch size only.
REFRESH_BATCH_SIZE = 128
SGD = {"jax": "sgd", "torch": "torch.optim.SGD"}
PACKAGES = {
    "jax": ("jax", "jaxlib", "flax", "optax", "optax_sam"),
    "torch": ("torch", "pytorch_optimizer"),
}
QUICK_MODELS = ("mlp", "strided_cnn", "transformer")
QUICK_ROWS = ("sgd", "sam by hand", "optax.contrib.sam", "sam", "info_sam", "eigen_sam", "xsam")


@dataclasses.dataclass(frozen=True)
class Config:
    """The measurement."""

    models: tuple[Literal[*NETWORKS], ...] = tuple(name for name in NETWORKS if name not in FOR_ACCELERATORS)
    """Networks: on images of 28 x 28 (resnets: 32 x 32 x 3) in 10 classes, or sequences of 64 tokens. Left
    out: all but resnet18, which is for accelerators."""
    rows: tuple[str, ...] = ()
    """The lines of the table. Left out: all."""
    batch_sizes: tuple[int, ...] = ()
    """Examples per step. Left out: 32, 128 and, for the first two networks, 512."""
    rounds: int = 30
    """How often every row is timed, at most; refreshes three times. 0: only counts, no times."""
    seconds: float = 25.0
    """Time after which no further round of a network and batch size begins, except the first seven."""
    num_iters: int = 5
    """Hessian-vector products in a refresh of Eigen-SAM."""
    num_alphas: int = 21
    """Losses in a refresh of XSAM."""
    torch: bool = True
    """Measure PyTorch as well, if it is installed."""
    quick: bool = False
    """Three networks, one batch size, the most important rows, five rounds; nothing is stored."""
    resume: bool = False
    """Skip what the result file already has from this device and these versions."""
    reuse: bool = False
    """Measure nothing: write the tables of the result file."""
    output: Path = RESULT_FILE
    """Result file, one line of JSON per row, written after each network and batch size; its lines of other
    devices, networks and batch sizes are kept."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table, with a function that makes steps and waits for them."""

    framework: str
    run: Callable[[int], None]
    counts: dict[str, Any]
    is_refresh: bool = False


def is_chosen(config: Config, row: str, model: str, batch_size: int) -> bool:
    """Whether this row is measured with this network and batch size."""
    if config.quick:
        return row in QUICK_ROWS
    if config.rows and row not in config.rows:
        return False
    if "refresh" in row or "automatic" in row:
        return batch_size == REFRESH_BATCH_SIZE and (row, model) != (SLOW, "resnet8")
    return True


def jax_rows(config: Config, model: str, batch_size: int) -> dict[str, Row]:
    """Compiles the steps of every method."""
    loss, params, batch = make_loss(model, batch_size)
    steps = {
        name: step
        for name, step in make_steps(
            loss, params, num_iters=config.num_iters, num_alphas=config.num_alphas
        ).items()
        if is_chosen(config, name, model, batch_size)
    }
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    rows = {}
    for name, (step, carry) in tqdm(steps.items(), desc=f"{model}, {batch_size}: compiling"):
        began = time.perf_counter()
        compiled = compile_step(step, carry, batch)
        first_call = {"first_call_seconds": time.perf_counter() - began}
        state = {"state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(carry[1]))}
        rows[name] = Row(
            "jax",
            functools.partial(run_jax, compiled, [jax.tree.map(jnp.copy, carry)], batch),
            {**counts(compiled), **state, **first_call, "parameter_bytes": size},
            "refresh" in name,
        )
    if "xsam, refresh" in rows:  # XLA counts one pass of its loop over the losses.
        without, once = rows["xsam"].counts, rows["xsam, refresh"].counts
        for key in ("flops", "bytes_accessed"):
            once[key] = without[key] + config.num_alphas * (once[key] - without[key])
    return rows


def run_jax(compiled: jax.stages.Compiled, carry: list[Any], batch: Any, steps: int) -> None:
    """Makes steps from the only element of `carry`, which it replaces."""
    for _ in range(steps):
        carry[0] = compiled(carry[0], batch)
    jax.block_until_ready(carry[0])


def torch_rows(config: Config, model: str, batch_size: int) -> dict[str, Row]:
    """The same network and batch in PyTorch, if it is installed and has the same device."""
    if not config.torch or any(importlib.util.find_spec(p) is None for p in ("torch", "pytorch_optimizer")):
        return {}
    from benchmarks.cost import torch_rows as in_torch

    if not in_torch.has_device(jax.devices()[0].platform):
        return {}
    loss, params, batch = make_loss(model, batch_size)
    made = in_torch.make_rows(
        model,
        jax.device_get(params),
        jax.device_get(batch),
        float(loss(params, batch)),
        in_torch.Settings(RHO, LEARNING_RATE, MOMENTUM, jax.devices()[0].platform),
    )
    return {name: Row("torch", *row) for name, row in made.items()}


def take_turns(rows: dict[str, Row], rounds: int, seconds: float, description: str) -> dict[str, list[float]]:
    """Measures seconds per step, in rounds in which all rows take turns."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    steps = dict.fromkeys(rows, 1)
    began = time.perf_counter()
    for i in tqdm(range(rounds + 1), desc=description, unit="round"):
        if i > 7 and time.perf_counter() - began > seconds:
            break
        framework = ""
        for name, row in rows.items():
            if row.is_refresh and i > 3:
                continue
            if row.framework != framework:  # Lets the threads of the other framework go idle.
                framework = row.framework
                time.sleep(0.05)
            start = time.perf_counter()
            row.run(steps[name])
            elapsed = (time.perf_counter() - start) / steps[name]
            if i > 0:
                times[name].append(elapsed)
            elif not row.is_refresh:  # The first round warms up and sets the number of steps per turn.
                steps[name] = min(max(round(0.05 / elapsed), 1), 20)
    return times


def measure(config: Config, model: str, batch_size: int) -> list[Record]:
    """One record per row."""
    rows = {**jax_rows(config, model, batch_size), **torch_rows(config, model, batch_size)}
    times = take_turns(rows, config.rounds, config.seconds, f"{model}, {batch_size}") if config.rounds else {}
    return [
        {
            "model": model,
            "batch_size": batch_size,
            "row": name,
            "framework": row.framework,
            **row.counts,
            **(seconds(times[name], times[SGD[row.framework]]) if times else {"rounds": 0}),
            **place(),
            "versions": versions(*PACKAGES[row.framework]),
        }
        for name, row in rows.items()
    ]


def seconds(own: list[float], sgd: list[float]) -> dict[str, Any]:
    """Returns quartiles over the rounds. Ratios are taken within a round, so the machine's drift cancels."""
    return {
        "seconds": spread(own),
        "seconds_relative_to_sgd": spread([a / b for a, b in zip(own, sgd, strict=False)]),
        "rounds": len(own),
    }


def spread(values: list[float]) -> list[float]:
    """Returns the quartiles; the second is the median."""
    return np.percentile(values, (25, 50, 75)).tolist()


def place() -> dict[str, str]:
    """The device and machine of the measurement."""
    return {
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def combinations(config: Config) -> Iterator[tuple[str, int]]:
    """Yields (network, batch size)."""
    for model in config.models:
        yield from ((model, batch_size) for batch_size in config.batch_sizes or BATCH_SIZES[model])


def identity(record: Record) -> tuple[Any, ...]:
    """What identifies a run."""
    return tuple(record[key] for key in ("device", "machine", "model", "batch_size"))


def write(records: list[Record], path: Path) -> None:
    """Replaces the lines of these devices, networks and batch sizes, and keeps all others."""
    new = {identity(record) for record in records}
    kept = [record for record in read_records(path) if identity(record) not in new]
    write_records(path, kept + records)


def is_stored(model: str, batch_size: int, path: Path) -> bool:
    """Whether the result file has times from this device and these versions."""
    wanted = {"model": model, "batch_size": batch_size, **place()}
    return any(
        identity(record) == identity(wanted)
        and record["versions"] == versions(*PACKAGES["jax"])
        and "seconds" in record
        for record in read_records(path)
    )


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, prog="python -m benchmarks.cost.step_cost", description=__doc__)
    if config.quick:
        config = dataclasses.replace(config, models=QUICK_MODELS, batch_sizes=(128,), rounds=5)
    records = []
    for model, batch_size in () if config.reuse else combinations(config):
        if config.resume and is_stored(model, batch_size, config.output):
            continue
        new = measure(config, model, batch_size)
        records += new
        if not config.quick:
            write(new, config.output)
    if not config.quick:
        records = read_records(config.output)
    print(step_cost_table.markdown(records))
    if config.output == RESULT_FILE and not config.quick:
        fill_tables(DOCUMENT, {"step_cost": step_cost_table.markdown(records)})
        print(f"Every number: {config.output}\nThese tables: {DOCUMENT}")


if __name__ == "__main__":
    main()
