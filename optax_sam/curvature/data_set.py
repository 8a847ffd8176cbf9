"""The Hessian of a loss over a whole data set, one batch at a time in constant memory.

    H v = Σ_b n_b H_b v / Σ_b n_b        H_b the Hessian of batch b, of n_b examples

One compiled product is called in a Python loop: nothing is traced but a single batch, batches may come from
a disk, and on CPU convolutions stay outside loops of XLA. The sum is kept in float32 or wider, whatever the
dtype of the parameters.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.curvature.eigen import MatVec
from optax_sam.curvature.hvp import hvp


class Batches:
    """A data set in memory as batches: slices along the first axis, made when they are asked for.

    Args:
      data: array or pytree of arrays with the same first axis.
      batch_size: examples per batch; the last one may have fewer. None: `data` is stacked already, of shapes
        (number of batches, batch size, ...).

    Raises:
      ValueError: if the arrays have no common first axis, or none at all.

    Example:
      >>> import numpy as np
      >>> from optax_sam.curvature import Batches
      >>> [x.tolist() for x, y in Batches((np.arange(5), np.zeros(5)), 2)]
      [[0, 1], [2, 3], [4]]
    """

    def __init__(self, data: Any, batch_size: int | None = None):
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
        if len(lengths) != 1 or lengths & {(), (0,)}:
            raise ValueError(
                "`data` must be arrays with the same first axis, one entry for each example or batch, got"
                f" shapes {[jnp.shape(leaf) for leaf in jax.tree.leaves(data)]}."
            )
        if batch_size is not None:
            checks.check_count("batch_size", batch_size)
        ((self.length,),) = lengths
        self.data = data
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-self.length // (self.batch_size or 1))

    def __iter__(self) -> Iterator[Any]:
        for i in range(len(self)):
            size = self.batch_size
            part = i if size is None else slice(i * size, (i + 1) * size)
            yield jax.tree.map(lambda leaf, part=part: leaf[part], self.data)


def hessian_operator(
    value_fn: Callable[..., jax.Array],
    params: optax.Params,
    *,
    batches: Iterable[Any] | None = None,
) -> MatVec:
    """Returns v ↦ ∇²L(w) v, compiled once, of one loss or of the mean loss over a data set.

    A `value_fn` that is wrapped in `jax.jit` is compiled once for all calls that it is passed to (with
    parameters and batches of the same shapes); any other one anew for each operator, because
    variables that it closes over may have changed.

    Args:
      value_fn: the loss L as a function of the parameters, `value_fn(params)`; with `batches`, the mean loss
        of the examples of a batch, `value_fn(params, batch)`.
      params: parameters w, a pytree.
      batches: the data set, gone through once for each product: a list, a data loader, `Batches`, or an
        array of which each entry is a batch. A batch counts by its number of examples, the first
        axis of its first array.

    Returns:
      v ↦ H v; H v is like `params`, float32 or wider.

    Raises:
      TypeError: if `batches` is an iterator, which is empty after the first product.
      ValueError: when called, if there are no batches.

    Cost: about two gradients for each product and batch; memory of one batch and two copies of `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import curvature
      >>> value_fn = lambda w, x: jnp.mean((x * w) ** 2)
      >>> data = jnp.array([1.0, 2.0, 3.0])
      >>> matvec = curvature.hessian_operator(value_fn, jnp.ones(()), batches=curvature.Batches(data, 2))
      >>> round(float(matvec(jnp.ones(()))), 4)  # 2 (1 + 4 + 9) / 3
      9.3333
    """
    if batches is not None and iter(batches) is batches:
        raise TypeError(
            "`batches` is gone through once for each Hessian-vector product, but an iterator (such as a"
            " generator) is empty after the first. Pass a list, a data loader, or"
            " `optax_sam.curvature.Batches(data, batch_size)`."
        )
    product, add_product = _compiled(value_fn)
    if batches is None:
        return lambda vector: product(params, vector)

    def matvec(vector: optax.Params) -> optax.Params:
        total = tree_math.zeros_like(params)
        num_examples = 0
        for batch in batches:
            size = _num_examples(batch)
            # Batches that wait for their turn on the device would fill its memory.
            jax.block_until_ready(total)
            total = add_product(total, jnp.asarray(size, jnp.float32), params, vector, batch)
            num_examples += size
        if num_examples == 0:
            raise ValueError(
                "`batches` has no examples: pass an iterable that starts anew each time it is gone through."
            )
        return tree_math.scale(jnp.asarray(1 / num_examples), total)

    return matvec


def _compiled(value_fn: Callable[..., jax.Array]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the product, and the sum of products, of any `value_fn` or of one wrapped in `jax.jit`."""
    build = _compiled_once if isinstance(value_fn, jax.stages.Wrapped) else _compile
    return build(value_fn)


def _compile(value_fn: Callable[..., jax.Array]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def product(params: optax.Params, vector: optax.Params, *batch: Any) -> optax.Params:
        # Checks of `value_fn` itself, as that it is a function, are made by `hvp`.
        loss = (lambda w: value_fn(w, *batch)) if batch else value_fn
        return hvp(loss, params, vector)

    def add_product(
        total: optax.Params, weight: jax.Array, params: optax.Params, vector: optax.Params, batch: Any
    ) -> optax.Params:
        return tree_math.combine(jnp.ones_like(weight), total, weight, product(params, vector, batch))

    return jax.jit(product), jax.jit(add_product)


_compiled_once = functools.lru_cache(maxsize=8)(_compile)


def _num_examples(batch: Any) -> int:
    leaves = jax.tree.leaves(batch)
    return jnp.shape(leaves[0])[0] if leaves and jnp.ndim(leaves[0]) else 1
