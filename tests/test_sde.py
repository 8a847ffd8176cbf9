"""The SDEs of SAM and USAM against discrete SAM: orders in ρ, moments, and what the functions promise."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import optax_sam
from optax_sam import sde, tree_math
from tests.problems import network

every_method = pytest.mark.parametrize("normalized", [True, False], ids=["sam", "usam"])
every_order = pytest.mark.parametrize("order", [2, 3])


def discrete(loss, params, batch, rho, normalized):
    """SAM's or USAM's gradient of a mini-batch, ∇f(x + ρ u)."""
    gradient = jax.grad(loss)(params, batch)
    length = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(gradient))) if normalized else 1.0
    return jax.grad(loss)(jax.tree.map(lambda x, g: x + rho * g / length, params, gradient), batch)


def moments(problem, rho, order, normalized):
    """(mean, covariance) of the gradient: of the SDE, and of discrete SAM."""
    loss, params, batches = problem.loss, problem.params, problem.batches

    @jax.jit
    def compute(rho):
        settings = {"rho": rho, "order": order, "normalized": normalized}
        drift = sde.drift(loss, params, batches, **settings)
        factors = sde.noise_factors(loss, params, batches, **settings)
        steps = jax.vmap(lambda batch: discrete(loss, params, batch, rho, normalized))(batches)
        rows = lambda tree: jax.vmap(lambda x: ravel_pytree(x)[0])(tree)
        return ravel_pytree(drift)[0], rows(factors), rows(steps)

    def at(rho):
        drift, factors, steps = compute(rho)
        covariance = np.cov(np.asarray(steps).T, bias=True)
        return np.mean(steps, axis=0) + drift, covariance - factors.T @ factors

    return [tuple(map(np.linalg.norm, at(r))) for r in rho]


# --- Orders -------------------------------------------------------------------------------------------


@every_method
@every_order
def test_drift_and_covariance_are_those_of_sam_up_to_the_order(x64, order, normalized):
    """Where ρ is halved the error falls 4 times in the second order, 8 times in the third."""
    far, near = moments(network(dtype=jnp.float64), (2e-2, 1e-2), order, normalized)
    np.testing.assert_allclose(np.divide(far, near), 2**order, rtol=0.05)


@every_method
def test_second_order_is_the_gradient_of_the_regularised_loss(x64, normalized):
    """−∇[f + ρ E‖∇f_γ‖], for USAM −∇[f + (ρ/2) E‖∇f_γ‖²]."""
    problem, rho = network(dtype=jnp.float64), 0.3

    def objective(params, batch):
        value, gradient = jax.value_and_grad(problem.loss)(params, batch)
        square = sum(jnp.sum(x**2) for x in jax.tree.leaves(gradient))
        return value + (rho * jnp.sqrt(square) if normalized else rho / 2 * square)

    mean = lambda params: jnp.mean(jax.vmap(lambda batch: objective(params, batch))(problem.batches))
    settings = {"rho": rho, "order": 2, "normalized": normalized}
    found = jax.jit(lambda params: sde.drift(problem.loss, params, problem.batches, **settings))(
        problem.params
    )
    expected = jax.jit(jax.grad(mean))(problem.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-10, atol=1e-12), found, expected)


@every_method
def test_without_noise_the_third_order_ends_nearer_to_sam(x64, normalized):
    problem = network(num_batches=1, dtype=jnp.float64)
    rho, learning_rate, num_steps = 0.3, 0.1, 30
    batch = jax.tree.map(lambda x: x[0], problem.batches)

    @jax.jit
    def ends():
        def step(params, _):
            direction = discrete(problem.loss, params, batch, rho, normalized)
            return jax.tree.map(lambda x, d: x - learning_rate * d, params, direction), None

        end = jax.lax.scan(step, problem.params, length=num_steps)[0]
        settings = {"learning_rate": learning_rate, "rho": rho, "num_steps": num_steps}
        paths = [
            sde.simulate(
                problem.loss,
                problem.params,
                problem.batches,
                **settings,
                order=order,
                normalized=normalized,
                key=jax.random.key(0),
            )
            for order in (2, 3)
        ]
        return [tree_math.norm(jax.tree.map(lambda x, y: x - y[-1], end, path)) for path in paths]

    second, third = ends()
    assert third < second / 4


# --- Moments ------------------------------------------------------------------------------------------


def quartic(x, coefficient):
    return coefficient * x**4 / 4


COEFFICIENTS = np.array([0.5, 1.5])


def weak_errors(order, rho, *, num_steps=6, learning_rate=0.1, num_paths=100_000):
    """Errors of E X and E X² at the end; SAM's are means over all sequences of mini-batches."""
    x = np.ones(())
    for _ in range(num_steps):
        x = np.stack([x - learning_rate * c * (x + rho) ** 3 for c in COEFFICIENTS])
    ends = jax.jit(
        jax.vmap(
            lambda key: sde.simulate(
                quartic,
                jnp.ones(()),
                jnp.asarray(COEFFICIENTS),
                learning_rate=learning_rate,
                rho=rho,
                order=order,
                num_steps=num_steps,
                key=key,
            )[-1]
        )
    )(jax.random.split(jax.random.key(0), num_paths))
    return np.array([np.mean(ends**power) - np.mean(x**power) for power in (1, 2)])


