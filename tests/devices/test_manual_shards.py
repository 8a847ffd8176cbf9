"""Parameters sharded inside `shard_map`: every method is that on one device.

A mesh of four times two: along "shards" the parameters are sharded, along both axes the batch is split. A
device gathers the parameters, takes the loss of its part of the batch, and leaves the mean over "shards" to
`value_fn` (or `grad_fn`), the one over "batch" to `axis_name`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import optax_sam
from benchmarks.cost.collectives import count
from optax_sam import diagnostics
from tests.clients.by_hand import finished
from tests.devices import layouts
from tests.devices.layouts import P, batches, loss, max_difference
from tests.registry import BY_NAME, METHODS

TOLERANCE = 1e-10
RHO, NUM_STEPS = 0.1, 4
BOTH = ("batch", "shards")
SPECS = {
    "layer1": {"weight": P(None, "shards"), "bias": P("shards")},
    "layer2": {"weight": P("shards", None), "bias": P()},
}
WAYS = ("checked", "unchecked")
# The random numbers of a shard are its own; see below.
RANDOM = ("sparse_sam", "bayesian_sam", "rwp", "rwp_adaptive", "mixed_rwp")
NAMES = [method.name for method in METHODS if method.name not in RANDOM]
MAKE = {name: BY_NAME[name].make for name in NAMES} | {
    "layerwise": lambda rho: optax_sam.sharpness_aware(optax_sam.steepest_ascent(rho, layerwise=True)),
    "lookbehind_agreement": lambda rho: optax_sam.lookbehind_sam(rho, alpha=None),
    "fisher_mask": lambda rho: optax_sam.sparse_sam(rho, optax_sam.fisher_mask(0.3, interval=3)),
    "masked": lambda rho: optax_sam.masked(optax_sam.sam(rho), {"layer1": True, "layer2": False}),
    "radius_per_group": lambda rho: optax_sam.sharpness_aware(
        optax_sam.partition(
            {1: optax_sam.steepest_ascent(rho), 2: optax_sam.steepest_ascent(2 * rho)},
            {"layer1": 1, "layer2": 2},
        )
    ),
    # Of so many examples that the posterior has no width.
    "bayesian_sam": lambda rho: optax_sam.bayesian_sam(rho, num_examples=10**40, weight_decay=0.0),
    "lanczos_in_chain": lambda rho: optax_sam.eigen_sam(rho, solver="lanczos", num_iters=4, interval=2),
}


def is_spec(node):
    return isinstance(node, PartitionSpec)


def mesh_2d():
    return jax.make_mesh((4, 2), BOTH, axis_types=(AxisType.Auto,) * 2)


def gathered(params):
    def leaf(spec, x):
        for dimension, name in enumerate(spec):
            if name is not None:
                x = jax.lax.all_gather(x, name, axis=dimension, tiled=True)
        return x

    return jax.tree.map(leaf, SPECS, params, is_leaf=is_spec)


def functions(part, way):
    """Returns `value_fn` and `grad_fn` of a device's part of the batch, averaged over "shards"."""
    local = lambda params: loss(gathered(params), part)
    value_fn = lambda params: jax.lax.pmean(local(params), "shards")
    if way == "checked":
        return value_fn, None

    def grad_fn(params):
        gradient = jax.grad(local)(params)  # what was gathered is summed over the shards, the rest is not
        mean = lambda spec, g: g / 2 if "shards" in spec else jax.lax.pmean(g, "shards")
        return jax.tree.map(mean, SPECS, gradient, is_leaf=is_spec)

    return value_fn, grad_fn


def state_specs(tx, state):
    return optax.tree.map_params(
        tx, lambda _, spec: spec, state, SPECS, transform_non_params=lambda _: P(), is_leaf=is_spec
    )


def on_one_device(tx, way, num_steps=NUM_STEPS):
    params = jax.tree.map(jnp.asarray, layouts.parameters())
    state = tx.init(params)

    @jax.jit
    def step(params, state, batch):
        value_fn = lambda params: loss(params, batch)
        functions = {"value_fn": value_fn, "grad_fn": jax.grad(value_fn) if way == "unchecked" else None}
        updates, state = tx.update(jax.grad(value_fn)(params), state, params, **functions)
        return optax.apply_updates(params, updates), state

    for batch in batches()[:num_steps]:
        params, state = step(params, state, batch)
    return params, state


