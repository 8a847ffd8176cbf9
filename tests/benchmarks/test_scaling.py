"""Counts of a compiled program, and the formula that turns them into a time."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys

import pytest

from benchmarks.cost import scaling

MACHINE = scaling.MACHINE
KINDS = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}  # halves: all-reduce is the other two


def seconds(kind="all-reduce", size=1e9, rounds=1, **changes):
    return scaling.communication_seconds({kind: size}, rounds, dataclasses.replace(MACHINE, **changes))


@pytest.mark.parametrize("kind", KINDS)
def test_one_device_does_not_communicate(kind):
    assert seconds(kind, rounds=100, num_devices=1) == 0


@pytest.mark.parametrize(("kind", "halves"), KINDS.items())
def test_many_devices_without_latency_are_bound_by_bandwidth(kind, halves):
    time = seconds(kind, size=3e9, rounds=100, latency=0, bandwidth=1e9, num_devices=10**9)
    assert time == pytest.approx(3 * halves)


def test_no_bytes_are_hops_alone():
    assert seconds(size=0, rounds=3, latency=1e-6, num_devices=1000) == pytest.approx(3 * 2 * 10 * 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_time_grows_with_devices_bytes_and_rounds_and_falls_with_bandwidth(kind):
    by_devices = [seconds(kind, num_devices=n) for n in (1, 2, 3, 4, 8, 9, 100, 1000, 1025)]
    by_bytes = [seconds(kind, size=size) for size in (0, 1, 1e6, 1e9)]
    by_rounds = [seconds(kind, rounds=rounds) for rounds in (0, 1, 2, 10)]
    by_bandwidth = [seconds(kind, bandwidth=bandwidth) for bandwidth in (1e12, 1e11, 1e10)]
    for times in (by_devices, by_bytes, by_rounds, by_bandwidth):
        assert all(a < b for a, b in itertools.pairwise(times)), times


PROGRAM = """
import json, sys
from pathlib import Path
import jax
from benchmarks.cost.scaling import Scaling
scaling = Scaling(model="mlp", batch_size=64, devices=(2,), methods=("sgd", "sam"))
for job in scaling.jobs([]):
    for record in scaling.measure(job, Path()):
        print(json.dumps(job | record))
"""


@pytest.fixture(scope="module")
def run():
    """The records of SAM on two devices, made in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env=environment | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},  # LLVM's: XLA's program is counted
    )
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    return {(record["layout"], record["method"]): record for record in records}


@pytest.mark.parametrize(
    ("layout", "method", "rounds"),
    [
        ("data", "sgd", 1),
        ("data", "sam", 2),
        ("shard_map", "sgd", 1),
        ("shard_map", "sam", 2),
        ("local", "sam", 1),
    ],
)
def test_sam_takes_two_rounds_and_m_sharpness_one(run, layout, method, rounds):
    record = run[layout, method]
    assert record["rounds"] == rounds
    assert record["collective_bytes"] == {"all-reduce": rounds * record["parameter_bytes"]}


def test_sam_is_two_gradients_in_every_layout(run):
    for layout in scaling.LAYOUTS:
        sgd = run["data" if layout == "local" else layout, "sgd"]["flops_per_device"]
        assert run[layout, "sam"]["flops_per_device"] == pytest.approx(2 * sgd, rel=0.02)


def test_sharded_state_is_half_on_two_devices(run):
    whole, part = (run[layout, "sam"]["state_bytes_per_device"] for layout in ("data", "fsdp"))
    assert part == pytest.approx(whole / 2, rel=1e-3)


def test_at_scale_m_sharpness_saves_communication_and_sharding_saves_memory(run):
    sgd = run["data", "sgd"]
    data, fsdp, local = (
        scaling.at_scale(run[layout, "sam"], sgd, MACHINE) for layout in ("data", "fsdp", "local")
    )
    assert local["communication"] == pytest.approx(data["communication"] / 2)
    assert local["compute"] == pytest.approx(data["compute"], rel=1e-3)
    assert fsdp["state_bytes"] == pytest.approx(data["state_bytes"] / MACHINE.num_devices, rel=1e-3)
    alone = scaling.at_scale(run["data", "sam"], sgd, dataclasses.replace(MACHINE, num_devices=1))
    assert alone["communication"] == 0
    assert alone["step"] == alone["overlapped"] == alone["compute"]
