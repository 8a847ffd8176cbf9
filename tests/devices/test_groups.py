"""What `axis_name` means: m-sharpness for local gradients, one state for all devices, no wrong multiples.

The ways to have one group of the batch on each device are the per-device layouts of `layouts.py`, and `vmap`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.devices import layouts
from tests.devices.layouts import AXIS, NUM_DEVICES, P, averaged_gradient, local_gradient, loss
from tests.registry import BY_NAME

TOLERANCE = 1e-12
RHO = 0.1
STATELESS = ("sam", "asam", "fisher_sam", "presam", "gsam", "wsam", "stable_sam", "lookbehind")
STATEFUL = ("info_sam", "eigen_sam", "xsam", "combination")
AXIS_METHODS = ("sam", "eigen_sam", "xsam")
ON_DEVICES = layouts.PER_DEVICE_VIEW
WAYS = (*ON_DEVICES, "vmap")
NUM_STEPS = (1, 2, 3)
MAKE = {name: method.make for name, method in BY_NAME.items()} | {
    "presam": functools.partial(
        optax_sam.presam,
        objective=optax_sam.fisher_information(),
        constraint=optax_sam.weight_magnitude(),
    ),
    "lookbehind": functools.partial(optax_sam.lookbehind_sam, alpha=None),
}


def parameters():
    return jax.tree.map(jnp.asarray, layouts.parameters())


def groups(number=NUM_DEVICES):
    """Returns the first batch, split into one part per device."""
    return jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:]), layouts.batches()[0])


def take(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def on_groups(way, function, *shared):
    """Calls `function(*shared, part of the first batch)` on every group; results are stacked."""
    with_part = lambda part: function(*shared, part)
    if way == "vmap":
        return jax.device_get(jax.jit(jax.vmap(with_part, axis_name=AXIS))(groups()))
    if way == "pmap":
        return jax.device_get(jax.pmap(with_part, AXIS)(groups()))
    stacked = lambda shared, part: jax.tree.map(
        lambda x: jnp.asarray(x)[None], function(*shared, take(part, 0))
    )
    mapped = jax.shard_map(
        stacked,
        mesh=layouts.mesh_1d(),
        in_specs=(P(), P(AXIS)),
        out_specs=P(AXIS),
        check_vma=way == "shard_map",
    )
    return jax.device_get(jax.jit(mapped)(shared, groups()))


def update(tx, params, state, part, *, way, gradient, axis_name=AXIS, value_fn=loss, **extra_args):
    """Returns (gradient, state) of one update on one group; functions are of (params, part)."""
    extra_args = {name: functools.partial(function, batch=part) for name, function in extra_args.items()}
    return tx.update(
        gradient(lambda params: loss(params, part), params, AXIS, way),
        state,
        params,
        value_fn=lambda params: value_fn(params, part),
        axis_name=axis_name,
        m_sharpness=gradient is local_gradient,
        **extra_args,
    )


def difference_to(expected, stacked):
    return layouts.max_difference(take(stacked, 0), expected)


def spread(stacked):
    """Returns how much the devices differ."""
    return layouts.max_difference(stacked, jax.tree.map(lambda x: np.broadcast_to(x[:1], x.shape), stacked))


# Local gradients are m-sharpness: each group's own perturbation, and the mean of the gradients there.


def alone(name, part):
    """Returns what one device alone computes for a group, by the number of ascents."""
    value_fn, params = lambda params: loss(params, part), parameters()
    found = {}
    for num_steps in NUM_STEPS:
        tx = MAKE[name](RHO, num_steps=num_steps)
        found[num_steps], _ = tx.update(
            jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn
        )
    return found


@functools.cache
def group_mean(name, number=NUM_DEVICES):
    """Returns the mean over groups of what one device alone computes for each, one after the other."""
    one_group = jax.jit(functools.partial(alone, name))
    results = [one_group(take(groups(number), i)) for i in range(number)]
    return jax.tree.map(lambda *leaves: sum(leaves) / number, *results)


@functools.cache
def together(name, way):
    """Returns what the devices compute together, by the number of ascents, on every group."""

    def function(params, part):
        found = {}
        for num_steps in NUM_STEPS:
            tx = MAKE[name](RHO, num_steps=num_steps)
            found[num_steps], _ = update(tx, params, tx.init(params), part, way=way, gradient=local_gradient)
        return found

    return on_groups(way, function, parameters())


@pytest.mark.parametrize("num_steps", NUM_STEPS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STATELESS)
def test_local_gradients_give_the_mean_of_the_groups_own_gradients(name, way, num_steps):
    found = together(name, way)[num_steps]
    assert difference_to(group_mean(name)[num_steps], found) <= TOLERANCE
    assert spread(found) == 0


def with_alpha(state):
    """Returns the state of XSAM as after a search."""
    return optax.tree.set(state, alpha=jnp.asarray(1.4))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["gradient_norm_penalty", "xsam"])
def test_other_methods_are_means_of_the_groups_too(name, way):
    """XSAM between searches: a search gives one α for all."""
    tx = MAKE[name](RHO)
    state = with_alpha(tx.init(parameters())) if name == "xsam" else tx.init(parameters())

    def alone(part):
        value_fn = lambda params: loss(params, part)
        gradient = jax.grad(value_fn)(parameters())
        return tx.update(gradient, state, parameters(), value_fn=value_fn, refresh=False)[0]

    def together(params, part):
        gradient = local_gradient(lambda params: loss(params, part), params, AXIS, way)
        words = {"axis_name": AXIS, "m_sharpness": True, "refresh": False}
        return tx.update(gradient, state, params, value_fn=lambda params: loss(params, part), **words)[0]

    expected = jax.tree.map(lambda d: d.mean(0), jax.jit(jax.vmap(alone))(groups()))
    found = on_groups(way, together, parameters())
    assert difference_to(expected, found) <= TOLERANCE
    assert spread(found) == 0


@pytest.mark.parametrize("way", WAYS)
def test_search_maximises_the_mean_loss_of_the_groups_each_on_its_own_arc(way):
    tx = optax_sam.xsam(RHO, rho_max=0.5, num_alphas=11)

    def together(params, part):
        gradient = local_gradient(lambda params: loss(params, part), params, AXIS, way)
        words = {"axis_name": AXIS, "m_sharpness": True, "refresh": True}
        _, state = tx.update(
            gradient, tx.init(params), params, value_fn=lambda params: loss(params, part), **words
        )
        return optax.tree.get(state, "alpha")

    def losses(part):
        value_fn = lambda params: loss(params, part)
        g = jax.grad(value_fn)(parameters())
        epsilon = jax.tree.map(lambda x: RHO * x / optax.tree.norm(g), g)
        g_prime = jax.grad(value_fn)(jax.tree.map(jnp.add, parameters(), epsilon))
        v0, v1 = (
            jax.tree.map(lambda x, tree=tree: x / optax.tree.norm(tree), tree) for tree in (epsilon, g_prime)
        )
        psi = jnp.arccos(optax.tree.vdot(v0, v1))
        at = lambda a: jax.tree.map(
            lambda w, x, y: w + 0.5 * (jnp.sin((1 - a) * psi) * x + jnp.sin(a * psi) * y) / jnp.sin(psi),
            parameters(),
            v0,
            v1,
        )
        return jnp.stack([value_fn(at(a)) for a in np.linspace(0, 2, 11)])

    expected = np.linspace(0, 2, 11)[np.argmax(np.mean(jax.vmap(losses)(groups()), 0))]
    np.testing.assert_allclose(on_groups(way, together, parameters()), expected)


@pytest.mark.parametrize("way", WAYS)
def test_descent_that_keeps_a_statistic_keeps_that_of_the_averages(way):
    tx = optax_sam.sharpness_aware(optax_sam.steepest_ascent(RHO), optax.scale_by_rss())

    def together(params, part):
        gradient = local_gradient(lambda params: loss(params, part), params, AXIS, way)
        words = {"axis_name": AXIS, "m_sharpness": True}
        return tx.update(
            gradient, tx.init(params), params, value_fn=lambda params: loss(params, part), **words
        )

    _, state = found = on_groups(way, together, parameters())
    assert spread(found) == 0
    mean = group_mean("sam")[1]
    expected = jax.tree.map(lambda g: 0.1 + g**2, mean)
    assert difference_to(expected, optax.tree.get(state, "sum_of_squares")) <= TOLERANCE


@pytest.mark.parametrize("name", STATELESS)
def test_groups_one_after_the_other_in_one_program(name):
    def add_group(total, part):
        return jax.tree.map(lambda t, g: t + g / NUM_DEVICES, total, alone(name, part)), None

    zeros = jax.tree.map(jnp.zeros_like, group_mean(name))
    found, _ = jax.jit(lambda parts: jax.lax.scan(add_group, zeros, parts))(groups())
    assert layouts.max_difference(found, group_mean(name)) <= TOLERANCE


@pytest.mark.parametrize("num_steps", NUM_STEPS)
@pytest.mark.parametrize(
    ("inside", "is_checked"), [("value_fn", True), ("grad_fn", True), ("grad_fn", False)]
)
def test_devices_that_share_a_gradient_are_one_group(inside, is_checked, num_steps):
    """A mesh of four pairs: averaged inside over the two of a pair ("model"), local along "data"."""
    tx = optax_sam.sam(RHO, num_steps=num_steps)

    def of_pair(params, part):
        if is_checked:  # JAX sums over the pair by itself.
            value_fn = lambda params: jax.lax.pmean(loss(params, part), "model")
            grad_fn = jax.grad(value_fn)
            params_here = jax.lax.pcast(params, "data", to="varying")
        else:
            value_fn = None
            grad_fn = lambda params: jax.lax.pmean(jax.grad(loss)(params, part), "model")
            params_here = params
        functions = {"value_fn": value_fn} if inside == "value_fn" else {"grad_fn": grad_fn}
        return tx.update(
            grad_fn(params_here),
            tx.init(params),
            params,
            axis_name="data",
            m_sharpness=True,
            params_axis_name=(),
            **functions,
        )[0]

    mapped = jax.shard_map(
        of_pair,
        mesh=layouts.mesh_2d(),
        in_specs=(P(), P(layouts.BOTH)),
        out_specs=P(),
        check_vma=is_checked,
    )
    found = jax.jit(mapped)(parameters(), layouts.batches()[0])
    assert layouts.max_difference(found, group_mean("sam", NUM_DEVICES // 2)[num_steps]) <= TOLERANCE


# What is kept in state comes from averages, and so does the direction.


@functools.cache
def trained_on_local_gradients(name, way, num_steps=4):
    """Returns the copies of parameters and state."""
    tx = optax.chain(MAKE[name](RHO), optax.sgd(0.1, momentum=0.9))

    def train(params, state, part):
        def step(carry, _):
            params, state = carry
            updates, state = update(tx, params, state, part, way=way, gradient=local_gradient)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), length=num_steps)[0]

    return on_groups(way, train, parameters(), tx.init(parameters()))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STATEFUL)
def test_local_gradients_leave_one_state_on_all_devices(name, way):
    copies = trained_on_local_gradients(name, way)
    assert spread(copies) == 0
    assert difference_to(take(trained_on_local_gradients(name, "pmap"), 0), copies) <= TOLERANCE


# What comes of averaging inside as well, and of forgetting the axis.


def averaged_loss(params, batch):
    return jax.lax.pmean(loss(params, batch), AXIS)


def averaged_grad_fn(params, batch):
    return jax.lax.pmean(jax.grad(loss)(params, batch), AXIS)


INSIDE = {
    "averaged loss": {"value_fn": averaged_loss},
    "local grad_fn": {"grad_fn": jax.grad(loss)},
    "averaged grad_fn": {"grad_fn": averaged_grad_fn},
}


def directions(name, way, **options):
    """Returns the direction of one update on averaged gradients, on every device."""
    tx = MAKE[name](RHO)
    function = functools.partial(update, tx, way=way, gradient=averaged_gradient, **options)
    return on_groups(way, lambda *args: function(*args)[0], parameters(), tx.init(parameters()))


@functools.cache
def truth(name):
    """Returns the direction for the whole batch on one device."""
    tx, batch = MAKE[name](RHO), layouts.batches()[0]
    value_fn = lambda params: loss(params, batch)
    return jax.jit(
        lambda params: tx.update(jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn)[0]
    )(parameters())


@pytest.mark.parametrize("way", ON_DEVICES)
@pytest.mark.parametrize("name", AXIS_METHODS)
@pytest.mark.parametrize("inside", INSIDE)
def test_what_the_user_averages_inside_is_not_averaged_twice(name, inside, way):
    assert difference_to(truth(name), directions(name, way, **INSIDE[inside])) <= TOLERANCE


@pytest.mark.parametrize("name", AXIS_METHODS)
def test_forgotten_axis_is_named_where_jax_tracks_it(name):
    what = r"The result of `value_fn` varies over the mesh axis 'batch'.*axis_name='batch'"
    with pytest.raises(ValueError, match=what):
        directions(name, "shard_map", axis_name=None)


@pytest.mark.parametrize("name", AXIS_METHODS)
def test_averaged_loss_needs_no_axis_where_jax_tracks_it(name):
    found = directions(name, "shard_map", axis_name=None, value_fn=averaged_loss)
    assert difference_to(truth(name), found) <= TOLERANCE


@pytest.mark.filterwarnings("ignore:`update` runs inside")
@pytest.mark.parametrize("way", ["pmap", "shard_map, unchecked"])
def test_forgotten_axis_gives_the_local_gradient_where_jax_does_not_track_it(way):
    """It cannot be told from local gradients on purpose, averaged by the user. It is not N-fold."""
    found = directions("sam", way, axis_name=None)
    mean = jax.tree.map(lambda x: x.mean(0), found)
    assert layouts.max_difference(mean, truth("sam")) <= TOLERANCE
    assert spread(found) > 0.1
    assert optax.tree.norm(take(found, 0)) / optax.tree.norm(truth("sam")) < 2


# Where JAX knows what was passed, a wrong word is an error.


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize(
    ("gradient", "m_sharpness", "message"),
    [
        (local_gradient, False, r"is an average, but it varies over the mesh axis 'batch'"),
        (averaged_gradient, True, r"passed to `update` is the same along the mesh axis 'batch'"),
    ],
    ids=["local", "averaged"],
)
def test_wrong_word_is_an_error_where_jax_tracks_it(gradient, m_sharpness, message, num_steps):
    tx = optax_sam.sam(RHO, num_steps=num_steps)

    def function(params, part):
        grads = gradient(lambda params: loss(params, part), params, AXIS, "shard_map")
        value_fn = lambda params: loss(params, part)
        words = {"axis_name": AXIS, "m_sharpness": m_sharpness}
        return tx.update(grads, tx.init(params), params, value_fn=value_fn, **words)[0]

    with pytest.raises(ValueError, match=message):
        on_groups("shard_map", function, parameters())
