"""Result files: one JSON object per line, with the versions on which it depends."""

import functools
import importlib.metadata
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

Record = dict[str, Any]
RESULTS = Path(__file__).parent / "results"


def read_records(file: Path) -> list[Record]:
    """The lines of a result file; none if it is missing, and without an incomplete last line."""
    records = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def write_records(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a result file, atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial_file = file.with_suffix(".partial")
    partial_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    os.replace(partial_file, file)


@functools.cache
def versions(*packages: str) -> dict[str, str]:
    """Versions of packages; by default of those on which every result depends."""
    packages = packages or ("optax_sam", "jax", "optax", "flax")
    return {name: importlib.metadata.version(name) for name in packages}


def versions_and_device() -> dict[str, str]:
    """The same, and the machine's device."""
    return versions() | {"device": jax.devices()[0].device_kind}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.mean(values), error
