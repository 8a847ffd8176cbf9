"""The monitor records what it says, when it says, and leaves the method alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import optax_sam
from optax_sam import diagnostics, tree_math
from optax_sam.diagnostics.monitor import QUANTITIES
from tests.problems import network, quadratic, unflat

PROBLEM = network()
BATCH = jax.tree.map(lambda x: x[0], PROBLEM.batches)
CURVATURE = ("alignment", "top_eigenvalue")


def loss(params):
    return PROBLEM.loss(params, BATCH)


def monitored(method=None, *, quantities=QUANTITIES, num_iters=2, **options):
    method = optax_sam.sam(0.1) if method is None else method
    return diagnostics.monitor(method, quantities=quantities, num_iters=num_iters, **options)


def update(tx, state=None, params=PROBLEM.params, value_fn=loss, **extra_args):
    """One jitted call of `tx.update`."""

    @jax.jit
    def jitted(state, params):
        return tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn, **extra_args)

    return jitted(tx.init(params) if state is None else state, params)


def recorded(state):
    return {name: float(getattr(state, name)) for name in QUANTITIES}


@pytest.mark.parametrize("num_steps", [1, 2])
def test_what_is_recorded_is_what_it_says(num_steps, x64):
    """On a quadratic, with every quantity from dense matrices."""
    spectrum = [9.0, 4.0, 1.0, -2.0, -20.0]
    problem = quadratic(spectrum)
    w = np.array([1.0, -2.0, 0.5, 3.0, 0.1])
    tx = monitored(optax_sam.sam(0.1, num_steps=num_steps), num_iters=5)
    _, state = update(tx, params=unflat(w), value_fn=problem.value_fn)

    point = w
    for _ in range(num_steps):
        g = problem.hessian @ point
        point = point + 0.1 / num_steps * g / np.linalg.norm(g)
    epsilon = point - w
    value = lambda w: 0.5 * w @ problem.hessian @ w
    expected = {
        "gradient_norm": np.linalg.norm(problem.hessian @ w),
        "perturbation_norm": np.linalg.norm(epsilon),
        "sharpness": value(point) - value(w),
        "top_eigenvalue": 9.0,
        "alignment": abs(epsilon @ problem.eigenvectors[:, 0]) / np.linalg.norm(epsilon),
    }
    found = recorded(state)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)
        assert optax.tree.get(state, name) == found[name]


METHODS = {
    "eigen_sam": lambda: optax_sam.eigen_sam(0.1, num_iters=2),
    "xsam": lambda: optax_sam.xsam(0.1, 0.2),
    "in a chain": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.inject_hyperparams(optax_sam.sam, static_args=("num_steps",))(rho=0.1),
    ),
}


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_the_method_is_left_alone(make):
    """Same result, same state, whatever is recorded; names in its state can still be read."""
    tx = monitored(make())
    expected, expected_state = update(make())
    for record in (True, False):
        found, state = update(tx, record=record)
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-7)
        chex.assert_trees_all_close(state.inner_state, expected_state, rtol=1e-4, atol=1e-6)
        for name in ("ascent_value", "eigenvalue", "eigenvector", "alpha", "rho"):
            chex.assert_trees_all_close(
                optax.tree.get(state, name), optax.tree.get(expected_state, name), rtol=1e-4, atol=1e-6
            )


def step_of(tx, **update_kwargs):
    def step(params, state, batch):
        value_fn = lambda params: PROBLEM.loss(params, batch)
        grads = jax.grad(value_fn)(params)
        updates, state = tx.update(grads, state, params, value_fn=value_fn, **update_kwargs)
        return optax.apply_updates(params, updates), state

    return step


def compiled(tx, **update_kwargs):
    arguments = PROBLEM.params, tx.init(PROBLEM.params), BATCH
    return jax.jit(step_of(tx, **update_kwargs)).lower(*arguments).compile()


def test_on_other_steps_it_costs_nothing(optimized):
    flops = lambda tx, **kwargs: compiled(tx, **kwargs).cost_analysis()["flops"]
    method = optax_sam.sam(0.1)
    tx = monitored(method)
    # But for the addition of its count.
    assert flops(tx, record=False) - flops(method) <= 4
    # XLA counts one pass of the loop over the products.
    assert flops(tx, record=True) > 2 * flops(method)
    assert " while(" in compiled(tx, record=True).as_text()
    program = compiled(tx, record=False).as_text()
    assert " while(" not in program
    assert " conditional(" not in program
    assert " conditional(" in compiled(tx).as_text()


def test_recording_follows_the_interval_or_the_host():
    tx = optax.chain(monitored(interval=3), optax.sgd(0.1))
    automatic = static = traced = PROBLEM.params, tx.init(PROBLEM.params)
    steps = {record: jax.jit(step_of(tx, record=record)) for record in (None, True, False)}
    by_array = jax.jit(lambda record, *carry: step_of(tx, record=record)(*carry))
    last = None
    for i in range(5):
        batch = jax.tree.map(lambda x, i=i: x[i], PROBLEM.batches)
        automatic = steps[None](*automatic, batch)
        static = steps[i % 3 == 0](*static, batch)
        traced = by_array(jnp.asarray(i % 3 == 0), *traced, batch)
        now = recorded(automatic[1][0])
        if i % 3:
            assert now == last
        elif last is not None:
            assert all(now[name] != last[name] for name in QUANTITIES if name != "perturbation_norm")
        last = now
    chex.assert_trees_all_close(automatic, static, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(automatic, traced, rtol=1e-4, atol=1e-5)


def test_a_refresh_of_the_method_is_no_recording():
    tx = monitored(optax_sam.eigen_sam(0.1, num_iters=2))
    _, state = update(tx, refresh=True, record=False)
    assert optax.tree.get(state, "eigenvalue") > 0
    assert set(recorded(state).values()) == {0.0}
    _, state = update(tx, refresh=False, record=True)
    assert optax.tree.get(state, "eigenvalue") == 0
    assert 0.0 not in recorded(state).values()


def test_where_the_method_perturbs_nothing_the_last_perturbation_is_kept():
    tx = monitored(optax_sam.look_sam(0.1, interval=2), interval=1)
    eager = traced = tx.init(PROBLEM.params)
    gradient, last = jax.grad(loss)(PROBLEM.params), None
    for step in range(4):
        eager = tx.update(gradient, eager, PROBLEM.params, value_fn=loss)[1]
        traced = update(tx, traced, refresh=step % 2 == 0)[1]
        now = recorded(eager)
        np.testing.assert_allclose(list(now.values()), list(recorded(traced).values()), rtol=1e-4, atol=1e-5)
        assert now["gradient_norm"] > 0
        assert now["perturbation_norm"] == pytest.approx(0.1)
        if step % 2:
            assert all(now[name] == last[name] for name in ("sharpness", "alignment"))
            assert now["top_eigenvalue"] != last["top_eigenvalue"]
        last = now


def test_what_is_not_asked_for_is_not_in_the_state():
    _, state = update(monitored(quantities=("sharpness",)))
    assert {name for name in QUANTITIES if jax.tree.leaves(getattr(state, name))} == {"sharpness"}
    assert not jax.tree.leaves(state.top_eigenvector)
    default = diagnostics.monitor(optax_sam.sam(0.1))
    for state in (default.init(PROBLEM.params), update(default)[1]):
        assert {name for name in QUANTITIES if not jax.tree.leaves(getattr(state, name))} == set(CURVATURE)
        assert not jax.tree.leaves(state.top_eigenvector)


def test_the_eigenvector_is_followed_from_one_recording_to_the_next():
    """Two products a recording are not enough for one, but for ten."""
    tx = monitored()
    vector, unravel = ravel_pytree(PROBLEM.params)
    exact = np.linalg.eigvalsh(jax.jit(jax.hessian(lambda v: loss(unravel(v))))(vector))[-1]
    recording = jax.jit(lambda state: update(tx, state, record=True)[1])
    state, errors = tx.init(PROBLEM.params), []
    for _ in range(10):
        state = recording(state)
        errors.append(abs(float(state.top_eigenvalue) - exact) / exact)
    assert errors[-1] < 1e-2 < errors[0]
    np.testing.assert_allclose(tree_math.norm(state.top_eigenvector), 1, rtol=1e-5)


def test_curvature_may_be_that_of_another_loss():
    other = lambda params: 3.0 * jnp.sum(params["layer1"]["weight"] ** 2)
    _, state = update(monitored(), curvature_fn=other)
    np.testing.assert_allclose(state.top_eigenvalue, 6, rtol=1e-4)


def test_with_a_gradient_function():
    """The loss at w + ε is no by-product then, and is evaluated."""
    tx = monitored()
    _, expected = update(tx)
    _, state = update(tx, grad_fn=jax.grad(loss))
    for name, value in recorded(expected).items():
        np.testing.assert_allclose(getattr(state, name), value, rtol=1e-3, err_msg=name)


def test_in_multi_steps_it_records_the_emitting_step():
    """The mean gradient of the micro-batches, and the loss of the last of them."""
    batches = [jax.tree.map(lambda x, i=i: x[i], PROBLEM.batches) for i in range(2)]
    losses = [lambda params, batch=batch: PROBLEM.loss(params, batch) for batch in batches]
    grads = [jax.grad(loss)(PROBLEM.params) for loss in losses]
    tx = optax.MultiSteps(optax.chain(monitored(), optax.sgd(0.1)), every_k_schedule=2)
    state = tx.init(PROBLEM.params)
    for value_fn, gradient in zip(losses, grads, strict=True):
        step = jax.jit(
            lambda state, gradient, value_fn=value_fn: tx.update(
                gradient, state, PROBLEM.params, value_fn=value_fn
            )
        )
        _, state = step(state, gradient)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    alone = monitored()
    _, expected = jax.jit(
        lambda: alone.update(mean, alone.init(PROBLEM.params), PROBLEM.params, value_fn=losses[1])
    )()
    for name, value in recorded(expected).items():
        np.testing.assert_allclose(optax.tree.get(state, name), value, rtol=1e-4, err_msg=name)


def test_under_debug_nans():
    """Nothing in it is NaN, before the first recording or after it, whatever is asked for."""
    with jax.debug_nans(True):
        for tx in (monitored(), diagnostics.monitor(optax_sam.sam(0.1))):
            _, state = update(tx, record=False)
            _, state = update(tx, state, record=True)
            assert state.sharpness > 0


def test_in_front_of_plain_sgd():
    tx = monitored(optax.identity(), quantities=("gradient_norm", "top_eigenvalue"))
    params, gradient = PROBLEM.params, jax.grad(loss)(PROBLEM.params)
    step = jax.jit(lambda gradient: tx.update(gradient, tx.init(params), params, value_fn=loss))
    direction, state = step(gradient)
    chex.assert_trees_all_equal(direction, gradient)
    np.testing.assert_allclose(state.gradient_norm, tree_math.norm(direction), rtol=1e-6)
    assert state.top_eigenvalue > 0


def test_a_result_that_is_not_finite_leaves_the_last_one():
    tx = monitored()
    _, state = update(tx)
    broken = lambda params: jnp.nan * loss(params)
    _, after = update(tx, state, value_fn=broken, record=True)
    assert recorded(after) == recorded(state)
    chex.assert_trees_all_equal(after.top_eigenvector, state.top_eigenvector)


@pytest.mark.parametrize("quantities", [QUANTITIES, ("top_eigenvalue",), ("alignment",)], ids=str)
def test_where_the_hessian_is_not_finite_curvature_does_not_look_measured(quantities):
    """The gradient of |w|^1.5 at 0 is 0, its Hessian infinite: the eigenvalue was 0, or the last one."""
    kink = lambda params: loss(params) + jnp.abs(params["layer1"]["bias"][0]) ** 1.5
    params = PROBLEM.params | {"layer1": PROBLEM.params["layer1"] | {"bias": jnp.zeros(8)}}
    grads = jax.grad(kink)(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    tx = monitored(quantities=quantities)
    step = lambda state, value_fn: tx.update(grads, state, params, value_fn=value_fn, record=True)[1]
    state = jax.jit(lambda state: step(state, kink))(tx.init(params))
    for name in quantities:
        is_curvature = name in ("top_eigenvalue", "alignment")
        assert jnp.isnan(getattr(state, name)) == is_curvature, name
    chex.assert_tree_all_finite(state.top_eigenvector)
    again = step(state, loss)
    chex.assert_tree_all_finite([getattr(again, name) for name in quantities])
    chex.assert_trees_all_equal(step(state, kink).top_eigenvector, state.top_eigenvector)


@pytest.mark.parametrize("local", [True, False], ids=["m-sharpness", "averaged"])
def test_over_a_mapped_axis_all_record_the_same_means(local):
    """With `vmap` over groups: local gradients give each its own ε, averaged ones the ε of the batch."""
    tx = monitored(num_iters=3)
    words = {"axis_name": "group", "m_sharpness": local, "record": True}
    groups = jax.tree.map(lambda x: x.reshape(4, 4, *x.shape[1:]), BATCH)

    def group_update(batch):
        value_fn = lambda params: PROBLEM.loss(params, batch)
        grads = jax.grad(value_fn)(PROBLEM.params)
        grads = grads if local else jax.lax.pmean(grads, "group")
        return tx.update(grads, tx.init(PROBLEM.params), PROBLEM.params, value_fn=value_fn, **words)[1]

    states = jax.jit(jax.vmap(group_update, axis_name="group"))(groups)
    _, whole = update(monitored(num_iters=3), record=True)
    for name in QUANTITIES:
        values = np.asarray(getattr(states, name))
        np.testing.assert_allclose(values, values[0], rtol=1e-6)
        if not local or name in ("gradient_norm", "top_eigenvalue"):
            np.testing.assert_allclose(values[0], getattr(whole, name), rtol=1e-3, err_msg=name)
    # Each group's own worst point is worse for it than the common one.
    if local:
        assert states.sharpness[0] > whole.sharpness


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: monitored(quantities=("lambda_max",)),
            ValueError,
            "`quantities` must be some of.*gradient_norm",
        ),
        (lambda: monitored(quantities=()), ValueError, "`quantities` must be some of"),
        (
            lambda: monitored(interval=0),
            ValueError,
            "one record to the next.*pass `record=False` to `update`",
        ),
        (lambda: monitored(interval=1.5), TypeError, "`interval`.*must be an integer"),
        (lambda: monitored(num_iters=0), ValueError, "`num_iters` must be at least 1"),
        (lambda: monitored(optax_sam.sam), TypeError, "`method` must be an Optax gradient transformation"),
        (lambda: update(monitored(monitored())), ValueError, "A `monitor` was put around another"),
        (
            lambda: update(monitored(optax.identity())),
            ValueError,
            r"asked for \['alignment', 'perturbation_norm', 'sharpness'\].*Write `monitor\(optax_sam.sam",
        ),
        (
            lambda: monitored().update(PROBLEM.params, monitored().init(PROBLEM.params)),
            ValueError,
            "`update` got none",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
