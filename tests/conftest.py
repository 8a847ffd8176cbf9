"""Settings and fixtures shared by all tests."""

from collections.abc import Iterator

import jax
import pytest
from hypothesis import settings

# Examples are compiled, so the first one is slow whatever the code under test does.
settings.register_profile("optax_sam", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("optax_sam")


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield
