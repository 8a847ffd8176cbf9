"""One row per method: the contract tests run on all of them. A new method adds a row."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import optax
import pytest

import optax_sam
from optax_sam import diagnostics
from optax_sam.diagnostics.monitor import QUANTITIES


class Method(NamedTuple):
    """A method with the arguments that contract tests need.

    Attributes:
      make: builds the method from its radius.
      static_args: arguments that `optax.inject_hyperparams` must not turn into arrays.
      has_refresh: whether the method does occasional work.
      is_reused: whether it takes its second gradient on refresh steps alone.
      is_uphill: whether the loss at w + ε of the first step is above that at w.
      has_ascent: whether there is a perturbation at all.
      is_base_at_zero: whether it is the base optimizer where rho = 0.
    """

    name: str
    make: Callable[..., optax.GradientTransformationExtraArgs]
    static_args: tuple[str, ...] = ("num_steps",)
    has_refresh: bool = False
    is_reused: bool = False
    is_uphill: bool = True
    has_ascent: bool = True
    is_base_at_zero: bool = True


EIGEN = ("num_steps", "num_iters")
SEARCH = ("num_steps", "num_alphas")


def combination(rho=0.05, *, rho_max=0.3, num_steps=2):
    """Every stage at once: the example of the docstring of `optax_sam.sharpness_aware`."""
    return optax_sam.sharpness_aware(
        optax.chain(
            optax_sam.steepest_ascent(
                rho, objective=optax_sam.gradient_noise(), constraint=optax_sam.weight_magnitude()
            ),
            optax_sam.tilt_to_top_eigenvector(interval=3, num_iters=2),
        ),
        optax_sam.spherical_search(rho_max, interval=3, num_alphas=5),
        num_steps=num_steps,
    )


def sparse_sam(rho=0.05, *, num_steps=1):
    return optax_sam.sparse_sam(rho, optax_sam.dynamic_mask(0.3, interval=3), num_steps=num_steps)


def one_gradient_search(rho=0.05):
    """Stages that keep state of their own, on what is remembered."""
    ascent = optax_sam.steepest_ascent(rho, objective=optax_sam.gradient_noise())
    search = optax_sam.spherical_search(0.3, interval=3, num_alphas=5)
    return optax_sam.one_gradient(ascent, search, decay=0.5)


def rwp(rho=0.05, *, eta=None):
    return optax_sam.rwp(rho, eta=eta, decay=0.5)


def mixed_rwp(rho=0.05):
    return optax_sam.mixed_rwp(rho, 0.7, eta=0.5)


def le_sam(rho=0.05):
    return optax_sam.le_sam(0.02, rho)


def sam_of_auto_rho(rho=0.05):
    """What is found multiplies a radius of one's own."""
    ascent = optax_sam.steepest_ascent(rho)
    method = lambda found: optax_sam.sharpness_aware(optax.chain(ascent, optax.scale(found)))
    return optax_sam.auto_rho(method, rho=1.0)


def monitored_sam(rho=0.05, *, num_steps=1):
    method = optax_sam.sam(rho, num_steps=num_steps)
    return diagnostics.monitor(method, interval=3, quantities=QUANTITIES, num_iters=2)


METHODS = [
    Method("sam", optax_sam.sam),
    Method("sam_3_steps", partial(optax_sam.sam, num_steps=3)),
    Method("asam", optax_sam.asam),
    Method("fisher_sam", optax_sam.fisher_sam),
    Method("presam", optax_sam.presam),
    Method("info_sam", optax_sam.info_sam),
    Method("eigen_sam", partial(optax_sam.eigen_sam, interval=3, num_iters=2), EIGEN, has_refresh=True),
    Method(
        "eigen_sam_lanczos",
        partial(optax_sam.eigen_sam, interval=3, num_iters=2, solver="lanczos"),
        EIGEN,
        has_refresh=True,
    ),
    Method(
        "eigen_sam_running_mean",
        partial(optax_sam.eigen_sam, interval=3, num_iters=1, decay=0.5),
        EIGEN,
        has_refresh=True,
    ),
    Method("xsam", partial(optax_sam.xsam, interval=3), SEARCH, has_refresh=True),
    Method("vasso", partial(optax_sam.vasso, theta=0.4)),
    Method("friendly_sam", optax_sam.friendly_sam),
    Method("sparse_sam", sparse_sam, has_refresh=True),
    Method("gsam", optax_sam.gsam),
    Method("wsam", optax_sam.wsam),
    Method("stable_sam", optax_sam.stable_sam),
    Method("lookbehind_sam", optax_sam.lookbehind_sam),
    Method(
        "bayesian_sam",
        partial(optax_sam.bayesian_sam, num_examples=1000, weight_decay=0.0),
        ("num_examples", "key"),
        is_base_at_zero=False,
    ),
    Method(
        "look_sam", partial(optax_sam.look_sam, interval=3), ("num_steps",), has_refresh=True, is_reused=True
    ),
    Method("momentum_sam", optax_sam.momentum_sam, (), is_uphill=False),
    Method("one_gradient_search", one_gradient_search, (), has_refresh=True, is_uphill=False),
    Method("rwp", rwp, (), is_uphill=False),
    Method("rwp_adaptive", partial(rwp, eta=0.5), (), is_uphill=False),
    Method("mixed_rwp", mixed_rwp, (), is_uphill=False),
    Method("le_sam", le_sam, ()),
    Method("reverse_sam", optax_sam.reverse_sam, is_uphill=False),
    Method("gradient_norm_penalty", optax_sam.gradient_norm_penalty, (), has_ascent=False),
    Method("sam_of_auto_rho", sam_of_auto_rho, ()),
    Method("combination", combination, has_refresh=True),
    Method("monitored_sam", monitored_sam),
]
BY_NAME = {method.name: method for method in METHODS}


def every_method_where(property=None):
    """Marks a test that runs on every method, or on those that have a property."""
    methods = [method for method in METHODS if property is None or getattr(method, property)]
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.name)


every_method = every_method_where()
every_method_with_refresh = every_method_where("has_refresh")
