"""A progress bar for what takes long: tqdm, of the extra `curvature`, imported where it is asked for."""

from collections.abc import Iterable


def steps(count: int, title: str) -> Iterable[int]:
    """Returns range(count), with a progress bar of that title if it is not empty."""
    if not title:
        return range(count)
    try:
        from tqdm import auto
    except ImportError as error:
        raise ImportError(
            "`progress=True` needs tqdm: `pip install 'optax_sam[curvature]'` or `pip install tqdm`."
        ) from error
    return auto.tqdm(range(count), desc=title, unit="product")
