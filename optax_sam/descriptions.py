"""Descriptions for errors: where two pytrees differ, and what Flax's objects and errors are.

`optax_sam.flax` knows Flax's objects. It is asked only where Flax is in use, so that nothing here imports it.
"""

import importlib
import sys
from typing import Any

import jax


def first_difference(tree: Any, other: Any, *, prefix: bool = False) -> str:
    """Returns where two pytrees differ first, and how: whole trees are too long to be read.

    With `prefix` a leaf of `tree` may stand for a subtree of `other`.
    """
    found = _first_difference(tree, other, (), prefix)
    return found or "nodes of the same types have different static parts"


def _first_difference(tree: Any, other: Any, path: tuple[Any, ...], prefix: bool) -> str:
    where = f"at `{jax.tree_util.keystr(path)}`" if path else "at the top"
    if jax.tree_util.all_leaves([tree] if prefix else [tree, other]):
        return ""
    if type(tree) is not type(other):
        return f"{where} there is {kind(tree)} instead of {kind(other)}"
    children, expected = _children(tree), _children(other)
    for child in expected | children:
        if child not in children:
            return f"{where} `{jax.tree_util.keystr(child)}` is missing"
        if child not in expected:
            return f"{where} `{jax.tree_util.keystr(child)}` does not belong there"
    below = (_first_difference(children[name], expected[name], path + name, prefix) for name in children)
    return next(filter(None, below), "")


def _children(tree: Any) -> dict[tuple[Any, ...], Any]:
    return dict(jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree))


def kind(node: Any) -> str:
    """Returns what a node of a pytree is."""
    if name := _of_flax("describe", node):
        return str(name)
    if node is None:
        return "nothing (None)"
    return "an array" if hasattr(node, "dtype") else f"a {type(node).__name__}"


def note_of_flax(error: Exception) -> str | None:
    """Returns what `optax_sam.flax` has to say about an error, if flax is in use."""
    return _of_flax("note", error)


def _of_flax(function: str, argument: Any) -> str | None:
    """Asks `optax_sam.flax`, which knows flax's objects, but only where flax is imported already."""
    if "flax" not in sys.modules:
        return None
    try:
        module = importlib.import_module("optax_sam.flax")
    except ImportError:  # A release of flax without nnx.
        return None
    answer: str | None = getattr(module, function)(argument)
    return answer
