"""What every method promises, checked for every row of the registry."""

import functools
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import optax_sam
from optax_sam import diagnostics
from optax_sam.diagnostics.monitor import QUANTITIES
from tests.problems import network
from tests.registry import BY_NAME, every_method, every_method_with_refresh

PROBLEM = network()


def make_step(tx, problem=PROBLEM, **update_kwargs):
    """Returns (params, state), batch ↦ (params, state): the training step of a user, not jitted."""

    def step(carry, batch):
        params, state = carry
        value_fn = lambda params: problem.loss(params, batch)
        grads = jax.grad(value_fn)(params)
        updates, state = tx.update(grads, state, params, value_fn=value_fn, **update_kwargs)
        return optax.apply_updates(params, updates), state

    return step


def take(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def batches(problem=PROBLEM):
    return [take(problem.batches, i) for i in range(len(problem.batches[0]))]


def update(tx, state, value_fn, params=PROBLEM.params, grads=None, **update_kwargs):
    """One jitted call of `tx.update` with the gradient of `value_fn`."""

    @jax.jit
    def jitted(grads, state, params):
        grads = jax.grad(value_fn)(params) if grads is None else grads
        return tx.update(grads, state, params, value_fn=value_fn, **update_kwargs)

    return jitted(grads, state, params)


def batch_loss(index=0, problem=PROBLEM):
    batch = batches(problem)[index]
    return lambda params: problem.loss(params, batch)


def train(tx, problem=PROBLEM, *, params=None, jit=jax.jit, **update_kwargs):
    step = jit(make_step(tx, problem, **update_kwargs))
    params = problem.params if params is None else params
    carry = params, tx.init(params)
    for batch in batches(problem):
        carry = step(carry, batch)
    return carry


def with_base(method, rho=0.05):
    return optax.chain(method.make(rho), optax.sgd(0.1, momentum=0.9))


@every_method
def test_steps_lower_the_loss(method):
    problem = network(num_batches=60)
    whole = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), problem.batches)
    params, state = train(with_base(method), problem)
    chex.assert_tree_all_finite((params, state))
    assert problem.loss(params, whole) < problem.loss(problem.params, whole)


@every_method
def test_second_call_does_not_retrace(method):
    chex.clear_trace_counter()
    train(with_base(method), jit=lambda step: jax.jit(chex.assert_max_traces(step, n=1)))


@every_method
def test_scan_equals_loop(method):
    tx = with_base(method)
    scanned, _ = jax.lax.scan(
        lambda carry, batch: (make_step(tx)(carry, batch), None),
        (PROBLEM.params, tx.init(PROBLEM.params)),
        PROBLEM.batches,
    )
    chex.assert_trees_all_close(scanned, train(tx), rtol=1e-4, atol=1e-5)


@every_method
def test_vmap_over_seeds_equals_single_runs(method):
    tx = with_base(method)
    seeds = [network(seed).params for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    step = jax.jit(jax.vmap(make_step(tx), in_axes=(0, None)))
    carry = stacked, jax.vmap(tx.init)(stacked)
    for batch in batches():
        carry = step(carry, batch)
    for i, params in enumerate(seeds):
        single, _ = train(tx, params=params)
        chex.assert_trees_all_close(take(carry[0], i), single, rtol=1e-4, atol=1e-5)


@every_method
def test_donated_buffers(method):
    tx = with_base(method)
    copy = jax.tree.map(jnp.copy, PROBLEM.params)
    donated = train(tx, params=copy, jit=functools.partial(jax.jit, donate_argnums=0))
    chex.assert_trees_all_close(donated, train(tx), rtol=1e-6)


@every_method
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_are_stable(method, dtype):
    with jax.enable_x64(dtype == "float64"):
        problem = network(dtype=jnp.dtype(dtype))
        tx = method.make(0.05)
        state = tx.init(problem.params)
        for index in range(2):
            updates, new_state = update(tx, state, batch_loss(index, problem), problem.params)
            chex.assert_trees_all_equal_shapes_and_dtypes(updates, problem.params)
            chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
            chex.assert_tree_all_finite((updates, new_state))
            state = new_state
        # Statistics and norms are float32 or wider whatever the parameters.
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert all(jnp.finfo(x.dtype).bits >= 32 for x in floats)


@pytest.mark.parametrize("size", [1e-4, 100.0])
def test_float16_norms_neither_overflow_nor_vanish(size):
    ascent = optax_sam.steepest_ascent(1.0)
    gradient = jnp.full((10_000,), size, jnp.float16)
    perturbation, _ = ascent.update(gradient, ascent.init(gradient), gradient)
    np.testing.assert_allclose(perturbation.astype(np.float32), 0.01, rtol=1e-3)


@every_method
def test_zero_gradient_is_finite_and_leaves_the_parameters(method):
    tx = with_base(method)
    params, state = PROBLEM.params, tx.init(PROBLEM.params)
    constant = lambda params: 0.0 * jnp.sum(params["layer1"]["weight"])
    for _ in range(2):
        updates, state = update(tx, state, constant, params)
        params = optax.apply_updates(params, updates)
    chex.assert_tree_all_finite(state)
    chex.assert_trees_all_equal(params, PROBLEM.params)


@every_method
def test_zero_rho_is_the_base_optimizer(method):
    tx = with_base(method, rho=0.0)
    base = optax.with_extra_args_support(optax.sgd(0.1, momentum=0.9))
    chex.assert_trees_all_close(train(tx)[0], train(base)[0], rtol=2e-6, atol=1e-7)


@every_method
def test_nan_in_the_second_gradient_can_be_skipped(method):
    tx = optax.chain(method.make(0.05), optax.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=5))
    params, state = train(tx)
    is_here = lambda p: jnp.all(
        jnp.stack(jax.tree.leaves(jax.tree.map(lambda x, y: (x == y).all(), p, params)))
    )
    broken = lambda p: batch_loss()(p) * jnp.where(is_here(p), 1.0, jnp.nan)
    for refresh in (False, True):
        updates, state = update(tx, state, broken, params, refresh=refresh)
        chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
        chex.assert_tree_all_finite(state)


