"""SAM by hand, and what every client must do: train as by hand, silently; and be told what is wired wrong."""

import contextlib
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import diagnostics

RHO = 0.1


def checked_sam(base: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The chain of the recipes, with a check that nothing but rounding passes."""
    return optax.chain(diagnostics.wiring_check(tolerance=1e-4), optax_sam.sam(RHO), base)


def sam_gradient(loss, params, gradient=None):
    """∇L(w + ρ g/‖g‖), in JAX alone. `gradient`: g, if it is not ∇L(w)."""
    g = jax.grad(loss)(params) if gradient is None else gradient
    length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(g)))
    return jax.grad(loss)(jax.tree.map(lambda w, g: w + RHO * g / length, params, g))


def assert_same(tree, other, rtol=1e-5):
    """Equal up to rounding, relative to the largest entry of each array."""
    leaves, others = (list(map(np.asarray, jax.tree.leaves(tree))) for tree in (tree, other))
    for leaf, expected in zip(leaves, others, strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@contextlib.contextmanager
def finished() -> Iterator[None]:
    """Waits for the callbacks of what runs inside."""
    yield
    jax.effects_barrier()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Raises if there is a warning, also one from a callback."""
    with warnings.catch_warnings(), finished():
        warnings.simplefilter("error", UserWarning)
        yield


@contextlib.contextmanager
def warning(*parts: str) -> Iterator[None]:
    """Expects a warning of the check with all of `parts`, in this order."""
    with pytest.warns(UserWarning, match="(?s)" + ".*".join(("not that of", *parts))), finished():
        yield


def mismatch(state) -> float:
    return float(jnp.max(jnp.asarray(optax.tree.get(state, "mismatch"))))


def batches(num=3, size=16):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, size, 8)).astype(np.float32)
    return [{"x": jnp.asarray(x), "y": jnp.asarray(np.sin(3 * x[:, 0]))} for x in x]
