"""How long a step takes to compile if the network has many small parameter arrays.

    python -m benchmarks.cost.compile_time                   measures; fills the table of docs/cost.md
    python -m benchmarks.cost.compile_time --report-only     the table alone

The network has layers of two units: many arrays, and little else to compile. Steps are those
between refreshes (`refresh=False`). The time is processor time to trace, lower and compile, so that it means
something on a busy machine too; in each repeat the methods take turns.
"""

import dataclasses
import itertools
import re
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from tqdm import tqdm

import optax_sam
from benchmarks.records import RESULTS, Record, read_records, versions_and_device, write_records
from benchmarks.tables import DOCS, fill_tables, table

METHODS = ("sam", "eigen_sam", "xsam", "info_sam")
OTHERS = (
    *("asam", "fisher_sam", "presam", "vasso", "friendly_sam", "sparse_sam", "gsam", "wsam", "stable_sam"),
    *("lookbehind_sam", "bayesian_sam", "look_sam", "momentum_sam", "reverse_sam", "gradient_norm_penalty"),
)
NUM_ARRAYS_OF_OTHERS = 100
ARGUMENTS = {"bayesian_sam": {"num_examples": 1000}}


@dataclasses.dataclass(frozen=True)
class Options:
    """Compile times."""

    sizes: tuple[int, ...] = (50, 200, 1000)
    """Numbers of parameter arrays."""
    repeats: int = 5
    """Measurements of each."""
    others: bool = True
    """Also measure the methods of the second table, with 100 arrays."""
    report_only: bool = False
    """Measure nothing."""
    results: Path = RESULTS
    """Folder of the result file."""
    docs: Path = DOCS
    """Folder of cost.md."""


def measure(name: str, size: int) -> Record:
    """Times of the phases, in seconds, and the size of the compiled step."""
    params = [(jnp.ones((2, 2)), jnp.ones(2)) for _ in range(size // 2)]
    tx = getattr(optax_sam, name)(0.1, **ARGUMENTS.get(name, {}))

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
        "arrays": size,
        "trace": trace,
        "lower": lower,
        "compile": compile_,
        "lines": program.count("\n"),
        "kernels": len(re.findall(r" (?:fusion|dot|copy)\(", entry)),
        "versions": versions_and_device(),
    }


def cells(records: list[Record], name: str, size: int) -> list[str]:
    """Time, ratio to sam's, and size of the program, of one method."""
    times = {
        method: [
            r["trace"] + r["lower"] + r["compile"]
            for r in records
            if (r["method"], r["arrays"]) == (method, size)
        ]
        for method in (name, "sam")
    }
    ratios = [own / sam for own, sam in zip(times[name], times["sam"], strict=True)]
    last = next(r for r in records if (r["method"], r["arrays"]) == (name, size))
    seconds, ratio = statistics.median(times[name]), statistics.median(ratios)
    return [
        *(f"{seconds:.1f} s", f"{ratio:.2f}"),
        *(f"{last['kernels'] / size:.1f}", f"{last['lines'] / size:.0f}"),
    ]


def head(size: int) -> list[str]:
    """Titles of the columns of `cells`."""
    return [f"{size} arrays", "of sam's", "kernels per array", "lines per array"]


def tables(records: list[Record]) -> dict[str, str]:
    """The tables of the page."""
    sizes = sorted({r["arrays"] for r in records if r["method"] == "eigen_sam"})
    rows = [(name, *(cell for size in sizes for cell in cells(records, name, size))) for name in METHODS]
    found = {"compile_time": table(("", *(text for size in sizes for text in head(size))), rows)}
    if others := [name for name in OTHERS if any(r["method"] == name for r in records)]:
        size = NUM_ARRAYS_OF_OTHERS
        rows = [(name, *cells(records, name, size)) for name in ("sam", *others)]
        found["compile_time_others"] = table(("", *head(size)), rows)
    return found


def main() -> None:
    """The command line."""
    options = tyro.cli(Options, prog="python -m benchmarks.cost.compile_time", description=__doc__)
    file = options.results / "compile_time.jsonl"
    records = read_records(file)
    if not options.report_only:
        measure("sam", 4)  # What JAX does once.
        parts = [(size, METHODS) for size in options.sizes]
        parts += [(NUM_ARRAYS_OF_OTHERS, ("sam", *OTHERS))] if options.others else []
        for size, names in parts:
            records = [r for r in records if r["arrays"] != size]
            for _ in tqdm(range(options.repeats), desc=f"{size} arrays"):
                records += [measure(name, size) for name in names]
            write_records(file, records)
    fill_tables(options.docs / "cost.md", tables(records))


if __name__ == "__main__":
    main()
