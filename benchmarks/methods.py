"""The table of methods that the benchmarks compare: name, constructor, what to tune.

A method goes in front of the base optimizer; `sgd` puts nothing there.
"""

import inspect
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_sam
from benchmarks.errors import UsageError
from optax_sam import tree_math


class Method(NamedTuple):
    """One row of the table.

    Attributes:
        make: constructor; its keyword arguments are the method's options.
        label: its name in tables and figures.
        search: values to choose from on validation data, for each option that is tuned.
        occasional: whether every `interval`-th step does more work than the others.
        one_gradient: whether the clean gradient is not used, so that a step need not compute it.
    """

    make: Callable[..., optax.GradientTransformation]
    label: str
    search: Mapping[str, tuple[float, ...]]
    occasional: bool = False
    one_gradient: bool = False


RADII = (0.2, 0.3, 0.4, 0.5)
XSAM_RADII = {"rho": (0.1, 0.2), "rho_max": (0.2, 0.4)}


def asam_xsam(rho: float = 1.0, rho_max: float = 0.2) -> optax.GradientTransformationExtraArgs:
    """ASAM's ascent with XSAM's search: a combination without a published name."""
    return optax_sam.sharpness_aware(
        optax_sam.steepest_ascent(rho, constraint=optax_sam.weight_magnitude()),
        optax_sam.spherical_search(rho_max),
    )


def sparse_sam(rho: float = 0.1, sparsity: float = 0.5) -> optax.GradientTransformationExtraArgs:
    """SAM's ε on the coordinates with the largest squared gradients."""
    return optax_sam.sparse_sam(rho, optax_sam.fisher_mask(sparsity))


def reflected_sam(rho: float = 0.05) -> optax.GradientTransformationExtraArgs:
    """SAM's direction to first order in ρ, with the second-order term reversed: d = 2g − ∇L(w − ρ g/‖g‖)."""
    downhill = optax.chain(optax_sam.steepest_ascent(rho), optax.scale(-1.0))
    return optax_sam.sharpness_aware(downhill, optax_sam.extrapolation(-1.0))


def one_gradient_sam(rho: float = 0.2, decay: float = 0.9) -> optax.GradientTransformationExtraArgs:
    """SAM's ascent along the running mean of past gradients at w + ε: one gradient per step."""
    return optax_sam.one_gradient(optax_sam.steepest_ascent(rho), decay=decay)


def random_direction(rho: float = 0.2) -> optax.GradientTransformationExtraArgs:
    """A control for SAM: ε of the same length in a random direction."""

    def init(params):
        return jnp.zeros((), jnp.int32)

    def update(updates, count, params=None, **extra_args):
        key = jax.random.fold_in(jax.random.key(0), count)
        vector = tree_math.unit(tree_math.random_vector(key, updates))
        return tree_math.scale(jnp.asarray(rho), vector), count + 1

    return optax_sam.sharpness_aware(optax.GradientTransformationExtraArgs(init, update))


# Equal budgets: every method has four settings of its own to choose from.
METHODS = {
    "sgd": Method(optax.identity, "SGD", {}),
    "sam": Method(optax_sam.sam, "SAM", {"rho": RADII}),
    "asam": Method(optax_sam.asam, "ASAM", {"rho": (2.0, 3.0, 4.0, 5.0)}),
    "fisher_sam": Method(optax_sam.fisher_sam, "Fisher SAM", {"rho": RADII}),
    "info_sam": Method(optax_sam.info_sam, "infoSAM", {"rho": (0.2, 0.3), "power": (0.5, 1.0)}),
    "eigen_sam": Method(
        optax_sam.eigen_sam, "Eigen-SAM", {"rho": (0.2, 0.3), "alpha": (0.1, 0.2)}, occasional=True
    ),
    "xsam": Method(optax_sam.xsam, "XSAM", XSAM_RADII, occasional=True),
    "asam_xsam": Method(
        asam_xsam, "ASAM with XSAM's search", {"rho": (1.0, 2.0), "rho_max": (0.2, 0.4)}, occasional=True
    ),
    "xsam3": Method(partial(optax_sam.xsam, num_steps=3), "XSAM, 3 steps", XSAM_RADII, occasional=True),
    # The wider family.
    "vasso": Method(optax_sam.vasso, "VaSSO", {"rho": RADII}),
    "friendly_sam": Method(optax_sam.friendly_sam, "Friendly SAM", {"rho": RADII}),
    "sparse_sam": Method(sparse_sam, "Sparse SAM", {"rho": RADII}, occasional=True),
    "gsam": Method(optax_sam.gsam, "GSAM", {"rho": RADII}),
    "wsam": Method(optax_sam.wsam, "WSAM", {"rho": RADII}),
    "stable_sam": Method(optax_sam.stable_sam, "StableSAM", {"rho": RADII}),
    "lookbehind_sam": Method(optax_sam.lookbehind_sam, "Lookbehind-SAM", {"rho": RADII}),
    # At the price of less than two gradients.
    "look_sam": Method(optax_sam.look_sam, "LookSAM", {"rho": RADII}, occasional=True),
    "momentum_sam": Method(
        optax_sam.momentum_sam, "Momentum-SAM", {"rho": (0.5, 1.0, 2.0, 3.0)}, one_gradient=True
    ),
    "one_gradient": Method(one_gradient_sam, "One gradient, uphill", {"rho": RADII}, one_gradient=True),
    # Controls and alternatives to SAM: see experiments/claims/alternatives.py.
    "reverse_sam": Method(optax_sam.reverse_sam, "Reverse-SAM", {"rho": RADII}),
    "random_direction": Method(random_direction, "Random direction", {"rho": RADII}),
    "reflected_sam": Method(reflected_sam, "Reflected SAM", {"rho": RADII}),
    "gradient_norm_penalty": Method(optax_sam.gradient_norm_penalty, "Gradient norm penalty", {"rho": RADII}),
}


def combinations(search: Mapping[str, tuple[float, ...]]) -> list[dict[str, float]]:
    """All combinations of the values that a search offers for each name."""
    return [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]


def build(name: str, options: Mapping[str, Any]) -> optax.GradientTransformation:
    """Builds the transformation that goes in front of the base optimizer.

    Args:
        name: one of `METHODS`.
        options: keyword arguments of its constructor.

    Returns:
        An Optax gradient transformation.

    Raises:
        UsageError: if the name is unknown or the method does not have an option.
    """
    if name not in METHODS:
        raise UsageError(f"no method {name!r}; choose one of: {', '.join(METHODS)}")
    known = inspect.signature(METHODS[name].make).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(
            f"method {name!r} has no option {', '.join(unknown)}; "
            f"its options are: {', '.join(known) or 'none'}"
        )
    return METHODS[name].make(**options)
