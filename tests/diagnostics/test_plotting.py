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


def test_arrows_end_inside_the_picture_all_shortened_by_one_factor():
    axes = plotting.plot_loss_surface(
        plane(np.linspace(-1, 1, 5)), arrows={"long": (30.0, -10.0), "short": (3.0, 6.0)}
    )
    assert axes.get_aspect() == 1
    ends = {text.get_text(): text.xy for text in axes.texts if text.get_text()}
    assert abs(ends["long"][0]) < 1
    factor = ends["long"][0] / 30
    np.testing.assert_allclose(ends["long"], (30 * factor, -10 * factor))
    np.testing.assert_allclose(ends["short"], (3 * factor, 6 * factor))
    assert axes.get_title(loc="right") == f"arrows × {factor:.2g}"


def test_names_do_not_cover_each_other():
    places = {"w": (0.0, 0.0), "w + ε": (0.05, 0.02), "minimum": (0.02, -0.04), "edge": (1.0, 1.0)}
    axes = plotting.plot_loss_surface(plane(np.linspace(-1, 1, 5)), points=places, arrows={"g₀": (0.1, 0.05)})
    axes.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(axes.get_window_extent().count_contains(box.corners()) == 4 for box in boxes)


def test_the_highest_loss_on_a_circle_is_marked():
    surface = plane(np.linspace(-1, 1, 41))
    axes = plotting.plot_loss_surface(surface, circle=0.5)
    star = axes.get_lines()[-1]
    found = np.abs([star.get_xdata()[0], star.get_ydata()[0]])
    np.testing.assert_allclose(found, [0, 0.5], atol=0.01)


def stars(axes):
    return [line.get_xydata()[0] for line in axes.get_lines() if line.get_marker() == "*"]


@pytest.mark.parametrize(
    "order", [slice(None, None, -1), np.random.default_rng(0).permutation(41)], ids=["descending", "shuffled"]
)
def test_the_order_of_the_coordinates_does_not_matter(order):
    grid = np.linspace(-1, 1, 41)
    tilted = lambda w: loss(w) + w[0] - 0.1 * w[1]
    (expected,), (found,) = (
        stars(
            plotting.plot_loss_surface(
                diagnostics.loss_surface(tilted, jnp.zeros(2), list(jnp.eye(2)), coordinates), circle=0.5
            )
        )
        for coordinates in ([grid, grid], [grid[order], grid])
    )
    np.testing.assert_array_equal(found, expected)


def test_no_star_where_all_of_the_circle_is_blank_or_outside():
    surface = plane(np.linspace(-1, 1, 21))
    blank = surface._replace(values=jnp.where(surface.values > 0.2, jnp.nan, surface.values))
    assert stars(plotting.plot_loss_surface(blank, circle=0.9)) == []
    assert stars(plotting.plot_loss_surface(surface, circle=2.0)) == []
    (star,) = stars(plotting.plot_loss_surface(blank, circle=0.4))  # blank in a part only
    np.testing.assert_allclose(np.linalg.norm(star), 0.4, rtol=1e-6)
    assert loss(jnp.asarray(star)) <= 0.2


@pytest.mark.parametrize("draw", [plotting.plot_loss_surface, plotting.plot_loss_surface_3d])
def test_surfaces_of_which_nothing_can_be_drawn(draw):
    for grids, lengths in (([np.zeros(1), np.arange(5)], "1, 5"), ([np.zeros(3), np.zeros(2)], "1, 1")):
        with pytest.raises(ValueError, match=rf"at least two values along each direction, got \[{lengths}\]"):
            draw(plane(grids))
    surface = plane(np.linspace(-1, 1, 5))
    with pytest.raises(ValueError, match="no loss of this `surface` is finite"):
        draw(surface._replace(values=jnp.full((5, 5), jnp.nan)), log=True)


