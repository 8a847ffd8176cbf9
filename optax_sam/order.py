"""Whether something stands between a wiring check and the method behind it in a chain.

The check hands its gradient on unchanged. So if a method gets other values in the same call, a transformation
in between has made them, `chain(wiring_check(), clip, sam, adam)`: it changes the clean gradient alone, and
what it was meant to change, the update, comes from the second gradient, which does not pass it.

It also hands on a function that the method calls with its perturbation, which the check cannot know.

A value's identity is known wherever JAX traces, and without `jit` too. Nothing is said where the method runs
in another trace than the check, as inside a `lax.cond`. Only weak references are kept, and only until the
next method.
"""

import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend
import optax

Observe = Callable[..., None]


class HandedOn(NamedTuple):
    """What a check saw: the trace, the arrays of the parameters and of the gradient, and what to do.

    `observe` is called with the keyword argument `perturbation`; None: nobody wants to know.
    """

    trace: Any
    params: tuple["weakref.ref[Any]", ...]
    gradient: tuple["weakref.ref[Any]", ...]
    dtypes: tuple[Any, ...]
    raises: bool
    observe: Observe | None


class Last(threading.local):
    """What the last check of this thread handed on, until a method has looked at it."""

    handed_on: HandedOn | None = None


LAST = Last()


def current_trace() -> Any:
    """Returns a value that is equal as long as JAX traces the same function."""
    has_moved = hasattr(jax.extend.core, "get_opaque_trace_state")  # in jax 0.10
    core: Any = jax.extend.core if has_moved else jax.core
    return core.get_opaque_trace_state(convention="optax_sam")


def hand_on(
    gradient: optax.Updates, params: optax.Params, *, raises: bool, observe: Observe | None = None
) -> None:
    """Remembers what a check saw. With `raises` something in between is an error, otherwise a warning."""
    try:
        arrays = _references(params), _references(gradient)
        LAST.handed_on = HandedOn(current_trace(), *arrays, _dtypes(gradient), raises, observe)
    except TypeError:  # Scalars of NumPy have no weak references.
        LAST.handed_on = None


def check_nothing_in_between(gradient: optax.Updates, params: optax.Params) -> HandedOn | None:
    """Warns, or raises, if the check in front of a method saw another gradient.

    Returns what it saw; None if there is no check.
    """
    seen = LAST.handed_on
    if seen is None or seen.trace != current_trace() or not all(_same(seen.params, params)):
        return None
    LAST.handed_on = None  # The method may call another one with a gradient of its own.
    # Another dtype is a cast, behind which nothing is known.
    is_cast = (dtype != seen_as for dtype, seen_as in zip(_dtypes(gradient), seen.dtypes, strict=True))
    if all(map(max, _same(seen.gradient, gradient), is_cast)):
        return seen
    message = (
        "Something between `wiring_check` and the method changes the gradient: clipping, weight decay, an"
        " optimizer. There it changes the clean gradient alone, from which the perturbation is made; the"
        " second gradient, from which the update is made, does not pass it, so the update is not clipped or"
        " decayed. Write it behind the method: `optax.chain(wiring_check(), method, clip, decay, optimizer)`."
        " What changes no value goes in front of `wiring_check`."
    )
    if seen.raises:
        raise ValueError(message)
    warnings.warn(message, stacklevel=2)
    return seen


def observers(observe: Observe | None, seen: HandedOn | None) -> Observe | None:
    """Returns a function that calls the one that was passed to a method, and that of the check."""
    functions = [function for function in (observe, seen and seen.observe) if function is not None]
    if not functions:
        return None

    def observe_all(**what: Any) -> None:
        for function in functions:
            function(**what)

    return observe_all


def _references(tree: Any) -> tuple["weakref.ref[Any]", ...]:
    return tuple(map(weakref.ref, jax.tree.leaves(tree)))


def _dtypes(tree: Any) -> tuple[Any, ...]:
    return tuple(leaf.dtype for leaf in jax.tree.leaves(tree))


def _same(references: tuple["weakref.ref[Any]", ...], tree: Any) -> list[bool]:
    leaves = jax.tree.leaves(tree)
    if len(leaves) != len(references):
        return [False]
    return [reference() is leaf for reference, leaf in zip(references, leaves, strict=True)]
