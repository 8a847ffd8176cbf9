"""What a monitor recorded, against the step."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from optax_sam.diagnostics.plotting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_history(
    steps: Sequence[int],
    history: Mapping[str, Sequence[float]],
    *,
    ax: "Axes | None" = None,
    log: bool = True,
) -> "Axes":
    """Draws what a `monitor` recorded during training: one curve for each quantity, against the step.

    Args:
      steps: the steps after which the values were read.
      history: name -> values, one for each step, such as "λ_max" -> `top_eigenvalue`. Values that are
        not finite, or with `log` not positive, are left out.
      ax: axes to draw into. None makes a figure.
      log: whether the axis of values is logarithmic.

    Returns:
      The axes.

    Raises:
      ValueError: if a quantity has not one value for each step.

    Example:
      >>> from optax_sam.diagnostics import plotting
      >>> axes = plotting.plot_history([0, 100, 200], {"λ_max": [9.0, 30.0, 12.0]})
      >>> axes.get_xlabel()
      'step'
    """
    with style.applied():
        ax = style.axes_of(ax)
        for name, recorded in history.items():
            values = np.asarray(recorded, float)
            if values.shape != (len(steps),):
                raise ValueError(f"`history[{name!r}]` has shape {values.shape} for {len(steps)} `steps`.")
            shown = np.isfinite(values) & ((values > 0) | (not log))
            ax.plot(np.asarray(steps)[shown], values[shown], label=name, **style.next_line(ax))
            style.legend(ax, name)
        ax.set(xlabel="step", ylabel="recorded value", yscale="log" if log else "linear")
    return ax
