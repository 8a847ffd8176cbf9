"""Random perturbations on several devices: whose numbers are whose, and how long a sharded filter is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.loss import BatchLoss
from tests.devices import layouts
from tests.devices.layouts import AXIS, NUM_DEVICES, P

CHECKED = pytest.mark.parametrize("check_vma", [True, False], ids=["checked", "unchecked"])
SPECS = {"inputs": P(AXIS), "outputs": P(None, None, AXIS), "bias": P(AXIS), "whole": P()}
SHAPES = {"inputs": (16, 5), "outputs": (2, 3, 8), "bias": (8,), "whole": (3, 4)}
PARAMS = {name: np.random.default_rng(i).normal(size=shape) for i, (name, shape) in enumerate(SHAPES.items())}
ONES = optax.stateless(lambda updates, params: jax.tree.map(jnp.ones_like, updates))


def perturbation(tx, check_vma, **words):
    """Returns ε of a method for parameters sharded inside `shard_map`: d − w for the loss ‖w‖²/2."""

    def step(params):
        own = lambda params: params
        direction, _ = tx.update(params, tx.init(params), params, grad_fn=own, **words)
        return jax.tree.map(jnp.subtract, direction, params)

    mapped = jax.shard_map(
        step, mesh=layouts.mesh_1d(), in_specs=(SPECS,), out_specs=SPECS, check_vma=check_vma
    )
    return jax.tree.map(np.asarray, jax.jit(mapped)(PARAMS))


@CHECKED
@pytest.mark.parametrize("axis", [-1, 0])
def test_a_filter_is_as_long_as_on_one_device(axis, check_vma):
    ascent = optax.chain(ONES, optax_sam.scale_by_filter_norm(0.1, filter_axis=axis))
    tx = optax_sam.sharpness_aware(ascent)
    found = perturbation(tx, check_vma, params_axis_name=SPECS)
    expected, _ = ascent.update(PARAMS, ascent.init(PARAMS), PARAMS)
    assert layouts.max_difference(found, expected) < 1e-12


@CHECKED
def test_squares_are_summed_over_filters_as_on_one_device(check_vma):
    make = lambda: optax_sam.running_fisher(ONES, eta=2.0, decay=0.5)

    def second(tx, params, **words):
        state = tx.init(params)
        for _ in range(2):
            direction, state = tx.update(params, state, params, grad_fn=lambda params: params, **words)
        return direction

    mapped = jax.shard_map(
        functools.partial(second, make(), params_axis_name=SPECS),
        mesh=layouts.mesh_1d(),
        in_specs=(SPECS,),
        out_specs=SPECS,
        check_vma=check_vma,
    )
    assert layouts.max_difference(jax.jit(mapped)(PARAMS), second(make(), PARAMS)) < 1e-12


@CHECKED
def test_filters_of_which_the_shards_are_not_known_are_refused(check_vma):
    words = {} if check_vma else {"params_axis_name": AXIS}
    with pytest.raises(ValueError, match=r"`params\['inputs'\]` is sharded.*params_axis_name=specs"):
        perturbation(optax_sam.rwp(0.1), check_vma, **words)


@CHECKED
@pytest.mark.parametrize("impl", ["threefry2x32", "unsafe_rbg"])
def test_shards_draw_their_own_numbers(impl, check_vma):
    draw = optax_sam.random_normal(key=jax.random.key(0, impl=impl))
    found = perturbation(optax_sam.sharpness_aware(draw), check_vma, params_axis_name=SPECS)
    numbers = np.concatenate([np.ravel(x) for x in found.values()]).round(9)
    assert len(np.unique(numbers)) == len(numbers)


@pytest.mark.parametrize("way", ["checked", "unchecked", "pmap", "vmap"])
@pytest.mark.parametrize("m_sharpness", [False, True])
def test_devices_share_their_numbers_but_with_m_sharpness(m_sharpness, way):
    stage, like = optax_sam.random_normal(key=jax.random.key(0, impl="unsafe_rbg")), jnp.zeros((2, 3))

    def draw(device, step):
        loss = BatchLoss(axis_name=AXIS, m_sharpness=m_sharpness)
        noise, _ = stage.update(like, stage.init(like), loss=loss, step_count=step)
        return noise + 0 * device.astype(noise.dtype)

    def drawn(step):
        one, devices = functools.partial(draw, step=step), jnp.arange(NUM_DEVICES)
        if way in ("vmap", "pmap"):
            return (jax.vmap if way == "vmap" else jax.pmap)(one, axis_name=AXIS)(devices)
        stacked = lambda device: one(device[0])[None]
        mapped = jax.shard_map(
            stacked, mesh=layouts.mesh_1d(), in_specs=P(AXIS), out_specs=P(AXIS), check_vma=way == "checked"
        )
        return jax.jit(mapped)(devices)

    found = np.stack([drawn(step) for step in range(3)])
    own = NUM_DEVICES if m_sharpness else 1
    assert len(np.unique(found.round(9))) == 3 * own * like.size
