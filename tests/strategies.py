"""What property tests draw from, and the stages that they put in the slots."""

import jax
import optax
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.problems import unflat

SIZE = 5  # One shape for every example: what is compiled for the first serves all.

# Hundredths rather than any floats: the square of 1e-170 is 0, which is not what is tested.
hundredths = st.integers(-1000, 1000).map(lambda n: n / 100)
positive = st.integers(1, 1000).map(lambda n: n / 100)

vectors = arrays("float64", SIZE, elements=hundredths)
nonzero_vectors = vectors.filter(lambda x: x.any())
diagonals = arrays("float64", SIZE, elements=positive)


def constant(diagonal):
    """A preconditioner stage that returns the given diagonal, a vector of SIZE."""
    return optax.stateless(lambda updates, params: unflat(diagonal))


def read_perturbation():
    """A descent stage whose direction is the perturbation itself."""

    def update(updates, state, params=None, *, perturbation, **extra_args):
        return perturbation, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def gradient_and_update(tx, state, params, value_fn, **extra_args):
    """The update of a training step: the gradient of `value_fn` at `params`, transformed."""
    return tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn, **extra_args)
