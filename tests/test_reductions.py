"""The limits in which one method is another one: design by slots makes these exact."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.problems import network, unflat
from tests.registry import BY_NAME, every_method
from tests.strategies import gradient_and_update

pytestmark = pytest.mark.usefixtures("x64")

RHO = 0.1


@pytest.fixture(scope="module")
def problem():
    with jax.enable_x64(True):
        return network(dtype=jnp.float64)


def trajectory(tx, problem, **extra_args):
    """Parameters after every step, with SGD and momentum behind the method."""
    tx = optax.chain(tx, optax.sgd(0.5, momentum=0.9))

    def step(carry, batch):
        params, state = carry
        value_fn = lambda params: problem.loss(params, batch)
        updates, state = gradient_and_update(tx, state, params, value_fn, **extra_args)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda carry: jax.lax.scan(step, carry, problem.batches)[1])(
        (problem.params, tx.init(problem.params))
    )


@pytest.fixture(scope="module")
def sam(problem):
    """The trajectory of SAM, by the number of ascents."""
    return functools.cache(lambda num_steps: trajectory(optax_sam.sam(RHO, num_steps=num_steps), problem))


def first_direction(tx, problem, params=None, state=None, **extra_args):
    params = problem.params if params is None else params
    batch = jax.tree.map(lambda x: x[0], problem.batches)
    value_fn = lambda params: problem.loss(params, batch)
    state = tx.init(params) if state is None else state
    return jax.jit(lambda: gradient_and_update(tx, state, params, value_fn, **extra_args)[0])()


steps = pytest.mark.parametrize("num_steps", [1, 3])


@steps
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(optax_sam.presam, id="presam without preconditioners"),
        pytest.param(lambda rho, **kw: optax_sam.fisher_sam(rho, eta=0.0, **kw), id="fisher_sam eta=0"),
        pytest.param(lambda rho, **kw: optax_sam.info_sam(rho, power=0.0, **kw), id="info_sam power=0"),
        pytest.param(
            lambda rho, **kw: optax_sam.eigen_sam(rho, alpha=0.0, interval=2, num_iters=2, **kw),
            id="eigen_sam alpha=0",
        ),
    ],
)
def test_exactly_sam(method, num_steps, problem, sam):
    expected = sam(num_steps)
    actual = trajectory(method(RHO, num_steps=num_steps), problem)
    chex.assert_trees_all_close(actual, expected, rtol=1e-10, atol=1e-13)


@steps
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(lambda rho, **kw: optax_sam.asam(rho / 1e8, eta=1e8, **kw), id="asam eta >> |w|"),
        pytest.param(
            lambda rho, **kw: optax_sam.info_sam(rho, damping=1e8, **kw),
            id="info_sam damping >> variance",
        ),
    ],
)
def test_sam_in_a_limit(method, num_steps, problem, sam):
    expected = sam(num_steps)
    actual = trajectory(method(RHO, num_steps=num_steps), problem)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-7)
    assert not np.array_equal(actual["layer1"]["weight"], expected["layer1"]["weight"])


@pytest.mark.parametrize(
    ("method", "other"),
    [
        (optax_sam.le_sam(1e9, RHO), optax_sam.sam(RHO)),
        (optax_sam.mixed_rwp(RHO, 1.0), optax_sam.rwp(RHO)),
        (optax_sam.mixed_rwp(RHO, 0.0), optax.identity()),
        (optax_sam.rwp(RHO, eta=0.0), optax_sam.rwp(RHO)),
    ],
    ids=["le_sam, no budget", "mixed_rwp, lam 1", "mixed_rwp, lam 0", "rwp, eta 0"],
)
def test_noise_and_budget_in_a_limit(method, other, problem):
    other = optax.with_extra_args_support(other)
    chex.assert_trees_all_close(trajectory(method, problem), trajectory(other, problem), rtol=1e-10)


def test_asam_is_sam_where_all_weights_are_of_one_size(problem):
    params = jax.tree.map(lambda w: 0.3 * jnp.sign(w), problem.params)
    actual = first_direction(optax_sam.asam(RHO / 0.31, eta=0.01), problem, params)
    chex.assert_trees_all_close(actual, first_direction(optax_sam.sam(RHO), problem, params), rtol=1e-10)
    # And not elsewhere.
    actual = first_direction(optax_sam.asam(RHO / 0.31, eta=0.01), problem)
    assert not np.allclose(
        actual["layer1"]["weight"], first_direction(optax_sam.sam(RHO), problem)["layer1"]["weight"]
    )


def test_fisher_sam_is_sam_where_all_gradients_are_of_one_size():
    gradient = jnp.asarray([3.0, -3.0, 3.0])
    value_fn = lambda w: gradient @ w + jnp.sum(w**4)
    w = jnp.zeros(3)
    root = np.sqrt(1 + 2 * 9.0)
    fisher, sam = optax_sam.fisher_sam(RHO * root, eta=2.0), optax_sam.sam(RHO)
    actual, _ = gradient_and_update(fisher, fisher.init(w), w, value_fn)
    expected, _ = gradient_and_update(sam, sam.init(w), w, value_fn)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@steps
def test_info_sam_is_sam_at_the_first_step_and_where_the_noise_is_uniform(num_steps, problem):
    info = optax_sam.info_sam(RHO, damping=0.0, variance_decay=0.9, num_steps=num_steps)
    expected = first_direction(optax_sam.sam(RHO, num_steps=num_steps), problem)
    chex.assert_trees_all_close(first_direction(info, problem), expected, rtol=1e-10)
    # The gradient seen again adds no deviation, so a variance which was uniform stays so.
    batch = jax.tree.map(lambda x: x[0], problem.batches)
    gradient = jax.grad(problem.loss)(problem.params, batch)
    uniform = optax.tree.set(
        info.init(problem.params),
        gradient_mean=gradient,
        noise_variance=jax.tree.map(lambda x: jnp.full_like(x, 7.0), gradient),
        noise_count=jnp.asarray(10, jnp.int32),
    )
    actual = first_direction(info, problem, state=uniform)
    chex.assert_trees_all_close(actual, expected, rtol=1e-10)


@steps
def test_xsam_with_alpha_fixed_at_1_is_sam(num_steps, problem, sam):
    """Before the first search α = 1; `refresh=False` never searches."""
    actual = trajectory(optax_sam.xsam(RHO, num_steps=num_steps), problem, refresh=False)
    chex.assert_trees_all_close(actual, sam(num_steps), rtol=1e-8, atol=1e-11)


@steps
def test_xsam_with_alpha_0_is_sgd_plus(num_steps, problem):
    """The direction of ε with the length of the gradient at w + ε."""
    xsam = optax_sam.xsam(RHO, num_steps=num_steps)
    state = optax.tree.set(xsam.init(problem.params), alpha=jnp.zeros(()))
    actual = first_direction(xsam, problem, state=state, refresh=False)
    length = optax.tree.norm(first_direction(optax_sam.sam(RHO, num_steps=num_steps), problem))

    batch = jax.tree.map(lambda x: x[0], problem.batches)
    path = problem.params
    for _ in range(num_steps):
        g = jax.grad(problem.loss)(path, batch)
        scale = RHO / num_steps / optax.tree.norm(g)
        path = jax.tree.map(lambda w, g, scale=scale: w + scale * g, path, g)
    epsilon = jax.tree.map(jnp.subtract, path, problem.params)
    scale = length / optax.tree.norm(epsilon)
    chex.assert_trees_all_close(actual, jax.tree.map(lambda e: scale * e, epsilon), rtol=1e-8)


@steps
def test_sam_is_that_of_optax(num_steps, problem, sam):
    """Optax's normalised adversary ascends by rho/k each time and is restarted at every step."""
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(RHO / num_steps))
    base = optax.sgd(0.5, momentum=0.9)
    theirs = optax.contrib.sam(base, adversary, sync_period=num_steps + 1, opaque_mode=True)

    def step(carry, batch):
        params, state = carry
        grad_fn = lambda params, _: jax.grad(problem.loss)(params, batch)
        updates, state = theirs.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    carry = problem.params, theirs.init(problem.params)
    _, expected = jax.jit(lambda carry: jax.lax.scan(step, carry, problem.batches))(carry)
    chex.assert_trees_all_close(sam(num_steps), expected, rtol=1e-9, atol=1e-12)