@every_method
def test_non_finite_gradients_leave_the_state_finite(method):
    tx = method.make(0.05)
    _, state = train(optax.chain(tx, optax.sgd(0.1)))
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), PROBLEM.params)
    value_fn = lambda p: jnp.nan * p["layer1"]["bias"].sum()
    for refresh in (False, True):
        _, new_state = update(tx, state[0], value_fn, grads=nan, refresh=refresh)
        chex.assert_tree_all_finite(new_state)


@every_method
def test_init_on_abstract_parameters(method):
    tx = with_base(method)
    abstract = jax.eval_shape(lambda: PROBLEM.params)
    concrete = tx.init(PROBLEM.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(tx.init(abstract), concrete)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, PROBLEM.params), concrete)
    chex.assert_trees_all_equal(jax.jit(tx.init)(PROBLEM.params), concrete)


@every_method
def test_parameter_shaped_state_is_found_by_map_params(method):
    tx = method.make(0.05)
    _, state = train(optax.chain(tx, optax.sgd(0.1)))
    doubled = optax.tree.map_params(tx, lambda x: 2 * x, state[0])
    for name in ("eigenvector", "top_eigenvector", "gradient_mean", "noise_variance"):
        before = optax.tree.get(state[0], name)
        if before is not None:
            expected = jax.tree.map(lambda x: 2 * x, before)
            chex.assert_trees_all_equal(optax.tree.get(doubled, name), expected)
    chex.assert_trees_all_equal(
        optax.tree.get(doubled, "ascent_value"), optax.tree.get(state[0], "ascent_value")
    )


def test_no_two_states_share_a_field_name():
    """Users read them by name, with `optax.tree.get`, which refuses a name that occurs twice."""
    everything = diagnostics.monitor(BY_NAME["combination"].make(), quantities=QUANTITIES)
    names = Counter()

    def count(node):
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            if type(node).__module__.startswith("optax_sam."):
                names.update(node._fields)
            for field in node:
                count(field)
        elif isinstance(node, tuple):
            for part in node:
                count(part)

    count(everything.init(PROBLEM.params))
    assert {"ascent_count", "noise_count", "tilt_count", "search_count", "monitor_count"} <= set(names)
    assert set(names.values()) == {1}


@every_method
def test_inject_hyperparams(method):
    injected = optax.inject_hyperparams(method.make, static_args=method.static_args)(rho=0.07)
    expected = train(optax.chain(method.make(0.07), optax.sgd(0.1)))
    params, state = train(optax.chain(injected, optax.sgd(0.1)))
    chex.assert_trees_all_close(params, expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(optax.tree.get(state, "rho"), 0.07, rtol=1e-6)


@every_method
def test_rho_schedule_follows_our_own_count(method):
    schedule = optax.piecewise_constant_schedule(0.1, {3: 0.5})
    tx = method.make(schedule)
    state = tx.init(PROBLEM.params)
    for step in range(5):
        # A method with the constant radius of this step, in the same state, must agree.
        constant = method.make(float(schedule(step)))
        expected, _ = update(constant, state, batch_loss(), refresh=step == 0)
        updates, state = update(tx, state, batch_loss(), refresh=step == 0)
        chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-7)


@every_method
def test_unknown_extra_arguments_pass_through(method):
    seen = {}

    def record(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), record)
    tx = optax.chain(method.make(0.05), spy)
    train(tx, value=1.0, another="argument")
    assert seen["value"] == 1.0
    assert seen["another"] == "argument"


