"""Diagnostics for sharded parameters are those on one device, and perturbations are sharded alike."""

import pytest

from tests.devices.processes import result

WORKER = "tests.devices.diagnostics"


@pytest.mark.parametrize("mesh", ["auto", "explicit"])
def test_diagnostics_for_sharded_parameters(checks, mesh):
    found = result(checks, mesh)
    assert found["difference"] < 1e-8
    assert found["shard"] == [8, 2]
