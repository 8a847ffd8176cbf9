"""A data set in batches, and what is computed over all of it, one batch at a time.

    L = Σ_b n_b L_b / Σ_b n_b        L_b the mean loss of batch b, of n_b examples

The gradient, products with the Hessian, and whatever else is linear in L are such means, too.

One compiled function is called in a Python loop, in constant memory: only a single batch is traced, batches
may come from a disk, and convolutions, slow in loops of XLA on CPU, stay outside them. The sum is kept in
float32 or wider, whatever the dtype of the parameters.
"""

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import checks, tree_math
from optax_sam.loss import BatchLoss, ValueFn
from optax_sam.progress import counted, with_bar

T = TypeVar("T")
Evaluate = Callable[[optax.Params], tuple[jax.Array, optax.Updates]]


class Batches:
    """A data set in memory as batches: slices along the first axis, made when needed.

    Args:
      data: array or pytree of arrays with the same first axis.
      batch_size: examples per batch; the last one may have fewer. None: `data` is already split into
        batches, with shapes (number of batches, batch size, ...).

    Raises:
      ValueError: if the arrays have no common first axis, or if there are no arrays.

    Example:
      >>> import numpy as np
      >>> from optax_sam import Batches
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


class WeightedBatches:
    """Batches with the number of examples of each, where the shapes of its arrays do not tell it.

    Args:
      batches: the batches, an iterable that starts again each time: a list, a data loader, `Batches`.
      num_examples: maps a batch to its weight in the mean, such as the number of examples that are not
        padding. Batches with 0 are left out.

    Raises:
      TypeError: if `batches` is an iterator, or `num_examples` is not a function.

    Example: the last batch is padded, and the loss is the mean of the real examples.
      >>> import numpy as np
      >>> from optax_sam import Batches, WeightedBatches
      >>> x, is_real = np.zeros(6), np.arange(6) < 5
      >>> batches = WeightedBatches(Batches((x, is_real), 3), lambda batch: batch[1].sum())
      >>> [int(batches.num_examples(batch)) for batch in batches]
      [3, 2]
    """

    def __init__(self, batches: Iterable[Any], num_examples: Callable[[Any], int | jax.Array]):
        check_batches(batches)
        if not callable(num_examples):
            raise TypeError(
                "`num_examples` must be a function of a batch, such as `lambda batch: batch['mask'].sum()`,"
                f" got {type(num_examples).__name__}."
            )
        self.batches = batches
        self.num_examples = num_examples

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # A data loader may have no length.

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def over_batches(
    compute: Callable[..., T],
    value_fn: Callable[..., jax.Array],
    batches: Iterable[Any] | None,
    *,
    zeros: Callable[[], T],
    progress: bool = False,
) -> Callable[..., T]:
    """Returns args ↦ compute(loss, *args), compiled once, for one loss or averaged over a data set.

    Args:
      compute: maps a loss w ↦ L(w), and further arguments, to a result.
      value_fn: see `hessian_operator`.
      batches: the data set, see `hessian_operator`; each call of the returned function iterates over it once.
      zeros: returns 0 with the structure, shapes, dtypes and shardings of what `compute` returns.
      progress: whether each call shows a progress bar, which counts the batches; a single loss is one.
    """
    if batches is None:
        of_one = compiled(of_loss, compute, value_fn)

        def one(*args: Any) -> T:
            with counted(of_one, 1, "batch", show=progress) as shown:
                return shown(*args)

        return one
    check_batches(batches)
    add = compiled(plus_batch, compute, value_fn)

    def mean(*args: Any) -> T:
        total, num_examples = zeros(), 0
        for batch, size in counted_batches(with_bar(batches, "batch", show=progress), counter(batches)):
            # Otherwise batches waiting in the device's queue would fill its memory.
            jax.block_until_ready(total)
            total = add(total, jnp.asarray(size, jnp.float32), batch, *args)
            num_examples += size
        if not isinstance(num_examples, jax.core.Tracer) and num_examples == 0:
            raise ValueError(
                "`batches` has no examples: pass an iterable that starts again each time it is iterated over."
            )
        return tree_math.scale(jnp.asarray(1 / num_examples), total)

    return mean


def check_batches(batches: Any) -> None:
    """Raises unless `batches` can be iterated over again and again."""
    is_iterable = hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")
    if not is_iterable or isinstance(batches, Mapping):
        raise TypeError(
            "`batches` must be a data set in batches, such as a list (of one: `[batch]`), a data loader, or"
            f" `optax_sam.Batches(data, batch_size)`, got {type(batches).__name__}."
        )
    if iter(batches) is batches:
        raise TypeError(
            "`batches` is iterated over many times, once for each product or loss, but an iterator (such as a"
            " generator) is empty after the first. Pass a list, a data loader, or"
            " `optax_sam.Batches(data, batch_size)`."
        )


def stacked(batches: Any) -> Any:
    """Returns batches of the same shapes as arrays in which the first axis counts them.

    Args:
      batches: such arrays already (an array, or a tuple, dictionary or other pytree of arrays, but not a
        list); or an iterable of batches, such as a list or `Batches`.
    """
    is_pytree = not isinstance(batches, list) and not hasattr(batches, "__next__")
    if is_pytree and all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(batches)):
        return batches
    check_batches(batches)
    if isinstance(batches, WeightedBatches):
        raise TypeError(
            "Each mini-batch is as probable as the others here, so `batches` cannot be a `WeightedBatches`."
            " Pass the batches themselves, of the same shapes."
        )
    each = list(batches)
    shapes = [jax.tree.map(jnp.shape, batch) for batch in each]
    if not each or any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            "The mini-batches of `batches` must have the same shapes, because each is as probable as the"
            f" others, and there must be at least one, got {len(each)} mini-batches with the shapes"
            f" {shapes[0] if each else ()} and {shapes[-1] if each else ()}. Choose a batch size that divides"
            " the number of examples. (A list holds mini-batches. A pair of arrays, in which the first axis"
            " counts the mini-batches, is a tuple.)"
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def compiled(
    form: Callable[..., T], compute: Callable[..., Any], value_fn: Callable[..., jax.Array]
) -> Callable[..., T]:
    """Returns args ↦ form(compute, value_fn, *args), where `form` is one of the three below.

    If `value_fn` is wrapped in `jax.jit`, it is compiled once for all calls with the same `value_fn`.
    """
    if not isinstance(value_fn, jax.stages.Wrapped):
        return jax.jit(functools.partial(form, compute, value_fn))
    programs = _PROGRAMS.setdefault(value_fn, {})
    if (form, compute) not in programs:
        function = weakref.ref(value_fn)
        programs[form, compute] = jax.jit(lambda *args: form(compute, function(), *args))
    # The default argument keeps `value_fn` alive for as long as it may be called.
    return lambda *args, value_fn=value_fn: programs[form, compute](*args)


# The programs of each jitted loss. They hold the loss weakly: when its last reference is dropped, its
# programs and the data that it closes over are freed.
_PROGRAMS: MutableMapping[Callable[..., Any], dict[Any, Callable[..., Any]]] = weakref.WeakKeyDictionary()


def of_loss(compute: Callable[..., T], value_fn: Callable[..., jax.Array], *args: Any) -> T:
    """Returns what is computed from one loss; `compute` checks that `value_fn` is a function."""
    return compute(value_fn, *args)


def of_batch(compute: Callable[..., T], value_fn: Callable[..., jax.Array], batch: Any, *args: Any) -> T:
    """Returns what is computed from the loss of a batch."""
    return compute(lambda w: value_fn(w, batch), *args)


def plus_batch(
    compute: Callable[..., T],
    value_fn: Callable[..., jax.Array],
    total: T,
    weight: jax.Array,
    batch: Any,
    *args: Any,
) -> T:
    """Returns `total` plus `weight` times what is computed from the loss of a batch."""
    found = of_batch(compute, value_fn, batch, *args)
    return tree_math.combine(jnp.ones_like(weight), total, weight, found)


def counted_batches(
    batches: Iterable[Any], count: Callable[[Any], int | jax.Array]
) -> Iterator[tuple[Any, Any]]:
    """Yields each batch that has examples, and their number."""
    for batch in batches:
        number: Any = count(batch)
        if not isinstance(number, jax.core.Tracer):
            if np.shape(number) != () or not 0 <= number < np.inf:
                raise ValueError(f"A batch must have a number of examples of at least 0, got {number}.")
            number = np.asarray(number).item()
            if number == 0:
                continue
        yield batch, number


def counter(batches: Iterable[Any]) -> Callable[[Any], int | jax.Array]:
    """Returns batch ↦ its number of examples, its weight in a mean, for the batches of one data set.

    It is the length of the first axis of its arrays, but for raw random keys beside them. If they differ, it
    is unknown, which does no harm if all batches are alike. Batches of scalars, such as random keys from
    which data are made, count as one example each.
    """
    if isinstance(batches, WeightedBatches):
        return batches.num_examples
    seen: list[list[int]] = []

    def count(batch: Any) -> int:
        leaves = [leaf for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)]
        of_examples = [leaf for leaf in leaves if not is_raw_key(leaf)] or leaves
        lengths = [jnp.shape(leaf)[0] for leaf in of_examples]
        seen.append(lengths)
        if len(set(lengths)) <= 1 and len(set(seen[0])) <= 1:
            return next(iter(lengths), 1)
        if lengths != seen[0]:
            raise ValueError(
                "A batch is weighted by its number of examples, which is unknown: its arrays have first axes"
                f" of the lengths {lengths}, those of the first batch {seen[0]}. Say how many there are:"
                " `batches=optax_sam.WeightedBatches(batches, lambda batch: len(batch['x']))`. (If all"
                " batches have the same shapes, nothing needs to be said.)"
            )
        return 1

    return count


def is_raw_key(leaf: Any) -> bool:
    """Whether an array looks like one random key, as `jax.random.PRNGKey` makes them."""
    return jnp.shape(leaf) in ((2,), (4,)) and getattr(leaf, "dtype", None) == jnp.uint32


def value(loss: ValueFn, params: optax.Params) -> jax.Array:
    """Returns L(w), float32 or wider."""
    result = BatchLoss(loss).value(params)
    return result.astype(tree_math.accumulation_dtype(result, params))


def value_and_gradient(loss: ValueFn, params: optax.Params) -> tuple[jax.Array, optax.Updates]:
    """Returns L(w) and ∇L(w), float32 or wider."""
    result, gradient = BatchLoss(loss).value_and_gradient(params)
    assert result is not None  # There is no `grad_fn`.
    return result.astype(tree_math.accumulation_dtype(result, params)), gradient


def value_over(
    value_fn: Callable[..., jax.Array], params: optax.Params, batches: Iterable[Any] | None
) -> ValueFn:
    """Returns w ↦ L(w), for one batch or a data set; `params` is an example of w."""
    zeros = lambda: jnp.zeros((), tree_math.accumulation_dtype(params))
    return over_batches(value, value_fn, batches, zeros=zeros)


def value_and_gradient_over(
    value_fn: Callable[..., jax.Array], params: optax.Params, batches: Iterable[Any] | None
) -> Evaluate:
    """Returns w ↦ (L(w), ∇L(w)), for one batch or a data set; `params` is an example of w."""
    zeros = lambda: (jnp.zeros((), tree_math.accumulation_dtype(params)), tree_math.zeros_like(params))
    return over_batches(value_and_gradient, value_fn, batches, zeros=zeros)