@every_method
def test_grad_fn_replaces_the_gradient(method):
    tx = method.make(0.05)
    state = tx.init(PROBLEM.params)
    halves = [take(batches()[0], part) for part in (slice(0, 8), slice(8, 16))]

    def grad_fn(params):
        grads = [jax.grad(PROBLEM.loss)(params, half) for half in halves]
        return jax.tree.map(lambda *g: sum(g) / 2, *grads)

    expected, _ = update(tx, state, batch_loss())
    updates, new = update(tx, state, batch_loss(), grad_fn=grad_fn)
    chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-6)
    assert optax.tree.get(new, "ascent_value") == 0  # Not a by-product here, so not measured.


@every_method
def test_ascent_value_is_the_loss_at_the_perturbed_point(method):
    points = []

    def value_fn(params):
        # The last point at which the loss is taken outside a search is w + ε.
        jax.debug.callback(points.append, params)
        return batch_loss()(params)

    tx = method.make(0.05)
    _, state = update(tx, tx.init(PROBLEM.params), value_fn, refresh=False)
    jax.effects_barrier()
    losses = [float(batch_loss()(params)) for params in points]
    ascent_value = optax.tree.get(state, "ascent_value")
    assert any(np.isclose(ascent_value, loss, rtol=1e-6) for loss in losses)
    assert ascent_value > batch_loss()(PROBLEM.params)


@every_method
def test_multi_steps_behind_the_method_averages_the_directions(method):
    """The right way: each micro-batch has its own perturbation, the base sees the mean direction."""
    tx = optax.chain(
        method.make(0.05), optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2).gradient_transformation()
    )
    alone = method.make(0.05)
    state, alone_state = tx.init(PROBLEM.params), alone.init(PROBLEM.params)
    directions = []
    for index in range(2):
        direction, alone_state = update(alone, alone_state, batch_loss(index))
        directions.append(direction)
        updates, state = update(tx, state, batch_loss(index))
    expected = jax.tree.map(lambda a, b: -0.1 * (a + b) / 2, *directions)
    chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-7)


@every_method
def test_multi_steps_around_the_method_takes_the_last_micro_batch_only(method):
    """The wrong way, which the README warns of: runs, with the second gradient of one micro-batch."""
    tx = optax.MultiSteps(optax.chain(method.make(0.05), optax.sgd(0.1)), every_k_schedule=2)
    state = tx.init(PROBLEM.params)
    grads = [jax.grad(batch_loss(index))(PROBLEM.params) for index in range(2)]
    for index in range(2):
        updates, state = update(tx, state, batch_loss(index), grads=grads[index])
    alone = method.make(0.05)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    direction, _ = update(alone, alone.init(PROBLEM.params), batch_loss(1), grads=mean)
    expected = jax.tree.map(lambda d: -0.1 * d, direction)
    chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-6)


@every_method
def test_orbax_resumes_bit_for_bit_in_the_middle_of_an_interval(method, tmp_path):
    tx = with_base(method)
    step = jax.jit(make_step(tx))
    carry = PROBLEM.params, tx.init(PROBLEM.params)
    for batch in batches()[:2]:
        carry = step(carry, batch)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", carry)
        checkpointer.wait_until_finished()
        target = jax.eval_shape(lambda: (PROBLEM.params, tx.init(PROBLEM.params)))
        restored = checkpointer.restore(tmp_path / "checkpoint", target)
    chex.assert_trees_all_equal(restored, carry)
    for batch in batches()[2:]:
        carry, restored = step(carry, batch), step(restored, batch)
    chex.assert_trees_all_equal(restored, carry)


@every_method_with_refresh
def test_static_refresh_gives_programs_without_control_flow(method):
    tx = method.make(0.05)
    state = tx.init(PROBLEM.params)
    lower = lambda refresh: jax.jit(make_step(tx, refresh=refresh)).lower(
        (PROBLEM.params, state), batches()[0]
    )
    text = lower(False).compile().as_text()
    assert " while(" not in text
    assert " conditional(" not in text
    assert " conditional(" in lower(None).compile().as_text()


@every_method_with_refresh
def test_refresh_none_follows_the_interval(method):
    tx = with_base(method)
    automatic = PROBLEM.params, tx.init(PROBLEM.params)
    static = traced = automatic
    steps = {refresh: jax.jit(make_step(tx, refresh=refresh)) for refresh in (None, True, False)}
    by_array = jax.jit(lambda carry, batch, refresh: make_step(tx, refresh=refresh)(carry, batch))
    for i, batch in enumerate(batches()):
        automatic = steps[None](automatic, batch)
        static = steps[i % 3 == 0](static, batch)
        traced = by_array(traced, batch, jnp.asarray(i % 3 == 0))
    chex.assert_trees_all_close(automatic, static, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(automatic, traced, rtol=1e-4, atol=1e-5)


@every_method
def test_strict_dtype_promotion(method):
    """Our stages cast on purpose only (`optax.sgd` with momentum would not pass, so it is left out)."""
    with jax.numpy_dtype_promotion("strict"):
        tx = method.make(0.05)
        updates, _ = update(tx, tx.init(PROBLEM.params), batch_loss())
    chex.assert_tree_all_finite(updates)