def mapped_step(tx, way, state, *, m_sharpness=False, **words):
    if way == "unchecked":
        words = {"params_axis_name": SPECS} | words

    def step(params, state, part):
        value_fn, grad_fn = functions(part, way)
        at = params
        if m_sharpness and way == "checked":
            at = jax.lax.pcast(params, "batch", to="varying")
        gradient = (grad_fn or jax.grad(value_fn))(at)
        if not m_sharpness:
            gradient = jax.lax.pmean(gradient, "batch") if way == "unchecked" else averaged(value_fn, params)
        updates, state = tx.update(
            gradient,
            state,
            params,
            value_fn=value_fn,
            grad_fn=grad_fn,
            **{"axis_name": "batch", "m_sharpness": m_sharpness} | words,
        )
        return optax.apply_updates(params, updates), state

    specs = state_specs(tx, state)
    return jax.jit(
        jax.shard_map(
            step,
            mesh=mesh_2d(),
            in_specs=(SPECS, specs, P(BOTH)),
            out_specs=(SPECS, specs),
            check_vma=way == "checked",
        )
    )


def averaged(value_fn, params):
    return jax.grad(lambda params: jax.lax.pmean(value_fn(params), "batch"))(params)


def on_shards(tx, way, num_steps=NUM_STEPS, **words):
    params = jax.tree.map(jnp.asarray, layouts.parameters())
    state = tx.init(params)
    step = mapped_step(tx, way, state, **words)
    for batch in batches()[:num_steps]:
        params, state = jax.block_until_ready(step(params, state, batch))
    return params, state


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MAKE)
def test_every_method_is_that_on_one_device(name, way):
    tx = optax.chain(MAKE[name](RHO), optax.sgd(0.1, momentum=0.9))
    expected, found = on_one_device(tx, way), on_shards(tx, way)
    assert max_difference(expected, found) <= TOLERANCE


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["sam", "gsam", "gradient_norm_penalty", "lookbehind_agreement"])
def test_m_sharpness_along_the_other_axis(name, way):
    """Two devices share a model and a perturbation, and there are four such pairs."""
    tx, params = MAKE[name](RHO), jax.tree.map(jnp.asarray, layouts.parameters())

    def alone(part):
        value_fn = lambda params: loss(params, part)
        return tx.update(jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn)[0]

    pairs = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), batches()[0])
    mean = jax.tree.map(lambda d: d.mean(0), jax.jit(jax.vmap(alone))(pairs))
    found, _ = on_shards(tx, way, num_steps=1, m_sharpness=True)
    assert max_difference(optax.apply_updates(params, mean), found) <= TOLERANCE


# One axis for parameters and batch, all parameters sharded: nothing but `axis_name` can go wrong.

VECTOR = np.linspace(-1, 1, 8)
X, Y = np.random.default_rng(2).normal(size=(16, 8)), np.random.default_rng(3).normal(size=16)


def regression(w, x, y):
    return jnp.mean((jnp.tanh(x @ w) - y) ** 2)


def fsdp(way, **words):
    """Returns SAM's direction where four devices (or groups) have two of the parameters each."""
    tx = optax_sam.sam(0.5)

    def step(w, x, y):
        local = lambda w: regression(jax.lax.all_gather(w, "fsdp", tiled=True), x, y)
        value_fn = lambda w: jax.lax.pmean(local(w), "fsdp")
        grad_fn = jax.grad(value_fn) if way == "checked" else lambda w: jax.grad(local)(w) / 4
        return tx.update(grad_fn(w), tx.init(w), w, value_fn=value_fn, grad_fn=grad_fn, **words)[0]

    split = [jnp.asarray(a).reshape(4, -1, *a.shape[1:]) for a in (VECTOR, X, Y)]
    if way == "vmap":
        return jax.vmap(step, axis_name="fsdp")(*split).reshape(-1)
    if way == "pmap":
        return jax.pmap(step, "fsdp", devices=jax.devices()[:4])(*split).reshape(-1)
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=way == "checked"
    )
    return jax.jit(mapped)(VECTOR, X, Y)


def fsdp_by_hand(norm_of=jnp.linalg.norm):
    gradient = jax.grad(regression)(VECTOR, X, Y)
    return jax.grad(regression)(VECTOR + 0.5 * gradient / norm_of(gradient), X, Y)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("checked", {}),
        ("checked", {"params_axis_name": "fsdp"}),
        ("unchecked", {"params_axis_name": ("fsdp",)}),
        ("unchecked", {"params_axis_name": P("fsdp")}),
        ("pmap", {"params_axis_name": "fsdp"}),
        ("vmap", {"params_axis_name": "fsdp"}),
    ],
)
def test_parameters_and_batch_along_one_axis(way, words):
    assert max_difference(fsdp_by_hand(), fsdp(way, **words)) <= TOLERANCE


