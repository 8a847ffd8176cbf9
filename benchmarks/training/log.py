"""The log of a training run: `metrics.jsonl`, one JSON object per line, and the same for TensorBoard.

    tensorboard --logdir runs

shows the curves of all runs in the folder `runs`, with the package `tensorboard` installed.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
from tensorboardX import SummaryWriter

from benchmarks.errors import UsageError
from benchmarks.records import read_records, versions, write_records
from benchmarks.training.config import NOT_PART_OF_THE_RUN, Config


class Log:
    """The records of a run, starting with the configuration."""

    def __init__(self, folder: Path, config: Config):
        self.path = folder / "metrics.jsonl"
        self.tensorboard: SummaryWriter | None = None
        identity = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(config).items()
            if name not in NOT_PART_OF_THE_RUN
        }
        self.start = {
            "event": "start",
            "config": identity,
            "versions": versions("optax_sam", "jax", "jaxlib", "optax", "flax", "numpy"),
            "device": jax.devices()[0].device_kind,
        }

    def check_same_run(self, resume: bool) -> None:
        """Refuses to overwrite a run, or to continue a different one.

        Args:
            resume: whether the user asked to continue.

        Raises:
            UsageError: with what to write instead.
        """
        if not self.path.exists():
            return
        if not resume:
            raise UsageError(
                f"{self.path.parent} already holds a run; add --resume to continue it, or choose "
                "another --output folder"
            )
        records = read_records(self.path)
        before, now = records[0]["config"] if records else {}, self.start["config"]
        changed = [f"{key}: {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        if changed:
            raise UsageError(
                f"{self.path.parent} holds a run with other settings ({'; '.join(changed)}); "
                "resume it with its own settings, or choose another --output folder"
            )

    def begin(self, step: int) -> None:
        """Starts the files, or truncates them at the step from which a run continues."""
        records = [self.start]
        if step:
            before = read_records(self.path)
            records += [record for record in before if record.get("step", step + 1) <= step]
            records.append(self.start | {"event": "resume", "step": step})
        write_records(self.path, records)
        # If the run was killed, some points may not be on disk: hide earlier files and write all again.
        self.tensorboard = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=0)
        for record in records:
            self.show(record)

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line, and its numbers to TensorBoard."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.show(record)

    def show(self, record: dict[str, Any]) -> None:
        """Writes the numbers of a record for TensorBoard."""
        if record["event"] in ("start", "resume"):
            return
        for name, value in scalars(record):
            self.tensorboard.add_scalar(name, value, record["step"])
        self.tensorboard.flush()

    def __enter__(self) -> Self:
        """Does nothing: `begin` opens the files."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Closes the files."""
        if self.tensorboard is not None:
            self.tensorboard.close()


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record; nested ones are named like `validation/accuracy`."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name not in ("step", "seed"):
            yield prefix + name, value
