"""What a program scheduled for a TPU says: estimated cycles, collectives, and how often its loops run.

read(jax.jit(step).lower(...).compile().as_text())

XLA counts the body of a loop once (`cost_analysis()`), so here cycles and collectives count as often as they
run, and there are factors by which flops and bytes grow.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shapes>.*?) (?P<op>[a-z][\w-]*)\((?P<rest>.*)"
)
SHAPE = re.compile(r"\b(pred|bf16|[fsuc]\d+)\[([\d,]*)\]")
COLLECTIVE = re.compile(rf"({'|'.join(KINDS)})(?:-(start|done))?")
# Neither computed nor moved.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call")


class Collective(NamedTuple):
    """One collective of the schedule.

    Attributes:
        kind: one of `KINDS`.
        sizes: bytes of the whole arrays under the kind, and the number of "scalars".
        times: how often it runs.
        channel: by which an asynchronous start and its end find each other.
        is_asynchronous: whether the program goes on until it ends.
    """

    kind: str
    sizes: Counter
    times: int
    channel: str
    is_asynchronous: bool


class Computation(NamedTuple):
    """What runs when a computation is called."""

    # Cycles, and those while a collective is on its way; flops and bytes, and these with loop bodies once:
    # flops_once, bytes_once.
    counts: Counter
    collectives: list[Collective]
    # Bytes of the arrays in the instructions, loops left out, by length of the first axis.
    lengths: Counter


def read(text: str) -> dict[str, Any]:
    """Reads a scheduled program.

    Returns:
        cycles: the compiler's estimates, added up; collectives have none.
        flops_factor, bytes_factor: counted in every iteration of the loops, relative to once.
        lines: of the program.
        collectives: kind -> how many arrays or groups of arrays are sent, scalars alone left out.
        asynchronous: kind -> how many of these the program does not wait for.
        collective_bytes: kind -> bytes of the whole arrays.
        hidden_cycles: cycles of what runs while collectives do.
        collective_scalars: how many scalars are sent.
    """
    known: dict[str, Computation] = {}
    conditions: dict[str, int] = {}
    for name, instructions in computations(text):
        known[name] = one(instructions, known, conditions)
        limits = [match["rest"] for match in instructions if match["op"] == "constant"]
        conditions[name] = max((int(n) for n in re.findall(r"^(\d+)\)", "\n".join(limits), re.M)), default=1)
    counts, collectives, _ = known[name]  # the program itself
    numbers, asynchronous, total = Counter(), Counter(), Counter()
    for kind, size, times, _, is_asynchronous in collectives:
        total += Counter({key: times * number for key, number in size.items()})
        if set(size) == {"scalars"}:
            continue
        numbers[kind] += times
        if is_asynchronous:
            asynchronous[kind] += times
    return {
        "cycles": counts["cycles"],
        "flops_factor": counts["flops"] / max(counts["flops_once"], 1),
        "bytes_factor": counts["bytes"] / max(counts["bytes_once"], 1),
        "lines": len(text.splitlines()),
        "collectives": dict(numbers),
        "asynchronous": dict(asynchronous),
        "collective_bytes": {kind: total[kind] for kind in KINDS if total[kind]},
        "collective_scalars": total["scalars"],
        "hidden_cycles": counts["hidden"],
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


def one(instructions: list[re.Match], known: dict[str, Computation], limits: dict[str, int]) -> Computation:
    """Adds up the instructions of one computation, in the order of the schedule."""
    counts, collectives, lengths = Counter(), [], Counter()
    shapes = {match["name"]: match["shapes"] for match in instructions}
    begun: dict[str, Collective] = {}  # by channel: those on their way
    for match in instructions:
        op, rest = match["op"], match["rest"]
        called = dict(re.findall(r"(calls|body|condition)=%([\w.-]+)", rest))
        cycles = int(found[1]) if (found := re.search(r'"estimated_cycles":"(\d+)"', rest)) else 0
        own = Counter(cycles=cycles)
        if op == "while":
            times = limits[called["condition"]]
            body = known[called["body"]]
            own += repeated(body, times)
            collectives += [sent._replace(times=sent.times * times) for sent in body.collectives]
        elif op in ("call", "conditional"):
            branches = [known[name] for name in re.findall(r"%([\w.-]+)", rest) if name in known]
            longest = max(branches, key=lambda branch: branch.counts["cycles"], default=None)
            if longest:
                own += longest.counts
                collectives += longest.collectives
        elif op == "convolution":
            own["flops"] = own["flops_once"] = flops_of(match["shapes"], rest, shapes)
        elif op == "fusion":
            inside = known[called["calls"]]
            own["flops"] = own["flops_once"] = inside.counts["flops"]
        if op not in FREE and not op.endswith("-done"):
            moved = bytes_of(match["shapes"], rest, shapes)
            lengths += moved
            own["bytes"] = own["bytes_once"] = moved.total()
        sent, part = collective(match, known, called)
        if part == "start":
            begun[sent.channel] = sent
        elif part == "done":
            collectives.append(begun.pop(sent.channel)._replace(is_asynchronous=True))
        elif part == "whole":
            collectives.append(sent)
        if begun:
            own["hidden"] = own["cycles"]
        counts += own
    return Computation(counts, collectives, lengths)


def collective(
    match: re.Match, known: dict[str, Computation], called: dict[str, str]
) -> tuple[Collective | None, str]:
    """Returns an instruction's collective, and which part it is: "start", "done", "whole", or "" for none."""
    name, op, rest = match["name"], match["op"], match["rest"]
    if op == "fusion":  # The compiler puts what an asynchronous collective overlaps with in one with it.
        inside, callee = known[called["calls"]].collectives, called["calls"]
        if not inside or callee.startswith("async_collective_fusion"):
            return None, ""
        sent = inside[0]
        if callee.startswith("all-reduce-scatter"):
            parts = Counter({"reduce-scatter": sent.sizes["all-reduce"]})
            sent = sent._replace(kind="reduce-scatter", sizes=parts)
        part = re.match(r"async-collective-(start|done)", name)
        return sent, part[1] if part else "whole"
    found = COLLECTIVE.fullmatch(op)
    if not found:
        return None, ""
    kind, part, shapes = found[1], found[2] or "whole", match["shapes"]
    channel = name if part == "start" else re.search(r"%([\w.-]+)", rest)[1]
    if part == "whole":
        channel = id_[1] if (id_ := re.search(r"channel_id=(\d+)", rest)) else name
    elif kind in ("all-gather", "collective-permute"):  # operands, results, the compiler's own numbers
        pieces = [(dtype, dims) for dtype, dims in SHAPE.findall(shapes) if (dtype, dims) != ("u32", "")]
        shapes = " ".join(f"{dtype}[{dims}]" for dtype, dims in pieces[len(pieces) // 2 :])
    return Collective(kind, sizes_of(kind, shapes), 1, channel, False), part


def sizes_of(kind: str, shapes: str) -> Counter:
    """Bytes of the arrays (under the kind) and number of "scalars" in a collective's result."""
    total: Counter = Counter()
    for size, dims in dims_of(shapes):
        if math.prod(dims) == 1:
            total["scalars"] += 1
        else:
            total[kind] += size * math.prod(dims)
    return total


def repeated(body: Computation, times: int) -> Counter:
    """The counts of a loop. Of an array with an entry for each pass, a pass uses its own."""
    counts = {key: n * (1 if key.endswith("_once") else times) for key, n in body.counts.items()}
    counts["bytes"] = counts.get("bytes", 0) - (times - 1) * body.lengths[times]
    return Counter(counts)


def dims_of(shapes: str) -> list[tuple[int, tuple[int, ...]]]:
    """Bytes an entry, and dimensions, of each array."""
    return [
        (int(re.sub(r"\D", "", dtype) or 8) // 8, tuple(map(int, filter(None, dims.split(",")))))
        for dtype, dims in SHAPE.findall(shapes)
    ]


def bytes_of(shapes: str, rest: str, known: dict[str, str]) -> Counter:
    """Bytes of the result and of the operands, by length of the first axis."""
    operands = re.findall(r"%([\w.-]+)", rest.split("),")[0])
    found: Counter = Counter()
    for size, dims in dims_of(" ".join([shapes, *(known.get(name, "") for name in operands)])):
        found[dims[0] if dims else 0] += size * math.prod(dims)
    return found


def flops_of(shapes: str, rest: str, known: dict[str, str]) -> int:
    """Flops of a convolution, which on TPUs a matrix product is too; padding does not count."""
    left, right = re.findall(r"%([\w.-]+)", rest)[:2]
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    lhs, rhs, result = (
        dict(zip(own, dims_of(text)[0][1], strict=True))
        for own, text in zip(labels.groups(), (known[left], known[right], shapes), strict=True)
    )
    found = re.search(r"window={(.*?)}", rest)
    window = dict(re.findall(r"(\w+)=([\dx_-]+)", found[1] if found else ""))
    of = lambda key, axis, usual: window[key].split("x")[axis] if key in window else usual
    total = 2 * result["b"] * result["f"] * rhs["i"]
    for axis in range(len(labels[1]) - 2):
        low = int(of("pad", axis, "0_0").split("_")[0])
        stride, dilation, holes = (int(of(k, axis, "1")) for k in ("stride", "lhs_dilate", "rhs_dilate"))
        at = np.arange(result[str(axis)])[:, None] * stride + np.arange(rhs[str(axis)]) * holes - low
        inside = (at >= 0) & (at <= (lhs[str(axis)] - 1) * dilation) & (at % dilation == 0)
        total *= int(inside.sum())
    return total
