"""Sharpness-aware minimisation for JAX: every method an Optax gradient transformation.

    tx = optax.chain(optax_sam.sam(rho=0.05), optax.sgd(0.1, momentum=0.9))
    updates, state = tx.update(grads, state, params, value_fn=lambda params: loss(params, batch))

Start at `optax_sam.sharpness_aware`: its module explains the idea behind all of this.
"""

from optax_sam import curvature as curvature
from optax_sam import diagnostics as diagnostics
from optax_sam import sde as sde
from optax_sam.ascent.filter_norm import scale_by_filter_norm
from optax_sam.ascent.fisher import fisher_information
from optax_sam.ascent.gradient_noise import GradientNoiseState, gradient_noise
from optax_sam.ascent.loss_budget import loss_budget
from optax_sam.ascent.posterior_sample import PosteriorSampleState, posterior_sample, sample_params
from optax_sam.ascent.random_normal import random_normal
from optax_sam.ascent.running_mean import RunningMeanState, running_mean, subtract_running_mean
from optax_sam.ascent.sparse_mask import SparseMaskState, dynamic_mask, fisher_mask, random_mask
from optax_sam.ascent.steepest import SteepestAscentState, steepest_ascent
from optax_sam.ascent.top_eigenvector import TiltToTopEigenvectorState, tilt_to_top_eigenvector
from optax_sam.ascent.weight_magnitude import weight_magnitude
from optax_sam.auto_rho import AutoRhoState, auto_rho
from optax_sam.batches import Batches, WeightedBatches
from optax_sam.descent.extrapolation import extrapolation
from optax_sam.descent.gradient_length import gradient_length
from optax_sam.descent.lookbehind import lookbehind
from optax_sam.descent.posterior_momentum import posterior_momentum
from optax_sam.descent.spherical_search import SphericalSearchState, spherical_search
from optax_sam.descent.surrogate_gap import surrogate_gap
from optax_sam.masked import masked, partition
from optax_sam.masks import mask_by_name
from optax_sam.methods.asam import asam
from optax_sam.methods.bayesian_sam import bayesian_sam
from optax_sam.methods.eigen_sam import eigen_sam
from optax_sam.methods.fisher_sam import fisher_sam
from optax_sam.methods.friendly_sam import friendly_sam
from optax_sam.methods.gradient_norm_penalty import GradientNormPenaltyState, gradient_norm_penalty
from optax_sam.methods.gsam import gsam
from optax_sam.methods.info_sam import info_sam
from optax_sam.methods.le_sam import le_sam
from optax_sam.methods.look_sam import look_sam
from optax_sam.methods.lookbehind_sam import lookbehind_sam
from optax_sam.methods.mixed_rwp import mixed_rwp
from optax_sam.methods.momentum_sam import momentum_sam
from optax_sam.methods.presam import presam
from optax_sam.methods.reverse_sam import reverse_sam
from optax_sam.methods.rwp import rwp
from optax_sam.methods.sam import sam
from optax_sam.methods.sparse_sam import sparse_sam
from optax_sam.methods.stable_sam import stable_sam
from optax_sam.methods.vasso import vasso
from optax_sam.methods.wsam import wsam
from optax_sam.methods.xsam import xsam
from optax_sam.one_gradient import RememberedGradientState, one_gradient
from optax_sam.reuse import ReuseState, reuse
from optax_sam.running_fisher import RunningFisherState, running_fisher
from optax_sam.schedules import rho_following_learning_rate
from optax_sam.sharpness_aware import SharpnessAwareState, sharpness_aware

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 (grouped by role)
    # Combinators: two gradients per step; one; one, and a second on every k-th step.
    "sharpness_aware",
    "SharpnessAwareState",
    "one_gradient",
    "RememberedGradientState",
    "running_fisher",
    "RunningFisherState",
    "reuse",
    "ReuseState",
    # Published methods.
    "sam",
    "asam",
    "fisher_sam",
    "presam",
    "info_sam",
    "eigen_sam",
    "xsam",
    "vasso",
    "friendly_sam",
    "sparse_sam",
    "gsam",
    "wsam",
    "stable_sam",
    "lookbehind_sam",
    "bayesian_sam",
    "le_sam",
    "look_sam",
    "momentum_sam",
    "rwp",
    "mixed_rwp",
    "reverse_sam",
    "gradient_norm_penalty",
    "GradientNormPenaltyState",
    # A method for some of the parameters, an ascent for each group of them.
    "masked",
    "partition",
    "mask_by_name",
    # A schedule of the radius, and a radius that needs none.
    "rho_following_learning_rate",
    "auto_rho",
    "AutoRhoState",
    # Ascent stages, g to the perturbation, and their preconditioners.
    "steepest_ascent",
    "SteepestAscentState",
    "weight_magnitude",
    "fisher_information",
    "gradient_noise",
    "GradientNoiseState",
    "tilt_to_top_eigenvector",
    "TiltToTopEigenvectorState",
    "running_mean",
    "subtract_running_mean",
    "RunningMeanState",
    "loss_budget",
    "random_normal",
    "scale_by_filter_norm",
    "random_mask",
    "fisher_mask",
    "dynamic_mask",
    "SparseMaskState",
    "posterior_sample",
    "PosteriorSampleState",
    "sample_params",
    # Descent stages, the gradient at the perturbed point to the direction.
    "spherical_search",
    "SphericalSearchState",
    "surrogate_gap",
    "extrapolation",
    "gradient_length",
    "lookbehind",
    "posterior_momentum",
    # A data set, for `optax_sam.curvature`, `optax_sam.diagnostics` and `optax_sam.sde`.
    "Batches",
    "WeightedBatches",
]
