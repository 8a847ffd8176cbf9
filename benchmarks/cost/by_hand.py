"""Sharpness-aware methods written out by hand: the least that each can cost.

Independent programs: they import nothing of `optax_sam`, check nothing, and take `jax.grad` at w + ε, without
the loss there. Each is a pair: the state before the first step, and

    (g, gradient, w, state)  ->  (direction for the base optimizer, state)

with g = gradient(w). The radii are those of `benchmarks.methods.METHODS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tree = Any
Gradient = Callable[[Tree], Tree]


class ByHand(NamedTuple):
    """One method.

    Attributes:
        init: parameters -> state.
        direction: (g, gradient, w, state) -> (direction, state).
    """

    init: Callable[[Tree], Tree]
    direction: Callable[[Tree, Gradient, Tree, Tree], tuple[Tree, Tree]]


def inner(a: Tree, b: Tree) -> jax.Array:
    """⟨a, b⟩ over all arrays."""
    return sum(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def norm(a: Tree) -> jax.Array:
    """‖a‖ over all arrays."""
    return jnp.sqrt(inner(a, a))


def nothing(params: Tree) -> tuple[()]:
    """No state."""
    del params
    return ()


def zeros(params: Tree) -> Tree:
    """A state like the parameters."""
    return jax.tree.map(jnp.zeros_like, params)


def sam(grads: Tree, gradient: Gradient, params: Tree, state: Tree) -> tuple[Tree, Tree]:
    """ε = ρ g/‖g‖."""
    factor = 0.1 / norm(grads)
    return gradient(jax.tree.map(lambda w, g: w + factor * g, params, grads)), state


def asam(grads: Tree, gradient: Gradient, params: Tree, state: Tree) -> tuple[Tree, Tree]:
    """ε = ρ T² g/‖T g‖ with T = |w| + η."""
    size = lambda w: jnp.abs(w) + 0.01
    factor = 1.0 / norm(jax.tree.map(lambda w, g: size(w) * g, params, grads))
    return gradient(jax.tree.map(lambda w, g: w + factor * size(w) ** 2 * g, params, grads)), state


def fisher_sam(grads: Tree, gradient: Gradient, params: Tree, state: Tree) -> tuple[Tree, Tree]:
    """ε = ρ F⁻¹ g/(gᵀ F⁻¹ g)^(1/2) with F = 1 + g²."""
    inverse = jax.tree.map(lambda g: g / (1 + g**2), grads)
    factor = 0.1 / jnp.sqrt(inner(grads, inverse))
    return gradient(jax.tree.map(lambda w, x: w + factor * x, params, inverse)), state


def info_sam(grads: Tree, gradient: Gradient, params: Tree, state: Tree) -> tuple[Tree, Tree]:
    """ε = ρ C g/‖C g‖ with C = 1/(σ² + mean of σ²), σ² a running mean of (m − g)²."""
    count, mean, variance = state
    mean_weight = jnp.where(count == 0, 1.0, 0.1)
    mean = jax.tree.map(lambda m, g: m + mean_weight * (g - m), mean, grads)
    # The n-th of n squares has the weight (1 − λ)/(1 − λ^n).
    decay = jnp.log(0.99)
    weight = jnp.where(count == 0, 0.0, jnp.expm1(decay) / jnp.expm1(jnp.maximum(count, 1) * decay))
    variance = jax.tree.map(lambda v, m, g: v + weight * ((m - g) ** 2 - v), variance, mean, grads)
    number = sum(x.size for x in jax.tree.leaves(variance))
    damping = sum(jnp.sum(x) for x in jax.tree.leaves(variance)) / number
    scaled = jax.tree.map(lambda v, g: g / (v + damping), variance, grads)
    factor = 0.1 / norm(scaled)
    direction = gradient(jax.tree.map(lambda w, x: w + factor * x, params, scaled))
    return direction, (count + 1, mean, variance)


def eigen_sam(grads: Tree, gradient: Gradient, params: Tree, vector: Tree) -> tuple[Tree, Tree]:
    """ε = ρ (ĝ + α s v⊥) with s = sign⟨g, v⟩ and v the eigenvector of the last refresh."""
    length = norm(grads)
    along = inner(grads, vector) / length
    tilt = 0.2 * jnp.sign(along)
    of_gradient = 0.1 * (1 - tilt * along) / length
    perturbed = lambda w, g, v: w + of_gradient * g + 0.1 * tilt * v
    return gradient(jax.tree.map(perturbed, params, grads, vector)), vector


def eigen_sam_refresh(grads: Tree, gradient: Gradient, params: Tree, vector: Tree) -> tuple[Tree, Tree]:
    """Five times v ← H v/‖H v‖, in a loop, then Eigen-SAM's step."""

    def product(_: jax.Array, vector: Tree) -> Tree:
        _, curved = jax.jvp(gradient, (params,), (vector,))
        factor = 1 / norm(curved)
        return jax.tree.map(lambda x: factor * x, curved)

    return eigen_sam(grads, gradient, params, jax.lax.fori_loop(0, 5, product, vector))


def xsam(grads: Tree, gradient: Gradient, params: Tree, alpha: jax.Array) -> tuple[Tree, Tree]:
    """D = ‖g'‖ v(α), on the arc from v₀ = g/‖g‖ to v₁ = g'/‖g'‖ and beyond."""
    clean = norm(grads)
    ahead = gradient(jax.tree.map(lambda w, g: w + 0.1 / clean * g, params, grads))
    length = norm(ahead)
    angle = jnp.arccos(jnp.clip(inner(grads, ahead) / (clean * length), -1, 1))
    first = jnp.sin((1 - alpha) * angle) / jnp.sin(angle) * length / clean
    second = jnp.sin(alpha * angle) / jnp.sin(angle)
    return jax.tree.map(lambda g, a: first * g + second * a, grads, ahead), alpha


def momentum_sam(grads: Tree, gradient: Gradient, params: Tree, mean: Tree) -> tuple[Tree, Tree]:
    """ε = −ρ m/‖m‖ with m a running mean of g'; the clean gradient is not used."""
    del grads
    length = norm(mean)
    factor = jnp.where(length == 0, 0.0, 1.0 / jnp.where(length == 0, 1.0, length))
    ahead = gradient(jax.tree.map(lambda w, m: w - factor * m, params, mean))
    return ahead, jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, ahead)


def first_noise(params: Tree) -> Tree:
    """No gradient seen, σ² = 1."""
    return jnp.zeros((), jnp.int32), zeros(params), jax.tree.map(jnp.ones_like, params)


BY_HAND = {
    direction.__name__.replace("_refresh", " refresh"): ByHand(init, direction)
    for init, direction in (
        *((nothing, direction) for direction in (sam, asam, fisher_sam)),
        *((zeros, direction) for direction in (eigen_sam, eigen_sam_refresh, momentum_sam)),
        (first_noise, info_sam),
        (lambda params: jnp.ones(()), xsam),
    )
}
