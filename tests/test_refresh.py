"""When the occasional work is done: every case of `refresh`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam.refresh import refreshed
from tests.registry import METHODS, every_method_with_refresh

NEW, OLD = 1.0, 0.0


def refreshes(refresh, count, interval):
    """Whether it is done, and whether the program has a branch."""
    function = lambda count: refreshed(refresh, count, interval, lambda: jnp.array(NEW), jnp.array(OLD))
    count = jnp.asarray(count, jnp.int32)
    return bool(function(count) == NEW), "cond" in str(jax.make_jaxpr(function)(count))


@pytest.mark.parametrize("count", range(7))
def test_none_follows_the_count(count):
    assert refreshes(None, count, 3) == (count % 3 == 0, True)


def test_interval_1_is_always_and_without_control_flow():
    assert refreshes(None, 5, 1) == (True, False)


def test_interval_may_be_an_array_as_from_inject_hyperparams():
    assert refreshes(None, 4, jnp.asarray(2.0)) == (True, True)
    assert refreshes(None, 5, jnp.asarray(2)) == (False, True)


@pytest.mark.parametrize("refresh", [True, False, np.True_, np.False_])
@pytest.mark.parametrize("count", [0, 1])
def test_python_bools_are_decided_when_traced(refresh, count):
    assert refreshes(refresh, count, 1) == (bool(refresh), False)
    assert refreshes(refresh, count, 3) == (bool(refresh), False)


@pytest.mark.parametrize("refresh", [True, False])
def test_arrays_are_decided_when_run(refresh):
    traced = jax.jit(lambda refresh: refreshed(refresh, 0, 3, lambda: jnp.array(NEW), jnp.array(OLD)))
    assert traced(refresh) == (NEW if refresh else OLD)


@pytest.mark.parametrize("refresh", [None, jnp.asarray(True)])
def test_without_jit_nothing_is_compiled_for_it(refresh, monkeypatch):
    """A `cond` without `jit` is compiled anew at every step, and what was compiled is kept."""
    monkeypatch.setattr(jax.lax, "cond", None)
    assert refreshed(refresh, jnp.asarray(6), 3, lambda: jnp.array(NEW), jnp.array(OLD)) == NEW


@pytest.mark.parametrize("name", [method.name for method in METHODS if method.has_refresh])
def test_without_jit_a_refresh_of_a_method_compiles_nothing_new(name, programs_compiled_by):
    (method,) = (method for method in METHODS if method.name == name)
    tx, w = method.make(), {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
    value_fn = lambda w: jnp.sum(jnp.sin(w["a"] @ w["b"]))
    update = lambda state: tx.update(jax.grad(value_fn)(w), state, w, value_fn=value_fn, refresh=True)[1]
    state = update(update(tx.init(w)))
    assert not programs_compiled_by(lambda: update(state))


def test_kept_values_are_not_computed():
    def compute():
        raise AssertionError

    assert refreshed(False, jnp.asarray(0), 1, compute, OLD) == OLD


# Ensembles: `vmap` over seeds.


def members(number=3):
    return jnp.arange(number, dtype=jnp.float32) + 1


def quadratic(w):
    return jnp.sum(jnp.array([1.0, 9.0]) * w**2) + jnp.sum(w**4)


def trained(method, w, num_steps=5):
    """Returns the parameters and the state after some steps in a scan, as in PureJaxRL."""
    tx = method.make(0.1)

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jax.grad(quadratic)(w), state, w, value_fn=quadratic)
        return (w - 0.01 * updates, state), None

    return jax.lax.scan(step, (w, tx.init(w)), length=num_steps)[0]


@every_method_with_refresh
def test_each_member_of_an_ensemble_is_trained_as_if_alone(method):
    starts = members()[:, None] * jnp.array([1.0, 0.5])
    together = jax.jit(jax.vmap(lambda w: trained(method, w)))(starts)
    for i, start in enumerate(starts):
        alone = jax.jit(lambda w: trained(method, w))(start)
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=2e-5, atol=1e-6), together, alone
        )


def counted_refreshes(counts, refresh=None):
    """Returns what each member has after `refreshed`, and how often the costly work was done."""
    calls = []

    def compute():
        jax.debug.callback(lambda: calls.append(None))
        return jnp.array(NEW)

    one = lambda count: refreshed(refresh, count, 3, compute, jnp.array(OLD))
    found = jax.block_until_ready(jax.jit(jax.vmap(one))(jnp.asarray(counts)))
    jax.effects_barrier()
    return found.tolist(), len(calls) > 0


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([1, 1, 1], ([OLD, OLD, OLD], False)),
        ([3, 3, 3], ([NEW, NEW, NEW], True)),
        ([1, 3, 2], ([OLD, NEW, OLD], True)),
    ],
)
def test_ensemble_does_the_work_only_where_a_member_refreshes(counts, expected):
    assert counted_refreshes(counts) == expected


def test_ensemble_of_ensembles_and_a_mapped_refresh():
    one = lambda refresh: refreshed(refresh, 1, 3, lambda: jnp.array(NEW), jnp.array(OLD))
    wanted = jnp.array([[False, True], [False, False]])
    assert (jax.vmap(jax.vmap(one))(wanted) == jnp.where(wanted, NEW, OLD)).all()
    assert "cond[" in str(jax.make_jaxpr(jax.vmap(jax.vmap(one)))(wanted))