NUM_GROUPS = 4


def groups(problem):
    """The batches with the examples of each split into groups: (batch, group, example, ...)."""
    split = lambda x: x.reshape(x.shape[0], NUM_GROUPS, -1, *x.shape[2:])
    return jax.tree.map(split, problem.batches)


def grouped_trajectory(tx, problem, *, average):
    """Each group a member of a `vmap` with a name: the gradients passed in averaged, or the group's own."""
    chain = optax.chain(tx, optax.sgd(0.5, momentum=0.9))

    def group_step(carry, group):
        params, state = carry
        value_fn = lambda params: problem.loss(params, group)
        grads = jax.grad(value_fn)(params)
        if average:
            grads = jax.lax.pmean(grads, "group")
        words = {"axis_name": "group", "m_sharpness": not average}
        updates, state = chain.update(grads, state, params, value_fn=value_fn, **words)
        return optax.apply_updates(params, updates), state

    def step(carry, batch):
        return jax.vmap(group_step, in_axes=(0, 0), axis_name="group")(carry, batch), None

    carry = problem.params, chain.init(problem.params)
    carry = jax.tree.map(lambda x: jnp.stack([x] * NUM_GROUPS), carry)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, groups(problem))[0])(carry)


@every_method
def test_groups_with_averaged_gradients_are_the_whole_batch(method, problem):
    params, _ = grouped_trajectory(method.make(RHO), problem, average=True)
    expected = jax.tree.map(lambda x: x[-1], trajectory(method.make(RHO), problem))
    for group in range(NUM_GROUPS):
        actual = jax.tree.map(lambda x, group=group: x[group], params)
        chex.assert_trees_all_close(actual, expected, rtol=1e-7, atol=1e-9)