def test_weak_error_falls_with_the_order(x64):
    """Errors of the second order are O(ρ²), of the third O(ρ³)."""
    errors = {(order, rho): np.abs(weak_errors(order, rho)) for order in (2, 3) for rho in (0.4, 0.2)}
    assert np.all(errors[3, 0.4] < errors[2, 0.4] / 4)
    assert np.all(errors[3, 0.2] < errors[2, 0.2] / 8)
    assert np.all(errors[2, 0.2] < errors[2, 0.4] / 2)


def test_moments_of_a_linear_equation(x64):
    """USAM on ½ a (x − γ)², b = a + ρ a²: dX = −b (X − E γ) dt + √η b σ dW, an Ornstein–Uhlenbeck process."""
    a, rho, eta, num_steps = 0.8, 0.5, 0.2, 5
    gammas = np.array([-1.0, 0.0, 3.0, 2.0])
    b, start = a + rho * a**2, 4.0
    ends = jax.jit(
        jax.vmap(
            lambda key: sde.simulate(
                lambda x, gamma: 0.5 * a * (x - gamma) ** 2,
                jnp.asarray(start),
                jnp.asarray(gammas),
                learning_rate=eta,
                rho=rho,
                num_steps=num_steps,
                key=key,
                normalized=False,
                substeps=20,
            )
        )
    )(jax.random.split(jax.random.key(1), 20_000))
    for time in (eta, num_steps * eta):
        x = ends[:, round(time / eta)]
        decay = np.exp(-b * time)
        mean = gammas.mean() + decay * (start - gammas.mean())
        variance = eta * b * gammas.var() * (1 - decay**2) / 2
        assert np.mean(x) == pytest.approx(mean, abs=0.02)
        assert np.var(x) == pytest.approx(variance, rel=0.04)


# --- What the functions promise -----------------------------------------------------------------------

