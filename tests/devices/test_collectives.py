"""What a compiled training step sends between devices, counted in the text of the program.

A round is an all-reduce of one gradient, however many operations XLA splits it into.
"""

import pytest

from tests.devices import collectives
from tests.devices.layouts import NUM_PARAMETERS
from tests.devices.processes import result

WORKER = "tests.devices.collectives"
METHODS = [name for name in collectives.REFRESHES if name != "sgd"]
UNTRACKED = ("pmap", "shard_map, unchecked")

# Second gradients, of which there are `num_steps`.
INNER_GRADIENTS = {"sam_3_steps": 3, "combination": 2}
# Averages of what JAX does not know to be the same on all devices: the gradient that `gradient_noise`
# observes, the perturbation that `spherical_search` starts from.
AVERAGES = {"info_sam": 1, "xsam": 1, "combination": 2}


def rounds(checks, *case):
    return result(checks, *case).get("all-reduce elements", 0) / NUM_PARAMETERS


def plain(method):
    """Returns what a step without a refresh is called."""
    return "False" if False in collectives.REFRESHES[method] else "None"


def test_count_finds_the_collectives_of_a_known_program(checks):
    assert result(checks, "example") == {
        "all-reduce elements": 5,
        "all-reduce scalars": 1,
        "all-gather elements": 40,
    }


@pytest.mark.parametrize("layout", collectives.REPLICATED_LAYOUTS)
def test_plain_step_reduces_one_gradient(checks, layout):
    assert rounds(checks, "sgd", layout, "averaged", "None") == 1


@pytest.mark.parametrize("layout", collectives.REPLICATED_LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_step_with_averaged_gradients_reduces_each_gradient_once(checks, method, layout):
    expected = 1 + INNER_GRADIENTS.get(method, 1) + (layout in UNTRACKED) * AVERAGES.get(method, 0)
    assert rounds(checks, method, layout, "averaged", plain(method)) == expected


@pytest.mark.parametrize("layout", [*UNTRACKED, "shard_map"])
@pytest.mark.parametrize("method", METHODS)
def test_step_with_local_gradients_saves_a_round(checks, method, layout):
    expected = INNER_GRADIENTS.get(method, 1) + AVERAGES.get(method, 0)
    assert rounds(checks, method, layout, "local", plain(method)) == expected


@pytest.mark.parametrize(
    "case", [case for case in collectives.cases() if case[1] in collectives.REPLICATED_LAYOUTS], ids=", ".join
)
def test_replicated_parameters_need_nothing_else_but_scalars(checks, case):
    method, _, _, refresh = case
    found = result(checks, *case)
    assert set(found) <= {"all-reduce elements", "all-reduce scalars"}
    searches = refresh == "True" and method in ("xsam", "combination")
    assert found.get("all-reduce scalars", 0) == (method != "sgd") + searches  # the losses


@pytest.mark.parametrize("layout", ["pmap", "shard_map", "shard_map, unchecked"])
@pytest.mark.parametrize(("method", "products"), [("eigen_sam", 2), ("xsam", 0), ("combination", 2)])
def test_refresh_reduces_one_vector_per_hessian_product(checks, method, products, layout):
    with_refresh, without = (rounds(checks, method, layout, "averaged", str(r)) for r in (True, False))
    assert with_refresh - without == products


@pytest.mark.parametrize("layout", collectives.SHARDED_LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_sharded_parameters_are_gathered_by_the_model_only(checks, method, layout):
    """Each of the step's gradients costs what it costs in plain SGD; the rest is scalars."""
    gradients = 1 + INNER_GRADIENTS.get(method, 1)
    found = result(checks, method, layout, "averaged", plain(method))
    allowed = result(checks, "sgd", layout, "averaged", "None")
    for kind in set(found) - {"all-reduce scalars"}:
        assert found[kind] == gradients * allowed.get(kind, 0), kind


@pytest.mark.parametrize("layout", collectives.SHARDED_LAYOUTS)
def test_tracking_an_eigenvector_never_gathers_it(checks, layout):
    """A Hessian-vector product is forward over backward: the model gathers twice as much in it."""
    found = result(checks, "eigen_sam", layout, "averaged", "True")
    gradient = result(checks, "sgd", layout, "averaged", "None")
    products = 2
    for kind in set(found) - {"all-reduce scalars", "all-reduce elements"}:
        assert found[kind] <= (2 + 2 * products) * gradient.get(kind, 0), kind
