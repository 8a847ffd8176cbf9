"""Worker: trains with every method in every layout and prints how far it is from a single device."""

import optax

from tests.devices import layouts
from tests.devices.processes import reported
from tests.registry import METHODS

RHO = 0.1
REFRESHES = {
    "by interval": (None,) * layouts.NUM_STEPS,  # the registry's 3: steps 0 and 3
    "as passed": (True, True, False, False, True, False),
}
# Compiling takes the time here: what needs two programs is done where most could go wrong.
LAYOUTS_AS_PASSED = ("fsdp and tensor", "shard_map")
LAYOUTS_BY_INTERVAL = [layout for layout in layouts.LAYOUTS if layout != "fsdp and tensor"]


def cases():
    """Yields the name, layout and refreshes of every run that is compared to a single device."""
    for method in METHODS:
        for layout in LAYOUTS_BY_INTERVAL:
            yield method.name, layout, "by interval"
        for layout in LAYOUTS_AS_PASSED if method.has_refresh else ():
            yield method.name, layout, "as passed"


def with_base(method, layout):
    axis_name = layouts.AXIS if layout in layouts.PER_DEVICE_VIEW else None
    # Said or not makes no difference; one of the two layouts that know nothing by themselves is told.
    m_sharpness = False if layout == "shard_map, unchecked" else None
    return optax.chain(
        method.make(RHO, axis_name=axis_name, m_sharpness=m_sharpness),
        optax.sgd(layouts.LEARNING_RATE, momentum=0.9),
    )


def main():
    methods, truths = {method.name: method for method in METHODS}, {}
    for name, layout, refreshes in cases():
        with reported(name, layout, refreshes) as report:
            train = lambda layout, name=name, refreshes=refreshes: layouts.train(
                with_base(methods[name], layout), layout, REFRESHES[refreshes]
            )
            if (name, refreshes) not in truths:
                truths[name, refreshes] = train("single")
            report(difference=layouts.max_difference(train(layout), truths[name, refreshes]))


if __name__ == "__main__":
    main()