@pytest.mark.parametrize("levels", [1, 14])
@pytest.mark.parametrize("excess", [0.0, 1e-7, 1e-4])
def test_contours_of_a_loss_that_is_nearly_constant_on_a_logarithmic_scale(levels, excess):
    surface = plane(np.linspace(-1, 1, 5))
    constant = surface._replace(values=jnp.ones((5, 5)).at[0, 0].add(excess))
    lowest, highest = plotting.plot_loss_surface(constant, log=True, levels=levels).collections[0].get_clim()
    assert 0.8 < lowest < 1 + excess < highest < 1.2


def test_contours_at_chosen_losses_and_on_a_logarithmic_scale():
    surface = plane(np.linspace(-1, 1, 5))
    above = surface._replace(values=surface.values + 0.01)
    for options in ({"levels": [0.1, 1.0, 2.0]}, {"log": True}):
        norm = plotting.plot_loss_surface(above, **options).collections[0].norm
        assert isinstance(norm, mpl.colors.LogNorm) == ("log" in options)
    with pytest.raises(ValueError, match="needs positive losses"):
        plotting.plot_loss_surface(surface, log=True)


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


def density_of(*eigenvalues):
    nodes = jnp.array([sorted(eigenvalues)])
    shares = jnp.where(jnp.abs(nodes) > 100, 1e-5, 1.0)
    empty = jnp.linspace(0.0, 1.0, 500)
    return curvature.SpectralDensity(empty, empty, nodes, shares / shares.sum())


def test_an_outlier_neither_widens_the_others_nor_is_it_lost():
    density = density_of(*np.linspace(0, 1, 21), 1000.0)
    axes = plotting.plot_spectral_density(density, lowest=1e-9)
    shown = axes.get_lines()[0]
    places = shown.get_xdata()[np.isfinite(shown.get_ydata())]
    assert -1 < places.min() < 0  # no eigenvalues far below the lowest one
    assert places.max() > 1000
    assert axes.get_xscale() == "asinh"
    marked = axes.collections[0].get_offsets()
    np.testing.assert_allclose(sorted(marked[:, 0])[-1], 1000)
    np.testing.assert_allclose(
        np.trapezoid(np.nan_to_num(shown.get_ydata()), shown.get_xdata()), 1, atol=0.02
    )
    assert plotting.plot_spectral_density(density, linear=np.inf).get_xscale() == "linear"


def test_a_second_and_taller_density_is_not_cut_off():
    first = curvature.spectral_density(loss, jnp.ones(2), num_iters=2, num_samples=1)
    second = first._replace(density=1e4 * first.density)
    axes = plotting.plot_spectral_density(first)
    plotting.plot_spectral_density(second, ax=axes)
    low, high = axes.get_ylim()
    assert low == pytest.approx(1e-6)
    assert high > second.density.max()


def test_history_shows_each_quantity_where_it_can_be_shown():
    values = {"λ_max": [9.0, np.nan, 12.0], "sharpness": [0.1, 0.2, -0.3]}
    axes = plotting.plot_history([0, 100, 200], values)
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert curves == {"λ_max": [[0, 9.0], [200, 12.0]], "sharpness": [[0, 0.1], [100, 0.2]]}
    assert len(plotting.plot_history([0, 100, 200], values, log=False).lines[1].get_xdata()) == 3
    with pytest.raises(ValueError, match="has shape"):
        plotting.plot_history([0, 100], values)


def test_surface_in_three_dimensions(tmp_path):
    loss = lambda w: 0.1 + 0.5 * jnp.sum(jnp.array([1.0, 9.0]) * w**2)
    surface = diagnostics.loss_surface(loss, jnp.zeros(2), list(jnp.eye(2)), jnp.linspace(-1, 1, 21))
    for log in (False, True):
        ax = plotting.plot_loss_surface_3d(surface, log=log)
        heights = np.log10(surface.values) if log else surface.values
        np.testing.assert_allclose(ax.get_zlim(), (heights.min(), heights.max()), atol=0.3)
    line = diagnostics.loss_surface(loss, jnp.zeros(2), [jnp.eye(2)[0]])
    with pytest.raises(ValueError, match="`plot_loss_surface` draws it as a curve"):
        plotting.plot_loss_surface_3d(line)
