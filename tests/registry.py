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
    """

    name: str
    make: Callable[..., optax.GradientTransformationExtraArgs]
    static_args: tuple[str, ...] = ("num_steps",)
    has_refresh: bool = False


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
    Method("xsam", partial(optax_sam.xsam, interval=3), SEARCH, has_refresh=True),
    Method("combination", combination, has_refresh=True),
    Method("monitored_sam", monitored_sam),
]
BY_NAME = {method.name: method for method in METHODS}

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
every_method_with_refresh = pytest.mark.parametrize(
    "method", [method for method in METHODS if method.has_refresh], ids=lambda method: method.name
)
