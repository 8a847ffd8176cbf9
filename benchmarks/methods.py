"""The table of methods: constructor, label, price, what is searched, colour and marker.

Every experiment, cost table and picture reads it. A method goes in front of the base optimizer; `sgd` puts
nothing there.
"""

import inspect
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

import optax_sam
from benchmarks.errors import UsageError
from optax_sam import tree_math

NOTHING: Mapping[str, float] = {}


class Method(NamedTuple):
    """One row of the table.

    Attributes:
        make: constructor; its keyword arguments are the method's options.
        label: its name in tables and figures.
        price: gradients of a step between refreshes, in steps of SGD.
        options: the radius in the middle of the radii that are tried, with what belongs to it; costs are
            measured there, too.
        other: another value of the method's own hyper-parameter that is tried.
        colour: in pictures. Wong, "Points of view: Color blindness", Nature Methods 2011, and for the wider
            family the wine red of Tol's palette.
        marker: in pictures.
        line: in pictures.
        occasional: whether every `interval`-th step does more work than the others.
        one_gradient: whether the clean gradient is not used, so that a step need not compute it.
    """

    make: Callable[..., optax.GradientTransformation]
    label: str
    price: float
    options: Mapping[str, float]
    other: Mapping[str, float]
    colour: str
    marker: str
    line: str = "-"
    occasional: bool = False
    one_gradient: bool = False


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


def random_direction(rho: float = 0.2, key: int = 0) -> optax.GradientTransformationExtraArgs:
    """A control for SAM: ε of the same length in a random direction."""
    noise = optax_sam.random_normal(key=key)
    return optax_sam.sharpness_aware(optax.chain(noise, optax_sam.steepest_ascent(rho)))


def relative_sam(c: float = 0.01, layerwise: bool = False) -> optax.GradientTransformationExtraArgs:
    """SAM whose radius is a share of the weights: ρ = c‖w‖; layerwise c‖w_l‖ for each array."""

    def update(updates: optax.Updates, state: Any, params: optax.Params, **extra_args: Any) -> Any:
        if layerwise:
            return jax.tree.map(lambda x, w: tree_math.scale(tree_math.norm(w), x), updates, params), state
        return tree_math.scale(tree_math.norm(params), updates), state

    times_norm = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    return optax_sam.sharpness_aware(
        optax.chain(optax_sam.steepest_ascent(c, layerwise=layerwise), times_norm)
    )


def held_rise_sam(c: float = 0.1, rho: float = 0.05) -> optax.GradientTransformationExtraArgs:
    """SAM whose radius holds (L(w + ε) − L(w))/L(w) at c."""
    unit = optax_sam.steepest_ascent(1.0)
    method = lambda found: optax_sam.sharpness_aware(optax.chain(unit, optax.scale(found)))
    return optax_sam.auto_rho(method, c, rho=rho)


SMALL, USUAL, LARGE = {"rho": 0.02}, {"rho": 0.1}, {"rho": 1.0}
BOTH = {"rho": 0.1, "rho_max": 0.2}  # rho_max is twice rho, as in XSAM's paper
OTHER_RHO, OTHER_MAX = {"rho": 0.15}, {"rho_max": 0.15}
EXAMPLES = {"rho": 0.1, "num_examples": 1000}
BLACK, GREY, BLUE, SKY, ORANGE = "#000000", "#7F7F7F", "#0072B2", "#56B4E9", "#E69F00"
GREEN, PINK, RED, WINE = "#009E73", "#CC79A7", "#D55E00", "#882255"

