"""What a compiled program sends between devices, read from its text.

count(jax.jit(step).lower(...).compile().as_text())
"""

import math
import re
from collections import Counter
from typing import NamedTuple

COMPUTATION = re.compile(r"(?:ENTRY )?%([\w.-]+) .*\{$")
COLLECTIVE = re.compile(r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\(")
ARRAY = re.compile(r"\b(?:pred|(?:bf|[fsu])(\d+))\[([\d,]*)\]")
TIMES = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Sent(NamedTuple):
    """The arrays in the results of the collectives."""

    sizes: dict[str, int]  # bytes by kind of collective, scalars left out
    scalars: int  # how many


def count(text: str) -> Sent:
    """Counts the collectives of a compiled program, those in a loop as often as it runs."""
    totals: dict[str, Counter] = {}
    for line in text.splitlines():
        if found := COMPUTATION.match(line):  # Callees come before their callers, the program itself last.
            total = totals[found[1]] = Counter()
        elif found := COLLECTIVE.search(line):
            for bits, shape in ARRAY.findall(found[1]):
                size = math.prod(map(int, filter(None, shape.split(","))))
                total.update({"scalars": 1} if size == 1 else {found[2]: size * int(bits or 8) // 8})
        else:
            times = int(found[1]) if (found := TIMES.search(line)) else 1
            for name in set(re.findall(r"%([\w.-]+)", line)) & totals.keys():
                total.update({key: times * n for key, n in totals[name].items()})
    return Sent({kind: n for kind, n in total.items() if kind != "scalars" and n}, total["scalars"])
