"""`wiring_check` sees what the method perturbs though the optimizer behind it never moves it."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import diagnostics
from optax_sam.diagnostics import wiring_frozen
from tests.clients.by_hand import finished, silence
from tests.registry import every_method

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(16, 8)), jnp.float32)
Y = jnp.sin(3 * X[:, 0])
PARAMS = {
    "body": [jnp.asarray(RNG.normal(size=(8, 8)) / 3, jnp.float32) for _ in range(2)],
    "scale": jnp.ones(8),
    "head": jnp.asarray(RNG.normal(size=8) / 3, jnp.float32),
}
TRAINED = {"body": [False, False], "scale": False, "head": True}
LABELS = {"body": ["f", "f"], "scale": "f", "head": "t"}
FROZEN = jax.tree.map(lambda trained: not trained, TRAINED)
SGD = optax.sgd(0.1, momentum=0.9)


def loss(params, x=X):
    for w in params["body"]:
        x = jnp.tanh(x @ w)
    return jnp.mean(((params["scale"] * x) @ params["head"] - Y) ** 2)


FREEZES = {
    "partition": optax.partition({"t": SGD, "f": optax.set_to_zero()}, LABELS),
    "multi_transform": optax.multi_transform({"t": SGD, "f": optax.set_to_zero()}, LABELS),
    "masked": optax.chain(SGD, optax.masked(optax.set_to_zero(), FROZEN)),
    "selective": optax.selective_transform(SGD, freeze_mask=FROZEN),
    "behind the chain": SGD,
}


def train(
    base,
    method=None,
    *,
    num_steps=3,
    params=PARAMS,
    value_fn=loss,
    jit=True,
    mask=None,
    action="warn",
    **arguments,
):
    """Trains with a check; `mask`: the updates that are applied, chosen by the trainer."""
    method = optax_sam.sam(0.05) if method is None else method
    tx = optax.chain(diagnostics.wiring_check(action=action), method, base)

    def step(params, state):
        updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn, **arguments)
        if mask is not None:
            updates = jax.tree.map(lambda u, trained: jnp.where(trained, u, 0), updates, mask)
        return optax.apply_updates(params, updates), state

    step, state = jax.jit(step) if jit else step, tx.init(params)
    for _ in range(num_steps):
        params, state = step(params, state)
    return state


def said(call):
    with warnings.catch_warnings(record=True) as caught, finished():
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught if "16 bits" not in str(one.message)]


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("freeze", FREEZES)
def test_frozen_by_the_optimizer(freeze, jit):
    mask = TRAINED if freeze == "behind the chain" else None
    (message,) = said(lambda: train(FREEZES[freeze], jit=jit, mask=mask, num_steps=6))
    for path in ("['body'][0]", "['body'][1]", "['scale']"):
        assert f"`params{path}`" in message
    assert "head" not in message
    assert "`optax_sam.masked(method, trained)`" in message
    g = jax.grad(loss)(PARAMS)
    with silence():
        train(FREEZES[freeze], jit=jit, mask=mask, num_steps=2)  # Too early to know.
    share = 100 * optax.tree.norm(g["head"]) / optax.tree.norm(g)
    assert abs(float(message.split("The others get ")[1].split("%")[0]) - share) < 10


def test_raise():
    with pytest.raises(jax.errors.JaxRuntimeError, match="Likely they are frozen"), finished():
        train(FREEZES["partition"], action="raise")
    with pytest.raises(ValueError, match="Likely they are frozen"):
        train(FREEZES["partition"], action="raise", jit=False)


def test_state():
    counts = lambda action: optax.tree.get(train(FREEZES["partition"], action=action, num_steps=5), "unmoved")
    with pytest.warns(UserWarning, match="Likely they are frozen"), finished():
        assert counts("warn").tolist() == [4, 4, -30, 4]
    with silence():
        assert not counts("record").any()


@every_method
def test_every_method_and_its_restricted_form(method):
    make, base = method.make(0.05), FREEZES["partition"]
    (message,) = said(lambda: train(base, make, num_steps=7))
    assert "`params['body'][0]`" in message
    with silence():
        train(base, optax_sam.masked(make, TRAINED), num_steps=7)


RESTRICTED = {
    "masked": optax_sam.masked(optax_sam.sam(0.05), TRAINED),
    "masked by name": optax_sam.masked(optax_sam.sam(0.05), optax_sam.mask_by_name("head")),
    "ascent": optax_sam.sharpness_aware(optax_sam.masked(optax_sam.steepest_ascent(0.05), TRAINED)),
    "groups": optax_sam.sharpness_aware(optax_sam.partition({"t": optax_sam.steepest_ascent(0.05)}, LABELS)),
    "masked monitor": optax_sam.masked(diagnostics.monitor(optax_sam.sam(0.05)), TRAINED),
    "monitored mask": diagnostics.monitor(optax_sam.masked(optax_sam.sam(0.05), TRAINED)),
    "masked twice": optax_sam.masked(optax_sam.masked(optax_sam.sam(0.05), TRAINED), TRAINED),
}


@pytest.mark.parametrize("method", RESTRICTED)
def test_restricted_methods_are_silent(method):
    with silence():
        train(FREEZES["partition"], RESTRICTED[method], num_steps=5)
        train(FREEZES["partition"], RESTRICTED[method], jit=False)


def test_restricted_to_too_much():
    """What is said is of what is perturbed: not of what the mask leaves out."""
    mask = TRAINED | {"scale": True}
    (message,) = said(lambda: train(FREEZES["partition"], optax_sam.masked(optax_sam.sam(0.05), mask)))
    assert "perturbs `params['scale']`, which" in message


def in_turn(num):
    """The head rests in all but one of `num` updates, and the others in that one."""
    turn = lambda is_head: optax.conditionally_mask(
        optax.sgd(0.1), lambda count: ((count % num) == num - 1) == is_head
    )
    return optax.partition({"t": turn(True), "f": turn(False)}, LABELS)


WARMUP = optax.linear_schedule(0.0, 0.1, 4)
RIGHT = {
    "all trained": (SGD, loss),
    "stop_gradient": (SGD, lambda p: loss(jax.lax.stop_gradient(p) | {"head": p["head"]})),
    "no learning rate": (optax.sgd(0.0), loss),
    "warm-up": (optax.sgd(WARMUP), loss),
    "MultiSteps": (optax.MultiSteps(SGD, 4), loss),
    "skipped": (optax.apply_if_finite(SGD, 3), loss),
    "in turn": (in_turn(2), loss),
    # The entries of `scale` are 1, of which less than 6e-8 is rounded away.
    "rounded": (optax.sgd(1e-8), loss),
    "layers": (optax.partition({"t": optax.adam(1e-2), "f": optax.adam(1e-5)}, LABELS), loss),
}


@pytest.mark.parametrize("case", RIGHT)
def test_right_programs_are_silent(case):
    base, value_fn = RIGHT[case]
    with silence():
        state = train(base, value_fn=value_fn, num_steps=12)
    assert optax.tree.get(state, "unmoved").max() < wiring_frozen.NEEDED


def test_noise_on_parameters_that_are_not_used():
    """They are perturbed by random weight perturbation, but not frozen by anybody."""
    with silence():
        train(SGD, optax_sam.rwp(0.05), params=PARAMS | {"unused": jnp.ones(3)}, num_steps=5)


def test_first_trained_and_then_frozen():
    """Who trains groups in turn, rests a while; who freezes a group later, is told later."""
    until = lambda num: optax.sgd(lambda count: jnp.where(count < num, 0.1, 0.0))
    base = optax.partition({"t": optax.sgd(0.1), "f": until(3)}, LABELS)
    rest = wiring_frozen.PATIENCE + wiring_frozen.NEEDED
    with silence():
        train(base, num_steps=3 + rest)
    assert len(said(lambda: train(base, num_steps=4 + rest))) == 1


def test_16_bits():
    """Frozen, or rounded away: the message says both."""
    params = optax.tree.cast(PARAMS, jnp.bfloat16) | {"head": PARAMS["head"]}
    value_fn = lambda p: loss(optax.tree.cast(p, jnp.float32))
    for base in (FREEZES["partition"], optax.sgd(1e-6)):
        (message,) = said(lambda base=base: train(base, params=params, value_fn=value_fn))
        assert "lost in the rounding of bfloat16: keep float32 parameters" in message
    with silence(), pytest.warns(UserWarning, match="16 bits"):
        train(optax.sgd(1.0), params=params, value_fn=value_fn)


def test_float64_moves_by_less_than_float32_sees(x64):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), PARAMS)
    base = optax.partition({"t": optax.sgd(1e-3), "f": optax.sgd(1e-11)}, LABELS)
    with silence():
        state = train(base, params=params, num_steps=5)
    assert (optax.tree.get(state, "unmoved") == -30).all()
    assert len(said(lambda: train(FREEZES["partition"], params=params))) == 1


def test_negative_zero_is_no_movement():
    params = PARAMS | {"body": [PARAMS["body"][0].at[0, 0].set(-0.0), PARAMS["body"][1]]}
    (message,) = said(lambda: train(FREEZES["partition"], params=params))
    assert "['body'][0]" in message


def test_updates_that_are_not_checked_do_not_count():
    tx = optax.chain(diagnostics.wiring_check(), RESTRICTED["masked"], FREEZES["partition"])
    params, state = PARAMS, tx.init(PARAMS)
    step = jax.jit(functools.partial(tx.update, value_fn=loss))
    for i in range(8):
        updates, state = step(jax.grad(loss)(params), state, params, record=jnp.asarray(i % 2 == 0))
        params = optax.apply_updates(params, updates)
    assert optax.tree.get(state, "unmoved").tolist() == [3, 3, -30, 3]


def test_vmap_over_seeds_and_scan():
    tx = optax.chain(diagnostics.wiring_check(), optax_sam.sam(0.05), FREEZES["partition"])
    right = optax.chain(diagnostics.wiring_check(), RESTRICTED["masked"], FREEZES["partition"])

    def run(params, tx):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=5)[0]

    seeds = jax.tree.map(lambda w: jnp.stack([w, 1.1 * w]), PARAMS)
    ensemble = lambda tx: jax.jit(jax.vmap(functools.partial(run, tx=tx)))(seeds)
    (message,) = said(lambda: ensemble(tx))
    assert "['body'][0]" in message
    with silence():
        ensemble(right)


@pytest.mark.parametrize("method", [optax.identity(), optax_sam.masked(optax.identity(), TRAINED)])
def test_nothing_is_kept_alive(method):
    with jax.checking_leaks():
        train(SGD, method, num_steps=1)


def test_fingerprint():
    """Any change of one entry is seen, opposite changes too; two shards have the sum of theirs."""
    of = wiring_frozen._fingerprint
    w = PARAMS["body"][0]
    up = jnp.nextafter(w, jnp.inf)
    changed = [w.at[0, 0].set(up[0, 0]), w.at[0, 0].add(0.5), w.at[3].multiply(2), jnp.zeros_like(w)]
    both = jnp.ones(2), jnp.nextafter(jnp.ones(2), jnp.array([2.0, 0.0]))
    seen = [of(w), *map(of, changed), *map(of, both)]
    assert len(set(map(int, seen))) == len(seen)
    assert of(w) == of(w[:4]) + of(w[4:])
