"""What a step of every method costs, compared with SAM by hand and `optax.contrib.sam`.

All rows of a network are measured in one run, taking turns, on `jax.devices()[0]`. Flops
and temporary memory are counted by the compiler and are the same on every run. Times are medians over
the rounds, and their ratios are taken within a round. The records of PyTorch were made by a program that git
keeps (`benchmarks/cost/torch_rows.py`, until November 2026).

- "by hand" is SAM in one jitted function, the least that SAM can cost: two gradients, one norm.
- Rows without a remark are steps with `refresh=False`, that is, nearly all steps. "refresh" rows are steps
  with `refresh=True`, "automatic" rows are steps of the program that decides by itself (`refresh=None`),
  timed between refreshes.
- "automatic refresh" is a refresh within that program, in a `cond`.
- One gradient is shown as the unit for the refreshes.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
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

PACKAGES = ("jax", "jaxlib", "flax", "optax", "optax_sam")
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
    models: tuple[str, ...] = tuple(TITLES)
    batch_size: int = 128  # examples per step
    rows: tuple[str, ...] = ()  # the lines of the tables; empty: all
    rounds: int = 30  # how often every row is timed, at most; refreshes three times. 0: only counts, no times
    # Time after which no further round of a network begins, except the first seven.
    seconds: float = 25.0
    num_iters: int = 5  # Hessian-vector products in a refresh of Eigen-SAM
    num_alphas: int = 21  # losses in a refresh of XSAM

    def jobs(self, records: list[Record]) -> list[Job]:
        """One for each network on this device; large networks only on accelerators."""
        is_cpu = jax.devices()[0].platform == "cpu"
        return [
            {"model": model, "batch_size": self.batch_size} | device_and_machine()
            for model in self.models
            if not (is_cpu and model in FOR_ACCELERATORS)
        ]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """One record per row."""
        rows = compiled_rows(self, job["model"])
        times = take_turns(rows, self.rounds, self.seconds, job["model"]) if self.rounds else {}
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


def compiled_rows(cost: StepCost, model: str) -> dict[str, Row]:
    """Compiles the steps of every method."""
    loss, params, batch = make_loss(model, cost.batch_size)
    steps = {
        name: step
        for name, step in make_steps(
            loss, params, num_iters=cost.num_iters, num_alphas=cost.num_alphas
        ).items()
        if (not cost.rows or name in cost.rows) and (name, model) != (SLOW, "resnet8")
    }
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    rows = {}
    for name, (step, carry) in tqdm(steps.items(), desc=f"{model}: compiling"):
        compiled = compile_step(step, carry, batch)
        state = {"state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(carry[1]))}
        rows[name] = Row(
            functools.partial(run, compiled, [jax.tree.map(jnp.copy, carry)], batch),
            {**counts(compiled), **state, "parameter_bytes": size},
            "refresh" in name,
        )
    for name, times in {
        "xsam, refresh": cost.num_alphas,
        "eigen_sam, refresh": cost.num_iters,
        "eigen_sam, refresh by lanczos": cost.num_iters,
    }.items():
        if name in rows and rows[name].counts["control_flow"]:  # XLA counts one pass of a loop.
            without, once = rows[name.split(",")[0]].counts, rows[name].counts
            once["flops"] = without["flops"] + times * (once["flops"] - without["flops"])
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


def by_network(frame: pd.DataFrame) -> dict[tuple[str, str], Record]:
    """Returns the records by network and row, in the order of the networks' titles."""
    records = sorted(frame.to_dict("records"), key=lambda record: [*TITLES].index(record["model"]))
    return {(record["model"], record["row"]): record for record in records}


def cost_table(frame: pd.DataFrame) -> str:
    """Returns the rows of JAX on one device: counts of the first network, then the time with each."""
    own = by_network(frame[frame["framework"] == "jax"])
    models = list(dict.fromkeys(model for model, _ in own))
    first = models[0]
    unit = own[first, "sgd"]
    lines = []
    for row in dict.fromkeys(row for _, row in own):
        if (first, row) not in own:
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
    rows = {
        "SGD": "sgd",
        "SAM": "sam",
        "SGD, PyTorch": "torch.optim.SGD",
        "SAM, PyTorch": "pytorch_optimizer.SAM",
    }
    own = by_network(frame)
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
    return "–" if np.isnan(value) or record["row"] == "gradient" else f"{value:.2f}"


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