PROBLEM = network()
SETTINGS = {"rho": 0.1}
STEPS = {"learning_rate": 0.1, "num_steps": 3, "key": jax.random.key(0)}
FUNCTIONS = {
    "drift": sde.drift,
    "noise_factors": sde.noise_factors,
    "simulate": functools.partial(sde.simulate, **STEPS),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def assert_close(found, expected, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected
    )


@every_function
def test_one_after_another_is_the_same(function):
    compute = lambda sequential: jax.jit(
        lambda rho: function(PROBLEM.loss, PROBLEM.params, PROBLEM.batches, rho=rho, sequential=sequential)
    )(0.1)
    assert_close(compute(True), compute(False))


@pytest.mark.parametrize("name", ["drift", "simulate"])
def test_memory_one_after_another_does_not_grow_with_the_number_of_batches(optimized, name):
    def memory(num_batches, sequential):
        value_fn = lambda x, batch: jnp.sum(batch * x**4)
        function = lambda params, batches: FUNCTIONS[name](
            value_fn, params, batches, **SETTINGS, sequential=sequential
        )
        compiled = jax.jit(function).lower(jnp.ones(1000), jnp.ones(num_batches)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(64, sequential=True) < memory(4, sequential=True) + 64 * 16
    assert memory(64, sequential=False) > 4 * memory(4, sequential=False)


@every_function
def test_results_are_float32_or_wider_and_like_the_parameters(function):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PROBLEM.params)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    compute = lambda params: function(PROBLEM.loss, params, PROBLEM.batches, **SETTINGS)
    found, expected = jax.jit(compute)(params), jax.jit(compute)(exact)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    assert_close(found, expected)
    with jax.enable_x64(True):
        wide = jax.eval_shape(compute, jax.tree.map(lambda x: np.asarray(x, np.float64), params))
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype(jnp.float64)}


def test_path_begins_at_the_start():
    simulate = lambda params, num_steps: sde.simulate(
        PROBLEM.loss, params, PROBLEM.batches, rho=0.1, learning_rate=0.1, num_steps=num_steps,
        key=jax.random.key(0), order=2,
    )  # fmt: skip
    path = simulate(PROBLEM.params, 3)
    assert_close(jax.tree.map(lambda x: x[0], path), PROBLEM.params, 0)
    assert {len(leaf) for leaf in jax.tree.leaves(path)} == {4}
    assert jax.tree.map(lambda x: x.shape[1:], path) == jax.tree.map(jnp.shape, PROBLEM.params)


def test_a_step_of_the_path_is_drift_and_noise():
    """X₁ − X₀ = drift η + η Σ factor ξ: with the drift taken away, in the span of the factors."""
    settings = {"rho": 0.1, "order": 3}
    drift, factors = jax.jit(
        lambda params: (
            sde.drift(PROBLEM.loss, params, PROBLEM.batches, **settings),
            sde.noise_factors(PROBLEM.loss, params, PROBLEM.batches, **settings),
        )
    )(PROBLEM.params)
    drift = ravel_pytree(drift)[0]
    matrix = np.stack([ravel_pytree(jax.tree.map(lambda x, i=i: x[i], factors))[0] for i in range(6)], axis=1)
    path = sde.simulate(
        PROBLEM.loss, PROBLEM.params, PROBLEM.batches, **settings, learning_rate=0.1, num_steps=1,
        key=jax.random.key(3),
    )  # fmt: skip
    points = [ravel_pytree(jax.tree.map(lambda x, i=i: x[i], path))[0] for i in (0, 1)]
    noise = (points[1] - points[0]) / 0.1 - drift
    coefficients, *_ = np.linalg.lstsq(matrix, noise, rcond=None)
    np.testing.assert_allclose(matrix @ coefficients, noise, atol=1e-5)
    assert np.linalg.norm(noise) > 0.1 * np.linalg.norm(matrix)


@every_function
@every_order
def test_zero_gradient_gives_no_nan(function, order):
    """One mini-batch has the gradient 0, the other is at a saddle point."""
    value_fn = lambda x, batch: batch * x[0] * x[1]
    found = function(value_fn, jnp.zeros(2), jnp.array([0.0, 1.0]), rho=0.1, order=order)
    np.testing.assert_array_equal(found, np.zeros_like(found))


def test_compiled_once_for_many_keys_and_constants():
    count = itertools.count()

    @jax.jit
    def end(key, rho, learning_rate):
        next(count)
        path = sde.simulate(
            quartic, jnp.ones(()), jnp.array([0.5, 1.5]), rho=rho, learning_rate=learning_rate,
            num_steps=2, key=key,
        )  # fmt: skip
        return path[-1]

    ends = [float(end(jax.random.key(i), 0.1 * i, 0.1)) for i in range(3)]
    assert next(count) == 1
    assert len(set(ends)) == 3