occasional = partial(Method, occasional=True)
one_gradient = partial(Method, one_gradient=True)
METHODS = {
    "sgd": Method(optax.identity, "SGD", 1, NOTHING, NOTHING, BLACK, "o"),
    "sam": Method(optax_sam.sam, "SAM", 2, USUAL, OTHER_RHO, BLUE, "s"),
    "asam": Method(optax_sam.asam, "ASAM", 2, LARGE, {"eta": 0.1}, ORANGE, "D"),
    "fisher_sam": Method(optax_sam.fisher_sam, "Fisher SAM", 2, USUAL, {"eta": 0.1}, SKY, "X"),
    "presam": Method(optax_sam.presam, "preSAM", 2, USUAL, NOTHING, SKY, "d"),
    "info_sam": Method(optax_sam.info_sam, "infoSAM", 2, USUAL, {"power": 0.5}, GREEN, "^"),
    "eigen_sam": occasional(optax_sam.eigen_sam, "Eigen-SAM", 2, USUAL, {"alpha": 0.5}, PINK, "v"),
    "xsam": occasional(optax_sam.xsam, "XSAM", 2, BOTH, OTHER_MAX, RED, "P"),
    "asam_xsam": occasional(
        *(asam_xsam, "ASAM with XSAM's search", 2, {"rho": 1.0, "rho_max": 0.2}, OTHER_MAX, ORANGE, "p", "--")
    ),
    "xsam3": occasional(
        *(partial(optax_sam.xsam, num_steps=3), "XSAM, 3 steps", 4, BOTH, OTHER_MAX, RED, "*", "--")
    ),
    # The wider family.
    "vasso": Method(optax_sam.vasso, "VaSSO", 2, USUAL, {"theta": 0.4}, WINE, "o", "-."),
    "friendly_sam": Method(optax_sam.friendly_sam, "Friendly SAM", 2, USUAL, {"decay": 0.6}, WINE, "s", "-."),
    "sparse_sam": occasional(sparse_sam, "Sparse SAM", 2, USUAL, {"sparsity": 0.8}, WINE, "P", "-."),
    "gsam": Method(optax_sam.gsam, "GSAM", 2, USUAL, {"alpha": 0.1}, WINE, "^", "-."),
    # The weight of the sharpness is nine times SAM's at gamma 0.9, so the radii are smaller.
    "wsam": Method(optax_sam.wsam, "WSAM", 2, SMALL, {"gamma": 0.7}, WINE, "v", "-."),
    "le_sam": Method(
        *(optax_sam.le_sam, "LE-SAM", 2, {"sigma": 0.1, "rho_max": 0.3}, {"rho_max": 1.0}, WINE, "p", "-.")
    ),
    "stable_sam": Method(optax_sam.stable_sam, "StableSAM", 2, USUAL, OTHER_RHO, WINE, "D", "-."),
    # Two ascents of this radius each.
    "lookbehind_sam": Method(
        *(optax_sam.lookbehind_sam, "Lookbehind-SAM", 3, {"rho": 0.05}, {"alpha": 0.8}, WINE, "*", "-.")
    ),
    "bayesian_sam": Method(optax_sam.bayesian_sam, "Bayesian SAM", 2, EXAMPLES, NOTHING, WINE, "X", "-."),
    # At the price of less than two gradients.
    "look_sam": occasional(optax_sam.look_sam, "LookSAM", 1.2, USUAL, {"alpha": 0.5}, GREEN, ">"),
    "momentum_sam": one_gradient(*(optax_sam.momentum_sam, "Momentum-SAM", 1, LARGE, {"rho": 1.5}, RED, "v")),
    "one_gradient": one_gradient(
        *(one_gradient_sam, "One gradient, uphill", 1, USUAL, {"decay": 0.8}, RED, "^")
    ),
    # σ, the noise relative to the weights.
    "rwp": one_gradient(optax_sam.rwp, "RWP", 1, {"sigma": 0.01}, {"eta": 0.1}, SKY, "<"),
    "mixed_rwp": Method(optax_sam.mixed_rwp, "Mixed RWP", 2, {"sigma": 0.01}, {"eta": 0.1}, SKY, ">"),
    # Radii of one number for every setting: see experiments/radius.py.
    "relative_sam": Method(relative_sam, "ρ = c‖w‖", 2, {"c": 0.01}, NOTHING, PINK, "<", "--"),
    "held_rise_sam": Method(held_rise_sam, "Held rise", 2, {"c": 0.1}, NOTHING, PINK, ">", "--"),
    # Controls and alternatives to SAM: see experiments/claims/alternatives.py.
    "reverse_sam": Method(optax_sam.reverse_sam, "Reverse-SAM", 2, USUAL, NOTHING, RED, "P"),
    "random_direction": one_gradient(random_direction, "Random direction", 1, USUAL, {"rho": 0.5}, GREY, "d"),
    "reflected_sam": Method(reflected_sam, "Reflected SAM", 2, USUAL, NOTHING, GREEN, "^"),
    "gradient_norm_penalty": Method(
        *(optax_sam.gradient_norm_penalty, "Gradient norm penalty", 3, USUAL, NOTHING, ORANGE, "D")
    ),
}


def combinations(search: Mapping[str, tuple[float, ...]]) -> list[dict[str, float]]:
    """All combinations of the values that a search offers for each name."""
    return [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]


def radii(options: Mapping[str, float], *factors: float) -> list[dict[str, float]]:
    """Multiples of a method's options."""
    return [{name: round(factor * value, 6) for name, value in options.items()} for factor in factors]


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
