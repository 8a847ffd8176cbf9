"""How long a step takes to compile if the network has many small parameter arrays.

The network has layers of two units: many arrays, and little else to compile. Steps are those
between refreshes (`refresh=False`). The time is processor time to trace, lower and compile, so that it means
something on a busy machine too; in each repeat the methods take turns.
"""

import dataclasses
import itertools
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pandas as pd

import optax_sam
from benchmarks.experiment import Experiment, Job, Tables
from benchmarks.methods import METHODS
from benchmarks.records import Record
from benchmarks.tables import table, where

FIRST = ("sam", "eigen_sam", "xsam", "info_sam")
OTHERS = tuple(name for name in METHODS if name in optax_sam.__all__ and name not in (*FIRST, "one_gradient"))
NUM_ARRAYS_OF_OTHERS = 100


@dataclasses.dataclass(frozen=True)
class CompileTime(Experiment):
    """Compile times."""

    name: str = "compile_time"
    is_alone: bool = True
    sizes: tuple[int, ...] = (50, 200, 1000)  # numbers of parameter arrays
    repeats: int = 5  # measurements of each

    def jobs(self, records: list[Record]) -> list[Job]:
        """The first methods with each number of arrays, all others with one."""
        return [{"arrays": size} for size in (*self.sizes, NUM_ARRAYS_OF_OTHERS)]

    def measure(self, job: Job, data_dir: Path) -> list[Record]:
        """The methods take turns."""
        compile_step("sam", 4)  # What JAX does once.
        names = ("sam", *OTHERS) if job["arrays"] == NUM_ARRAYS_OF_OTHERS else FIRST
        return [compile_step(name, job["arrays"]) for _ in range(self.repeats) for name in names]

    def tables(self, frame: pd.DataFrame, results: Path) -> Tables:
        """The first methods with every number of arrays, and the others."""
        sizes = sorted(where(frame, method="eigen_sam")["arrays"].unique())
        own = {size: compared(where(frame, arrays=size)) for size in (*sizes, NUM_ARRAYS_OF_OTHERS)}
        rows = [(name, *("{:.1f} s ({:.2f})".format(*own[size][name]) for size in sizes)) for name in FIRST]
        others = own[NUM_ARRAYS_OF_OTHERS]
        return {
            "docs/evidence/cost.md": {
                "compile_time": table(("", *(f"{size} arrays" for size in sizes)), rows),
                "compile_time_others": ", ".join(
                    f"`{name}` {others[name][1]:.2f}" for name in OTHERS if name in others
                ),
            }
        }


def compile_step(name: str, size: int) -> Record:
    """Times of the phases, in seconds, and the size of the compiled step."""
    params = [(jnp.ones((2, 2)), jnp.ones(2)) for _ in range(size // 2)]
    more = {key: value for key, value in METHODS[name].options.items() if key != "rho"}
    tx = getattr(optax_sam, name)(0.1, **more)

    def value_fn(params):
        x = jnp.ones((2, 2))
        for weight, bias in params:
            x = jnp.tanh(x @ weight + bias)
        return jnp.mean(x)

    def step(params, state):
        return tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn, refresh=False)

    state = jax.jit(tx.init)(params)
    jax.clear_caches()
    times = [time.process_time()]
    traced = jax.jit(step).trace(params, state)
    times.append(time.process_time())
    lowered = traced.lower()
    times.append(time.process_time())
    compiled = lowered.compile()
    times.append(time.process_time())
    trace, lower, compile_ = (after - before for before, after in itertools.pairwise(times))
    program = compiled.as_text()
    entry = program[program.index("\nENTRY") :]
    return {
        "method": name,
        "trace": trace,
        "lower": lower,
        "compile": compile_,
        "lines": program.count("\n"),
        "kernels": len(re.findall(r" (?:fusion|dot|copy)\(", entry)),
    }


def compared(frame: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Medians of the time and of its ratio to sam's in the same repeat, by method."""
    if frame.empty:
        return {}
    frame = frame.assign(seconds=frame["trace"] + frame["lower"] + frame["compile"])
    frame = frame.assign(turn=frame.groupby("method").cumcount())
    sam = where(frame, method="sam").set_index("turn")["seconds"]
    return {
        name: (own["seconds"].median(), (own.set_index("turn")["seconds"] / sam).median())
        for name, own in frame.groupby("method")
    }
