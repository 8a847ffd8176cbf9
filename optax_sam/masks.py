"""Masks: which parameters something applies to.

A mask is a pytree of bools with the structure of the parameters or a prefix of it, or a function from the
parameters to one, as in Optax. By name it is the same for every library: `mask_by_name("kernel")`. The number
of axes says less than it seems: biases of attention have two, and in scanned layers everything has one more.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from optax_sam import descriptions

Mask = Any | Callable[[optax.Params], Any]

# flax's nnx keeps an array in a field of its variable.
FIELDS_OF_VARIABLES = ("value", "raw_value")


def mask_by_name(*names: str) -> Callable[[optax.Params], Any]:
    """Returns a mask of the arrays whose path in the parameters contains one of the names.

    Args:
      names: names of parameters or of modules, or regular expressions that match a whole name: "kernel",
        "bias", "LayerNorm_.*". Dictionaries (Flax's linen, Haiku), attributes (Equinox) and the states of
        Flax's nnx have them in their paths.

    Returns:
      A function from the parameters to a pytree of bools.

    Raises:
      ValueError: if a name occurs nowhere; it tells which names there are.

    Cost: none in the compiled step.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
      >>> optax_sam.mask_by_name("kernel")(params)
      {'dense': {'bias': False, 'kernel': True}}
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f'`mask_by_name` takes names of parameters, such as "kernel" or "bias", got {names!r}.'
        )

    def mask(params: optax.Params) -> Any:
        paths = [_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        every = sorted(set().union(*paths))
        for name in names if paths else ():
            if not any(re.fullmatch(name, other) for other in every):
                raise ValueError(
                    f"No parameter, and no module, is named {name!r}. There are: {', '.join(every)}."
                )
        is_named = lambda path: any(re.fullmatch(name, part) for name in names for part in _names(path))
        return jax.tree_util.tree_map_with_path(lambda path, _: is_named(path), params)

    return mask


def resolved(mask: Mask, params: optax.Params, remedy: str = "") -> Any:
    """Returns the pytree of bools that a mask means, checked; `remedy` goes behind what an error says."""
    is_bool = lambda leaf: isinstance(leaf, bool | np.bool_)
    # A module of bools, as Equinox makes of a model, can be called too.
    is_tree = bool(jax.tree.leaves(mask)) and all(map(is_bool, jax.tree.leaves(mask)))
    tree = mask(params) if callable(mask) and not is_tree else mask
    if not all(map(is_bool, jax.tree.leaves(tree))):
        raise TypeError(
            "`mask` must be a pytree of bools, one for each parameter array, or a function from the"
            f' parameters to one, such as `optax_sam.mask_by_name("kernel")`; got {tree!r}.{remedy}'
        )
    try:
        return jax.tree.map(lambda leaf, subtree: jax.tree.map(lambda _: bool(leaf), subtree), tree, params)
    except ValueError as error:
        raise ValueError(
            "`mask` must have the tree structure of the parameters or a prefix of it, but"
            f" {descriptions.first_difference(tree, params, prefix=True)}.{remedy}"
        ) from error


def _names(path: tuple[Any, ...]) -> list[str]:
    """Returns the names along a path, without indices."""
    names = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
    return [name for name in names if isinstance(name, str) and name not in FIELDS_OF_VARIABLES]
