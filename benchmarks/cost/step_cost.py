"""What a step of every method costs, compared with SAM by hand and `optax.contrib.sam`.

All rows of a network and batch size are measured in one run, taking turns, on `jax.devices()[0]`. Flops,
bytes and temporary memory are counted by the compiler and are the same on every run. Times are medians over
the rounds, and their ratios are taken within a round. The records of PyTorch were made by a program that git
keeps (`benchmarks/cost/torch_rows.py`, until November 2026).

- "by hand" is SAM in one jitted function, the least that SAM can cost: two gradients, one norm.
- Rows without a remark are steps with `refresh=False`, that is, nearly all steps. "refresh" rows are steps
  with `refresh=True`, "automatic" rows are those of the program that decides by itself (`refresh=None`),
  timed between refreshes.
- "automatic refresh" is a refresh within that program, in a `cond`.
- One forward pass and one gradient are shown as units for the refreshes.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.cost.steps import (
    FOR_ACCELERATORS,
    SLOW,
    compile_step,
    counts,
    make_loss,
    make_steps,
)
from benchmarks.experiment import Experiment, Job, Tables
from benchmarks.records import Record, device_and_machine, versions
from benchmarks.tables import aligned, table

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
PACKAGES = ("jax", "jaxlib", "flax", "optax", "optax_sam")
TITLES = {
    "mlp": "MLP, 784-256-256-10",
    "strided_cnn": "Strided CNN, 16-32-32 channels, 28 x 28 x 1",
    "resnet8": "ResNet-8, 16-32-64 channels, group normalisation, 32 x 32 x 3",
    "transformer": "Transformer, 2 blocks of width 64, sequences of 64 of 256 tokens",
    "resnet18": "ResNet-18, BatchNorm, bfloat16, 32 x 32 x 3",
}


@dataclasses.dataclass(frozen=True)
class StepCost(Experiment):
    """The measurement."""

    name: str = "step_cost"
    is_alone: bool = True
    # Examples per step, for each network.
    batch_sizes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=lambda: BATCH_SIZES)
    rows: tuple[str, ...] = ()  # the lines of the tables; empty: all
    rounds: int = 30  # how often every row is timed, at most; refreshes three times. 0: only counts, no times
    # Time after which no further round of a network and batch size begins, except the first seven.
    seconds: float = 25.0
    num_iters: int = 5  # Hessian-vector products in a refresh of Eigen-SAM
    num_alphas: int = 21  # losses in a refresh of XSAM

    def jobs(self, records: list[Record]) -> list[Job]:
        """One for each network and batch size on this device; large networks only on accelerators."""
        is_cpu = jax.devices()[0].platform == "cpu"
        return [
            {"model": model, "batch_size": batch_size} | device_and_machine()
            for model, sizes in self.batch_sizes.items()
            if not (is_cpu and model in FOR_ACCELERATORS)
            for batch_size in sizes
        ]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """One record per row."""
        model, batch_size = job["model"], job["batch_size"]
        rows = compiled_rows(self, model, batch_size)
        title = f"{model}, {batch_size}"
        times = take_turns(rows, self.rounds, self.seconds, title) if self.rounds else {}
        return [
            {
                "row": name,
                "framework": "jax",
                **row.counts,
                **(seconds(times[name], times["sgd"]) if times else {"rounds": 0}),
                "versions": versions(*PACKAGES),
            }
            for name, row in rows.items()
        ]

    def tables(self, frame: pd.DataFrame, results: Path) -> Tables:
        """One table per device and network."""
        parts = []
        order = frame["model"].map(list(TITLES).index)
        for (device, machine, _), group in frame.groupby(["device", "machine", order]):
            title = TITLES[group["model"].iloc[0]]
            parts += [f"### {title}", f"On {device} ({machine}); {provenance(group)}.", cost_table(group)]
        return {"docs/cost.md": {"step_cost": "\n\n".join(parts)}}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table, with a function that makes steps and waits for them."""

    run: Callable[[int], None]
    counts: dict[str, Any]
    is_refresh: bool = False


def is_chosen(cost: StepCost, row: str, model: str, batch_size: int) -> bool:
    """Whether this row is measured with this network and batch size."""
    if cost.rows and row not in cost.rows:
        return False
    if "refresh" in row or "automatic" in row:
        return batch_size == REFRESH_BATCH_SIZE and (row, model) != (SLOW, "resnet8")
    return True


