"""What a compiled training step sends between devices, counted in the text of the program.

A round is an all-reduce of one gradient, however many operations XLA splits it into.
"""

import pytest

from tests.devices import collectives
from tests.devices.layouts import NUM_PARAMETERS
from tests.devices.processes import result

WORKER = "tests.devices.collectives"
PARAMETER_BYTES = 8 * NUM_PARAMETERS
METHODS = [name for name in collectives.REFRESHES if name != "sgd"]

# Second gradients, of which there are `num_steps`.
INNER_GRADIENTS = {"sam_3_steps": 3, "combination": 2}
# Averages that state needs of what is local: of the gradient that `gradient_noise` observes, of the
# perturbation that `spherical_search` starts from.
AVERAGES = {"info_sam": 1, "xsam": 1, "combination": 2}
ALPHAS = {"xsam": 21, "combination": 5}
CASES = [case for case in collectives.cases() if case[1] in collectives.REPLICATED_LAYOUTS]
PLAIN_CASES = [case for case in CASES if case[0] != "sgd" and case[3] != "True"]


def cases(gradients, layouts=collectives.REPLICATED_LAYOUTS):
    """Returns the steps without a refresh in which one of these gradients is passed in."""
    return [case for case in PLAIN_CASES if case[2] in gradients and case[1] in layouts]


def rounds(checks, *case):
    return result(checks, *case)["collective_bytes"].get("all-reduce", 0) / PARAMETER_BYTES


def plain(method):
    """Returns what a step without a refresh is called."""
    return "False" if False in collectives.REFRESHES[method] else "None"


def test_count_finds_the_collectives_of_a_known_program(checks):
    assert result(checks, "example") == {
        "collective_bytes": {"all-reduce": 5 * 8, "all-gather": 40 * 8},
        "collective_scalars": 1,
        "rounds": 1,
    }


@pytest.mark.parametrize("layout", collectives.REPLICATED_LAYOUTS)
def test_plain_step_reduces_one_gradient(checks, layout):
    assert rounds(checks, "sgd", layout, collectives.gradients(layout)[0], "None") == 1


@pytest.mark.parametrize(
    "case",
    cases(["averaged"], ["data", "shard_map"]) + cases(["averaged, as said"]),
    ids=", ".join,
)
def test_averaged_gradients_each_gradient_is_reduced_once(checks, case):
    """No method sends more than SAM with as many ascents, where it is said or JAX knows."""
    assert rounds(checks, *case) == 1 + INNER_GRADIENTS.get(case[0], 1)


@pytest.mark.parametrize("case", cases(["local"], ["shard_map"]) + cases(["local, as said"]), ids=", ".join)
def test_local_gradients_the_last_gradient_is_reduced(checks, case):
    """However many ascents there are; and what state needs."""
    assert rounds(checks, *case) == 1 + AVERAGES.get(case[0], 0)


@pytest.mark.parametrize("case", cases(["averaged", "local"], ["pmap"]), ids=", ".join)
def test_not_known_the_program_serves_both(checks, case):
    method, _, gradient, _ = case
    passed_in = gradient == "averaged"
    expected = passed_in + INNER_GRADIENTS.get(method, 1) + AVERAGES.get(method, 0)
    assert rounds(checks, *case) == expected


@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_replicated_parameters_need_nothing_else_but_scalars(checks, case):
    method, layout, gradient, refresh = case
    found = result(checks, *case)
    assert set(found["collective_bytes"]) == {"all-reduce"}
    losses = (method != "sgd") + (refresh == "True") * ALPHAS.get(method, 0)
    # Under pmap it is found out when the program runs what the later ascents follow.
    is_compared = layout == "pmap" and "said" not in gradient and INNER_GRADIENTS.get(method, 1) > 1
    assert found["collective_scalars"] == losses + 2 * is_compared


@pytest.mark.parametrize("layout", ["pmap", "shard_map", "shard_map, unchecked"])
@pytest.mark.parametrize(("method", "products"), [("eigen_sam", 2), ("xsam", 0), ("combination", 2)])
def test_refresh_reduces_one_vector_per_hessian_product(checks, method, products, layout):
    gradient = collectives.gradients(layout)[0]
    with_refresh, without = (rounds(checks, method, layout, gradient, str(r)) for r in (True, False))
    assert with_refresh - without == products


@pytest.mark.parametrize("layout", collectives.SHARDED_LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_sharded_parameters_are_gathered_by_the_model_only(checks, method, layout):
    """Each of the step's gradients costs what it costs in plain SGD; the rest is scalars."""
    gradients = 1 + INNER_GRADIENTS.get(method, 1)
    found = result(checks, method, layout, "averaged", plain(method))["collective_bytes"]
    allowed = result(checks, "sgd", layout, "averaged", "None")["collective_bytes"]
    assert found == {kind: gradients * size for kind, size in allowed.items()}


@pytest.mark.parametrize("layout", collectives.SHARDED_LAYOUTS)
def test_tracking_an_eigenvector_never_gathers_it(checks, layout):
    """A Hessian-vector product is forward over backward: the model gathers twice as much in it."""
    found = result(checks, "eigen_sam", layout, "averaged", "True")["collective_bytes"]
    gradient = result(checks, "sgd", layout, "averaged", "None")["collective_bytes"]
    products = 2
    for kind in set(found) - {"all-reduce"}:
        assert found[kind] <= (2 + 2 * products) * gradient.get(kind, 0), kind
