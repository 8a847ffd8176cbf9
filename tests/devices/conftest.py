"""Eight simulated devices, and float64.

JAX fixes the number of devices when it first computes something. So these tests run in a process in which
nothing else has been computed before.
"""

import os
from collections.abc import Iterator

import jax
import pytest

from tests.devices.layouts import NUM_DEVICES

TOO_LATE = "tests/devices run in a process of their own: `make test`, or `pytest tests/devices`"

# XLA's threads, read when the devices are made. All devices wait in an all-reduce, so with several programs
# in flight as many threads as devices are too few: they deadlock on a machine with fewer than 16 cores.
os.environ.setdefault("NPROC", "64")

try:
    jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
    jax.config.update("jax_platforms", "cpu")
except RuntimeError:
    pass  # Something has been computed; `pytest_collect_file` says so.


def pytest_collect_file() -> None:
    if jax.device_count() < NUM_DEVICES or jax.default_backend() != "cpu":
        raise pytest.UsageError(TOO_LATE)


@pytest.fixture(scope="module", autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield
