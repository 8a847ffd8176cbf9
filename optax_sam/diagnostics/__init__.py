"""How sharp a minimum is, how good a perturbation is, and what the loss around them looks like.

    found = diagnostics.sharpness(value_fn, params, rho=0.05)
    found = diagnostics.worst_case_sharpness(loss, params, 0.05, batches=optax_sam.Batches((x, y), 256))
    plane = diagnostics.gradient_plane(value_fn, params, found.perturbation)
    surface = diagnostics.loss_surface(value_fn, plane.origin, plane.directions)

`value_fn(params)` is the loss for any pytree of parameters; with `batches`, the loss is the mean of
`value_fn(params, batch)` over all examples. Curvature is in `optax_sam.curvature`, pictures are in
`optax_sam.diagnostics.plotting` (the extra `plot`).

Networks with BatchNorm or dropout: `value_fn` sets the mode, and must be a function of the parameters
alone.
"""

from optax_sam.diagnostics.average_case import AverageCaseSharpness, average_case_sharpness
from optax_sam.diagnostics.directions import filter_normalised, random_directions
from optax_sam.diagnostics.m_sharpness import MSharpness, m_sharpness
from optax_sam.diagnostics.monitor import MonitorState, monitor
from optax_sam.diagnostics.perturbations import (
    EffectivePerturbation,
    PerturbationGain,
    alignment,
    effective_perturbation,
    perturbation_gain,
)
from optax_sam.diagnostics.planes import Plane, gradient_plane, path_plane, plane_through
from optax_sam.diagnostics.sharpness import Sharpness, sharpness
from optax_sam.diagnostics.slices import LossSurface, loss_surface
from optax_sam.diagnostics.wiring_check import WiringCheckState, wiring_check
from optax_sam.diagnostics.worst_case import WorstCaseSharpness, worst_case_sharpness

__all__ = [  # noqa: RUF022 (grouped by role)
    # Is the training loop right?
    "wiring_check",
    "WiringCheckState",
    # How sharp.
    "sharpness",
    "Sharpness",
    "worst_case_sharpness",
    "WorstCaseSharpness",
    "average_case_sharpness",
    "AverageCaseSharpness",
    "m_sharpness",
    "MSharpness",
    # How good a perturbation.
    "alignment",
    "perturbation_gain",
    "PerturbationGain",
    "effective_perturbation",
    "EffectivePerturbation",
    # While it trains.
    "monitor",
    "MonitorState",
    # What it looks like.
    "loss_surface",
    "LossSurface",
    "random_directions",
    "filter_normalised",
    "gradient_plane",
    "plane_through",
    "path_plane",
    "Plane",
]
