"""Theory as programs: each measures and reports; verdicts on made-up numbers; the page and stored results."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest

from benchmarks import experiment as claim
from benchmarks.experiments.theory import __main__, gradient_rate, network, third_order, xsam_two_dimensions
from benchmarks.experiments.theory.adversary import Adversary
from benchmarks.experiments.theory.asymmetric_valley import AsymmetricValley
from benchmarks.experiments.theory.gradient_rate import GradientRate
from benchmarks.experiments.theory.sde_paths import QUANTITIES, SDEPaths
from benchmarks.experiments.theory.third_order import ThirdOrder
from benchmarks.experiments.theory.xsam_plane import XSAMPlane
from benchmarks.experiments.theory.xsam_two_dimensions import XSAMTwoDimensions
from benchmarks.records import read_records
from optax_sam import curvature

CLAIMS = __main__.CLAIMS
DIGITS = {"data": "digits", "train_size": 100, "batch_size": 25, "width": 4}
TINY = {
    one.name: one
    for one in (
        SDEPaths(
            setting=DIGITS, radii=(0.2,), num_steps=4, every=2, seeds={"sam": 3, "second": 2, "third": 2}
        ),
        ThirdOrder(setting=DIGITS, num_steps=4, every=2, interval=2, seeds=(0, 1)),
        GradientRate(lengths=(100, 1600), num_seeds=5),
        AsymmetricValley(sigmas=(0.5, 5.0), num_runs=3, num_steps=400),
        Adversary(num_gradients=50),
        XSAMPlane(setting=DIGITS, steps=(0, 2), num_batches=2),
        XSAMTwoDimensions(radii=(0.2,), num_steps=50, size=(4, 4)),
    )
}
NO_SUITE = claim.SuiteResults([], [])


@pytest.mark.parametrize("name", CLAIMS)
def test_program_measures_and_reports(name, tmp_path, data_dir):
    one = TINY[name]
    claim.measure_missing(one, tmp_path, data_dir, 1)
    records = read_records(claim.result_file(one, tmp_path))
    assert all(claim.is_done(job, records) for job in one.jobs(records))
    assert all("versions" in record for record in records)
    report = one.report(records, NO_SUITE)
    assert report.tables
    assert not any("nan" in table for table in report.tables)
    assert "not measured yet" not in [verdict.outcome for verdict in report.verdicts]
    one.draw(records, NO_SUITE, tmp_path / "picture.png")
    assert plt.imread(tmp_path / "picture.png").std() > 0
    if name == "gradient_rate":  # Theorem 1, for every preconditioner
        assert [verdict.outcome for verdict in report.verdicts] == ["holds"]


@pytest.mark.parametrize("name", CLAIMS)
def test_program_without_results_reports_nothing(name):
    report = CLAIMS[name].report([], NO_SUITE)
    assert {verdict.outcome for verdict in report.verdicts} <= {"not measured yet"}


# --- What is measured ---------------------------------------------------------------------------------


def test_smoothness_is_the_largest_curvature():
    """L, on which Theorem 1's learning rate depends."""
    places = np.linspace(-8, 8, 401)[:, None] * np.ones(gradient_rate.NUM_PARAMETERS)
    slopes = np.asarray(jax.jit(jax.vmap(jax.grad(gradient_rate.value)))(places))
    curvatures = np.diff(slopes, axis=0) / np.diff(places, axis=0)
    assert np.abs(curvatures).max() == pytest.approx(gradient_rate.SMOOTHNESS, rel=1e-3)
    assert curvatures.min() < 0  # not convex


