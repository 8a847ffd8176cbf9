"""What a compiled program sends between devices, read from its text.

count(jax.jit(step).lower(...).compile().as_text(), num_devices=8)
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shapes>.*?) (?P<op>[a-z][\w-]*)\((?P<rest>.*)"
)


def count(text: str, num_devices: int) -> dict[str, Any]:
    """Counts the collectives of a compiled program, those in a loop as often as it runs.

    Returns:
        collective_bytes: of the whole arrays, by kind of collective, scalars left out.
        collective_scalars: how many scalars are sent.
        rounds: length of the longest chain of collectives each of which needs the one before.
    """
    totals: dict[str, Counter] = {}
    rounds: dict[str, int] = {}
    for computation, instructions in computations(text):
        total: Counter = Counter()
        depths: dict[str, list[int]] = {}  # of an instruction: one number for each part of its result
        for instruction in instructions:
            names = re.findall(r"%([\w.-]+)", instruction["rest"])
            inputs = [depths[name] for name in names if name in depths]
            kind = instruction["op"]
            if kind in KINDS:
                total += sizes(kind, instruction["shapes"], num_devices)
                # The compiler combines independent collectives: each part of the result has its own depth.
                depth = [1 + max(parts) for parts in inputs]
            elif kind == "get-tuple-element":
                index = int(re.search(r"index=(\d+)", instruction["rest"])[1])
                depth = [inputs[0][index % len(inputs[0])]]
            else:
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction["rest"])
                times = int(trips[1]) if trips else 1
                called = [name for name in names if name in totals]
                for name in called:
                    total += Counter({key: times * n for key, n in totals[name].items()})
                inside = times * max((rounds[name] for name in called), default=0)
                depth = [inside + max((d for parts in inputs for d in parts), default=0)]
            depths[instruction["name"]] = depth or [0]
        totals[computation] = total
        rounds[computation] = max((d for parts in depths.values() for d in parts), default=0)
    last = totals[computation]  # the program itself
    return {
        "collective_bytes": {kind: last[kind] for kind in KINDS if last[kind]},
        "collective_scalars": last["scalars"],
        "rounds": rounds[computation],
    }


def computations(text: str) -> Iterator[tuple[str, list[re.Match]]]:
    """Yields (name, instructions) of each computation in a program; callees come before their callers."""
    name, instructions = "", []
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and line.endswith("{"):
            name, instructions = re.search(r"%([\w.-]+)", line)[1], []
        elif line.startswith("}"):
            yield name, instructions
        elif match := INSTRUCTION.match(line):
            instructions.append(match)


def sizes(kind: str, shapes: str, num_devices: int) -> Counter:
    """Returns the bytes of the arrays (under `kind`) and the number of "scalars" in a collective's result."""
    total: Counter = Counter()
    for bits, shape in re.findall(r"\b(?:pred|(?:bf|[fsu])(\d+))\[([\d,]*)\]", shapes):
        size = math.prod(map(int, filter(None, shape.split(","))))
        if size == 1:
            total["scalars"] += 1
        else:  # of a reduce-scatter the result is the device's part
            total[kind] += size * int(bits or 8) // 8 * (num_devices if kind == "reduce-scatter" else 1)
    return total
