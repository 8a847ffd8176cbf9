"""Pictures of loss surfaces, spectral densities and recordings, to be read at a column's width (3.3 inches).

    surface = diagnostics.loss_surface(loss, plane.origin, plane.directions, np.linspace(-1, 1, 31))
    plotting.plot_loss_surface(surface, arrows={"g₀": plane.coordinates[1], "g₁": plane.coordinates[2]})

Each function draws into `ax`, or into a new figure, and returns the axes for further changes. The colours
suit any colour vision: viridis, and Wong's colours (Nature Methods 2011). The module needs matplotlib, from
the extra `plot`, so `optax_sam.diagnostics` does not import it.
"""

from optax_sam.diagnostics.plotting.density import plot_spectral_density
from optax_sam.diagnostics.plotting.history import plot_history
from optax_sam.diagnostics.plotting.surfaces import plot_loss_surface, plot_loss_surface_3d

__all__ = ["plot_history", "plot_loss_surface", "plot_loss_surface_3d", "plot_spectral_density"]
