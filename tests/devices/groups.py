"""Worker: what `axis_name` means: m-sharpness, state on every device, and what comes of forgetting it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
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
NUM_STEPS = (1, 2, 3)
SAID = {"as passed": None, "as said": True}  # m_sharpness
MAKE = {method.name: method.make for method in METHODS} | {
    "presam": functools.partial(
        optax_sam.presam,
        objective=optax_sam.fisher_information(),
        constraint=optax_sam.weight_magnitude(),
    )
}


def groups(batch, number=NUM_DEVICES):
    """Splits a batch into one part per device."""
    return jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:]), batch)


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


def every_num_steps(name, params, part, gradient, **options):
    """Returns the sharpness-aware gradients of one group, by the number of ascents."""
    value_fn = lambda params: loss(params, part)
    updates = {}
    for num_steps in NUM_STEPS:
        tx = MAKE[name](RHO, num_steps=num_steps, **options)
        grads = gradient(value_fn, params)
        updates[num_steps], _ = tx.update(grads, tx.init(params), params, value_fn=value_fn)
    return updates


def alone(name, part):
    """Returns what one device alone computes for a group."""
    params = jax.tree.map(jnp.asarray, layouts.parameters())
    return every_num_steps(name, params, part, lambda value_fn, params: jax.grad(value_fn)(params))


def m_sharpness(name, way):
    """Returns what the devices compute together, by what `m_sharpness` says, on every group."""

    def function(params, part):
        gradient = lambda value_fn, params: local_gradient(value_fn, params, AXIS, way)
        update = functools.partial(every_num_steps, name, params, part, gradient, axis_name=AXIS)
        return {said: update(m_sharpness=value) for said, value in SAID.items()}

    return jax.device_get(on_groups(way, function, jax.tree.map(jnp.asarray, layouts.parameters())))


def of_pairs(num_steps, *, is_checked):
    """Returns the result where two devices share a gradient, on a mesh of four pairs."""
    tx = optax_sam.sam(RHO, num_steps=num_steps, axis_name=layouts.BOTH)
    params = jax.tree.map(jnp.asarray, layouts.parameters())

    def function(params, part):
        value_fn = lambda params: loss(params, part)
        if is_checked:  # "data" counts the pairs, "model" the two of a pair.
            local = jax.lax.pcast(params, "data", to="varying")
            grads = jax.grad(lambda params: jax.lax.pmean(value_fn(params), "model"))(local)
        else:
            grads = jax.lax.pmean(jax.grad(value_fn)(params), "model")
        return tx.update(grads, tx.init(params), params, value_fn=value_fn)[0]

    mapped = jax.shard_map(
        function,
        mesh=layouts.mesh_2d(),
        in_specs=(P(), P(layouts.BOTH)),
        out_specs=P(),
        check_vma=is_checked,
    )
    return jax.device_get(jax.jit(mapped)(params, layouts.batches()[0]))


def group_mean(name, number=NUM_DEVICES):
    """Returns the mean over groups of what one device alone computes for each, one after the other."""
    parts = groups(layouts.batches()[0], number)
    one_group = jax.jit(functools.partial(alone, name))
    results = [one_group(jax.tree.map(lambda x, i=i: x[i], parts)) for i in range(number)]
    return jax.tree.map(lambda *leaves: sum(leaves) / number, *results)


def group_mean_by_scan(name):
    """The same in one program."""

    def add_group(total, part):
        return jax.tree.map(lambda t, g: t + g / NUM_DEVICES, total, alone(name, part)), None

    parts = groups(layouts.batches()[0])
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(functools.partial(alone, name), first(parts)))
    return jax.jit(lambda parts: jax.lax.scan(add_group, zeros, parts)[0])(parts)


def spread(tree):
    """Returns how much the devices differ."""
    return layouts.max_difference(tree, jax.tree.map(lambda x: np.broadcast_to(x[:1], x.shape), tree))


def first(tree):
    return jax.tree.map(lambda x: x[0], tree)


def check_m_sharpness():
    for name in STATELESS:
        expected = group_mean(name)
        with reported("m-sharpness", name, "scan") as report:
            report(difference=layouts.max_difference(group_mean_by_scan(name), expected))
        for way in WAYS:
            with reported("m-sharpness", name, way) as report:
                for said, gradients in m_sharpness(name, way).items():
                    for num_steps, gradient in gradients.items():
                        difference = layouts.max_difference(first(gradient), expected[num_steps])
                        report(**{f"{said}, {num_steps}": [difference, spread(gradient)]})
    expected = group_mean("sam", NUM_DEVICES // 2)
    for is_checked in (True, False):
        with reported("pairs", str(is_checked)) as report:
            for k in NUM_STEPS:
                difference = layouts.max_difference(of_pairs(k, is_checked=is_checked), expected[k])
                report(**{str(k): difference})


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
    # Said or not makes no difference; one of the ways that know nothing by themselves is told.
    said = True if way == "shard_map, unchecked" else None
    tx = optax.chain(MAKE[name](RHO, axis_name=AXIS, m_sharpness=said), optax.sgd(0.1, momentum=0.9))

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
