"""What a step of every method costs, compared with SAM by hand and `optax.contrib.sam`.

All rows of a network and batch size are measured in one run, taking turns, on `jax.devices()[0]`. Flops,
bytes and temporary memory are counted by the compiler and are the same on every run. Times are medians over
the rounds, and their ratios are taken within a round. The records of PyTorch were made by a program that git
keeps (`benchmarks/cost/torch_rows.py`, until November 2026).

- "by hand" is SAM in one jitted function, the least that SAM can cost: two gradients, one norm.
- Rows without a remark are steps with `refresh=False`, that is, nearly all steps. "refresh" rows are steps
  with `refresh=True`, "automatic" rows are steps of the program that decides by itself (`refresh=None`),
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
from benchmarks.tables import table

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
# Measured, and left out of the table.
NOT_SHOWN = (
    *("forward pass", "sam, 3 steps", "sam, ascent on 1/8", "xsam, automatic"),
    *("look_sam, refresh", "sparse_sam, refresh"),
)
TITLES = {
    "mlp": "MLP",
    "strided_cnn": "CNN",
    "resnet8": "ResNet-8",
    "transformer": "transformer",
    "resnet18": "ResNet-18",
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
        """For each device one table of all networks, and the times of SGD and SAM beside PyTorch's."""
        parts = []
        for (device, machine), own in frame.groupby(["device", "machine"]):
            about = f"On {device} ({machine}); {provenance(own)}."
            parts += [about, cost_table(own), absolute_table(own)]
        return {"docs/evidence/cost.md": {"step_cost": "\n\n".join(parts)}}


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
    """Returns the versions, the rounds, and how far the quartiles of a ratio are apart."""
    jax_only = frame[frame["framework"] == "jax"]
    found: dict[str, set[str]] = {}
    for packages in frame["versions"]:
        for package, version in packages.items():
            found.setdefault(package, set()).add(version)
    rounds = jax_only[~jax_only["row"].str.contains("refresh")]["rounds"]
    names = ", ".join(f"{package} {' and '.join(sorted(own))}" for package, own in found.items())
    few, many = rounds.min(), rounds.max()
    if many == 0:
        return f"{names}; counts alone"
    if few == 0:  # Rows that were added to those of an earlier run.
        few = rounds[rounds > 0].min()
        names += "; rows without a time: counts alone"
    apart = jax_only["seconds_relative_to_sgd"].dropna().map(lambda own: 100 * (own[2] - own[0]) / own[1])
    counted = str(few) if few == many else f"{few} to {many}"
    return f"{names}; {counted} rounds; the quartiles of a ratio are {apart.median():.0f} % apart (median)"


def at_one_size(frame: pd.DataFrame) -> dict[tuple[str, str], Record]:
    """Returns the records by network and row, at the batch size with refreshes, else at the largest."""
    found = {}
    for model in TITLES:
        sizes = frame[frame["model"] == model]["batch_size"]
        size = REFRESH_BATCH_SIZE if (sizes == REFRESH_BATCH_SIZE).any() else sizes.max()
        for record in frame[(frame["model"] == model) & (frame["batch_size"] == size)].to_dict("records"):
            found[model, record["row"]] = record
    return found


def cost_table(frame: pd.DataFrame) -> str:
    """Returns the rows of JAX on one device: counts of the first network, then the time with each."""
    own = at_one_size(frame[frame["framework"] == "jax"])
    models = list(dict.fromkeys(model for model, _ in own))
    first = models[0]
    unit = own[first, "sgd"]
    lines = []
    for row in dict.fromkeys(row for _, row in own):
        if (first, row) not in own or row in NOT_SHOWN:
            continue
        record = own[first, row]
        lines.append(
            [
                row,
                "–" if "automatic" in row else ratio(record, unit, "flops"),
                ratio(record, unit, "temporary_bytes"),
                state(record),
                *(time_of(own.get((model, row))) for model in models),
            ]
        )
    return table(["", "flops", "memory", "state", *(TITLES[model] for model in models)], lines)


def absolute_table(frame: pd.DataFrame) -> str:
    """Returns the medians of the time of a step of SGD and of SAM, in JAX and in PyTorch."""
    rows = {"SGD": "sgd", "SAM": "sam", "SGD, PyTorch": SGD["torch"], "SAM, PyTorch": "pytorch_optimizer.SAM"}
    own = at_one_size(frame)
    lines = [
        [TITLES[model], *(absolute_time(own.get((model, row))) for row in rows.values())]
        for model in TITLES
        if (model, "sgd") in own
    ]
    return table(["", *rows], lines)


def ratio(record: Record, unit: Record, key: str) -> str:
    """Returns a count relative to SGD's."""
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
    """Returns the median of the ratio to SGD."""
    if record is None or not isinstance(record.get("seconds"), list):
        return "–"
    return f"{record['seconds_relative_to_sgd'][1]:.2f}"


def absolute_time(record: Record | None) -> str:
    """Returns the median of the time."""
    if record is None or not isinstance(record.get("seconds"), list):
        return "–"
    return duration(record["seconds"][1])
