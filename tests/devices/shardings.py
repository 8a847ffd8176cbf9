"""Worker: where the optimizer's state lies, for parameters that are sharded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding

from tests.devices import layouts
from tests.devices.layouts import P
from tests.devices.processes import reported
from tests.registry import METHODS


def value_fn(params):
    return sum(jnp.sum(jnp.sin(leaf.astype(jnp.float32)) ** 2) for leaf in jax.tree.leaves(params))


def types(tree):
    """Returns shapes, dtypes and, on an explicit mesh, shardings."""
    return [str(jax.typeof(leaf)) for leaf in jax.tree.leaves(tree)]


def check_explicit(method):
    """On a mesh with explicit axes the sharding is a part of the type: no update may change it."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    tx = optax.chain(method.make(0.05), optax.sgd(0.1, momentum=0.9))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P(None, "x"))
        params = {"a": jnp.ones((2, 8, 4), jnp.float16, out_sharding=sharding), "b": jnp.ones(3)}
        update = functools.partial(tx.update, value_fn=value_fn)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
        inits = {
            "eager": lambda: tx.init(params),
            "jit": lambda: jax.jit(tx.init)(params),
            "abstract": lambda: jax.eval_shape(tx.init, abstract),
            "structs": lambda: tx.init(abstract),
        }
        for name, init in inits.items():
            with reported("explicit", method.name, f"init, {name}") as report:
                state = init()
                mirrors = [
                    kind
                    for kind, leaf in zip(types(state), jax.tree.leaves(state), strict=True)
                    if leaf.shape == (2, 8, 4)
                ]
                report(
                    same_types=types(state) == types(tx.init(params)),
                    mirrors=len(mirrors),
                    sharded=sum("[2,8@x,4]" in kind for kind in mirrors),
                )
        for refresh in (None, True, False) if method.has_refresh else (None,):
            with reported("explicit", method.name, f"update, refresh={refresh}") as report:
                step = jax.jit(functools.partial(update, refresh=refresh))
                state = tx.init(params)
                updates, after = jax.block_until_ready(step(params, state, params))
                report(
                    same_types=types((updates, after)) == types((params, state)),
                    finite=all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(updates)),
                )


def check_auto(method):
    """On a mesh with automatic axes the state lies where the parameter lies that it mirrors."""
    tx = optax.chain(method.make(0.05), optax.sgd(0.1, momentum=0.9))
    specs, _ = layouts.GLOBAL_VIEW["fsdp and tensor"]
    placed = layouts.shardings(layouts.mesh_2d(), specs)
    params = jax.device_put(layouts.parameters(), placed)
    abstract_params = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params, placed
    )
    expected = lambda state: layouts.state_shardings(tx, state, params)

    def wrong(state):
        agrees = lambda x, s: x.shape == () or x.sharding.is_equivalent_to(s, x.ndim)
        return [
            f"{jax.tree_util.keystr(path)}: {x.sharding}"
            for (path, x), s in zip(
                jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected(state)), strict=True
            )
            if not agrees(x, s)
        ][:3]

    with reported("auto", method.name, "init, eager") as report:
        report(wrong=wrong(tx.init(params)))
    with reported("auto", method.name, "init, out_shardings") as report:
        # Nothing is ever whole on one device: shardings from the abstract state, then `init` under `jit`.
        out = layouts.state_shardings(tx, jax.eval_shape(tx.init, abstract_params), abstract_params)
        state = jax.jit(tx.init, out_shardings=out)(params)
        report(wrong=wrong(state), whole=[str(x.shape) for x in jax.tree.leaves(state) if is_whole(x)])
    with reported("auto", method.name, "update") as report:
        step = layouts.make_step(tx, "fsdp and tensor")
        batch = step.place_batch(layouts.batches()[0])
        new_params, state = jax.block_until_ready(step.step(params, tx.init(params), batch, None))
        moved = [
            str(x.sharding.spec)
            for x, s in zip(jax.tree.leaves(new_params), jax.tree.leaves(placed), strict=True)
            if not x.sharding.is_equivalent_to(s, x.ndim)
        ]
        report(wrong=wrong(state), moved=moved)


def is_whole(x):
    return np.ndim(x) > 1 and x.sharding.is_fully_replicated


def main():
    for method in METHODS:
        check_explicit(method)
        check_auto(method)


if __name__ == "__main__":
    main()
