"""Two processes of four devices each; one is killed, the job is started again from the last checkpoint."""

import socket
import time

import pytest

from tests.devices.cluster import NUM_DEVICES, NUM_PROCESSES, SAVE_INTERVAL
from tests.devices.processes import Process

NUM_STEPS, KILLED_AT = 9, 5
TIMEOUT = 1800


@pytest.fixture
def processes():
    started = []
    yield started
    for process in started:
        process.kill()


def start_job(directory, processes):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    job = [
        Process(
            "tests.devices.cluster",
            *map(str, (port, i, directory, NUM_STEPS)),
            num_devices=NUM_DEVICES,
        )
        for i in range(NUM_PROCESSES)
    ]
    processes.extend(job)
    return job


def digests(lines):
    """Returns the digest of parameters and optimizer state after each step."""
    return {line["step"]: line["digest"] for line in lines}


def run(directory, processes):
    first, second = (digests(process.finish(TIMEOUT)) for process in start_job(directory, processes))
    assert first == second
    return first


def run_until_killed(directory, processes):
    """Kills one process in the middle of the training, and then the other, which would wait for it."""
    job = start_job(directory, processes)
    deadline = time.monotonic() + TIMEOUT
    while KILLED_AT not in digests(job[0].lines()):
        assert time.monotonic() < deadline
        if job[0].process.poll() is not None:
            job[0].finish(TIMEOUT)  # Raises with what went wrong.
        time.sleep(0.02)
    for process in reversed(job):
        process.kill()
    return digests(job[0].lines())


def test_job_resumes_bit_for_bit_after_a_process_was_killed(tmp_path, processes):
    uninterrupted = run(tmp_path / "uninterrupted", processes)
    assert sorted(uninterrupted) == list(range(1, NUM_STEPS + 1))

    before = run_until_killed(tmp_path / "interrupted", processes)
    assert max(before) < NUM_STEPS
    assert before == {step: uninterrupted[step] for step in before}

    after = run(tmp_path / "interrupted", processes)
    assert min(after) > 1, "started afresh"
    assert (min(after) - 1) % SAVE_INTERVAL == 0
    assert after == {step: uninterrupted[step] for step in range(min(after), NUM_STEPS + 1)}