@pytest.mark.parametrize("way", ["unchecked", "pmap"])
def test_without_a_word_where_nothing_is_tracked_a_warning_says_that_norms_are_local(way):
    """And no sum that was traced for shards is used again."""
    fsdp(way, params_axis_name="fsdp")
    with pytest.warns(UserWarning, match=r"norms are those of a shard.*params_axis_name='fsdp'"):
        found = fsdp(way)
    local = lambda g: jnp.repeat(jnp.linalg.norm(g.reshape(4, 2), axis=1), 2)
    assert max_difference(fsdp_by_hand(local), found) <= TOLERANCE


@pytest.mark.parametrize(
    ("way", "words"), [("checked", {}), ("pmap", {"params_axis_name": "fsdp"})], ids=["checked", "pmap"]
)
def test_axis_name_of_shards_is_refused_without_advice_to_average_the_gradient(way, words):
    with pytest.raises(ValueError, match=r"leave 'fsdp' out of `axis_name`.*Do not average") as error:
        fsdp(way, axis_name="fsdp", **words)
    assert "pmean(grad" not in str(error.value)


def test_unknown_axis_is_an_error():
    with pytest.raises(ValueError, match=r"`params_axis_name=.*there is none of that name"):
        fsdp("pmap", params_axis_name="model")


def test_names_must_fit_the_parameters():
    with pytest.raises(ValueError, match=r"`params_axis_name` must be one name"):
        fsdp("pmap", params_axis_name={"w": "fsdp"})


# Two axes: words, mistakes, communication.


def test_unnamed_second_axis_is_a_warning_where_nothing_is_tracked():
    with pytest.warns(UserWarning, match=r"norms are those of a shard.*params_axis_name='shards'"):
        on_shards(optax_sam.sam(RHO), "unchecked", num_steps=1, params_axis_name=None)


def test_replicated_parameters_must_have_the_gradient_of_all_shards():
    def step(params, part):
        value_fn, _ = functions(part, "checked")
        marked = jax.lax.pcast(params["layer2"]["bias"], "shards", to="varying")
        params_here = {**params, "layer2": {**params["layer2"], "bias": marked}}
        tx = optax_sam.sam(RHO)
        return tx.update(jax.grad(value_fn)(params_here), tx.init(params), params, value_fn=value_fn)[0]

    mapped = jax.shard_map(step, mesh=mesh_2d(), in_specs=(SPECS, P("shards")), out_specs=SPECS)
    with pytest.raises(ValueError, match=r"'shards' also for parameters that are the same along it"):
        jax.jit(mapped)(layouts.parameters(), batches()[0])


def own_models(**words):
    """Returns SAM's directions for eight models, one on each device."""
    tx = optax_sam.sam(0.5)

    def step(w, x, y):
        value_fn = lambda w: regression(w[0], x, y)
        return tx.update(jax.grad(value_fn)(w), tx.init(w), w, value_fn=value_fn, **words)[0]

    mapped = jax.shard_map(
        step, mesh=layouts.mesh_1d(), in_specs=(P("batch"), P(), P()), out_specs=P("batch")
    )
    return jax.jit(mapped)(models(), X, Y)


def models():
    return np.random.default_rng(4).normal(size=(8, 8))


