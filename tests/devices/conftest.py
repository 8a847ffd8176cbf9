"""Starts the workers of all tests selected, side by side."""

from collections.abc import Iterator

import pytest

from tests.devices.processes import Checks, Process, checks_of


@pytest.fixture(scope="session")
def workers(request) -> Iterator[dict[str, Process]]:
    modules = {getattr(getattr(item, "module", None), "WORKER", None) for item in request.session.items}
    started: dict[str, Process] = {}
    try:
        for module in sorted(filter(None, modules)):
            started[module] = Process(module)
        yield started
    finally:
        for process in started.values():
            process.kill()


@pytest.fixture(scope="module")
def checks(request, workers) -> Checks:
    """What the worker of the test's module (its `WORKER`) found, by the name of the check."""
    return checks_of(workers[request.module.WORKER])
