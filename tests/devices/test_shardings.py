"""The optimizer's state lies where the parameters lie that it mirrors.

Optax's own sharding tests ask the same of its optimizers: `init` accepts abstract parameters, and on a mesh
with explicit axes neither `jit` nor `update` changes a type, of which the sharding is a part.
"""

import pytest

from tests.devices.processes import result
from tests.registry import every_method

WORKER = "tests.devices.shardings"
COPIES = {"info_sam": 2, "eigen_sam": 1, "eigen_sam_lanczos": 1, "combination": 3, "monitored_sam": 1}


@pytest.mark.parametrize("init", ["eager", "jit", "abstract", "structs"])
@every_method
def test_init_gives_the_state_the_sharding_types_of_the_parameters(checks, method, init):
    found = result(checks, "explicit", method.name, f"init, {init}")
    assert found["same_types"]
    assert found["sharded"] == found["mirrors"] == 1 + COPIES.get(method.name, 0)  # 1: momentum


@every_method
def test_update_keeps_sharding_types(checks, method):
    for refresh in (None, True, False) if method.has_refresh else (None,):
        found = result(checks, "explicit", method.name, f"update, refresh={refresh}")
        assert found == {"same_types": True, "finite": True}


@pytest.mark.parametrize("init", ["eager", "out_shardings"])
@every_method
def test_init_on_an_automatic_mesh_shards_the_state(checks, method, init):
    assert result(checks, "auto", method.name, f"init, {init}")["wrong"] == []


@every_method
def test_init_under_jit_makes_no_whole_copy(checks, method):
    assert result(checks, "auto", method.name, "init, out_shardings")["whole"] == []


@every_method
def test_update_on_an_automatic_mesh_leaves_parameters_and_state_in_place(checks, method):
    assert result(checks, "auto", method.name, "update") == {"wrong": [], "moved": []}