def test_a_model_on_each_device_is_told_from_shards():
    with pytest.raises(ValueError, match=r"varies over the mesh axis 'batch'.*params_axis_name=\(\)"):
        own_models()
    gradient = jax.vmap(jax.grad(regression), in_axes=(0, None, None))
    g = gradient(models(), X, Y)
    expected = gradient(models() + 0.5 * g / jnp.linalg.norm(g, axis=1, keepdims=True), X, Y)
    assert max_difference(expected, own_models(params_axis_name=())) <= TOLERANCE


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_wiring_check_sees_the_whole_gradient(way, factor):
    check = diagnostics.wiring_check(action="record")

    def step(params, part):
        value_fn, grad_fn = functions(part, way)
        gradient = (grad_fn or jax.grad(value_fn))(params)
        gradient = jax.lax.pmean(gradient, "batch") if way == "unchecked" else averaged(value_fn, params)
        # One shard of one parameter alone is wrong.
        factor_here = jnp.where(jax.lax.axis_index("shards") == 0, 1.0, factor)
        gradient["layer2"]["weight"] *= factor_here
        words = {} if way == "checked" else {"params_axis_name": SPECS}
        _, state = check.update(
            gradient,
            check.init(params),
            params,
            value_fn=value_fn,
            grad_fn=grad_fn,
            axis_name="batch",
            **words,
        )
        return optax.tree.get(state, "mismatch")

    mapped = jax.shard_map(
        step, mesh=mesh_2d(), in_specs=(SPECS, P(BOTH)), out_specs=P(), check_vma=way == "checked"
    )
    found = float(jax.jit(mapped)(layouts.parameters(), batches()[0]))
    g = jax.grad(loss)(layouts.parameters(), batches()[0])
    wrong = g["layer2"]["weight"].at[8:].multiply(factor)
    passed = {**g, "layer2": {**g["layer2"], "weight": wrong}}
    expected = optax.tree.norm(jax.tree.map(jnp.subtract, passed, g)) / optax.tree.norm(passed)
    assert abs(found - float(expected)) < 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_wiring_check_sees_on_all_shards_what_moves(way):
    """`layer1` does not, and of `layer2` the first shard alone."""
    tx = optax.chain(diagnostics.wiring_check(), optax_sam.sam(RHO), optax.sgd(0.1))

    def step(params, state, part):
        value_fn, grad_fn = functions(part, way)
        gradient = (grad_fn or jax.grad(value_fn))(params)
        gradient = jax.lax.pmean(gradient, "batch") if way == "unchecked" else averaged(value_fn, params)
        words = {} if way == "checked" else {"params_axis_name": SPECS}
        updates, state = tx.update(
            gradient, state, params, value_fn=value_fn, grad_fn=grad_fn, axis_name="batch", **words
        )
        first = jnp.where(jax.lax.axis_index("shards") == 0, 1.0, 0.0)
        updates["layer1"] = jax.tree.map(jnp.zeros_like, updates["layer1"])
        updates["layer2"]["weight"] *= first
        return optax.apply_updates(params, updates), state

    mapped = jax.shard_map(
        step,
        mesh=mesh_2d(),
        in_specs=(SPECS, P(), P(BOTH)),
        out_specs=(SPECS, P()),
        check_vma=way == "checked",
    )

    def run():
        params, step = layouts.parameters(), jax.jit(mapped)
        state = tx.init(params)
        for batch in batches()[:3]:
            params, state = jax.block_until_ready(step(params, state, batch))
        return state

    layer1 = r"`params\['layer1'\]\['bias'\]`, `params\['layer1'\]\['weight'\]`, which did not move"
    with pytest.warns(UserWarning, match=layer1), finished():
        state = run()
    assert optax.tree.get(state, "unmoved").tolist() == [2, 2, -30, -30]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["sam", "gsam", "info_sam"])
def test_sums_over_shards_send_scalars_only(name, way):
    """Beyond them only what one more gradient needs."""

    def sent(tx, way):
        tx = optax.with_extra_args_support(tx)
        params = jax.tree.map(jnp.asarray, layouts.parameters())
        state = tx.init(params)
        compiled = mapped_step(tx, way, state).lower(params, state, batches()[0]).compile()
        return count(compiled.as_text(), layouts.NUM_DEVICES)

    gradient = sent(optax.sgd(0.1), "unchecked")["collective_bytes"]
    sgd, found = sent(optax.sgd(0.1), way), sent(MAKE[name](RHO), way)
    expected = {kind: size + gradient[kind] for kind, size in sgd["collective_bytes"].items()}
    assert found["collective_bytes"] == expected
    assert found["collective_scalars"] <= 5


# Random numbers: those of a shard are its own, and masks keep a fraction of all coordinates.


@pytest.mark.parametrize("way", WAYS)
def test_shards_draw_their_own_numbers(way):
    tx = optax_sam.bayesian_sam(1.0, num_examples=10, weight_decay=0.0)

    def step(w):  # of ‖w‖²/2, whose gradient is the sample
        own = lambda w: w
        return tx.update(w, tx.init(w), w, grad_fn=own, params_axis_name="batch")[0]

    mapped = jax.shard_map(
        step, mesh=layouts.mesh_1d(), in_specs=P("batch"), out_specs=P("batch"), check_vma=way == "checked"
    )
    found = np.asarray(jax.jit(mapped)(jnp.zeros(64)))
    assert len(np.unique(found.round(9))) == 64


@pytest.mark.parametrize("way", WAYS)
def test_masks_keep_a_fraction_of_all_coordinates(way):
    tx = optax_sam.sparse_sam(RHO, optax_sam.dynamic_mask(0.3, interval=2))
    _, state = on_shards(tx, way)
    mask = np.concatenate([np.ravel(m) for m in jax.tree.leaves(optax.tree.get(state, "mask"))])
    assert abs(mask.sum() - 0.7 * layouts.NUM_PARAMETERS) <= 1
    halves = np.split(np.asarray(optax.tree.get(state, "mask")["layer2"]["weight"]), 2)
    assert (halves[0] != halves[1]).any()
