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
from tests.registry import BY_NAME, every_method, every_method_where, every_method_with_refresh

PROBLEM = network()
RHO = 0.07  # No method's default.


def make_step(tx, **update_kwargs):
    """Returns (params, state), batch ↦ (params, state): the training step of a user, not jitted."""

    def step(carry, batch):
        params, state = carry
        value_fn = lambda params: PROBLEM.loss(params, batch)
        grads = jax.grad(value_fn)(params)
        updates, state = tx.update(grads, state, params, value_fn=value_fn, **update_kwargs)
        return optax.apply_updates(params, updates), state

    return step


def take(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def batches(problem=PROBLEM):
    return [take(problem.batches, i) for i in range(len(problem.batches[0]))]


def with_base(method, rho=RHO):
    return optax.chain(method.make(rho), optax.sgd(0.1, momentum=0.9))


def run(step, tx, params=PROBLEM.params, problem=PROBLEM):
    carry = params, tx.init(params)
    for batch in batches(problem):
        carry = step(carry, batch)
    return carry


# Compiling takes the time here, so tests share what they compile.


@functools.cache
def training_step(method, refresh=None):
    """Returns the training step with a base optimizer, jitted, which may be traced once only."""
    step, traces = make_step(with_base(method), refresh=refresh), []

    @jax.jit
    def traced_once(carry, batch):
        traces.append(jax.tree.map(jax.typeof, carry))
        assert len(traces) == 1, traces
        return step(carry, batch)

    return traced_once


@functools.cache
def trained(method):
    """Returns (params, state) after all batches."""
    return run(training_step(method), with_base(method))


loss = jax.jit(PROBLEM.loss)
gradient = jax.jit(jax.grad(PROBLEM.loss))


def jitted_update(tx, **update_kwargs):
    """Returns grads, state, params, batch ↦ updates, state, jitted."""

    @jax.jit
    def update(grads, state, params, batch):
        value_fn = lambda params: PROBLEM.loss(params, batch)
        return tx.update(grads, state, params, value_fn=value_fn, **update_kwargs)

    return update


@functools.cache
def compiled_update(method, refresh):
    return jitted_update(method.make(RHO), refresh=refresh)


def update(method, *args, refresh=True):
    """Returns the result of `tx.update(*args)` for the method alone."""
    return compiled_update(method, refresh if method.has_refresh else None)(*args)


@every_method
def test_steps_lower_the_loss(method):
    problem = network(num_batches=60)
    whole = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), problem.batches)
    params, state = run(training_step(method), with_base(method), problem=problem)
    chex.assert_tree_all_finite((params, state))
    assert loss(params, whole) < loss(problem.params, whole)


@every_method
def test_second_call_does_not_retrace(method):
    trained(method)  # `training_step` asserts it.


@every_method
def test_scan_equals_loop(method):
    tx = with_base(method)
    scanned, _ = jax.lax.scan(
        lambda carry, batch: (make_step(tx)(carry, batch), None),
        (PROBLEM.params, tx.init(PROBLEM.params)),
        PROBLEM.batches,
    )
    chex.assert_trees_all_close(scanned, trained(method), rtol=1e-4, atol=1e-5)


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
        single, _ = run(training_step(method), tx, params)
        chex.assert_trees_all_close(take(carry[0], i), single, rtol=1e-4, atol=1e-5)


@every_method
def test_donated_buffers(method):
    tx = with_base(method)
    step = jax.jit(make_step(tx), donate_argnums=0)
    donated = run(step, tx, jax.tree.map(jnp.copy, PROBLEM.params))
    chex.assert_trees_all_close(donated, trained(method), rtol=1e-6)


