"""Starts the worker of each module of tests."""

from collections.abc import Iterator

import pytest

from tests.devices.processes import Checks, Process, checks_of


@pytest.fixture(scope="module")
def checks(request) -> Iterator[Checks]:
    """What the worker of the test's module (its `WORKER`) found, by the name of the check."""
    process = Process(request.module.WORKER)
    try:
        yield checks_of(process)
    finally:
        process.kill()
