"""Progress bars with tqdm, from the extra `progress`, which is imported only if a bar is asked for.

They count what a Python loop does anyway, so the numbers are the same with a bar and without.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def with_bar(items: Iterable[T], unit: str, *, show: bool) -> Iterable[T]:
    """Returns the items, with a progress bar that counts them if it is to be shown."""
    return bar(items, unit=unit) if show else items


@contextlib.contextmanager
def counted(function: Callable[..., T], total: int, unit: str, *, show: bool) -> Iterator[Callable[..., T]]:
    """Returns the function, with a progress bar that counts its calls if it is to be shown.

    Args:
      function: what takes the time.
      total: number of calls to expect.
      unit: what a call computes.
      show: whether to show the bar.
    """
    if not show:
        yield function
        return
    with bar(total=total, unit=unit) as shown:

        def call(*args: Any) -> T:
            result = jax.block_until_ready(function(*args))
            shown.update()
            return result

        yield call


def bar(*args: Any, **kwargs: Any) -> Any:
    """Returns a bar of tqdm, for a terminal or a notebook."""
    try:
        from tqdm import auto
    except ImportError as error:
        raise ImportError(
            "`progress=True` needs tqdm: `pip install 'optax_sam[progress]'` or `pip install tqdm`."
        ) from error
    return auto.tqdm(*args, **kwargs)