@every_method
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_are_stable(method, dtype):
    with jax.enable_x64(dtype == "float64"):
        problem = network(dtype=jnp.dtype(dtype))
        tx = method.make(RHO)
        state = tx.init(problem.params)
        step = jitted_update(tx)
        for batch in batches(problem)[:2]:
            grads = gradient(problem.params, batch)
            updates, new_state = step(grads, state, problem.params, batch)
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
    constant = lambda params: 0.0 * jnp.sum(params["layer1"]["weight"])
    zeros = jax.tree.map(jnp.zeros_like, PROBLEM.params)
    step = jax.jit(lambda state, params: tx.update(zeros, state, params, value_fn=constant))
    params, state = PROBLEM.params, tx.init(PROBLEM.params)
    for _ in range(2):
        updates, state = step(state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_tree_all_finite(state)
    chex.assert_trees_all_equal(params, PROBLEM.params)


@functools.cache
def trained_without_method():
    base = optax.with_extra_args_support(optax.sgd(0.1, momentum=0.9))
    return run(jax.jit(make_step(base)), base)


@every_method_where("is_base_at_zero")
def test_zero_rho_is_the_base_optimizer(method):
    tx = with_base(method, rho=0.0)
    params, _ = run(jax.jit(make_step(tx)), tx)
    chex.assert_trees_all_close(params, trained_without_method()[0], rtol=2e-6, atol=1e-7)


def refreshes_with_a_second_gradient(method):
    if method.is_reused:
        return (True,)
    return (False, True) if method.has_refresh else (None,)


@every_method_where("has_ascent")
def test_nan_in_the_second_gradient_can_be_skipped(method):
    base = optax.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=5)
    tx = optax.chain(method.make(RHO), base)
    params, trained_state = trained(method)
    state = trained_state[0], base.init(params)
    is_here = lambda p: jnp.all(
        jnp.stack(jax.tree.leaves(jax.tree.map(lambda x, y: (x == y).all(), p, params)))
    )
    broken = lambda p: PROBLEM.loss(p, batches()[0]) * jnp.where(is_here(p), 1.0, jnp.nan)
    for refresh in refreshes_with_a_second_gradient(method):
        step = jax.jit(
            lambda state, refresh=refresh: tx.update(
                jax.grad(broken)(params), state, params, value_fn=broken, refresh=refresh
            )
        )
        updates, state = step(state)
        chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
        chex.assert_tree_all_finite(state)


@every_method
def test_non_finite_gradients_leave_the_state_finite(method):
    """Those that a batch with NaNs gives."""
    params, state = trained(method)
    batch = take(jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), PROBLEM.batches), 0)
    grads = gradient(params, batch)
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(grads))
    for refresh in (False, True):
        _, new_state = update(method, grads, state[0], params, batch, refresh=refresh)
        chex.assert_tree_all_finite(new_state)


COUNTS = ("step_count", "reuse_count", "monitor_count")


@every_method
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_batch_that_is_not_finite_leaves_what_was_learnt_and_decided(method, bad):
    """A mask is always finite, so it is not enough that the state is."""
    params, state = trained(method)
    batch = take(jax.tree.map(lambda x: jnp.full_like(x, bad), PROBLEM.batches), 0)
    grads = jax.tree.map(lambda x: jnp.full_like(x, bad), params)
    for before in (state[0], method.make(RHO).init(PROBLEM.params)):
        for refresh in (False, True):
            _, after = update(method, grads, before, params, batch, refresh=refresh)
            for name in COUNTS:
                if optax.tree.get(after, name) is not None:
                    after = optax.tree.set(after, **{name: optax.tree.get(before, name)})
            if optax.tree.get(after, "remembered_gradient") is not None:
                # The ascent has seen that, which is finite, and may learn from it.
                after = after._replace(ascent=before.ascent)
            chex.assert_trees_all_equal(after, before)


@every_method
def test_init_on_abstract_parameters(method):
    tx = with_base(method)
    abstract = jax.eval_shape(lambda: PROBLEM.params)
    concrete = tx.init(PROBLEM.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(tx.init(abstract), concrete)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, PROBLEM.params), concrete)
    chex.assert_trees_all_equal(jax.jit(tx.init)(PROBLEM.params), concrete)


