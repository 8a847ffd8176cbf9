"""Worker: what `axis_name` means: m-sharpness, state on every device, and what comes of forgetting it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.devices import layouts
from tests.devices.layouts import AXIS, NUM_DEVICES, P, averaged_gradient, local_gradient, loss
from tests.devices.processes import reported
from tests.registry import METHODS

RHO = 0.1
STATELESS = ("sam", "asam", "fisher_sam", "presam")
STATEFUL = ("info_sam", "eigen_sam", "xsam", "combination")
AXIS_METHODS = ("sam", "eigen_sam", "xsam")
ON_DEVICES = layouts.PER_DEVICE_VIEW
WAYS = (*ON_DEVICES, "vmap")
MAKE = {method.name: method.make for method in METHODS}


def groups(batch):
    """Splits a batch into one part per device."""
    return jax.tree.map(lambda x: x.reshape(NUM_DEVICES, -1, *x.shape[1:]), batch)


def on_groups(way, function, *shared):
    """Calls `function(*shared, part of the first batch)` on every group; results are stacked."""
    parts = groups(layouts.batches()[0])
    if way == "vmap":
        return jax.jit(jax.vmap(lambda part: function(*shared, part), axis_name=AXIS))(parts)
    if way == "pmap":
        return jax.pmap(lambda part: function(*shared, part), AXIS)(parts)
    stacked = lambda shared, part: jax.tree.map(
        lambda x: jnp.asarray(x)[None], function(*shared, jax.tree.map(lambda x: x[0], part))
    )
    mapped = jax.shard_map(
        stacked,
        mesh=layouts.mesh_1d(),
        in_specs=(P(), P(AXIS)),
        out_specs=P(AXIS),
        check_vma=way == "shard_map",
    )
    return jax.jit(mapped)(shared, parts)


def update(tx, params, state, batch, *, way, gradient, value_fn=None, **extra_args):
    """Returns the sharpness-aware gradient, in one of the ways."""
    local_loss = lambda params: loss(params, batch)
    grads = gradient(local_loss, params, AXIS, way)
    value_fn = local_loss if value_fn is None else functools.partial(value_fn, batch=batch)
    extra_args = {key: functools.partial(value, batch=batch) for key, value in extra_args.items()}
    return tx.update(grads, state, params, value_fn=value_fn, **extra_args)


def sharpness_aware_gradients(name, way, *, axis_name=AXIS, gradient=local_gradient, **options):
    """Returns (gradient, state) of one update, on every group."""
    tx = MAKE[name](RHO, axis_name=axis_name)
    params = jax.tree.map(jnp.asarray, layouts.parameters())
    function = functools.partial(update, tx, way=way, gradient=gradient, **options)
    return jax.device_get(on_groups(way, function, params, tx.init(params)))


def group_mean(name):
    """Returns the mean over groups of what one device alone computes for each of them."""
    tx, params = MAKE[name](RHO), jax.tree.map(jnp.asarray, layouts.parameters())

    def add_group(total, part):
        value_fn = lambda params: loss(params, part)
        gradient, _ = tx.update(jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn)
        return jax.tree.map(lambda t, g: t + g / NUM_DEVICES, total, gradient), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.jit(lambda parts: jax.lax.scan(add_group, zeros, parts)[0])(groups(layouts.batches()[0]))


def group_mean_by_loop(name):
    """The same, one group after the other."""
    tx, params = MAKE[name](RHO), jax.tree.map(jnp.asarray, layouts.parameters())

    @jax.jit
    def one_group(part):
        value_fn = lambda params: loss(params, part)
        return tx.update(jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn)[0]

    return mean([one_group(part) for part in split()])


@functools.partial(jax.jit, static_argnums=0)
def k_steps_by_hand(num_steps):
    """Local first ascents, then ascents along the gradient averaged over the groups' own points."""
    params = jax.tree.map(jnp.asarray, layouts.parameters())
    gradients, points = [jax.grad(loss)(params, part) for part in split()], [params] * NUM_DEVICES

    def ascend(w, g):
        length = RHO / num_steps / optax.tree.norm(g)
        return jax.tree.map(lambda w, g: w + length * g, w, g)

    for _ in range(num_steps):
        points = list(map(ascend, points, gradients))
        gradients = [mean(list(map(jax.grad(loss), points, split())))] * NUM_DEVICES
    return gradients[0]


def split():
    """Returns the parts of the first batch, one per device."""
    parts = groups(layouts.batches()[0])
    return [jax.tree.map(lambda x, i=i: x[i], parts) for i in range(NUM_DEVICES)]


def mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def spread(tree):
    """Returns how much the devices differ."""
    return layouts.max_difference(tree, jax.tree.map(lambda x: np.broadcast_to(x[:1], x.shape), tree))


def first(tree):
    return jax.tree.map(lambda x: x[0], tree)


def check_m_sharpness():
    for name in STATELESS:
        expected = group_mean(name)
        with reported("m-sharpness", name, "scan") as report:
            report(difference=layouts.max_difference(expected, group_mean_by_loop(name)), spread=0.0)
        for way in WAYS:
            with reported("m-sharpness", name, way) as report:
                gradient, _ = sharpness_aware_gradients(name, way)
                report(difference=layouts.max_difference(first(gradient), expected), spread=spread(gradient))
    expected = k_steps_by_hand(3)
    for way in WAYS:
        with reported("m-sharpness", "sam_3_steps", way) as report:
            gradient, _ = sharpness_aware_gradients("sam_3_steps", way)
            report(
                difference=layouts.max_difference(first(gradient), expected),
                spread=spread(gradient),
                from_group_mean=layouts.max_difference(first(gradient), group_mean("sam_3_steps")),
            )


def check_state():
    """Trains on local gradients and compares the copies of parameters and state."""
    for name in STATEFUL:
        copies = {}
        for way in WAYS:
            with reported("state", name, way) as report:
                copies[way] = train_on_local_gradients(name, way)
                report(
                    spread=spread(copies[way]),
                    difference=layouts.max_difference(first(copies[way]), first(copies["pmap"])),
                )


def train_on_local_gradients(name, way, num_steps=4):
    tx = optax.chain(MAKE[name](RHO, axis_name=AXIS), optax.sgd(0.1, momentum=0.9))

    def train(params, state, part):
        def step(carry, _):
            params, state = carry
            updates, state = update(tx, params, state, part, way=way, gradient=local_gradient)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), length=num_steps)[0]

    params = jax.tree.map(jnp.asarray, layouts.parameters())
    return jax.device_get(on_groups(way, train, params, tx.init(params)))


def global_truth(name):
    tx, params = MAKE[name](RHO), jax.tree.map(jnp.asarray, layouts.parameters())
    batch = layouts.batches()[0]
    value_fn = lambda params: loss(params, batch)
    return jax.jit(
        lambda params: tx.update(jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn)
    )(params)[0]


def averaged_loss(params, batch):
    return jax.lax.pmean(loss(params, batch), AXIS)


def check_forgotten_axis():
    for name in AXIS_METHODS:
        truth = global_truth(name)
        for way in ON_DEVICES:
            distance = lambda gradient, truth=truth: layouts.max_difference(first(gradient), truth)
            report_to = functools.partial(reported, "axis", name, way)
            with report_to("forgotten") as report:
                gradient, _ = sharpness_aware_gradients(name, way, axis_name=None, gradient=averaged_gradient)
                average = jax.tree.map(lambda g: g.mean(0), gradient)
                report(
                    difference=distance(gradient),
                    spread=spread(gradient),
                    difference_of_mean=layouts.max_difference(average, truth),
                    ratio=float(optax.tree.norm(first(gradient)) / optax.tree.norm(truth)),
                )
            with report_to("forgotten, averaged loss") as report:
                gradient, _ = sharpness_aware_gradients(
                    name, way, axis_name=None, gradient=averaged_gradient, value_fn=averaged_loss
                )
                report(
                    difference=distance(gradient),
                    ratio=float(optax.tree.norm(first(gradient)) / optax.tree.norm(truth)),
                )
            with report_to("given, averaged loss") as report:
                gradient, _ = sharpness_aware_gradients(
                    name, way, gradient=averaged_gradient, value_fn=averaged_loss
                )
                report(difference=distance(gradient))
            for kind, grad_fn in {"local": jax.grad(loss), "averaged": averaged_grad_fn}.items():
                with report_to(f"given, {kind} grad_fn") as report:
                    gradient, _ = sharpness_aware_gradients(
                        name, way, gradient=averaged_gradient, grad_fn=grad_fn
                    )
                    report(difference=distance(gradient))


def averaged_grad_fn(params, batch):
    return jax.lax.pmean(jax.grad(loss)(params, batch), AXIS)


def main():
    check_m_sharpness()
    check_state()
    check_forgotten_axis()


if __name__ == "__main__":
    main()
