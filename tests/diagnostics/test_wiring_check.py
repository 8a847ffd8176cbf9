"""`wiring_check`: the number that it records, what it says, and what it costs."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import diagnostics
from tests.clients.by_hand import finished, mismatch, silence, warning

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(32, 8)), jnp.float32)
Y = jnp.sin(3 * X[:, 0])
PARAMS = {
    "inner": jnp.asarray(RNG.normal(size=(8, 16)) / 3, jnp.float32),
    "outer": jnp.asarray(RNG.normal(size=16) / 3, jnp.float32),
}


def loss(params, x=X, y=Y):
    return jnp.mean((jnp.tanh(x @ params["inner"]) @ params["outer"] - y) ** 2)


def half_precision_loss(params):
    params, x = optax.tree.cast((params, X), jnp.bfloat16)
    return jnp.mean((jnp.tanh(x @ params["inner"]) @ params["outer"]).astype(jnp.float32) ** 2)


GRADS = jax.grad(loss)(PARAMS)
RECORDING = diagnostics.wiring_check(action="record")


def kept(params):
    return RECORDING.init(params)._replace(mismatch=jnp.asarray(7.0, jnp.float32))


KEPT = kept(PARAMS)


def scaled(factor, tree=GRADS):
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def check(grads=GRADS, state=None, tx=RECORDING, params=PARAMS, **arguments):
    """The mismatch that one update records."""
    state = kept(params) if state is None else state
    step = jax.jit(lambda grads, state, params: tx.update(grads, state, params, **arguments)[1])
    return mismatch(step(grads, state, params))


def test_mismatch_is_the_relative_distance_of_the_gradients():
    other = jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape), jnp.float32), GRADS)
    square = lambda tree: sum(np.sum(np.float64(leaf) ** 2) for leaf in jax.tree.leaves(tree))
    difference = jax.tree.map(lambda v, g: np.float64(v) - np.float64(g), GRADS, other)
    expected = np.sqrt(square(difference) / square(other))
    for functions in ({"value_fn": loss}, {"grad_fn": jax.grad(loss)}):
        assert check(other, **functions) == pytest.approx(expected, rel=1e-5)
        assert check(GRADS, **functions) < 1e-6


def test_gradient_is_handed_on_and_the_state_is_a_float32(x64):
    for dtype in (jnp.float64, jnp.float32, jnp.bfloat16):
        params, grads = optax.tree.cast((PARAMS, GRADS), dtype)
        tx = diagnostics.wiring_check(action="record")
        value_fn = lambda params, dtype=dtype: loss(params, X.astype(dtype), Y.astype(dtype))
        updates, state = tx.update(grads, tx.init(params), params, value_fn=value_fn)
        assert all(map(jnp.array_equal, jax.tree.leaves(updates), jax.tree.leaves(grads)))
        assert state.mismatch.dtype == jnp.float32
        assert state.mismatch.shape == ()
        assert state.mismatch < (0.05 if dtype == jnp.bfloat16 else 1e-5)


def other_key(params):
    mask = jax.random.bernoulli(jax.random.key(0), 0.5, (32, 16))
    return jnp.mean((2 * mask * jnp.tanh(X @ params["inner"]) @ params["outer"] - Y) ** 2)


def divided_by_zero(params):
    return loss(params) / 0


@pytest.mark.filterwarnings("ignore:`value_fn` does not depend")
@pytest.mark.parametrize(
    ("value_fn", "grads", "parts"),
    [
        (other_key, GRADS, ("cosine 0", "another batch", "dropout key", "after the clean pass")),
        (lambda params: loss(params, X[:4], Y[:4]), GRADS, ("part of the batch", "`clean_value_fn`")),
        (lambda params: loss(PARAMS), GRADS, ("`value_fn` is zero", "ignores its argument")),
        (
            lambda params: loss(params | {"inner": PARAMS["inner"]}),
            GRADS,
            (r"100% .* in `params\['inner'\]`", r"zero in `params\['inner'\]`", "a model outside"),
        ),
        (loss, scaled(2.0**15), ("passed in is 3.277e", "loss scale", "unscale the gradient before")),
        (lambda params: 2.0**15 * loss(params), GRADS, ("loss scale", "unscaled already", "`grad_fn`")),
        (lambda params: 3 * loss(params), GRADS, ("is 3 times the other", "sum over the batch")),
        (loss, scaled(1e-3), ("is 1000 times the other", "clipping in front")),
        (lambda params: -loss(params), GRADS, ("opposite", "loss that is minimised")),
        (
            lambda params: loss(params) + 0.2 * optax.tree.norm(params, squared=True),
            GRADS,
            (r"The difference is 0\.4 times the parameters", "weight decay", "`optax.adamw`"),
        ),
        (loss, scaled(0.0), ("mismatch inf", "passed in is zero")),
        (divided_by_zero, GRADS, ("mismatch inf", "is not finite", "division by zero")),
    ],
    ids=[
        "key",
        "batch",
        "constant",
        "part",
        "scaled",
        "scale",
        "sum",
        "clipped",
        "sign",
        "decay",
        "0",
        "inf",
    ],
)
def test_likely_cause(value_fn, grads, parts):
    with warning("`value_fn`", *parts):
        check(grads, tx=diagnostics.wiring_check(), value_fn=value_fn)


def test_gradient_that_is_not_finite_is_not_compared():
    with silence():
        assert check(scaled(jnp.nan), tx=diagnostics.wiring_check(), value_fn=loss) == 7
        assert check(scaled(0.0), tx=diagnostics.wiring_check(), value_fn=lambda w: 0 * loss(w)) == 0


def test_part_of_the_batch_on_purpose():
    part = lambda params: loss(params, X[:8], Y[:8])
    tx = optax.chain(diagnostics.wiring_check(), optax_sam.sam(0.05))
    functions = {"value_fn": loss, "clean_value_fn": part, "refresh": False}
    with silence():
        _, state = tx.update(jax.grad(part)(PARAMS), tx.init(PARAMS), PARAMS, **functions)
        assert check(jax.grad(part)(PARAMS), grad_fn=jax.grad(loss), clean_value_fn=part) < 1e-6
    assert mismatch(state) < 1e-6
    with warning("`clean_value_fn`", "another batch"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, **functions)


def test_tolerance_leaves_room_for_16_bits_alone():
    gradient = jax.grad(half_precision_loss)(PARAMS)  # Operation by operation, rounded after each.
    noisy = lambda tree, size: jax.tree.map(lambda leaf: leaf * (1 + size * jnp.sign(leaf)), tree)
    with silence():
        found = check(gradient, tx=diagnostics.wiring_check(), value_fn=half_precision_loss)
        assert 1e-4 < found < 0.05
        check(noisy(gradient, 0.05), tx=diagnostics.wiring_check(), value_fn=half_precision_loss)
    with warning("`value_fn`"):
        check(noisy(GRADS, 0.05), tx=diagnostics.wiring_check(), value_fn=loss)
    with warning("`value_fn`"):
        tx = diagnostics.wiring_check(tolerance=0.01)
        check(noisy(gradient, 0.05), tx=tx, value_fn=half_precision_loss)


def caught_in(*calls):
    """The warnings of each call."""
    texts = []
    for call in calls:
        with warnings.catch_warnings(record=True) as caught, finished():
            warnings.simplefilter("always")
            call()
        texts.append([str(one.message) for one in caught])
    return texts


def test_one_warning_for_each_cause_in_a_program():
    tx = diagnostics.wiring_check()

    @jax.jit
    def step(factor):
        return tx.update(GRADS, KEPT, PARAMS, value_fn=lambda params: factor * loss(params))[1]

    steps = [functools.partial(step, float(factor)) for factor in (2, 3, -1, -2, 2)]
    assert list(map(len, caught_in(*steps))) == [1, 0, 1, 0, 0]


def test_another_program_with_the_same_transformation_is_told_again():
    """Who edits the step and runs it again must not take silence for success."""
    tx = diagnostics.wiring_check()
    jitted = lambda factor: lambda: check(tx=tx, value_fn=lambda params: factor * loss(params))
    assert list(map(len, caught_in(jitted(2), jitted(5)))) == [1, 1]

    def run(factor, steps=3):  # Without `jit`: each step has a lambda of its own.
        state = tx.init(PARAMS)
        for _ in range(steps):
            _, state = tx.update(GRADS, state, PARAMS, value_fn=lambda params: factor * loss(params))

    edited = lambda: tx.update(GRADS, KEPT, PARAMS, value_fn=lambda params: 7 * loss(params))
    assert list(map(len, caught_in(lambda: run(2), lambda: run(5), edited, edited))) == [1, 1, 1, 0]


def test_tolerance_as_a_hyperparameter():
    build = optax.inject_hyperparams(diagnostics.wiring_check, static_args=("action",))
    with warning("is 3 times the other"):
        check(tx=(tx := build(tolerance=0.5)), state=tx.init(PARAMS), value_fn=lambda w: 3 * loss(w))
    with silence():
        check(tx=(tx := build(tolerance=2.5)), state=tx.init(PARAMS), value_fn=lambda w: 3 * loss(w))


def test_nothing_is_moved_to_the_host_or_computed_there_by_jax():
    tx = optax.chain(diagnostics.wiring_check(), optax_sam.sam(0.05))
    params, state = jax.device_put((PARAMS, tx.init(PARAMS)))
    for factor, expected in ((1, silence), (3, functools.partial(warning, "is 3 times the other"))):
        value_fn = lambda params, factor=factor: factor * loss(params)
        step = jax.jit(lambda w, s, value_fn=value_fn: tx.update(jax.grad(loss)(w), s, w, value_fn=value_fn))
        step = step.lower(params, state).compile()
        with expected(), jax.transfer_guard("disallow"):
            jax.block_until_ready(step(params, state))


@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0, 1000.0])
@pytest.mark.parametrize("start", ["near", "far", "at"])
def test_rounding_near_a_minimum(noise, start):
    """The terms of the gradient cancel; a mean over micro-batches differs by much of what is left."""
    x = jnp.asarray(RNG.normal(size=(200, 50)), jnp.float32)
    y = x @ jnp.ones(50) + noise * jnp.asarray(RNG.normal(size=200), jnp.float32)
    loss = lambda w, x=x, y=y: jnp.mean((x @ w - y) ** 2)
    micro = lambda w: sum(jax.grad(loss)(w, x[i::4], y[i::4]) for i in range(4)) / 4
    steps = {"near": 3000, "far": 30, "at": 0}[start]
    w = jnp.ones(50) if start == "at" else jnp.zeros(50)
    w = jax.lax.fori_loop(0, steps, lambda _, w: w - 0.1 * jax.grad(loss)(w), w)
    with silence():
        check(jax.jit(micro)(w), tx=diagnostics.wiring_check(), params=w, value_fn=loss)
    # What is wrong is still seen, if it can be seen above rounding.
    wrong = [(lambda w: 0 * jnp.sum(w), "ignores its argument")]
    wrong += [(lambda w: 3 * loss(w), "3 times the other")] if start == "far" else []
    wrong += [(lambda w: loss(w, x[:100], y[:100]), "another batch")] if noise else []
    for value_fn, cause in wrong:
        if noise or start == "far":
            with warning("`value_fn`", cause):
                check(jax.jit(micro)(w), tx=diagnostics.wiring_check(), params=w, value_fn=value_fn)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30])
def test_gradients_whose_squares_leave_float32(size):
    scale = jnp.asarray(size, jnp.float32)
    right = lambda params: scale * loss(params)
    grads = scaled(scale)
    with silence():
        assert check(grads, tx=diagnostics.wiring_check(), value_fn=right) < 1e-5
    with warning("is 3 times the other"):
        found = check(grads, tx=diagnostics.wiring_check(), value_fn=lambda params: 3 * right(params))
    assert found == pytest.approx(2, rel=1e-4)
    with warning("times the parameters"):
        penalty = lambda params: right(params) + scale / 5 * optax.tree.norm(params, squared=True)
        check(grads, tx=diagnostics.wiring_check(), value_fn=penalty)


SMALL = PARAMS | {"small": jnp.ones(3)}


def loss_with_small(params):
    return loss({name: params[name] for name in PARAMS}) + 1e-3 * jnp.sum(params["small"] ** 2)


def test_an_array_that_is_exactly_zero_in_one_gradient_is_reported_however_small_it_is():
    grads, tx = jax.grad(loss_with_small)(SMALL), diagnostics.wiring_check()
    outside = lambda params: loss_with_small(params | {"small": SMALL["small"]})
    with warning("mismatch 0.00", r"zero in `params\['small'\]`", "a model outside"):
        assert check(grads, tx=tx, params=SMALL, value_fn=outside) < 0.01
    with warning("mismatch 0.00", r"zero in `params\['small'\]`", "to freeze them", "behind the method"):
        grads = grads | {"small": jnp.zeros(3)}
        assert check(grads, tx=tx, params=SMALL, value_fn=loss_with_small) < 0.01
    with silence():  # Zero in both, and the same.
        check(grads, tx=tx, params=SMALL, value_fn=outside)


def front(*stages):
    """Gradients passed in as these transformations leave them."""
    tx = optax.chain(*stages)
    return tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]


def smoothed(params, amount=0.1):
    return (1 - amount) * loss(params) + amount * loss(params, X, 0 * Y)


IS_OUTER = {"inner": False, "outer": True}


@pytest.mark.parametrize(
    ("grads", "value_fn", "parts"),
    [
        (
            front(optax.masked(optax.set_to_zero(), IS_OUTER)),
            loss,
            (r"zero in `params\['outer'\]`", "freeze"),
        ),
        (front(optax.clip(0.02)), loss, ("one number", "elementwise clipping", "behind the method")),
        (front(optax.adaptive_grad_clip(0.02)), loss, ("each column", "adaptive_grad_clip", "behind the")),
        (front(optax.clip_by_block_rms(0.01)), loss, ("In each array", "clipping by array", "behind the")),
        (front(optax.scale_by_adam()), loss, ("nearly of one size", "Adam", "behind the method")),
        (front(optax.adam(1e-3)), loss, ("nearly of one size", "Adam", "behind the method")),
        (
            front(optax.add_decayed_weights(0.1, IS_OUTER)),
            loss,
            (r"-0\.1 times the parameters, or zero, in each array", "weight decay"),
        ),
        (GRADS, smoothed, ("label smoothing",)),
        (front(optax.sgd(0.1)), loss, ("opposite", "an optimizer goes behind")),
    ],
    ids=["frozen", "clip", "adaptive", "by array", "adam", "adam with rate", "decay", "smoothing", "sgd"],
)
def test_likely_cause_in_front(grads, value_fn, parts):
    with warning("`value_fn`", *parts):
        check(grads, tx=diagnostics.wiring_check(), value_fn=value_fn)


def test_raise():
    tx = diagnostics.wiring_check(action="raise")
    arguments = {"value_fn": lambda params: 3 * loss(params)}
    with pytest.raises(ValueError, match="is 3 times the other"):
        tx.update(GRADS, KEPT, PARAMS, **arguments)
    with pytest.raises(jax.errors.JaxRuntimeError, match="is 3 times the other"), finished():
        check(tx=tx, **arguments)


def test_without_a_report_there_is_no_callback():
    program = lambda tx: str(jax.make_jaxpr(functools.partial(tx.update, value_fn=loss))(GRADS, KEPT, PARAMS))
    assert "callback" in program(diagnostics.wiring_check())
    assert "callback" not in program(RECORDING)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action": "error"}, r"`action` must be one of \('warn', 'raise', 'record'\), got 'error'"),
        ({"tolerance": -0.1}, "`tolerance` must be at least 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.wiring_check(**arguments)


def test_without_value_fn():
    with pytest.raises(ValueError, match="`update` got no `value_fn`"):
        RECORDING.update(GRADS, KEPT, PARAMS)
    RECORDING.update(GRADS, KEPT, PARAMS, record=False)


def costs(tx, value_fn=loss, **arguments):
    def step(params, state):
        return tx.update(jax.grad(loss)(params), state, params, value_fn=value_fn, **arguments)

    return jax.jit(step).lower(PARAMS, tx.init(PARAMS)).compile().cost_analysis()["flops"]


def test_cost(optimized):
    """Off, the program is that of the method alone; on, one gradient more, or none if it is the same one."""
    method, checked = optax_sam.sam(0.05), optax.chain(RECORDING, optax_sam.sam(0.05))
    reporting = optax.chain(diagnostics.wiring_check(), optax_sam.sam(0.05))
    assert costs(checked, record=False) == costs(reporting, record=False) == costs(method)
    gradient = jax.jit(jax.grad(loss)).lower(PARAMS).compile().cost_analysis()["flops"]
    products = 20 * sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    assert costs(checked) < costs(method) + products
    another = lambda params: loss(params, X + 1)
    assert costs(checked, another) < costs(method, another) + gradient + X.size + products
    # What tells rounding from a cause is computed in a branch, and only where the two differ.
    assert costs(reporting) < costs(checked) + gradient + 4 * products


def test_record():
    wrong = lambda params: 3 * loss(params)
    for record in (True, None, jnp.asarray(True)):
        assert check(value_fn=wrong, record=record) == pytest.approx(2)
    for record in (False, jnp.asarray(False)):
        assert check(value_fn=wrong, record=record) == 7
    step = lambda record: RECORDING.update(GRADS, KEPT, PARAMS, value_fn=wrong, record=record)[1]
    assert [mismatch(jax.jit(step)(record)) for record in (False, True)] == pytest.approx([7, 2])


def test_in_scan_and_vmap_and_cond():
    tx = diagnostics.wiring_check()
    finite = optax.apply_if_finite(optax.chain(tx, optax_sam.sam(0.05)), 5)

    def scan(factors):
        def step(state, factor):
            value_fn = lambda params: factor * loss(params)
            return finite.update(jax.grad(value_fn)(PARAMS), state, PARAMS, value_fn=value_fn)[::-1]

        return jax.lax.scan(step, finite.init(PARAMS), factors)

    def ensemble(factor):
        value_fn = lambda params: factor * loss(params)
        return tx.update(GRADS, tx.init(PARAMS), PARAMS, value_fn=value_fn)[1]

    with silence():
        state, _ = jax.jit(scan)(jnp.arange(1.0, 4.0))
        jax.block_until_ready(jax.vmap(ensemble)(jnp.ones(2)))
    assert mismatch(state) < 1e-5
    with warning("`value_fn`", "is 3 times the other"):
        states = jax.vmap(ensemble)(jnp.array([1.0, 3.0]))
    assert states.mismatch == pytest.approx([0, 2], abs=1e-5)


@pytest.mark.parametrize("m_sharpness", [False, True])
def test_groups(m_sharpness):
    """Like is compared with like: averages with averages, each group's own gradient with its own."""
    groups = X.reshape(4, 8, 8), Y.reshape(4, 8)

    def update(x, y, is_local):
        value_fn = lambda params: loss(params, x, y)
        grads = jax.grad(value_fn)(PARAMS)
        grads = grads if is_local else jax.lax.pmean(grads, "group")
        arguments = {"axis_name": "group", "m_sharpness": m_sharpness}
        return RECORDING.update(grads, KEPT, PARAMS, value_fn=value_fn, **arguments)[1].mismatch

    def of_groups(is_local):
        mapped = jax.vmap(lambda x, y: update(x, y, is_local), axis_name="group", out_axes=None)
        return jax.jit(mapped)(*groups)

    right, wrong = of_groups(m_sharpness), of_groups(not m_sharpness)
    own = [jax.grad(loss)(PARAMS, x, y) for x, y in zip(*groups, strict=True)]
    square = lambda tree: sum(np.sum(np.float64(leaf) ** 2) for leaf in jax.tree.leaves(tree))
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *own)
    spread = sum(square(jax.tree.map(jnp.subtract, mean, g)) for g in own)
    passed = 4 * square(mean) if m_sharpness else sum(map(square, own))
    assert right < 1e-5
    assert wrong == pytest.approx(np.sqrt(spread / passed), rel=1e-4)
