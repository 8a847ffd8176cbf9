"""A progress bar for what takes long: tqdm, of the extra `curvature`, imported where it is asked for."""

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def steps(count: int, title: str, unit: str = "product") -> Iterable[int]:
    """Returns range(count), with a progress bar of that title if it is not empty, which counts in `unit`."""
    return with_bar(range(count), title, unit)


def with_bar(items: Iterable[T], title: str, unit: str) -> Iterable[T]:
    """Returns the items, with a progress bar of that title if it is not empty, which counts in `unit`."""
    if not title:
        return items
    try:
        from tqdm import auto
    except ImportError as error:
        raise ImportError(
            "`progress=True` needs tqdm: `pip install 'optax_sam[curvature]'` or `pip install tqdm`."
        ) from error
    return auto.tqdm(items, desc=title, unit=unit)
