"""What a compiled training step sends between devices, counted in the text of the program.

A round is an all-reduce of one gradient, however many operations XLA splits it into.
"""

import functools

import jax
import numpy as np
import optax
import pytest

from tests.devices import layouts
from tests.devices.collectives import count
from tests.devices.layouts import NUM_DEVICES, NUM_PARAMETERS, averaged_gradient, local_gradient
from tests.registry import BY_NAME

PARAMETER_BYTES = 8 * NUM_PARAMETERS
# The other methods differ from these by element-wise operations only.
METHODS = ("sam", "sam_3_steps", "info_sam", "eigen_sam", "xsam", "combination", "look_sam", "momentum_sam")
DESCENTS = ("gsam", "wsam", "stable_sam", "lookbehind_sam", "gradient_norm_penalty")
SHARDED_LAYOUTS = ("fsdp", "tensor", "fsdp and tensor")
REPLICATED_LAYOUTS = ("data", *layouts.PER_DEVICE_VIEW)
GRADIENTS = {"averaged": averaged_gradient, "local": local_gradient}

# Second gradients, of which there are `num_steps`. Momentum-SAM computes only that one, LookSAM the first.
INNER_GRADIENTS = {"sam_3_steps": 3, "combination": 2, "look_sam": 0, "momentum_sam": 0}
# Averages that state needs of what is local: of the gradient that `gradient_noise` observes.
AVERAGES = {"info_sam": 1, "combination": 1}
ALPHAS = {"xsam": 21, "combination": 5}


def plain(name):
    """Returns the `refresh` of a step without one."""
    return False if BY_NAME[name].has_refresh else None


PLAIN = {
    gradient: [(name, layout, gradient, plain(name)) for name in METHODS for layout in where]
    for gradient, where in (("averaged", REPLICATED_LAYOUTS), ("local", layouts.PER_DEVICE_VIEW))
}
SGD = [("sgd", layout, "averaged", None) for layout in REPLICATED_LAYOUTS]
REFRESH = [
    (name, layout, "averaged", True)
    for name in METHODS
    if BY_NAME[name].has_refresh
    for layout in REPLICATED_LAYOUTS
]
cases = functools.partial(pytest.mark.parametrize, "case", ids=lambda case: ", ".join(map(str, case)))


@functools.cache
def sent(name, layout, gradient, refresh):
    """Returns what the compiled training step sends between devices."""
    sgd = optax.sgd(layouts.LEARNING_RATE, momentum=0.9)
    tx = sgd if name == "sgd" else optax.chain(BY_NAME[name].make(0.1), sgd)
    step = layouts.make_step(tx, layout, gradient=GRADIENTS[gradient])
    params, state = layouts.initial(tx, layout, step)
    batch = step.place_batch(layouts.batches()[0])
    compiled = step.step
    if layout in layouts.GLOBAL_VIEW:  # The optimizer's state stays where it is.
        shardings = jax.tree.map(lambda x: x.sharding, (params, state))
        compiled = jax.jit(step.step.__wrapped__, static_argnums=3, out_shardings=shardings)
    return count(compiled.lower(params, state, batch, refresh).compile().as_text())


def rounds(*case):
    return sent(*case).sizes.get("all-reduce", 0) / PARAMETER_BYTES


def test_count_finds_the_collectives_of_a_known_program():
    """An array summed three times in a loop, a number summed once, and an array gathered once."""
    spec = layouts.P(layouts.AXIS)

    def function(x):
        total = jax.lax.fori_loop(0, 3, lambda _, x: jax.lax.psum(x, layouts.AXIS) / NUM_DEVICES, x)
        return total, jax.lax.psum(x.sum(), layouts.AXIS), jax.lax.all_gather(x, layouts.AXIS)

    mapped = jax.shard_map(
        function, mesh=layouts.mesh_1d(), in_specs=spec, out_specs=layouts.P(), check_vma=False
    )
    program = jax.jit(mapped).lower(np.ones((8, 5))).compile().as_text()
    assert count(program) == ({"all-reduce": 3 * 5 * 8, "all-gather": 40 * 8}, 1)


@cases(SGD)
def test_plain_step_reduces_one_gradient(case):
    assert rounds(*case) == 1


@cases(PLAIN["averaged"])
def test_averaged_gradients_each_gradient_is_reduced_once(case):
    """No method sends more than SAM with as many ascents."""
    assert rounds(*case) == 1 + INNER_GRADIENTS.get(case[0], 1)


@cases(PLAIN["local"])
def test_local_gradients_the_last_gradient_is_reduced(case):
    """However many ascents there are; and what state needs. What no descent reads is dropped."""
    assert rounds(*case) == 1 + AVERAGES.get(case[0], 0)


@pytest.mark.parametrize("layout", layouts.PER_DEVICE_VIEW)
@pytest.mark.parametrize("name", DESCENTS)
def test_local_gradients_the_direction_alone_is_reduced(name, layout):
    assert rounds(name, layout, "local", None) == 1


@cases(SGD + PLAIN["averaged"] + PLAIN["local"] + REFRESH)
def test_replicated_parameters_need_nothing_else_but_scalars(case):
    name, _, _, refresh = case
    found = sent(*case)
    assert set(found.sizes) == {"all-reduce"}
    is_plain = name == "sgd" or (name == "look_sam" and refresh is False)
    losses = (not is_plain) + (refresh is True) * ALPHAS.get(name, 0)
    assert found.scalars == losses


@pytest.mark.parametrize("layout", layouts.PER_DEVICE_VIEW)
@pytest.mark.parametrize(("name", "products"), [("eigen_sam", 2), ("xsam", 0), ("combination", 2)])
def test_refresh_reduces_one_vector_per_hessian_product(name, products, layout):
    with_refresh, without = (rounds(name, layout, "averaged", refresh) for refresh in (True, False))
    assert with_refresh - without == products


@pytest.mark.parametrize("layout", SHARDED_LAYOUTS)
@pytest.mark.parametrize("name", METHODS)
def test_sharded_parameters_are_gathered_by_the_model_only(name, layout):
    """Each of the step's gradients costs what it costs in plain SGD; the rest is scalars."""
    gradients = 1 + INNER_GRADIENTS.get(name, 1)
    found = sent(name, layout, "averaged", plain(name)).sizes
    allowed = sent("sgd", layout, "averaged", None).sizes
    assert found == {kind: gradients * size for kind, size in allowed.items()}


@pytest.mark.parametrize("layout", SHARDED_LAYOUTS)
def test_tracking_an_eigenvector_never_gathers_it(layout):
    """A Hessian-vector product is forward over backward: the model gathers twice as much in it."""
    found = sent("eigen_sam", layout, "averaged", True).sizes
    gradient = sent("sgd", layout, "averaged", None).sizes
    products = 2
    for kind in set(found) - {"all-reduce"}:
        assert found[kind] <= (2 + 2 * products) * gradient.get(kind, 0), kind