def test_groups_with_their_own_gradients_are_m_sharpness(problem, sam):
    """ε of each group's own gradient; the direction is the mean of the groups' gradients there."""
    actual, _ = grouped_trajectory(optax_sam.sam(RHO), problem, average=False)

    def direction(params, group):
        g = jax.grad(problem.loss)(params, group)
        scale = RHO / optax.tree.norm(g)
        return jax.grad(problem.loss)(jax.tree.map(lambda w, g: w + scale * g, params, g), group)

    base = optax.sgd(0.5, momentum=0.9)

    @jax.jit
    def step(params, state, batch):
        directions = jax.vmap(direction, in_axes=(None, 0))(params, batch)
        mean = jax.tree.map(lambda x: x.mean(0), directions)
        updates, state = base.update(mean, state, params)
        return optax.apply_updates(params, updates), state

    params, state = problem.params, base.init(problem.params)
    for i in range(len(problem.batches[0])):
        params, state = step(params, state, jax.tree.map(lambda x, i=i: x[i], groups(problem)))
    for group in range(NUM_GROUPS):
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, group=group: x[group], actual), params, rtol=1e-9, atol=1e-11
        )
    whole = sam(1)
    assert not np.allclose(params["layer1"]["weight"], whole["layer1"]["weight"][-1], rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["info_sam", "combination", "vasso", "sparse_sam", "bayesian_sam", "look_sam", "rwp_adaptive"],
)
def test_groups_with_their_own_gradients_keep_one_state(name, problem):
    """What is kept comes from averages: between them these methods have every statistic there is."""
    carry = grouped_trajectory(BY_NAME[name].make(RHO), problem, average=False)
    for group in range(1, NUM_GROUPS):
        first, other = (jax.tree.map(lambda x, i=i: x[i], carry) for i in (0, group))
        chex.assert_trees_all_close(other, first, rtol=1e-10, atol=1e-12)


def test_loss_that_is_averaged_inside_is_followed_locally(problem):
    """`jax.lax.pmean` in `value_fn` changes nothing: each group's gradient is still that of its own loss."""
    tx = optax_sam.sam(RHO, num_steps=2)
    state, words = tx.init(problem.params), {"axis_name": "group", "m_sharpness": True}

    def update(batch, average):
        local = lambda params: problem.loss(params, batch)
        value_fn = lambda params: jax.lax.pmean(local(params), "group") if average else local(params)
        return tx.update(jax.grad(local)(problem.params), state, problem.params, value_fn=value_fn, **words)[
            0
        ]

    both = lambda batch: (update(batch, False), update(batch, True))
    local, averaged = jax.jit(jax.vmap(both, axis_name="group"))(problem.batches)
    chex.assert_trees_all_close(averaged, local, rtol=1e-12, atol=1e-14)


def test_combination_of_neutral_stages_is_sam():
    """Every slot filled, each with what does nothing."""
    ones = unflat(np.ones(5))
    neutral = optax.stateless(lambda updates, params: ones)
    tx = optax_sam.sharpness_aware(
        optax.chain(
            optax_sam.steepest_ascent(RHO, objective=neutral, constraint=neutral),
            optax_sam.tilt_to_top_eigenvector(0.0, num_iters=1),
        ),
        optax_sam.spherical_search(0.3),
    )
    value_fn = lambda params: jnp.sum(jnp.cos(params["a"])) + jnp.sum(params["b"] ** 3)
    params = unflat(np.arange(1.0, 6.0))
    state = tx.init(params)
    actual, _ = gradient_and_update(tx, state, params, value_fn, refresh=False)
    sam = optax_sam.sam(RHO)
    expected, _ = gradient_and_update(sam, sam.init(params), params, value_fn)
    chex.assert_trees_all_close(actual, expected, rtol=1e-9)
