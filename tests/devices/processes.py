"""Starts Python processes with simulated devices of their own, and ends them whatever happens.

The number of devices is fixed when JAX starts. A worker is a module that prints JSON lines;
in `tests/benchmarks` one for each check:

    {"check": ["sam", "pmap"], "difference": 1e-16}        or, where it raised,        {..., "error": "..."}
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Checks = dict[tuple[str, ...], dict[str, Any]]


class Process:
    """`python -m module` as the leader of a process group of its own, in float64 on CPU."""

    def __init__(self, module: str, *arguments: str, num_devices: int = 8, xla_flags: str = ""):
        environment = os.environ | {
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # LLVM's only: compiles in half the time
            "JAX_ENABLE_X64": "1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # many small programs, if there is a cache
            "JAX_PLATFORMS": "cpu",
            "NPROC": "64",  # XLA's threads: see conftest.py
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices} {xla_flags}",
        }
        # Files, not pipes: nobody reads while the process runs, and a full pipe would stop it.
        self.output, self.errors = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=self.output,
            stderr=self.errors,
            start_new_session=True,
        )

    def lines(self) -> list[dict[str, Any]]:
        """Returns what was printed so far."""
        self.output.seek(0)
        text = self.output.read()
        complete = text[: text.rfind("\n") + 1].splitlines()
        return [json.loads(line) for line in complete if line.startswith("{")]

    def finish(self, timeout: float) -> list[dict[str, Any]]:
        """Waits for the end and returns what was printed; raises if it failed."""
        code = self.process.wait(timeout)
        self.errors.seek(0)
        assert code == 0, f"{self.process.args} ended with {code}:\n{self.errors.read()[-4000:]}"
        return self.lines()

    def kill(self) -> None:
        """Ends the process and all that it started, at once: JAX catches SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def checks_of(process: Process, timeout: float = 1800) -> Checks:
    """Returns the lines of a worker by the name of the check."""
    return {tuple(line.pop("check")): line for line in process.finish(timeout)}


@contextlib.contextmanager
def reported(*check: str) -> Iterator[Callable[..., None]]:
    """In a worker: prints the line of one check, with the error if the body raises."""
    line: dict[str, Any] = {"check": check}
    try:
        yield lambda **results: line.update(results)
    except Exception as error:
        line["error"] = f"{type(error).__name__}: {error}\n{traceback.format_exc()[-3000:]}"
    print(json.dumps(line), flush=True)


def result(checks: Checks, *check: str) -> dict[str, Any]:
    """In a test: returns the line of one check; fails where it raised."""
    line = checks[check]
    assert "error" not in line, line["error"]
    return line