def test_share_is_one_where_the_perturbation_is_the_eigenvector(x64, monkeypatch):
    """The measurement of the third-order term: with one batch and u = v₁ it is ∇λ₁."""
    rng = np.random.default_rng(0)
    train = jnp.asarray(rng.normal(size=(20, 5))), jnp.asarray(rng.integers(3, size=20))
    layer = lambda *shape: {"kernel": jnp.asarray(rng.normal(size=shape)), "bias": jnp.zeros(shape[1])}
    params = {"hidden": layer(5, 4), "head": layer(4, 3)}
    pair = curvature.top_eigenpairs(lambda w: network.loss(w, train), params, num_iters=35)
    vector = jax.tree.map(lambda x: x[0], pair.eigenvectors)

    along = optax.stateless(lambda gradient, params: jax.tree.map(lambda x: 0.1 * x, vector))
    monkeypatch.setattr(third_order, "ascent", lambda alpha, rho: optax.with_extra_args_support(along))
    third_order.compiled.cache_clear()
    third_order.method.cache_clear()
    _, terms = third_order.compiled(0.0, 0.1, 0.1)
    state = third_order.method(0.0, 0.1, 0.1).init(params)
    found = terms(params, state, jax.tree.map(lambda x: x[None], train), train, vector)
    third_order.compiled.cache_clear()
    third_order.method.cache_clear()
    for field in ("share", "share_at_equal_length", "cosine", "alignment"):
        assert float(found[field]) == pytest.approx(1, abs=1e-6), field


def test_arrows_are_the_gradients_at_the_ascended_points(x64):
    w, rho = jnp.array([-0.8, -0.5]), 0.3
    found = xsam_two_dimensions.arrows(rho, w)
    gradient = jax.grad(xsam_two_dimensions.value)
    unit = lambda v: v / np.linalg.norm(v)
    first = w + rho * unit(gradient(w))
    expected = {
        "g₀": gradient(w),
        "g₁": gradient(first),
        xsam_two_dimensions.FAR: gradient(first + rho * unit(gradient(first))),
    }
    for name, vector in expected.items():
        np.testing.assert_allclose(found[name], unit(vector), atol=1e-10)
    height = lambda direction: float(xsam_two_dimensions.value(w + 2 * rho * direction))
    assert height(found["worst"]) >= max(height(found[name]) for name in found)


# --- Verdicts -----------------------------------------------------------------------------------------


def outcomes(one, records):
    return [verdict.outcome for verdict in one.report(records, NO_SUITE).verdicts]


@pytest.mark.parametrize(
    ("second", "third", "expected"),
    [(0.5, 0.01, ["holds", "holds"]), (0.01, 0.5, ["does not hold", "does not hold"])],
)
def test_verdicts_on_the_equations(second, third, expected):
    offsets = {"sam": (-0.1, 0.0, 0.1), "second": (second, second + 0.01), "third": (third, third + 0.011)}
    records = [
        {
            "rho": 0.2,
            "row": row,
            "seed": seed,
            "along": {name: [1 + offset, 2 + offset * 0.9, 3 + offset] for name in QUANTITIES},
        }
        for row, own in offsets.items()
        for seed, offset in enumerate(own)
    ]
    assert outcomes(SDEPaths(radii=(0.2,)), records) == expected


def test_verdicts_on_the_third_order():
    rows = {"sam": (0.1, 0.1, 0.2), "eigen_sam": (0.3, 0.05, 0.2), "strong": (0.5, 0.3, 0.2)}
    fields = ("alignment", "cosine", "length_second", "length_third", "rate_gradient", "top_eigenvalue")
    records = [
        dict.fromkeys(fields, 0.5)
        | {"row": row, "seed": seed, "step": step, "share": share + 0.001 * seed}
        | {
            "share_at_equal_length": equal - 0.001 * seed,
            "rate_third": rate + 0.01 * seed,
            "rate_second": 1.0,
        }
        for row, (share, equal, rate) in rows.items()
        for seed in (0, 1, 2)
        for step in (1, 2)
    ]
    # The differences of a field do not vary with the seed, and its errors are 0.
    assert outcomes(ThirdOrder(), records) == ["holds", "holds", "in part", "does not hold"]


def test_verdicts_on_the_rate():
    def records(exponent):
        return [
            {"row": row, "seed": seed, "length": t, "mean_squared_gradient": (1 + 0.1 * seed) * t**-exponent}
            for row in gradient_rate.ROWS
            for seed in (0, 1, 2)
            for t in GradientRate().lengths
        ]

    assert outcomes(GradientRate(), records(0.5)) == ["holds"]
    assert outcomes(GradientRate(), records(0.8)) == ["does not hold"]
