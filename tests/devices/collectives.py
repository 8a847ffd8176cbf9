"""Worker: compiles a training step and counts what its program sends between devices."""

import collections
import math
import re

import jax
import numpy as np
import optax

from tests.devices import layouts
from tests.devices.processes import reported
from tests.registry import METHODS

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
OPERATION = re.compile(rf"= (?P<shapes>.*?) (?P<kind>{KINDS})(-start)?\(")
SHAPE = re.compile(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]*)\]")

# The other methods differ from these by element-wise operations only.
NAMES = ("sam", "sam_3_steps", "info_sam", "eigen_sam", "xsam", "combination")
REFRESHES = {"sgd": (None,)} | {
    method.name: (False, True) if method.has_refresh else (None,)
    for method in METHODS
    if method.name in NAMES
}
GRADIENTS = {"averaged": layouts.averaged_gradient, "local": layouts.local_gradient}
REPLICATED_LAYOUTS = ("data", *layouts.PER_DEVICE_VIEW)
SHARDED_LAYOUTS = ("fsdp", "tensor", "fsdp and tensor")


def cases():
    """Yields (method, layout, gradient passed in, refresh) of every program that is compiled."""
    for name, refreshes in REFRESHES.items():
        for layout in (*REPLICATED_LAYOUTS, *SHARDED_LAYOUTS):
            for gradient in GRADIENTS if layout in layouts.PER_DEVICE_VIEW else ("averaged",):
                if name == "sgd" and gradient == "local":
                    continue
                for refresh in refreshes:
                    if refresh and (
                        gradient == "local" or (layout in SHARDED_LAYOUTS and name != "eigen_sam")
                    ):
                        continue
                    yield name, layout, gradient, str(refresh)


def transformation(name, layout):
    if name == "sgd":
        return optax.sgd(layouts.LEARNING_RATE, momentum=0.9)
    axis_name = layouts.AXIS if layout in layouts.PER_DEVICE_VIEW else None
    make = next(method.make for method in METHODS if method.name == name)
    return optax.chain(make(0.1, axis_name=axis_name), transformation("sgd", layout))


def program(name, layout, gradient, refresh):
    """Returns the text of the compiled training step."""
    tx = optax.with_extra_args_support(transformation(name, layout))
    step = layouts.make_step(tx, layout, gradient=GRADIENTS[gradient])
    params, state = layouts.initial(tx, layout, step)
    batch = step.place_batch(layouts.batches()[0])
    refresh = {"None": None, "True": True, "False": False}[refresh]
    if layout in layouts.GLOBAL_VIEW:  # The optimizer's state stays where it is.
        shardings = jax.tree.map(lambda x: x.sharding, (params, state))
        fixed = jax.jit(step.step.__wrapped__, static_argnums=3, out_shardings=shardings)
        return fixed.lower(params, state, batch, refresh).compile().as_text()
    return step.step.lower(params, state, batch, refresh).compile().as_text()


def count(text):
    """Returns the numbers of scalars and of other elements that each kind of collective delivers."""
    counts = collections.Counter()
    for operation in OPERATION.finditer(text):
        for shape in SHAPE.findall(operation["shapes"]):
            size = math.prod(map(int, filter(None, shape.split(","))))
            counts[operation["kind"] + (" scalars" if size == 1 else " elements")] += size
    return dict(counts)


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
        report(**count(example()))
    for case in cases():
        with reported(*case) as report:
            report(**count(program(*case)))


if __name__ == "__main__":
    main()
