"""Spectra for sharded parameters are those on one device, and eigenvectors are sharded alike."""

import pytest

from tests.devices.processes import result

WORKER = "tests.devices.curvature"


@pytest.mark.parametrize("mesh", ["auto", "explicit"])
def test_spectra_for_sharded_parameters(checks, mesh):
    found = result(checks, mesh)
    assert found["difference"] < 1e-8
    assert found["shard"] == [2, 8, 2]
