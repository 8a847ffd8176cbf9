"""What `axis_name` means: m-sharpness for local gradients, one state for all devices, no wrong multiples."""

import pytest

from tests.devices import groups
from tests.devices.processes import result

WORKER = "tests.devices.groups"
TOLERANCE = 1e-12


@pytest.mark.parametrize("num_steps", groups.NUM_STEPS)
@pytest.mark.parametrize("said", groups.SAID)
@pytest.mark.parametrize("way", groups.WAYS)
@pytest.mark.parametrize("method", groups.STATELESS)
def test_local_gradients_give_the_mean_of_the_groups_own_gradients(checks, method, way, said, num_steps):
    difference, spread = result(checks, "m-sharpness", method, way)[f"{said}, {num_steps}"]
    assert difference <= TOLERANCE
    assert spread == 0


@pytest.mark.parametrize("method", groups.STATELESS)
def test_groups_one_after_the_other_in_one_program(checks, method):
    assert result(checks, "m-sharpness", method, "scan")["difference"] <= TOLERANCE


@pytest.mark.parametrize("num_steps", groups.NUM_STEPS)
@pytest.mark.parametrize("is_checked", [True, False])
def test_devices_that_share_a_gradient_are_one_group(checks, is_checked, num_steps):
    """Averaged over one axis of the mesh and local along the other."""
    assert result(checks, "pairs", str(is_checked))[str(num_steps)] <= TOLERANCE


@pytest.mark.parametrize("way", groups.WAYS)
@pytest.mark.parametrize("method", groups.STATEFUL)
def test_local_gradients_leave_one_state_on_all_devices(checks, method, way):
    found = result(checks, "state", method, way)
    assert found["spread"] == 0
    assert found["difference"] <= TOLERANCE


@pytest.mark.parametrize("way", groups.ON_DEVICES)
@pytest.mark.parametrize("method", groups.AXIS_METHODS)
@pytest.mark.parametrize("inside", ["averaged loss", "local grad_fn", "averaged grad_fn"])
def test_what_the_user_averages_inside_is_not_averaged_twice(checks, method, inside, way):
    assert result(checks, "axis", method, way, f"given, {inside}")["difference"] <= TOLERANCE


@pytest.mark.parametrize("method", groups.AXIS_METHODS)
def test_forgotten_axis_is_named_where_jax_tracks_it(checks, method):
    line = checks["axis", method, "shard_map", "forgotten"]
    assert line["error"].startswith("ValueError: The result of `value_fn` varies over the mesh axis 'batch'")
    assert "axis_name='batch'" in line["error"]


@pytest.mark.parametrize("method", groups.AXIS_METHODS)
def test_averaged_loss_needs_no_axis_where_jax_tracks_it(checks, method):
    assert result(checks, "axis", method, "shard_map", "forgotten, averaged loss")["difference"] <= TOLERANCE


@pytest.mark.parametrize("way", ["pmap", "shard_map, unchecked"])
def test_forgotten_axis_gives_the_local_gradient_where_jax_does_not_track_it(checks, way):
    """It cannot be told from local gradients on purpose, averaged by the user. It is not N-fold."""
    found = result(checks, "axis", "sam", way, "forgotten")
    assert found["difference_of_mean"] <= TOLERANCE
    assert found["spread"] > 0.1
    assert found["ratio"] < 2
