"""Curvature of the loss without storing a Hessian.

    pairs = curvature.top_eigenpairs(value_fn, params, k=5)
    pairs = curvature.top_eigenpairs(loss, params, k=5, batches=optax_sam.Batches((x, y), 256))

`value_fn(params)` is the loss; with `batches`, the loss is the mean of `value_fn(params, batch)` over all
examples. For the Gauss-Newton matrix instead of the Hessian pass a `gauss_newton_loss`.

Everything is computed in float32, or wider if the parameters are wider. A model in bfloat16 still rounds
each product to three digits, so cast its parameters to float32 if eigenvalues near zero matter.
"""

from optax_sam.batches import Batches as Batches
from optax_sam.curvature.density import SpectralDensity, spectral_density
from optax_sam.curvature.eigenpairs import Eigenpairs, top_eigenpairs
from optax_sam.curvature.products import (
    gauss_newton_loss,
    gauss_newton_product,
    hessian_operator,
    hvp,
    third_derivative,
)
from optax_sam.curvature.trace import Trace, trace

__all__ = [  # noqa: RUF022 (grouped by role)
    # Products.
    "hvp",
    "third_derivative",
    "hessian_operator",
    "gauss_newton_product",
    "gauss_newton_loss",
    # Spectra.
    "top_eigenpairs",
    "Eigenpairs",
    "trace",
    "Trace",
    "spectral_density",
    "SpectralDensity",
]
