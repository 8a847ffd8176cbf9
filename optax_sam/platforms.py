"""What is done differently by the platform that a program is compiled *for*, whatever machine traces it.

On XLA:CPU the gradient of a convolution is slow inside a loop (jax-ml/jax#12868), so there a few products are
unrolled. Everywhere else, and without convolutions, a loop is as fast, and its program is as long as one
product, takes the memory of one, and compiles in the time of one.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from optax_sam.devices import varies_over, varying

T = TypeVar("T")


def is_traced(*trees: Any) -> bool:
    """Returns whether a value is known only when a compiled program runs, under `jit` and its like."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def except_on_tpu(new: jax.Array, kept: jax.Array) -> jax.Array:
    """Returns `new`, and in a program for TPUs `kept`: what only `new` needs is not computed there."""
    if not is_traced(new):
        return new
    kept = varying(kept, tuple(varies_over(new)))
    return jax.lax.platform_dependent(new, kept, tpu=lambda new, kept: kept, default=lambda new, kept: new)


def repeated(step: Callable[[int | jax.Array, T], T], start: T, num: int) -> T:
    """Returns `start` after `step(i, ·)` for i = 0, ..., num − 1: in a loop, unrolled where that is faster.

    Args:
      step: (i, carry) ↦ carry, with the same shapes and dtypes. i is a Python integer where it is unrolled.
      start: the first carry.
      num: number of steps, a Python integer.
    """

    def unrolled(carry: T) -> T:
        for i in range(num):
            carry = step(i, carry)
        return carry

    # Without `jit` a loop would be compiled again at every call.
    if num == 1 or not is_traced(start):
        return unrolled(start)
    program = jax.make_jaxpr(step, return_shape=True)(0, start)
    # A loop under `shard_map` wants a carry that varies along the same axes before and after a step.
    start = jax.tree.map(lambda x, y: varying(x, tuple(varies_over(y))), start, program[1])
    looped = lambda carry: jax.lax.fori_loop(0, num, step, carry)
    if "conv_general_dilated" not in set(primitives(program[0].jaxpr)):
        return looped(start)
    return jax.lax.platform_dependent(start, cpu=unrolled, default=looped)


def primitives(program: Any) -> Iterator[str]:
    """Yields the names of all operations of a program, a `jaxpr`."""
    is_program = lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    for equation in program.eqns:
        yield equation.primitive.name
        for inner in filter(is_program, jax.tree.leaves(equation.params, is_leaf=is_program)):
            yield from primitives(getattr(inner, "jaxpr", inner))
