"""The table of methods that the benchmarks compare: name, constructor, what to tune.

A method goes in front of the base optimizer; `sgd` puts nothing there.
"""

import inspect
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import optax

import optax_sam
from benchmarks.errors import UsageError
from optax_sam import curvature, tree_math


class Method(NamedTuple):
    """One row of the table.

    Attributes:
        make: constructor; its keyword arguments are the method's options.
        label: its name in tables and figures.
        search: values to choose from on validation data, for each option that is tuned.
        occasional: whether every `interval`-th step does more work than the others.
    """

    make: Callable[..., optax.GradientTransformation]
    label: str
    search: Mapping[str, tuple[float, ...]]
    occasional: bool = False


RADII = (0.2, 0.3, 0.4, 0.5)
XSAM_RADII = {"rho": (0.1, 0.2), "rho_max": (0.2, 0.4)}


def asam_xsam(rho: float = 1.0, rho_max: float = 0.2) -> optax.GradientTransformationExtraArgs:
    """ASAM's ascent with XSAM's search: a combination without a published name."""
    return optax_sam.sharpness_aware(
        optax_sam.steepest_ascent(rho, constraint=optax_sam.weight_magnitude()),
        optax_sam.spherical_search(rho_max),
    )


def reverse_sam(rho: float = 0.05) -> optax.GradientTransformationExtraArgs:
    """ε = −ρ g/‖g‖, d = ∇L(w + ε): SAM with its perturbation downhill."""
    downhill = optax.chain(optax_sam.steepest_ascent(rho), optax.scale(-1.0))
    return optax_sam.sharpness_aware(downhill)


def reflected_sam(rho: float = 0.05) -> optax.GradientTransformationExtraArgs:
    """SAM's direction to first order in ρ, with the second-order term reversed: d = 2g − ∇L(w − ρ g/‖g‖)."""

    def update(updates, state, params=None, *, grad, **extra_args):
        return optax.tree.sub(optax.tree.scale(2.0, grad), updates), state

    downhill = optax.chain(optax_sam.steepest_ascent(rho), optax.scale(-1.0))
    reflect = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    return optax_sam.sharpness_aware(downhill, reflect)


def gradient_norm_penalty(rho: float = 0.05) -> optax.GradientTransformationExtraArgs:
    """Explicit gradient regularisation: d = ∇(L + ρ‖∇L‖) = g + ρ H g/‖g‖."""

    def update(updates, state, params=None, *, value_fn, axis_name=None, **extra_args):
        product = curvature.hvp(value_fn, params, tree_math.unit(updates), axis_name=axis_name)
        return optax.tree.add_scale(updates, rho, product), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


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
    # Alternatives to SAM: see experiments/claims/alternatives.py.
    "reverse_sam": Method(reverse_sam, "Reverse-SAM", {"rho": RADII}),
    "reflected_sam": Method(reflected_sam, "Reflected SAM", {"rho": RADII}),
    "gradient_norm_penalty": Method(gradient_norm_penalty, "Gradient norm penalty", {"rho": RADII}),
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
