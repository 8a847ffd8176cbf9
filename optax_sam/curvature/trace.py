"""The trace of the Hessian, the average curvature over all directions, by Hutchinson's estimator.

    tr H = E[zᵀ H z],   z with independent signs ±1        Var[zᵀ H z] = 2 Σ_{i≠j} H_ij²

Why not `matfree`, which has this and the quadrature of `density`: its estimators flatten the parameters into
one vector, which gathers sharded ones; they take all products at once in a `vmap` or in a loop of XLA (slow
for convolutions on CPU); and they cannot iterate over batches outside the program. The tests compare with
it.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, keys, tree_math
from optax_sam.curvature.products import hessian_operator
from optax_sam.progress import with_bar


class Trace(NamedTuple):
    """Result of `trace`.

    Attributes:
      estimate: of tr H, a scalar.
      standard_error: of the estimate: the standard deviation of the samples over the square root of their
        number.
      layers: the part of each parameter array: the trace of its diagonal block of H. A scalar for each leaf
        of the parameters; their sum is `estimate`.
    """

    estimate: jax.Array
    standard_error: jax.Array
    layers: optax.Params


def trace(
    value_fn: Callable[..., jax.Array],
    params: optax.Params,
    *,
    num_samples: int = 32,
    key: jax.Array | int = 0,
    batches: Iterable[Any] | None = None,
    progress: bool = False,
) -> Trace:
    """Estimates the trace of the Hessian ∇²L(w), the sum of its eigenvalues.

    Args:
      value_fn: the loss L, `value_fn(params)`, or `value_fn(params, batch)` with `batches`.
      params: parameters w, a pytree.
      num_samples: number of random vectors, at least 2; the error falls with its square root.
      key: of the random vectors, a random key or an integer.
      batches: data set over which the loss is averaged; see `hessian_operator`.
      progress: whether to show a progress bar; needs tqdm.

    Returns:
      `Trace`, with the standard error and the part of each parameter array.

    Raises:
      ValueError: if there are fewer than two samples, which give no standard error.

    Cost: `num_samples` Hessian-vector products, of about two gradients each; memory of one vector.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import curvature
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 9.0, -4.0]) * w**2)
      >>> float(curvature.trace(loss, jnp.ones(3)).estimate)  # exact for a diagonal Hessian
      6.0
      >>> loss = lambda w: w["a"] ** 2 + 3 * w["b"] ** 2
      >>> layers = curvature.trace(loss, {"a": jnp.ones(()), "b": jnp.ones(())}).layers
      >>> {name: float(part) for name, part in layers.items()}
      {'a': 2.0, 'b': 6.0}
    """
    checks.check_loss(value_fn, params)
    checks.check_count("num_samples", num_samples)
    if num_samples < 2:
        raise ValueError("`num_samples` must be at least 2, because one sample has no standard error.")
    matvec = hessian_operator(value_fn, params, batches=batches)
    samples = []
    for i in with_bar(range(num_samples), "product", show=progress):
        vector = tree_math.random_signs(sample_key(key, i), params)
        # One product at a time: queued products take memory, and simulated devices can deadlock.
        samples.append(jax.block_until_ready(_layer_products(vector, matvec(vector))))
    layers = jax.tree.map(lambda *leaf: jnp.stack(leaf), *samples)
    values = sum(jax.tree.leaves(layers))
    return Trace(
        estimate=jnp.mean(values),
        standard_error=jnp.std(values, ddof=1) / num_samples**0.5,
        layers=jax.tree.map(jnp.mean, layers),
    )


@jax.jit
def _layer_products(a: optax.Params, b: optax.Params) -> optax.Params:
    return jax.tree.map(tree_math.vdot, a, b)


def sample_key(key: jax.Array | int, i: int) -> jax.Array:
    """Returns the key of the i-th random vector, the same in `trace` and `spectral_density`."""
    return keys.fold_in(tree_math.random_key(key), i)