def compiled_rows(cost: StepCost, model: str, batch_size: int) -> dict[str, Row]:
    """Compiles the steps of every method."""
    loss, params, batch = make_loss(model, batch_size)
    steps = {
        name: step
        for name, step in make_steps(
            loss, params, num_iters=cost.num_iters, num_alphas=cost.num_alphas
        ).items()
        if is_chosen(cost, name, model, batch_size)
    }
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    rows = {}
    for name, (step, carry) in tqdm(steps.items(), desc=f"{model}, {batch_size}: compiling"):
        began = time.perf_counter()
        compiled = compile_step(step, carry, batch)
        first_call = {"first_call_seconds": time.perf_counter() - began}
        state = {"state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(carry[1]))}
        rows[name] = Row(
            functools.partial(run, compiled, [jax.tree.map(jnp.copy, carry)], batch),
            {**counts(compiled), **state, **first_call, "parameter_bytes": size},
            "refresh" in name,
        )
    for name, times in {
        "xsam, refresh": cost.num_alphas,
        "eigen_sam, refresh": cost.num_iters,
        "eigen_sam, refresh by lanczos": cost.num_iters,
    }.items():
        if name in rows and rows[name].counts["control_flow"]:  # XLA counts one pass of a loop.
            without, once = rows[name.split(",")[0]].counts, rows[name].counts
            for key in ("flops", "bytes_accessed"):
                once[key] = without[key] + times * (once[key] - without[key])
    return rows


def run(compiled: jax.stages.Compiled, carry: list[Any], batch: Any, steps: int) -> None:
    """Makes steps from the only element of `carry`, which it replaces."""
    for _ in range(steps):
        carry[0] = compiled(carry[0], batch)
    jax.block_until_ready(carry[0])


def take_turns(rows: dict[str, Row], rounds: int, seconds: float, description: str) -> dict[str, list[float]]:
    """Measures seconds per step, in rounds in which all rows take turns."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    steps = dict.fromkeys(rows, 1)
    began = time.perf_counter()
    for i in tqdm(range(rounds + 1), desc=description, unit="round"):
        if i > 7 and time.perf_counter() - began > seconds:
            break
        for name, row in rows.items():
            if row.is_refresh and i > 3:
                continue
            start = time.perf_counter()
            row.run(steps[name])
            elapsed = (time.perf_counter() - start) / steps[name]
            if i > 0:
                times[name].append(elapsed)
            elif not row.is_refresh:  # The first round warms up and sets the number of steps per turn.
                steps[name] = min(max(round(0.05 / elapsed), 1), 20)
    return times


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


def provenance(frame: pd.DataFrame) -> str:
    """Returns the versions, and the rounds measured."""
    found: dict[str, set[str]] = {}
    for packages in frame["versions"]:
        for package, version in packages.items():
            found.setdefault(package, set()).add(version)
    rounds = frame[~frame["row"].str.contains("refresh")]["rounds"]
    names = ", ".join(f"{package} {' and '.join(sorted(own))}" for package, own in found.items())
    few, many = rounds.min(), rounds.max()
    if many == 0:
        return f"{names}; counts alone"
    if few == 0:  # Rows that were added to those of an earlier run.
        few = rounds[rounds > 0].min()
        names += "; rows without a time: counts alone"
    return f"{names}; {few if few == many else f'{few} to {many}'} rounds"


def cost_table(frame: pd.DataFrame) -> str:
    """Returns the table of one network on one device: counts, then the time with every batch size."""
    sizes = sorted(frame["batch_size"].unique())
    own = {(record["row"], record["batch_size"]): record for record in frame.to_dict("records")}
    # Counts are shown for the batch size that has every row.
    shown = max(sizes, key=lambda size: ((frame["batch_size"] == size).sum(), -size))
    rows = frame.sort_values("batch_size", key=lambda size: size != shown, kind="stable")["row"].unique()
    units = {name: own[row, shown] for name, row in SGD.items() if (row, shown) in own}
    titles = ["", "flops", "bytes", "memory", "state", "first call", *(f"{size} examples" for size in sizes)]
    lines = []
    for row in rows:
        record = own[row, shown]
        unit = units[record["framework"]]
        lines.append(
            [
                f"**{row}**" if row == "sgd" else row,
                "–" if "automatic" in row else ratio(record, unit, "flops"),
                "–" if "automatic" in row else ratio(record, unit, "bytes_accessed"),
                ratio(record, unit, "temporary_bytes"),
                state(record),
                ratio(record, unit, "first_call_seconds"),
                *(time_of(own.get((row, size))) for size in sizes),
            ]
        )
    return aligned(table(titles, lines))


def ratio(record: Record, unit: Record, key: str) -> str:
    """Returns a count relative to SGD's; PyTorch counts only flops."""
    value = record[key] / unit[key]
    return f"{value:.2f}" if np.isfinite(value) else "–"


def state(record: Record) -> str:
    """Returns the optimizer's state in copies of the parameters."""
    value = record["state_bytes"] / record["parameter_bytes"]
    return "–" if np.isnan(value) or record["row"] in ("forward pass", "gradient") else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Three digits, in milliseconds below a second."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def time_of(record: Record | None) -> str:
    """Returns the ratio to SGD with its quartiles, and milliseconds."""
    if record is None or not isinstance(record.get("seconds"), list):
        return ""
    low, median, high = record["seconds_relative_to_sgd"]
    return f"{median:.2f} ({low:.2f}–{high:.2f}), {duration(record['seconds'][1])}"
