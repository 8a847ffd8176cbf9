"""Settings and fixtures shared by all tests."""

import os
from collections.abc import Callable, Iterator

import jax
import pytest
from hypothesis import settings

# Examples are compiled, so the first one is slow whatever the code under test does.
settings.register_profile("optax_sam", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("optax_sam")


def pytest_configure(config: pytest.Config) -> None:
    """Methods warn of 16-bit parameters, which many tests have on purpose."""
    config.addinivalue_line("filterwarnings", "ignore:The parameters have 16 bits")


# Without LLVM's optimizations (XLA's own stay) programs compile in half the time.
NOT_OPTIMIZED = "jax_disable_most_optimizations"


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Halves the time of most tests, which is spent in compilation."""
    jax.config.update(NOT_OPTIMIZED, True)
    yield
    jax.config.update(NOT_OPTIMIZED, False)


@pytest.fixture(scope="session", autouse=True)
def no_deprecated_names_elsewhere() -> None:
    """Makes what others deprecate an error in the scripts and notebooks that tests start, as it is here."""
    os.environ["PYTHONWARNINGS"] = "error::DeprecationWarning:__main__"


@pytest.fixture
def optimized(quick_compilation: None) -> Iterator[None]:
    """Compiles as users do: for a test of what a program costs."""
    jax.config.update(NOT_OPTIMIZED, False)
    yield
    jax.config.update(NOT_OPTIMIZED, True)


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def programs_compiled_by(caplog: pytest.LogCaptureFixture) -> Callable[[Callable[[], object]], list[str]]:
    """Maps a call to the messages of JAX about the programs that it compiled."""

    def compiled(call: Callable[[], object]) -> list[str]:
        with jax.log_compiles(), caplog.at_level("WARNING"):
            call()
        return [record.message for record in caplog.records if record.message.startswith("Compiling ")]

    return compiled
