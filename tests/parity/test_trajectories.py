"""Whole training trajectories in float64 agree with independent NumPy transcriptions of the rules.

Each method stands in front of SGD with momentum and weight decay on a small tanh network, with a
different mini-batch for every step, and the parameters after every step are compared to those of
`transcriptions.py`. Every row of `CASES` is one method with one setting of its options.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import tree_math
from optax_sam.ascent import sparse_mask
from tests.parity import transcriptions as rules

pytestmark = pytest.mark.usefixtures("x64")

NUM_STEPS = 16
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-3
BATCHES = list(rules.mini_batches(NUM_STEPS))
START = rules.initial_parameters()
START_VECTOR = np.random.default_rng(2).normal(size=START.shape)
START_VECTOR /= np.linalg.norm(START_VECTOR)


class Case(NamedTuple):
    """A method of the library, the rule that it must follow, and how closely."""

    name: str
    method: Callable[[], optax.GradientTransformationExtraArgs]
    transcription: Callable[[], Any]
    tolerance: float = 1e-10
    refresh_steps: Sequence[int] = (0, 3, 4, 9)  # next to each other, and far apart
    by_interval: bool = False  # the method's own interval gives these steps; nothing is passed
    tracks: str | None = None  # a state field that must agree from the first refresh on


def is_weight(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "weight", params)


IS_WEIGHT = {
    "layer1": {"weight": True, "bias": False},
    "layer2": {"weight": True, "bias": False},
}


def eigen_case(name, *, num_iters=5, decay=0.0, refresh_steps=(0, 3, 4, 9), by_interval=False):
    interval = {"interval": 4} if by_interval else {}
    return Case(
        name,
        lambda: optax_sam.eigen_sam(0.2, 0.3, num_iters=num_iters, solver="power", decay=decay, **interval),
        lambda: rules.EigenSam(0.2, 0.3, start=START_VECTOR, num_iters=num_iters, decay=decay),
        refresh_steps=refresh_steps,
        by_interval=by_interval,
        tracks="eigenvector",
    )


def steepest(rho, **ball):
    return optax_sam.sharpness_aware(optax_sam.steepest_ascent(rho, **ball))


def xsam_case(name, rho, rho_max, *, num_steps=1, refresh_steps=(0, 3, 4, 9), by_interval=False):
    interval = {"interval": 4} if by_interval else {}
    return Case(
        name,
        lambda: optax_sam.xsam(rho, rho_max, num_steps=num_steps, **interval),
        lambda: rules.Xsam(rho, rho_max, num_steps),
        refresh_steps=refresh_steps,
        by_interval=by_interval,
        tracks="alpha",
    )


BAYES = {"num_examples": 50, "decay": 0.8, "precision_decay": 0.7, "damping": 0.1, "weight_decay": 0.02}


def drawn(random_tree):
    """What the library draws: random numbers from a key of the seed and the step."""
    key = jax.random.key(0)
    like = to_jax(START)
    draw = jax.jit(lambda step: random_tree(jax.random.fold_in(key, step), like))
    return [rules.flatten(draw(step)) for step in range(NUM_STEPS)]


def noise():
    return drawn(tree_math.random_vector)


def uniform():
    return drawn(sparse_mask._uniform)


LARGEST_RADIUS = 0.2


def budget(step):
    """A schedule for which σ/‖g‖ is above the largest radius at first, and then below."""
    return 0.3 - 0.015 * step


CASES = [
    Case("sam", lambda: optax_sam.sam(0.2), lambda: rules.Sam(0.2)),
    Case(
        "sam, 3 steps",
        lambda: optax_sam.sam(0.3, num_steps=3),
        lambda: rules.Sam(0.3, num_steps=3),
    ),
    Case(
        "asam, mask a pytree",
        lambda: optax_sam.asam(0.5, 0.01, mask=IS_WEIGHT),
        lambda: rules.Asam(0.5, 0.01, where=rules.IS_WEIGHT),
    ),
    Case(
        "asam, mask a function",
        lambda: optax_sam.asam(0.5, 0.01, mask=is_weight),
        lambda: rules.Asam(0.5, 0.01, where=rules.IS_WEIGHT),
    ),
    Case(
        "asam, no mask",
        lambda: optax_sam.asam(0.5, 0.0),
        lambda: rules.Asam(0.5, 0.0),
    ),
    Case(
        "fisher_sam",
        lambda: optax_sam.fisher_sam(0.2, 1.0),
        lambda: rules.FisherSam(0.2, 1.0),
    ),
    Case(
        "fisher_sam, eta 30",
        lambda: optax_sam.fisher_sam(0.2, 30.0),
        lambda: rules.FisherSam(0.2, 30.0),
    ),
    Case(
        "info_sam, the authors' form",
        lambda: optax_sam.info_sam(0.2, decay=0.9, variance_decay=0.0, damping=0.0),
        lambda: rules.InfoSam(0.2, decay=0.9),
        tolerance=1e-6,  # 1 / (m - g)^2 has no bound
    ),
    eigen_case("eigen_sam"),
    eigen_case("eigen_sam, 1 iteration", num_iters=1),
    eigen_case("eigen_sam, late first refresh", refresh_steps=(2, 7)),
    eigen_case("eigen_sam, running mean", num_iters=1, decay=0.5),
    eigen_case("eigen_sam, running mean, 2 iterations", num_iters=2, decay=0.7),
    eigen_case("eigen_sam, own interval", by_interval=True, refresh_steps=(0, 4, 8, 12)),
    xsam_case("xsam", 0.3, 0.6),
    xsam_case("xsam, alpha below 1", 0.6, 0.5),
    xsam_case("xsam, 3 steps", 0.6, 1.0, num_steps=3),
    xsam_case("xsam, own interval", 0.3, 0.6, by_interval=True, refresh_steps=(0, 4, 8, 12)),
    Case("sam, layerwise", lambda: steepest(0.1, layerwise=True), lambda: rules.LayerwiseSam(0.1)),
    Case("sam, ord inf", lambda: steepest(0.02, ord=math.inf), lambda: rules.SignSam(0.02)),
    Case("vasso", lambda: optax_sam.vasso(0.2, 0.4), lambda: rules.Vasso(0.2, 0.4)),
    Case(
        "friendly_sam",
        lambda: optax_sam.friendly_sam(0.2, 1.0, 0.9),
        lambda: rules.FriendlySam(0.2, 1.0, 0.9),
    ),
    Case(
        "friendly_sam, sigma 0.5",
        lambda: optax_sam.friendly_sam(0.2, 0.5, 0.6),
        lambda: rules.FriendlySam(0.2, 0.5, 0.6),
    ),
    Case(
        "sparse_sam, Fisher mask",
        lambda: optax_sam.sparse_sam(0.2, optax_sam.fisher_mask(0.7)),
        lambda: rules.FisherMaskSam(0.2, 0.7),
    ),
    Case(
        "sparse_sam, random mask",
        lambda: optax_sam.sparse_sam(0.2, optax_sam.random_mask(0.7)),
        lambda: rules.RandomMaskSam(0.2, 0.7, uniform()),
    ),
    Case(
        "sparse_sam, dynamic mask",
        lambda: optax_sam.sparse_sam(0.2, optax_sam.dynamic_mask(0.6, 0.3)),
        lambda: rules.DynamicMaskSam(0.2, 0.6, 0.3, uniform()),
    ),
    Case("gsam", lambda: optax_sam.gsam(0.2, 0.4), lambda: rules.Gsam(0.2, 0.4)),
    Case("wsam", lambda: optax_sam.wsam(0.2, 0.8), lambda: rules.Wsam(0.2, 0.8)),
    Case("stable_sam", lambda: optax_sam.stable_sam(0.2), lambda: rules.StableSam(0.2)),
    Case("reverse_sam", lambda: optax_sam.reverse_sam(0.2), lambda: rules.ReverseSam(0.2)),
    Case(
        "gradient_norm_penalty",
        lambda: optax_sam.gradient_norm_penalty(0.2),
        lambda: rules.GradientNormPenalty(0.2),
    ),
    Case(
        "lookbehind_sam",
        lambda: optax_sam.lookbehind_sam(0.1, 0.5, num_steps=3),
        lambda: rules.LookbehindSam(0.1, 0.5, 3),
    ),
    Case(
        "lookbehind_sam, adaptive",
        lambda: optax_sam.lookbehind_sam(0.1, None, num_steps=3),
        lambda: rules.LookbehindSam(0.1, None, 3),
    ),
    Case("look_sam", lambda: optax_sam.look_sam(0.2, 0.3), lambda: rules.LookSam(0.2, 0.3)),
    Case("sam, reused", lambda: optax_sam.look_sam(0.2, 0.0), lambda: rules.LookSam(0.2, 0.0)),
    Case(
        "look_sam, own interval",
        lambda: optax_sam.look_sam(0.2, 0.3, interval=3),
        lambda: rules.LookSam(0.2, 0.3),
        by_interval=True,
        refresh_steps=range(0, NUM_STEPS, 3),
    ),
    Case(
        "momentum_sam", lambda: optax_sam.momentum_sam(0.5, 0.9), lambda: rules.OneGradient(0.5, 0.9, sign=-1)
    ),
    Case(
        "one gradient, uphill",
        lambda: optax_sam.one_gradient(optax_sam.steepest_ascent(0.2), decay=0.8),
        lambda: rules.OneGradient(0.2, 0.8, sign=1),
    ),
    Case("rwp", lambda: optax_sam.rwp(0.2), lambda: rules.Rwp(0.2, noise())),
    Case(
        "rwp, adaptive",
        lambda: optax_sam.rwp(0.2, eta=0.5, decay=0.8),
        lambda: rules.Rwp(0.2, noise(), eta=0.5, decay=0.8),
    ),
    Case("mixed_rwp", lambda: optax_sam.mixed_rwp(0.2, 0.3), lambda: rules.Rwp(0.2, noise(), lam=0.3)),
    Case(
        "mixed_rwp, adaptive",
        lambda: optax_sam.mixed_rwp(0.2, 0.3, eta=0.5, decay=0.8),
        lambda: rules.Rwp(0.2, noise(), lam=0.3, eta=0.5, decay=0.8),
    ),
    Case(
        "random direction",
        lambda: optax_sam.sharpness_aware(
            optax.chain(optax_sam.random_normal(), optax_sam.steepest_ascent(0.3))
        ),
        lambda: rules.RandomDirection(0.3, noise()),
    ),
    Case(
        "le_sam",
        lambda: optax_sam.le_sam(budget, LARGEST_RADIUS),
        lambda: rules.LeSam(budget, LARGEST_RADIUS),
    ),
    Case(
        "bayesian_sam",
        lambda: optax_sam.bayesian_sam(0.05, **BAYES),
        lambda: rules.BayesianSam(0.05, noise(), **BAYES),
    ),
]


def loss(params, batch):
    inputs, labels = batch
    hidden = jnp.tanh(inputs @ params["layer1"]["weight"] + params["layer1"]["bias"])
    logits = hidden @ params["layer2"]["weight"] + params["layer2"]["bias"]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def to_jax(w):
    return jax.tree.map(jnp.asarray, rules.unflatten(w))


def transcribed(case, rule):
    return rules.trajectory(
        rule,
        START,
        BATCHES,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        refresh_steps=case.refresh_steps,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_step_agrees_with_the_transcription(case):
    optimizer = optax.chain(
        case.method(),
        optax.add_decayed_weights(WEIGHT_DECAY),
        optax.sgd(LEARNING_RATE, momentum=MOMENTUM),
    )

    @partial(jax.jit, static_argnames="refresh")
    def step(params, state, batch, refresh):
        value_fn = partial(loss, batch=batch)
        grads = jax.grad(value_fn)(params)
        updates, state = optimizer.update(grads, state, params, value_fn=value_fn, refresh=refresh)
        return optax.apply_updates(params, updates), state

    params = to_jax(START)
    state = optimizer.init(params)
    rule = case.transcription()
    for index, expected in enumerate(transcribed(case, rule)):
        if case.tracks == "eigenvector" and index == case.refresh_steps[0]:
            state = optax.tree.set(state, eigenvector=to_jax(START_VECTOR))

        refresh = None if case.by_interval else index in case.refresh_steps
        params, state = step(params, state, BATCHES[index], refresh)

        assert_agrees(params, expected, case.tolerance, f"parameters after step {index}")
        if case.tracks == "eigenvector" and index >= case.refresh_steps[0]:
            v = optax.tree.get(state, "eigenvector")
            assert_agrees(v, rule.eigenvector, case.tolerance, f"eigenvector in step {index}")
        if case.tracks == "alpha":
            alpha = optax.tree.get(state, "alpha")
            assert abs(alpha - rule.alpha) <= 1e-12, f"α in step {index}: {alpha}, {rule.alpha}"


def test_momentum_sam_is_its_authors_program():
    """Theirs moves the parameters to w + ε and back; without weight decay the w are the same."""
    settings = {"learning_rate": LEARNING_RATE, "momentum": MOMENTUM}
    tx = optax.chain(optax_sam.momentum_sam(0.5, MOMENTUM), optax.sgd(**settings))

    @jax.jit
    def step(params, state, batch):
        value_fn = partial(loss, batch=batch)
        updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    params = to_jax(START)
    state = tx.init(params)
    for index, expected in enumerate(rules.momentum_sam_program(START, BATCHES, rho=0.5, **settings)):
        params, state = step(params, state, BATCHES[index])
        assert_agrees(params, expected, 1e-10, f"parameters after step {index}")


def assert_agrees(tree, expected, tolerance, what):
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(tree))
    difference = np.max(np.abs(rules.flatten(tree) - expected))
    assert difference <= tolerance, f"{what}: off by {difference:.1e}, allowed {tolerance:.0e}"


def test_the_problem_tells_the_rules_apart():
    """Two different rows are never within 1e-4 of each other, a million times the tolerance."""
    ends = {}
    for case in CASES:
        *_, ends[case.name] = transcribed(case, case.transcription())
    *_, ends["sgd"] = transcribed(CASES[0], rules.Sgd())
    del ends["asam, mask a function"]  # the same rule as with a pytree

    names = list(ends)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert np.max(np.abs(ends[one] - ends[other])) > 1e-4, (one, other)


def test_alpha_searches_find_different_values_inside_the_range():
    for case in CASES:
        if case.tracks == "alpha":
            rule = case.transcription()
            found = {rule.alpha for _ in transcribed(case, rule)}
            assert 0 < min(found) < max(found) < 2, case.name


def test_the_budget_limits_some_radii_and_the_largest_radius_the_others():
    rule = rules.LeSam(budget, LARGEST_RADIUS)
    list(transcribed(CASES[0], rule))
    assert rule.limited == {False, True}


@pytest.mark.parametrize("batch", BATCHES[:3], ids=["batch0", "batch1", "batch2"])
def test_the_transcribed_network_is_the_same_network(batch):
    """Loss, hand-written backpropagation and complex-step Hessian product against JAX's own."""
    value_fn = partial(loss, batch=batch)
    params, v = to_jax(START), to_jax(START_VECTOR)
    grads, hvp = jax.jvp(jax.grad(value_fn), (params,), (v,))

    assert abs(value_fn(params) - rules.loss(START, batch)) <= 1e-12
    assert_agrees(grads, rules.gradient(START, batch), 1e-12, "gradient")
    assert_agrees(hvp, rules.hessian_vector_product(START, START_VECTOR, batch), 1e-12, "Hessian product")
