"""The Hessian of a loss over a whole data set, one batch at a time in constant memory.

    H v = Σ_b n_b H_b v / Σ_b n_b        H_b the Hessian of batch b, of n_b examples

One compiled product is called in a Python loop: nothing is traced but a single batch, batches may come from
a disk, and on CPU convolutions stay outside loops of XLA. The sum is kept in float32 or wider, whatever the
dtype of the parameters.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, tree_math
from optax_sam.curvature.eigen import MatVec
from optax_sam.curvature.hvp import hvp

T = TypeVar("T")


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
    product = over_batches(hvp, value_fn, batches, zeros=lambda: tree_math.zeros_like(params))
    return lambda vector: product(params, vector)


def over_batches(
    compute: Callable[..., T],
    value_fn: Callable[..., jax.Array],
    batches: Iterable[Any] | None,
    *,
    zeros: Callable[[], T],
) -> Callable[..., T]:
    """Returns args ↦ compute(loss, *args), compiled once, of one loss or averaged over a data set.

    Args:
      compute: maps a loss w ↦ L(w), and further arguments, to what is wanted of it.
      value_fn: as for `hessian_operator`, and so is `batches`.
      batches: the data set, gone through once for each call of the result.
      zeros: returns 0 with the structure, shapes, dtypes and shardings of what `compute` returns.
    """
    if batches is not None and iter(batches) is batches:
        raise TypeError(
            "`batches` is gone through many times, once for each product or loss, but an iterator (such as a"
            " generator) is empty after the first. Pass a list, a data loader, or"
            " `optax_sam.curvature.Batches(data, batch_size)`."
        )
    of_batch, add = compiled(compute, value_fn)
    if batches is None:
        return lambda *args: of_batch((), *args)

    def mean(*args: Any) -> T:
        total, num_examples = zeros(), 0
        for batch in batches:
            size = count_examples(batch)
            # Batches that wait for their turn on the device would fill its memory.
            jax.block_until_ready(total)
            total = add(total, jnp.asarray(size, jnp.float32), (batch,), *args)
            num_examples += size
        if num_examples == 0:
            raise ValueError(
                "`batches` has no examples: pass an iterable that starts anew each time it is gone through."
            )
        return tree_math.scale(jnp.asarray(1 / num_examples), total)

    return mean


def compiled(
    compute: Callable[..., T], value_fn: Callable[..., jax.Array]
) -> tuple[Callable[..., T], Callable[..., T]]:
    """Returns (batch, *args) ↦ compute(loss, *args), `batch` a tuple of one or none, and a sum of such.

    Both are compiled once for all calls with the same `value_fn` if that is wrapped in `jax.jit`.
    """
    build = _compiled_once if isinstance(value_fn, jax.stages.Wrapped) else _compile
    return build(compute, value_fn)


def _compile(compute: Callable[..., Any], value_fn: Callable[..., jax.Array]) -> tuple[Any, Any]:
    def of_batch(batch: tuple[Any, ...], *args: Any) -> Any:
        # Checks of `value_fn` itself, as that it is a function, are made where it is called.
        return compute((lambda w: value_fn(w, *batch)) if batch else value_fn, *args)

    def add(total: Any, weight: jax.Array, batch: tuple[Any, ...], *args: Any) -> Any:
        return tree_math.combine(jnp.ones_like(weight), total, weight, of_batch(batch, *args))

    return jax.jit(of_batch), jax.jit(add)


_compiled_once = functools.lru_cache(maxsize=16)(_compile)


def count_examples(batch: Any) -> int:
    """Returns the length of the first axis of the first array: the weight of a batch in an average."""
    leaves = jax.tree.leaves(batch)
    return jnp.shape(leaves[0])[0] if leaves and jnp.ndim(leaves[0]) else 1