@every_function
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"order": 1}, ValueError, r"`order` must be 2 .* got 1.*`rho=0`"),
        ({"rho": -0.1}, ValueError, r"`rho` must be at least 0, got -0.1"),
        ({"rho": lambda count: 0.1}, TypeError, r"`rho` is a constant .* Simulate in pieces"),
        ({"normalized": "sam"}, TypeError, r"`normalized` must be True \(SAM\) or False"),
        ({"value_fn": 1.0}, TypeError, r"`value_fn` must be a function of parameters and a mini-batch"),
        ({"value_fn": lambda x, batch: (x, 0)}, TypeError, r"`value_fn` must return the loss alone"),
        ({"batches": jnp.ones(())}, ValueError, r"same first axis.*x\[None\]"),
        ({"batches": (jnp.ones(2), jnp.ones(3))}, ValueError, r"same first axis"),
        ({"batches": jnp.ones((0, 2))}, ValueError, r"same first axis"),
        ({"batches": ()}, ValueError, r"same first axis"),
        ({"batches": []}, ValueError, r"at least one, got 0 mini-batches"),
        ({"batches": [jnp.ones(2), jnp.ones(1)]}, ValueError, r"the same shapes.*Choose a batch size"),
        ({"batches": iter([jnp.ones(2)])}, TypeError, r"an iterator .* is empty after the first"),
        ({"batches": 3}, TypeError, r"must be a data set in batches.*got int"),
        ({"params": jnp.ones(2, int)}, TypeError, r"real floating-point"),
    ],
)
def test_errors(function, wrong, error, message):
    right = {"value_fn": quartic, "params": jnp.ones(()), "batches": jnp.ones(2), "rho": 0.1}
    arguments = right | wrong
    positional = [arguments.pop(name) for name in ("value_fn", "params", "batches")]
    with pytest.raises(error, match=message):
        function(*positional, **arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": -0.1}, "`learning_rate` must be at least 0"),
        ({"num_steps": 0}, "`num_steps` must be at least 1"),
        ({"substeps": 0}, "`substeps` must be at least 1"),
    ],
)
def test_errors_of_simulate(wrong, message):
    with pytest.raises(ValueError, match=message):
        sde.simulate(quartic, jnp.ones(()), jnp.ones(2), **({"rho": 0.1} | STEPS | wrong))


def test_mini_batches_may_come_as_for_curvature_and_diagnostics():
    """As a list, as `Batches`, or stacked: the same numbers, bit for bit."""
    x, y = np.arange(12.0, dtype=np.float32), np.arange(1.0, 13.0, dtype=np.float32)
    loss = lambda w, batch: jnp.mean((batch[0] * w - batch[1]) ** 4)
    data = optax_sam.Batches((x, y), 3)
    arrays = (x.reshape(4, 3), y.reshape(4, 3))
    for function in (sde.drift, sde.noise_factors):
        expected = function(loss, jnp.ones(()), arrays, rho=0.1)
        for batches in (data, list(data), optax_sam.Batches(arrays)):
            found = function(loss, jnp.ones(()), batches, rho=0.1)
            np.testing.assert_array_equal(found, expected)
    settings = {"learning_rate": 1e-6, "rho": 0.1, "num_steps": 2}
    paths = [
        sde.simulate(loss, jnp.ones(()), batches, key=key, **settings)
        for batches in (arrays, data)
        for key in (5, jax.random.key(5), jax.random.PRNGKey(5))
    ]
    for path in paths:
        np.testing.assert_array_equal(path, paths[0])


def test_a_last_mini_batch_that_is_smaller_is_refused():
    with pytest.raises(ValueError, match=r"as probable as the others.*a batch size that divides"):
        sde.drift(quartic, jnp.ones(()), optax_sam.Batches(jnp.ones(5), 2), rho=0.1)
