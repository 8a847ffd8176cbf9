"""Files of settings: that they are read as a command line is, and that the published ones train."""

import dataclasses

import numpy as np
import pytest

from benchmarks.data import arrays
from benchmarks.errors import UsageError
from benchmarks.training.config import Config, parse, read
from tests.benchmarks.conftest import REPOSITORY
from tests.benchmarks.training import first_steps

PUBLISHED = sorted((REPOSITORY / "benchmarks" / "configs").glob("*.toml"))

# The networks and refreshes, small enough to compile in some seconds.
SMALLER = {
    "resnet18": {"num_blocks": (1,), "width": 4},
    "wide_resnet28_10": {"depth": 10, "width": 1},
    "vit_b16": {"image_size": 16, "hidden_size": 16, "num_layers": 1, "num_heads": 2},
}
CHEAPER = {"eigen_sam": {"num_iters": 1}}


@pytest.fixture(scope="module")
def images():
    """As many classes as CIFAR-100 has, of random images."""
    random = np.random.default_rng(0)
    split = lambda size: arrays.Split(
        random.normal(size=(size, 16, 16, 3)).astype(np.float32), random.integers(0, 100, size)
    )
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    return arrays.Dataset(split(32), split(0), split(8), 100, zero, one)


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_published_configuration_trains(file, images):
    config = parse(["--config", str(file)])
    assert config.validation_size == 0  # nothing is chosen in such a run
    small = dataclasses.replace(
        config,
        batch_size=16,
        epochs=2,
        model_options=SMALLER[config.model],
        options=config.options | CHEAPER.get(config.method, {}),
    )
    losses = first_steps(small, images, 3).losses
    np.testing.assert_allclose(losses[0], np.log(100), rtol=0.5)  # before the first step it guesses
    assert np.isfinite(losses).all()
    assert len(set(losses)) == 3


@pytest.mark.parametrize(
    ("name", "method", "settings"),
    [
        ("sam_cifar100_resnet18", "sam", (0.1, {}, 256, 0.1, 5e-4)),
        ("eigen_sam_cifar100_resnet18", "eigen_sam", (0.1, {"alpha": 0.2}, 256, 0.1, 5e-4)),
        ("xsam_cifar100_resnet18", "xsam", (0.15, {"rho_max": 0.3}, 125, 0.05, 1e-3)),
        ("info_sam_cifar100_wide_resnet28_10", "info_sam", (0.2, {}, 128, 0.1, 1e-3)),
    ],
)
def test_published_settings(name, method, settings):
    """As the authors' logs, defaults and commands have them (for infoSAM: those of its authors' SAM)."""
    config = parse(["--config", f"{REPOSITORY}/benchmarks/configs/{name}.toml"])
    rest = (config.rho, config.options, config.batch_size, config.learning_rate, config.weight_decay)
    assert (config.method, config.dataset, config.epochs, config.momentum) == (method, "cifar100", 200, 0.9)
    assert rest == settings


def test_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "some.toml"
    file.write_text(
        'method = "xsam"\noptions = { rho_max = 0.3 }\nepochs = 3\nresume = true\ndevices = "all"'
    )
    expected = Config(method="xsam", options={"rho_max": 0.3}, epochs=3, resume=True, devices="all")
    named = ["--config", str(file)]
    assert parse(named) == expected
    assert parse([*named, "--epochs", "5", "--no-resume"]) == dataclasses.replace(
        expected, epochs=5, resume=False
    )
    assert parse([*named, "--options", "alpha_max", "1.5"]).options == {"alpha_max": 1.5}
    assert parse([*named, "--method", "sam", "--options"]).options == {}
    assert parse(["--epochs", "5"]) == Config(epochs=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 0.1", r"some.toml: no setting is called learning_rat; there are method, rho,"),
        ("learning_rate 0.1", r"some.toml is not TOML"),
        (None, r"some.toml cannot be read: No such file"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    file = tmp_path / "some.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=message):
        read(file)


def test_a_wrong_value_is_refused_as_on_the_command_line(tmp_path, capsys):
    file = tmp_path / "some.toml"
    file.write_text('method = "samm"')
    with pytest.raises(SystemExit):
        parse(["--config", str(file)])
    shown = capsys.readouterr().err
    assert "samm" in shown
    assert "some.toml" in shown.replace("\n", "")
