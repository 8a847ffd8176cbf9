"""Result files: one JSON object per line, with the code, the versions and the machine that it depends on."""

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

Record = dict[str, Any]
ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
# Settings that older records call otherwise.
RENAMED = {"refresh_every": "interval"}


def read_records(file: Path) -> list[Record]:
    """The lines of a result file; none if it is missing, and without an incomplete last line."""
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        for part in ("settings", "fixed", "config"):
            if isinstance(record.get(part), dict):
                record[part] = {RENAMED.get(name, name): value for name, value in record[part].items()}
        records.append(record)
    return records


def write_records(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a result file, atomically: a process that is killed leaves the file as it was before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial_file = file.with_suffix(".partial")
    partial_file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    os.replace(partial_file, file)


@functools.cache
def versions(*packages: str) -> dict[str, str]:
    """Versions of packages; by default of those on which every result depends."""
    packages = packages or ("optax_sam", "jax", "optax", "flax")
    return {name: importlib.metadata.version(name) for name in packages}


def device_and_machine() -> dict[str, str]:
    """Where something is measured."""
    return {
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def commit() -> str:
    """The commit of the code, marked if the package or the benchmarks differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "optax_sam", "benchmarks/*.py", "pyproject.toml")
        return git("rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
