"""`optax_sam.order`: what stands between a wiring check and the method behind it."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from optax_sam import diagnostics
from tests.clients.by_hand import silence
from tests.registry import every_method

PARAMS = {"w": jnp.arange(1.0, 7.0).reshape(2, 3), "b": jnp.ones(3)}
BETWEEN = "Something between `wiring_check` and the method"
CHANGES = {
    "clip": optax.clip_by_global_norm(1.0),
    "inactive clip": optax.clip_by_global_norm(1e9),
    "decay": optax.add_decayed_weights(0.5),
    "sgd": optax.sgd(0.01),
    "adam": optax.scale_by_adam(),
    "centralize": optax.centralize(),
    "frozen": optax.masked(optax.set_to_zero(), {"w": False, "b": True}),
}
CHANGES_NOTHING = {
    "identity": optax.identity(),
    "named chain": optax.named_chain(("one", optax.identity())),
    "cast": optax.stateless(lambda updates, params: optax.tree.cast(updates, jnp.float16)),
    "masked": optax.masked(optax.clip(1.0), {"w": False, "b": False}),
}


def loss(params, factor=1.0):
    return factor * (jnp.sum(params["w"] ** 2) + jnp.sum(params["b"] ** 4))


def update(tx, **arguments):
    return tx.update(jax.grad(loss)(PARAMS), tx.init(PARAMS), PARAMS, value_fn=loss, **arguments)


def run(tx, how):
    if how == "jit":
        jax.jit(lambda: update(tx))()
    elif how == "eager":
        update(tx)
    elif how == "vmap":
        jax.vmap(lambda _: update(tx))(jnp.arange(2.0))
    elif how == "scan":
        jax.lax.scan(lambda carry, _: (carry, update(tx)[0]), 0, jnp.arange(2.0))
    else:
        jax.eval_shape(lambda: update(tx))


HOW = ["jit", "eager", "vmap", "scan", "traced"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("between", CHANGES)
def test_what_changes_the_gradient_is_reported(between, how):
    stage = CHANGES[between]
    with pytest.warns(UserWarning, match=rf"{BETWEEN}.*optax.chain\(wiring_check\(\), method, clip"):
        run(optax.chain(diagnostics.wiring_check(), stage, optax_sam.sam()), how)
    with silence():
        run(optax.chain(diagnostics.wiring_check(), optax_sam.sam(), stage), how)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("between", CHANGES_NOTHING)
def test_what_changes_nothing_is_not(between, how):
    with silence():
        run(optax.chain(diagnostics.wiring_check(), CHANGES_NOTHING[between], optax_sam.sam()), how)


@every_method
@pytest.mark.parametrize("refresh", [None, True, False])
def test_every_method_looks(method, refresh):
    clip = optax.clip_by_global_norm(1.0)
    run = lambda *stages: jax.eval_shape(lambda: update(optax.chain(*stages), refresh=refresh))
    with pytest.warns(UserWarning, match=BETWEEN):
        run(diagnostics.wiring_check(), clip, method.make(0.05))
    with silence():
        run(diagnostics.wiring_check(), method.make(0.05), clip)


def inject(method):
    return optax.inject_hyperparams(lambda rho: method)(rho=0.05)


WRAPPERS = {
    "monitor": lambda method: diagnostics.monitor(method, quantities=("gradient_norm",)),
    "reuse": lambda method: optax_sam.reuse(method, interval=2),
    "auto_rho": lambda method: optax_sam.auto_rho(lambda rho: method),
    "inject": inject,
    "finite": lambda method: optax.apply_if_finite(method, 3),
    "conditional": lambda method: optax.conditionally_transform(method, lambda step: step >= 0),
}


@pytest.mark.parametrize("how", ["jit", "eager"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_methods_are_silent(wrapper, how):
    wrapped, check = WRAPPERS[wrapper], diagnostics.wiring_check()
    with silence():
        run(optax.chain(check, wrapped(optax_sam.sam())), how)


@pytest.mark.parametrize("how", ["jit", "eager"])
def test_wrapped_chains_are_silent(how):
    chain = optax.chain(diagnostics.wiring_check(), optax_sam.sam(), optax.sgd(0.1))
    with silence():
        run(inject(chain), how)
        run(optax.apply_if_finite(chain, 3), how)
        run(optax.MultiSteps(chain, 1), how)


def test_wrapped_check_and_wrapped_method():
    check = optax.inject_hyperparams(diagnostics.wiring_check, static_args=("action",))(tolerance=0.1)
    method = inject(diagnostics.monitor(optax_sam.sam(), quantities=("gradient_norm",)))
    with silence():
        jax.jit(lambda: update(optax.chain(check, method)))()
    with pytest.warns(UserWarning, match=BETWEEN):
        jax.jit(lambda: update(optax.chain(check, optax.clip(1.0), method)))()


def test_raise_and_off():
    clip = optax.clip(1.0)
    with pytest.raises(ValueError, match=BETWEEN):
        update(optax.chain(diagnostics.wiring_check(action="raise"), clip, optax_sam.sam()))
    with pytest.warns(UserWarning, match=BETWEEN):
        update(optax.chain(diagnostics.wiring_check(action="record"), clip, optax_sam.sam()))
    with silence():
        update(optax.chain(diagnostics.wiring_check(), clip, optax_sam.sam()), record=False)


def test_what_a_check_saw_in_another_step_does_not_count():
    """A check in front of an optimizer alone, then a method without a check."""
    tx, params = optax.chain(diagnostics.wiring_check(), optax.sgd(0.1)), PARAMS
    method = optax_sam.sam()
    with silence():
        grads = jax.grad(loss)(params)
        updates, _ = tx.update(grads, tx.init(params), params, value_fn=loss)
        params = optax.apply_updates(params, updates)
        method.update(jax.grad(loss)(params), method.init(params), params, value_fn=loss)
        jax.jit(lambda: method.update(grads, method.init(params), params, value_fn=loss))()


def test_nothing_is_kept_alive():
    tx = optax.chain(diagnostics.wiring_check(action="record"), optax.sgd(0.1))
    with jax.checking_leaks():
        jax.jit(lambda: update(tx))()
