"""One truth: every method gives the same trajectory on one device and, however laid out, on eight.

Parameters and optimizer state after each of six steps, with refreshes, in float64. The layouts are described
in `layouts.py`.
"""

import functools

import optax
import pytest

from tests.devices import layouts
from tests.registry import METHODS

REFRESHES = {
    "by interval": (None,) * layouts.NUM_STEPS,  # the registry's 3: steps 0 and 3
    "as passed": (True, True, False, False, True, False),
}
# Compiling takes the time here: what needs two programs is done where most could go wrong.
LAYOUTS_AS_PASSED = ("fsdp and tensor", "shard_map")
LAYOUTS_BY_INTERVAL = [layout for layout in layouts.LAYOUTS if layout != "fsdp and tensor"]
CASES = [
    (method, layout, refreshes)
    for method in METHODS
    for refreshes, where in (("by interval", LAYOUTS_BY_INTERVAL), ("as passed", LAYOUTS_AS_PASSED))
    for layout in where
    if refreshes == "by interval" or method.has_refresh
]


@functools.cache
def trajectory(method, layout, refreshes):
    tx = optax.chain(method.make(0.1), optax.sgd(layouts.LEARNING_RATE, momentum=0.9))
    return layouts.train(tx, layout, REFRESHES[refreshes])


@pytest.mark.parametrize(
    ("method", "layout", "refreshes"), CASES, ids=lambda value: getattr(value, "name", value)
)
def test_eight_devices_agree_with_one(method, layout, refreshes):
    truth = trajectory(method, "single", refreshes)
    assert layouts.max_difference(trajectory(method, layout, refreshes), truth) <= 1e-10
