"""Programs grow with the number of parameter arrays as SAM's does: linearly, and hardly faster.

XLA for CPU repeats the sum that ends a norm in each operation that reads it; see `tree_math.computed_once`.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from optax_sam import curvature
from tests import xla

METHODS = {
    "sam": optax_sam.sam,
    "asam": optax_sam.asam,
    "fisher_sam": optax_sam.fisher_sam,
    "info_sam": optax_sam.info_sam,
    "eigen_sam": optax_sam.eigen_sam,
    "xsam": optax_sam.xsam,
    "rwp": lambda rho: optax_sam.rwp(rho, eta=0.1),
    "le_sam": lambda rho: optax_sam.le_sam(0.1, rho),
}


def lines_of(function, *args):
    """Returns the length of the compiled program, as users compile it."""
    options = {xla.FUSION_EMITTERS: True} if xla.knows(xla.FUSION_EMITTERS) else {}
    return jax.jit(function).lower(*args).compile(compiler_options=options).as_text().count("\n")


@functools.cache
def num_lines(name, num_layers):
    """Returns the length of the compiled plain step for a deep network of small layers."""
    params = [(jnp.ones((2, 2)), jnp.ones(2)) for _ in range(num_layers)]
    tx = METHODS[name](0.1)

    def value_fn(params):
        x = jnp.ones((2, 2))
        for weight, bias in params:
            x = jnp.tanh(x @ weight + bias)
        return jnp.mean(x)

    def step(params, state):
        return tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn, refresh=False)

    return lines_of(step, params, tx.init(params))


@pytest.mark.parametrize("name", METHODS)
def test_twice_the_layers_are_a_program_twice_as_long(name):
    assert num_lines(name, 40) < 2.1 * num_lines(name, 20)


@pytest.mark.parametrize("name", METHODS)
def test_no_program_is_much_longer_than_that_of_sam(name):
    assert num_lines(name, 40) < 3 * num_lines("sam", 40)


def test_a_tilt_by_hand_is_linear_too():
    """`computed_once` is in `scale` and `combine`, so a user's stage need not know of it."""
    tilt = lambda tree: optax_sam.tree_math.combine(
        optax_sam.tree_math.norm(tree), tree, optax_sam.tree_math.vdot(tree, tree), tree
    )
    lines = lambda n: lines_of(tilt, [jnp.ones(3)] * n)
    assert lines(80) < 2.1 * lines(40)
    assert optax.tree.norm(tilt([jnp.ones(4)])) == 12.0  # 2 · (1, 1, 1, 1) + 4 · (1, 1, 1, 1)


def test_a_random_vector_is_drawn_once_for_all_leaves_alike():
    """Not again for each of them."""
    draw = lambda like: optax_sam.tree_math.random_vector(jax.random.key(0), like)
    lines = lambda n: lines_of(draw, [jnp.ones(3)] * n)
    assert lines(40) < 2 * lines(10)


def test_lanczos_is_linear_in_its_products():
    """Each projection was a sum for every vector before: 20 products took minutes to compile."""
    start = [jnp.ones((2, 2)) for _ in range(8)]
    matvec = lambda tree: jax.tree.map(jnp.sin, tree)
    lines = lambda n: lines_of(lambda start: curvature.krylov.lanczos(matvec, start, n), start)
    assert lines(16) < 2.3 * lines(8)
