import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from optax_sam import curvature, diagnostics
from optax_sam.diagnostics import plotting

mpl.use("agg")
CURVATURES = jnp.array([1.0, 4.0])


def loss(w):
    return 0.5 * jnp.sum(CURVATURES * w**2)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def line(scale=1.0):
    return diagnostics.loss_surface(
        loss, jnp.zeros(2), [scale * jnp.array([0.0, 1.0])], np.linspace(-1, 1, 5)
    )


def plane(grids):
    return diagnostics.loss_surface(loss, jnp.zeros(2), [jnp.eye(2)[0], jnp.eye(2)[1]], grids)


def test_a_line_shows_the_losses_and_the_next_one_looks_different():
    surface = line()
    axes = plotting.plot_loss_surface(surface, label="first")
    plotting.plot_loss_surface(line(2.0), ax=axes, label="second")
    first, second = axes.get_lines()
    np.testing.assert_array_equal(first.get_xdata(), surface.coordinates[0])
    np.testing.assert_allclose(first.get_ydata(), [2.0, 0.5, 0.0, 0.5, 2.0])
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["first", "second"]


def test_losses_that_are_not_finite_are_left_blank():
    surface = line()._replace(values=jnp.array([2.0, jnp.inf, jnp.nan, 0.5, 2.0]))
    shown = plotting.plot_loss_surface(surface).get_lines()[0].get_ydata()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), [False, True, True, False, False])


def test_contours_have_the_first_direction_to_the_right():
    surface = plane([np.linspace(-1, 1, 5), np.linspace(-3, 3, 7)])
    axes = plotting.plot_loss_surface(surface, points={"minimum": (0.0, 0.0)})
    assert axes.get_xlim() == (-1, 1)
    assert axes.get_ylim() == (-3, 3)
    assert "minimum" in [text.get_text() for text in axes.texts]
    lowest, highest = axes.collections[0].get_clim()
    assert lowest <= 0
    assert highest >= 0.5 + 0.5 * 4 * 9


def test_arrows_end_inside_the_picture_in_their_own_direction():
    axes = plotting.plot_loss_surface(
        plane(np.linspace(-1, 1, 5)), arrows={"long": (30.0, -10.0), "short": (0.2, 0.1)}
    )
    ends = {text.get_text(): text.xy for text in axes.texts if text.get_text()}
    assert abs(ends["long"][0]) < 1
    np.testing.assert_allclose(ends["long"][1] / ends["long"][0], -1 / 3)
    np.testing.assert_allclose(ends["short"], (0.2, 0.1))


def test_a_line_has_no_places_in_a_plane():
    with pytest.raises(ValueError, match="two directions"):
        plotting.plot_loss_surface(line(), points={"w": (0.0, 0.0)})


def test_density_is_drawn_on_a_logarithmic_axis_down_to_the_lowest():
    density = curvature.spectral_density(loss, jnp.ones(2), num_iters=2, num_samples=2)
    axes = plotting.plot_spectral_density(density, lowest=1e-3, label="both")
    shown = axes.get_lines()[0].get_ydata()
    expected = np.asarray(density.density)
    np.testing.assert_array_equal(np.isnan(shown), expected < 1e-3)
    np.testing.assert_array_equal(shown[expected >= 1e-3], expected[expected >= 1e-3])
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] == pytest.approx(1e-3)
