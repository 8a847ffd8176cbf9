"""How good a perturbation is: alignment, gain, and what rounding leaves of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import curvature, diagnostics, tree_math
from tests.problems import quadratic, unflat

SPECTRUM = [9.0, 4.0, 1.0, 0.5, 0.1]
PROBLEM = quadratic(SPECTRUM)
POINT = np.array([1.0, -2.0, 0.5, 3.0, 0.1])


def test_alignment_is_the_cosine_without_its_sign(x64):
    a, b = np.random.default_rng(0).normal(size=(2, 5))
    expected = abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
    for signs in (1, -1):
        np.testing.assert_allclose(diagnostics.alignment(unflat(a), unflat(signs * 3 * b)), expected)
    assert diagnostics.alignment(unflat(a), unflat(np.zeros(5))) == 0
    assert diagnostics.alignment(unflat(a), unflat(a)) <= 1


def test_alignment_of_bfloat16_vectors_is_summed_in_float32():
    ones = jnp.ones(1000, jnp.bfloat16)
    found = diagnostics.alignment(ones, ones)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 1, rtol=1e-6)


def test_alignment_with_every_eigenvector_found(x64):
    pairs = curvature.top_eigenpairs(PROBLEM.value_fn, unflat(POINT), k=2)
    found = jax.vmap(diagnostics.alignment, (None, 0))(unflat(POINT), pairs.eigenvectors)
    expected = np.abs(POINT @ PROBLEM.eigenvectors[:, :2]) / np.linalg.norm(POINT)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_gain_of_the_best_perturbation_and_of_a_bad_one(x64):
    """At the minimum of a quadratic ε = ρ v has gain ½ ρ² λ."""
    for index, ratio in [(0, 1.0), (1, 4 / 9), (4, 0.1 / 9)]:
        epsilon = unflat(0.2 * PROBLEM.eigenvectors[:, index])
        found = diagnostics.perturbation_gain(
            PROBLEM.value_fn, unflat(np.zeros(5)), epsilon, num_iters=60, num_ascents=3
        )
        np.testing.assert_allclose(found.gain, 0.5 * 0.2**2 * SPECTRUM[index], rtol=1e-9)
        np.testing.assert_allclose(found.best_gain, 0.5 * 0.2**2 * 9, rtol=1e-6)
        np.testing.assert_allclose(found.ratio, ratio, rtol=1e-6)
        np.testing.assert_allclose(tree_math.norm(found.best_perturbation), 0.2, rtol=1e-6)


@pytest.mark.parametrize("ord", [2, jnp.inf])
def test_the_radius_is_that_of_the_perturbation_in_the_metric(ord, x64):
    constraint = optax_sam.weight_magnitude(0.1)
    found = diagnostics.sharpness(PROBLEM.value_fn, unflat(POINT), 0.3, ord=ord, constraint=constraint)
    options = {"ord": ord, "constraint": constraint, "num_iters": 10}
    gain = diagnostics.perturbation_gain(PROBLEM.value_fn, unflat(POINT), found.perturbation, **options)
    worst = diagnostics.worst_case_sharpness(PROBLEM.value_fn, unflat(POINT), 0.3, **options)
    np.testing.assert_allclose(gain.gain, found.sharpness, rtol=1e-9)
    assert gain.best_gain >= gain.gain
    np.testing.assert_allclose(gain.best_gain, worst.sharpness, rtol=1e-3)


def test_the_best_is_no_worse_than_the_one_given():
    """A single narrow hill, which only the given ε lies on."""
    hill = lambda w: jnp.exp(-100 * jnp.sum((w - jnp.array([3.0, 4.0])) ** 2))
    found = diagnostics.perturbation_gain(hill, jnp.zeros(2), jnp.array([3.0, 4.0]), num_iters=2)
    np.testing.assert_allclose([found.gain, found.best_gain, found.ratio], 1, rtol=1e-5)


def test_a_perturbation_that_lowers_the_loss_has_a_negative_gain(x64):
    down = unflat(-0.1 * PROBLEM.hessian @ POINT)
    found = diagnostics.perturbation_gain(PROBLEM.value_fn, unflat(POINT), down, num_iters=5)
    assert found.gain < 0 < found.best_gain
    assert found.ratio < 0


N = 1_000_000
SHORT = 0.05 / 1e7**0.5  # ρ = 0.05 over ten million parameters


def perturbed(dtype, length=SHORT, adaptive=False):
    """Parameters of standard deviation 0.1, and a random ε of that length for each of them."""
    keys = jax.random.split(jax.random.key(0))
    w = (0.1 * jax.random.normal(keys[0], (N,))).astype(dtype)
    t = jnp.abs(w.astype(jnp.float32)) + 0.01 if adaptive else 1.0
    direction = t**2 * jax.random.normal(keys[1], (N,))
    return w, direction * (length / jnp.sqrt(jnp.mean(direction**2)))


ROUNDING = {  # moved, cosine, norm ratio, projection: the table of docs/measure.md
    "bfloat16": ({"dtype": jnp.bfloat16}, jnp.bfloat16, (0.037, 0.26, 0.35, 0.09)),
    "longer": ({"dtype": jnp.bfloat16, "length": 20 * SHORT}, jnp.bfloat16, (0.54, 0.90, 1.05, 0.94)),
    "adaptive": ({"dtype": jnp.bfloat16, "adaptive": True}, jnp.bfloat16, (0.0002, 0.0, 0.0, 0.0)),
    "float32": ({"dtype": jnp.float32}, jnp.bfloat16, (0.084, 0.21, 4.78, 1.00)),
    "float16": ({"dtype": jnp.float16}, jnp.float16, (0.28, 0.69, 0.90, 0.62)),
}


@pytest.mark.parametrize(("arguments", "dtype", "expected"), ROUNDING.values(), ids=ROUNDING)
def test_rounding_is_as_the_table_says(arguments, dtype, expected):
    found = diagnostics.effective_perturbation(*perturbed(**arguments), dtype)
    np.testing.assert_allclose(found[:4], expected, rtol=0.03, atol=0.006)


def test_effective_perturbation_is_the_difference_of_rounded_parameters():
    w, epsilon = perturbed(jnp.float32, length=1e-3)
    w, epsilon = {"a": w[:1000]}, {"a": epsilon[:1000]}
    rounded = lambda x: np.asarray(x.astype(jnp.bfloat16)).astype(np.float32)
    difference = rounded(w["a"] + epsilon["a"]) - rounded(w["a"])
    for function in (diagnostics.effective_perturbation, jax.jit(diagnostics.effective_perturbation)):
        found = function(w, epsilon)
        np.testing.assert_array_equal(found.perturbation["a"], difference)
        np.testing.assert_allclose(found.moved, np.mean(difference != 0))
        np.testing.assert_allclose(found.cosine * found.norm_ratio, found.projection, rtol=1e-5)
        expected = np.linalg.norm(difference) / np.linalg.norm(epsilon["a"])
        np.testing.assert_allclose(found.norm_ratio, expected, rtol=1e-5)


def test_nothing_is_lost_in_float32_and_nothing_of_nothing():
    w, epsilon = perturbed(jnp.float32, length=1e-2)
    found = diagnostics.effective_perturbation(w, epsilon, jnp.float32)
    np.testing.assert_allclose(found[:4], 1, rtol=1e-5)
    assert not np.any(np.asarray(diagnostics.effective_perturbation(w, 0 * epsilon)[:4]))


def test_float32_parameters_keep_the_gain_that_bfloat16_parameters_lose():
    """The claim of docs/measure.md on a loss with a gradient and many curvatures, computed in bfloat16."""
    n = 100_000
    keys = jax.random.split(jax.random.key(1), 3)
    center = 0.1 * jax.random.normal(keys[0], (n,))
    slope, curvatures = jax.random.normal(keys[1], (n,)), jax.random.exponential(keys[2], (n,))

    def rise(w, epsilon):
        """L(w + ε) − L(w), with parameters in bfloat16 and sums in float32."""
        rounded = lambda w: w.astype(jnp.bfloat16).astype(jnp.float32)
        loss = lambda d: jnp.sum(slope * d + 0.5 * curvatures * d**2)
        return loss(rounded(w + epsilon) - center) - loss(rounded(w) - center)

    epsilon = 0.05 * slope / jnp.linalg.norm(slope)
    exact = jnp.sum(slope * epsilon + 0.5 * curvatures * epsilon**2)
    np.testing.assert_allclose(rise(center, epsilon), exact, rtol=0.1)
    rounded = center.astype(jnp.bfloat16).astype(jnp.float32)
    assert rise(rounded, epsilon) < 0.8 * exact


@pytest.mark.parametrize(
    "call",
    [
        lambda w, e: diagnostics.perturbation_gain(lambda w: jnp.sum(w["a"]), w, e),
        diagnostics.effective_perturbation,
    ],
)
@pytest.mark.parametrize("epsilon", [{"b": np.ones(2)}, {"a": np.ones(3)}], ids=["structure", "shape"])
def test_a_perturbation_of_other_parameters(call, epsilon):
    with pytest.raises(ValueError, match=r"`perturbation` must have the (tree structure|shapes)"):
        call({"a": jnp.ones(2)}, epsilon)


def test_alignment_of_unlike_vectors():
    with pytest.raises(ValueError, match="`eigenvector` must have the shapes"):
        diagnostics.alignment(jnp.ones(2), jnp.ones(3))
