"""Worker: compiles a training step and counts what its program sends between devices."""

import jax
import numpy as np
import optax

from benchmarks.cost.collectives import count
from tests.devices import layouts
from tests.devices.processes import reported
from tests.registry import METHODS

# The other methods differ from these by element-wise operations only.
NAMES = ("sam", "sam_3_steps", "info_sam", "eigen_sam", "xsam", "combination")
REFRESHES = {"sgd": (None,)} | {
    method.name: (False, True) if method.has_refresh else (None,)
    for method in METHODS
    if method.name in NAMES
}
GRADIENTS = {  # what is passed in, what `m_sharpness` says of it
    "averaged": (layouts.averaged_gradient, None),
    "averaged, as said": (layouts.averaged_gradient, False),
    "local": (layouts.local_gradient, None),
    "local, as said": (layouts.local_gradient, True),
}
GRADIENTS_PASSED = {
    "pmap": tuple(GRADIENTS),
    "shard_map": ("averaged", "local"),  # JAX knows
    "shard_map, unchecked": ("averaged, as said", "local, as said"),
}
SHARDED_LAYOUTS = ("fsdp", "tensor", "fsdp and tensor")
REPLICATED_LAYOUTS = ("data", *layouts.PER_DEVICE_VIEW)


def gradients(layout):
    return GRADIENTS_PASSED.get(layout, ("averaged",))


def cases():
    """Yields (method, layout, gradient passed in, refresh) of every program that is compiled."""
    for name, refreshes in REFRESHES.items():
        for layout in (*REPLICATED_LAYOUTS, *SHARDED_LAYOUTS):
            for gradient in gradients(layout)[: 1 if name == "sgd" else None]:
                for refresh in refreshes:
                    if refresh and (
                        gradient != gradients(layout)[0]
                        or (layout in SHARDED_LAYOUTS and name != "eigen_sam")
                    ):
                        continue
                    yield name, layout, gradient, str(refresh)


def transformation(name, layout, m_sharpness):
    sgd = optax.sgd(layouts.LEARNING_RATE, momentum=0.9)
    if name == "sgd":
        return sgd
    axis_name = layouts.AXIS if layout in layouts.PER_DEVICE_VIEW else None
    make = next(method.make for method in METHODS if method.name == name)
    return optax.chain(make(0.1, axis_name=axis_name, m_sharpness=m_sharpness), sgd)


def program(name, layout, gradient, refresh):
    """Returns the text of the compiled training step."""
    take_gradient, m_sharpness = GRADIENTS[gradient]
    tx = optax.with_extra_args_support(transformation(name, layout, m_sharpness))
    step = layouts.make_step(tx, layout, gradient=take_gradient)
    params, state = layouts.initial(tx, layout, step)
    batch = step.place_batch(layouts.batches()[0])
    refresh = {"None": None, "True": True, "False": False}[refresh]
    if layout in layouts.GLOBAL_VIEW:  # The optimizer's state stays where it is.
        shardings = jax.tree.map(lambda x: x.sharding, (params, state))
        fixed = jax.jit(step.step.__wrapped__, static_argnums=3, out_shardings=shardings)
        return fixed.lower(params, state, batch, refresh).compile().as_text()
    return step.step.lower(params, state, batch, refresh).compile().as_text()


def example():
    """Returns a program with collectives that are known, for a test of `count` itself."""
    mesh = layouts.mesh_1d()
    spec = layouts.P(layouts.AXIS)

    def function(x):
        total = jax.lax.psum(x, layouts.AXIS)
        return total, jax.lax.psum(x.sum(), layouts.AXIS), jax.lax.all_gather(x, layouts.AXIS)

    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=layouts.P(), check_vma=False)
    return jax.jit(mapped).lower(np.ones((8, 5))).compile().as_text()


def main():
    with reported("example") as report:
        report(**count(example(), layouts.NUM_DEVICES))
    for case in cases():
        with reported(*case) as report:
            report(**count(program(*case), layouts.NUM_DEVICES))


if __name__ == "__main__":
    main()
