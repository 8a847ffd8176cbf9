"""A loss, its gradient, products with its Hessian: over a whole data set, one batch at a time.

    H v = Σ_b n_b H_b v / Σ_b n_b        H_b the Hessian of batch b, of n_b examples

One compiled function is called in a Python loop, in constant memory: nothing is traced but a single batch,
batches may come from a disk, and on CPU convolutions stay outside loops of XLA. The sum is kept in float32 or
wider, whatever the dtype of the parameters.
"""

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from optax_sam import checks, tree_math

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
        self.length = jax.tree.leaves(data)[0].shape[0]
        self.data = data
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-self.length // (self.batch_size or 1))

    def __iter__(self) -> Iterator[Any]:
        for i in range(len(self)):
            size = self.batch_size
            part = i if size is None else slice(i * size, (i + 1) * size)
            yield jax.tree.map(lambda leaf, part=part: leaf[part], self.data)


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
    if batches is None:
        return compiled(of_loss, compute, value_fn)
    add = compiled(plus_batch, compute, value_fn)

    def mean(*args: Any) -> T:
        total, num_examples = zeros(), 0
        for batch in batches:
            size = count_examples(batch)
            # Batches that wait for their turn on the device would fill its memory.
            jax.block_until_ready(total)
            total = add(total, jnp.asarray(size, jnp.float32), batch, *args)
            num_examples += size
        if num_examples == 0:
            raise ValueError(
                "`batches` has no examples: pass an iterable that starts anew each time it is gone through."
            )
        return tree_math.scale(jnp.asarray(1 / num_examples), total)

    return mean


def compiled(
    form: Callable[..., T], compute: Callable[..., Any], value_fn: Callable[..., jax.Array]
) -> Callable[..., T]:
    """Returns args ↦ form(compute, value_fn, *args), `form` one of the three below.

    It is compiled once for all calls with the same `value_fn` if that is wrapped in `jax.jit`.
    """
    if not isinstance(value_fn, jax.stages.Wrapped):
        return jax.jit(functools.partial(form, compute, value_fn))
    programs = _PROGRAMS.setdefault(value_fn, {})
    if (form, compute) not in programs:
        function = weakref.ref(value_fn)
        programs[form, compute] = jax.jit(lambda *args: form(compute, function(), *args))
    # Holds `value_fn` for as long as it may be called.
    return lambda *args, value_fn=value_fn: programs[form, compute](*args)


# The programs of each jitted loss. They hold it weakly: with the last reference to a loss go its programs and
# the data that it closes over.
_PROGRAMS: MutableMapping[Callable[..., Any], dict[Any, Callable[..., Any]]] = weakref.WeakKeyDictionary()


def of_loss(compute: Callable[..., T], value_fn: Callable[..., jax.Array], *args: Any) -> T:
    """Returns what is computed of one loss; `compute` checks `value_fn`, as that it is a function."""
    return compute(value_fn, *args)


def of_batch(compute: Callable[..., T], value_fn: Callable[..., jax.Array], batch: Any, *args: Any) -> T:
    """Returns what is computed of the loss of a batch."""
    return compute(lambda w: value_fn(w, batch), *args)


def plus_batch(
    compute: Callable[..., T],
    value_fn: Callable[..., jax.Array],
    total: T,
    weight: jax.Array,
    batch: Any,
    *args: Any,
) -> T:
    """Returns `total` and `weight` times what is computed of the loss of a batch."""
    found = of_batch(compute, value_fn, batch, *args)
    return tree_math.combine(jnp.ones_like(weight), total, weight, found)


def count_examples(batch: Any) -> int:
    """Returns the weight of a batch in an average: the length of the first axis of the first array with one.

    A batch of scalars, such as a key from which it is made, counts as one example.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    return next((shape[0] for shape in shapes if shape), 1)