PARAMETER_SHAPED = (
    *("eigenvector", "top_eigenvector", "gradient_mean", "noise_variance"),
    *("running_mean", "precision", "reused_direction", "remembered_gradient", "running_fisher"),
)


@every_method
def test_parameter_shaped_state_is_found_by_map_params(method):
    tx = method.make(RHO)
    state = trained(method)[1][0]
    doubled = optax.tree.map_params(tx, lambda x: 2 * x, state)
    for name in PARAMETER_SHAPED:
        before = optax.tree.get(state, name)
        if before is not None:
            expected = jax.tree.map(lambda x: 2 * x, before)
            chex.assert_trees_all_equal(optax.tree.get(doubled, name), expected)
    if method.has_ascent:
        scalar = optax.tree.get(state, "ascent_value")
        chex.assert_trees_all_equal(optax.tree.get(doubled, "ascent_value"), scalar)


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
    assert {"step_count", "noise_count", "monitor_count"} <= set(names)
    assert set(names.values()) == {1}


@every_method
def test_inject_hyperparams(method):
    injected = optax.inject_hyperparams(method.make, static_args=method.static_args)(rho=RHO)
    tx = optax.chain(injected, optax.sgd(0.1, momentum=0.9))
    params, state = run(jax.jit(make_step(tx)), tx)
    chex.assert_trees_all_close(params, trained(method)[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(optax.tree.get(state, "rho"), RHO, rtol=1e-6)


@every_method
def test_rho_schedule_follows_our_own_count(method):
    schedule = optax.piecewise_constant_schedule(0.1, {3: 0.5})
    tx, batch = method.make(schedule), batches()[0]
    grads = gradient(PROBLEM.params, batch)

    @functools.partial(jax.jit, static_argnames="refresh")
    def both(state, rho, refresh):
        """A method with the constant radius of this step, in the same state, must agree."""
        extra_args = {"value_fn": lambda params: PROBLEM.loss(params, batch), "refresh": refresh}
        expected, _ = method.make(rho).update(grads, state, PROBLEM.params, **extra_args)
        return expected, *tx.update(grads, state, PROBLEM.params, **extra_args)

    state = tx.init(PROBLEM.params)
    for step in range(5):
        refresh = step == 0 if method.has_refresh else None
        expected, updates, state = both(state, schedule(step), refresh)
        chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-7)


@every_method
def test_unknown_extra_arguments_pass_through(method):
    seen = {}

    def record(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), record)
    tx = optax.chain(method.make(RHO), spy)
    step = make_step(tx, value=1.0, another="argument")
    jax.eval_shape(step, (PROBLEM.params, tx.init(PROBLEM.params)), batches()[0])
    assert seen["value"] == 1.0
    assert seen["another"] == "argument"


@every_method
def test_grad_fn_replaces_the_gradient(method):
    tx, batch = method.make(RHO), batches()[0]
    state = tx.init(PROBLEM.params)
    halves = [take(batch, part) for part in (slice(0, 8), slice(8, 16))]

    def grad_fn(params):
        grads = [jax.grad(PROBLEM.loss)(params, half) for half in halves]
        return jax.tree.map(lambda *g: sum(g) / 2, *grads)

    arguments = gradient(PROBLEM.params, batch), state, PROBLEM.params, batch
    expected, _ = update(method, *arguments)
    updates, new = jitted_update(tx, grad_fn=grad_fn)(*arguments)
    chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-6)
    if method.has_ascent:
        assert optax.tree.get(new, "ascent_value") == 0  # Not a by-product here, so not measured.


