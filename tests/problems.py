"""Problems with known answers: quadratics with a prescribed spectrum, and a small network."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


class Quadratic(NamedTuple):
    """L(w) = ½ wᵀ H w over the pytree {"a": (2,), "b": (n-2, 1)}, H = Q diag(spectrum) Qᵀ."""

    hessian: np.ndarray
    eigenvectors: np.ndarray

    def value_fn(self, params):
        w = flat(params)
        return 0.5 * w @ jnp.asarray(self.hessian, w.dtype) @ w


def quadratic(spectrum, seed=0) -> Quadratic:
    spectrum = np.asarray(spectrum, np.float64)
    random = np.random.default_rng(seed).normal(size=(spectrum.size, spectrum.size))
    eigenvectors, _ = np.linalg.qr(random)
    return Quadratic(eigenvectors @ np.diag(spectrum) @ eigenvectors.T, eigenvectors)


def unflat(w, dtype=jnp.float64):
    w = jnp.asarray(w, dtype)
    return {"a": w[:2], "b": w[2:, None]}


def flat(params):
    return jnp.concatenate([params["a"], params["b"][:, 0]])


class Network(NamedTuple):
    """A two-layer network with batches of random data: params, and loss(params, batch)."""

    params: dict
    batches: tuple

    def loss(self, params, batch):
        x, y = batch
        hidden = jnp.tanh(x @ params["layer1"]["weight"] + params["layer1"]["bias"])
        logits = hidden @ params["layer2"]["weight"] + params["layer2"]["bias"]
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - jnp.sum(y * logits, axis=-1))


def network(seed=0, *, num_batches=6, batch_size=16, dtype=jnp.float32) -> Network:
    rng = np.random.default_rng(seed)
    normal = lambda *shape, scale=1.0: jnp.asarray(scale * rng.normal(size=shape), dtype)
    params = {
        "layer1": {"weight": normal(5, 8, scale=0.5), "bias": normal(8, scale=0.1)},
        "layer2": {"weight": normal(8, 3, scale=0.5), "bias": normal(3, scale=0.1)},
    }
    labels = rng.integers(3, size=(num_batches, batch_size))
    return Network(params, (normal(num_batches, batch_size, 5), jnp.asarray(np.eye(3)[labels], dtype)))


SPECTRA = {
    "indefinite": [9.0, 4.0, 1.0, -2.0, -20.0],
    "negative": [-1.0, -2.0, -3.0, -4.0, -50.0],
    "repeated": [2.0, 2.0, 2.0, 1.0, 1.0],
    "one": [3.0, 3.0, 3.0, 3.0, 3.0],
    "none": [0.0, 0.0, 0.0, 0.0, 0.0],
    "wide": [1e6, 1.0, 1e-3, -1.0, -1e6],
}


@jax.jit
def quadratic_loss(params, hessian):
    """½ wᵀ H w, compiled once for all spectra: the Hessian is data."""
    return 0.5 * flat(params) @ hessian @ flat(params)


def at(origin, directions, point):
    """w + a d₁ + b d₂, in NumPy."""
    w, unravel = ravel_pytree(origin)
    moved = w + sum(a * ravel_pytree(d)[0] for a, d in zip(point, directions, strict=True))
    return unravel(moved)
