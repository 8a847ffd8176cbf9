"""Sharpness-aware minimisation for JAX: every method an Optax gradient transformation.

    tx = optax.chain(optax_sam.sam(rho=0.05), optax.sgd(0.1, momentum=0.9))
    updates, state = tx.update(grads, state, params, value_fn=lambda params: loss(params, batch))

Start at `optax_sam.sharpness_aware`: its module explains the idea behind all of this.
"""

from optax_sam.ascent.fisher import fisher_information
from optax_sam.ascent.gradient_noise import GradientNoiseState, gradient_noise
from optax_sam.ascent.steepest import SteepestAscentState, steepest_ascent
from optax_sam.ascent.top_eigenvector import TiltToTopEigenvectorState, tilt_to_top_eigenvector
from optax_sam.ascent.weight_magnitude import weight_magnitude
from optax_sam.descent.spherical_search import SphericalSearchState, spherical_search
from optax_sam.methods.asam import asam
from optax_sam.methods.eigen_sam import eigen_sam
from optax_sam.methods.fisher_sam import fisher_sam
from optax_sam.methods.info_sam import info_sam
from optax_sam.methods.presam import presam
from optax_sam.methods.sam import sam
from optax_sam.methods.xsam import xsam
from optax_sam.sharpness_aware import SharpnessAwareState, sharpness_aware

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 (grouped by role)
    # The combinator.
    "sharpness_aware",
    "SharpnessAwareState",
    # Published methods.
    "sam",
    "asam",
    "fisher_sam",
    "presam",
    "info_sam",
    "eigen_sam",
    "xsam",
    # Ascent stages, g to the perturbation, and their preconditioners.
    "steepest_ascent",
    "SteepestAscentState",
    "weight_magnitude",
    "fisher_information",
    "gradient_noise",
    "GradientNoiseState",
    "tilt_to_top_eigenvector",
    "TiltToTopEigenvectorState",
    # Descent stages, the gradient at the perturbed point to the direction.
    "spherical_search",
    "SphericalSearchState",
]