@every_method_where("has_ascent")
def test_ascent_value_is_the_loss_at_the_perturbed_point(method):
    points, batch = [], batches()[0]

    def value_fn(params):
        # The last point at which the loss is taken outside a search is w + ε.
        jax.debug.callback(points.append, params)
        return PROBLEM.loss(params, batch)

    tx = method.make(RHO)
    grads, state = gradient(PROBLEM.params, batch), tx.init(PROBLEM.params)
    refresh = refreshes_with_a_second_gradient(method)[0]
    step = jax.jit(lambda: tx.update(grads, state, PROBLEM.params, value_fn=value_fn, refresh=refresh))
    _, state = step()
    jax.effects_barrier()
    losses = [float(loss(params, batch)) for params in points]
    ascent_value = optax.tree.get(state, "ascent_value")
    assert any(np.isclose(ascent_value, value, rtol=1e-6) for value in losses)
    if method.is_uphill:
        assert ascent_value > loss(PROBLEM.params, batch)


@every_method
def test_multi_steps_behind_the_method_averages_the_directions(method):
    """The right way: each micro-batch has its own perturbation, the base sees the mean direction."""
    base = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2).gradient_transformation()
    tx = optax.chain(method.make(RHO), base)
    step, state = jitted_update(tx, refresh=True), tx.init(PROBLEM.params)
    directions, alone = [], method.make(RHO).init(PROBLEM.params)
    for batch in batches()[:2]:
        grads = gradient(PROBLEM.params, batch)
        direction, alone = update(method, grads, alone, PROBLEM.params, batch)
        directions.append(direction)
        updates, state = step(grads, state, PROBLEM.params, batch)
    expected = jax.tree.map(lambda a, b: -0.1 * (a + b) / 2, *directions)
    chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-7)


@every_method
def test_multi_steps_around_the_method_takes_the_last_micro_batch_only(method):
    """The wrong way, which the README warns of: runs, with the second gradient of one micro-batch."""
    tx = optax.MultiSteps(optax.chain(method.make(RHO), optax.sgd(0.1)), every_k_schedule=2)
    step, state = jitted_update(tx, refresh=True), tx.init(PROBLEM.params)
    grads = [gradient(PROBLEM.params, batch) for batch in batches()[:2]]
    for g, batch in zip(grads, batches(), strict=False):
        updates, state = step(g, state, PROBLEM.params, batch)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    start = method.make(RHO).init(PROBLEM.params)
    direction, _ = update(method, mean, start, PROBLEM.params, batches()[1])
    expected = jax.tree.map(lambda d: -0.1 * d, direction)
    chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-6)


@every_method
def test_orbax_resumes_bit_for_bit_in_the_middle_of_an_interval(method, tmp_path):
    tx, step = with_base(method), training_step(method)
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
    arguments = (PROBLEM.params, with_base(method).init(PROBLEM.params)), batches()[0]
    program = lambda refresh: training_step(method, refresh).lower(*arguments).compile().as_text()
    text = program(False)
    assert " while(" not in text
    assert " conditional(" not in text
    assert " conditional(" in program(None)


@every_method_with_refresh
def test_refresh_none_follows_the_interval(method):
    static = traced = PROBLEM.params, with_base(method).init(PROBLEM.params)
    by_array = jax.jit(
        lambda carry, batch, refresh: make_step(with_base(method), refresh=refresh)(carry, batch)
    )
    for i, batch in enumerate(batches()):
        static = training_step(method, i % 3 == 0)(static, batch)
        traced = by_array(traced, batch, jnp.asarray(i % 3 == 0))
    chex.assert_trees_all_close(trained(method), static, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(trained(method), traced, rtol=1e-4, atol=1e-5)


@every_method
def test_strict_dtype_promotion(method):
    """Our stages cast on purpose only (`optax.sgd` with momentum would not pass, so it is left out)."""
    with jax.numpy_dtype_promotion("strict"):
        tx, batch = method.make(RHO), batches()[0]
        value_fn = lambda params: PROBLEM.loss(params, batch)
        step = lambda params: tx.update(params, tx.init(params), params, value_fn=value_fn)
        jax.eval_shape(step, PROBLEM.params)
