import os
from pathlib import Path

import pytest

from benchmarks.data import arrays, sources
from benchmarks.models import table
from tests.benchmarks.networks import Regularised, Tiny

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Folder with the digits prepared."""
    folder = tmp_path_factory.mktemp("data")
    sources.prepare("digits", folder)
    return folder


@pytest.fixture(scope="session")
def dataset(data_dir):
    """The digits, with few training images."""
    return arrays.load("digits", data_dir, train_size=200)


@pytest.fixture(autouse=True)
def small_models(monkeypatch):
    """Networks that compile faster, by name."""
    monkeypatch.setitem(table.MODELS, "tiny", Tiny)
    monkeypatch.setitem(table.MODELS, "regularised", Regularised)


@pytest.fixture(scope="session")
def raw_files():
    """Folder with the idx files of MNIST and Fashion-MNIST."""
    folder = Path(os.environ.get("OPTAX_SAM_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "fashion_mnist").is_dir():
        pytest.skip(f"no real Fashion-MNIST files in {folder} (set OPTAX_SAM_DATA to their folder)")
    return folder
