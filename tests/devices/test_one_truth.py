"""One truth: every method gives the same trajectory on one device and, however laid out, on eight.

Parameters and optimizer state after each of six steps, with refreshes, in float64. The layouts are described
in `layouts.py`.
"""

import pytest

from tests.devices import one_truth
from tests.devices.processes import result

WORKER = "tests.devices.one_truth"


@pytest.mark.parametrize(("method", "layout", "refreshes"), list(one_truth.cases()))
def test_eight_devices_agree_with_one(checks, method, layout, refreshes):
    assert result(checks, method, layout, refreshes)["difference"] <= 1e-10
