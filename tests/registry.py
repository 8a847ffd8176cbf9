"""One row per method: the contract tests run on all of them. A new method adds a row."""

from collections.abc import Callable
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
    static_args: tuple[str, ...] = ("num_steps", "axis_name")
    has_refresh: bool = False


def combination(rho=0.05, *, rho_max=0.3, num_steps=2, axis_name=None, m_sharpness=None):
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
        axis_name=axis_name,
        m_sharpness=m_sharpness,
    )


def eigen_sam(
    rho=0.05,
    alpha=0.2,
    *,
    interval=3,
    solver="power",
    num_iters=2,
    num_steps=1,
    axis_name=None,
    m_sharpness=None,
):
    return optax_sam.eigen_sam(
        rho,
        alpha,
        interval=interval,
        num_iters=num_iters,
        solver=solver,
        num_steps=num_steps,
        axis_name=axis_name,
        m_sharpness=m_sharpness,
    )


def eigen_sam_lanczos(rho=0.05, alpha=0.2, *, num_iters=3, axis_name=None, m_sharpness=None):
    return eigen_sam(
        rho, alpha, solver="lanczos", num_iters=num_iters, axis_name=axis_name, m_sharpness=m_sharpness
    )


def xsam(rho=0.05, rho_max=0.3, *, interval=3, num_alphas=21, num_steps=1, axis_name=None, m_sharpness=None):
    return optax_sam.xsam(
        rho,
        rho_max,
        interval=interval,
        num_alphas=num_alphas,
        num_steps=num_steps,
        axis_name=axis_name,
        m_sharpness=m_sharpness,
    )


def sam_3_steps(rho=0.05, *, num_steps=3, axis_name=None, m_sharpness=None):
    return optax_sam.sam(rho, num_steps=num_steps, axis_name=axis_name, m_sharpness=m_sharpness)


def monitored_sam(rho=0.05, *, num_steps=1, axis_name=None, m_sharpness=None):
    return diagnostics.monitor(
        optax_sam.sam(rho, num_steps=num_steps, axis_name=axis_name, m_sharpness=m_sharpness),
        interval=3,
        quantities=QUANTITIES,
        num_iters=2,
    )


EIGEN = ("num_steps", "num_iters", "axis_name")
SEARCH = ("num_steps", "num_alphas", "axis_name")

METHODS = [
    Method("sam", optax_sam.sam),
    Method("sam_3_steps", sam_3_steps),
    Method("asam", optax_sam.asam),
    Method("fisher_sam", optax_sam.fisher_sam),
    Method("presam", optax_sam.presam),
    Method("info_sam", optax_sam.info_sam),
    Method("eigen_sam", eigen_sam, EIGEN, has_refresh=True),
    Method("eigen_sam_lanczos", eigen_sam_lanczos, ("num_iters", "axis_name"), has_refresh=True),
    Method("xsam", xsam, SEARCH, has_refresh=True),
    Method("combination", combination, ("num_steps", "axis_name"), has_refresh=True),
    Method("monitored_sam", monitored_sam),
]

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
every_method_with_refresh = pytest.mark.parametrize(
    "method", [method for method in METHODS if method.has_refresh], ids=lambda method: method.name
)
