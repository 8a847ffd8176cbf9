import dataclasses
import inspect
import json
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks import methods, train
from benchmarks.errors import UsageError
from benchmarks.models import table
from benchmarks.training.config import Config, parse
from benchmarks.training.interrupt import ask_for_interrupt
from benchmarks.training.program import make_optimizer
from tests.benchmarks.conftest import REPOSITORY
from tests.benchmarks.networks import Tiny
from tests.benchmarks.training import (
    assert_same,
    first_steps,
    last_checkpoint,
    shared_program,
    stop,
    stopped_in_epoch,
)


def without_times(log):
    records = [json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("seconds", None)
    return [record for record in records if record["event"] != "resume"]


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_trains(method, dataset):
    row = methods.METHODS[method]
    arguments = inspect.signature(row.make).parameters
    options = {k: v for k, v in row.options.items() if arguments[k].default is inspect.Parameter.empty}
    config = Config(method=method, interval=5, model="tiny", options=options)
    if method == "bayesian_sam":  # It contains momentum; 0.5 is its authors' learning rate.
        config = dataclasses.replace(config, momentum=0.0, learning_rate=0.5)
    losses = first_steps(config, dataset, 30).losses
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


@pytest.mark.parametrize(("method", "rho"), [("sgd", None), ("sam", 0.5), ("eigen_sam", 0.5)])
def test_groups_give_the_mean_of_the_steps_of_each_group_alone(method, rho, dataset):
    config = Config(method=method, rho=rho, model="tiny", batch_size=100)
    program = train.make_program(dataclasses.replace(config, groups=4), dataset)
    alone = train.make_program(dataclasses.replace(config, batch_size=25), dataset)
    order, data = train.epoch_order(0, 0, len(dataset.train.labels)), dataset.train
    step = lambda program, index: program.step(program.init(0), data, order, index, refresh=False)[0].params
    each = [step(alone, index) for index in range(4)]
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *each)
    together = step(train.make_program(config, dataset), 0)
    close = lambda one, other: np.allclose(one, other, rtol=0, atol=1e-6)
    assert jax.tree.all(jax.tree.map(close, step(program, 0), expected))
    assert jax.tree.all(jax.tree.map(close, together, expected)) == (method == "sgd")


@pytest.mark.parametrize("settings", [{"groups": 3}, {"groups": 0}, {"groups": 4, "devices": 2}])
def test_a_batch_that_cannot_be_divided_into_groups_says_so(dataset, settings, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None] * 2)
    with pytest.raises(UsageError, match="--groups divides the batch of 100 images evenly"):
        train.make_program(Config(model="tiny", **settings), dataset)


def first_state(dataset, **settings):
    config = Config(**{"method": "sam", "rho": 0.1, "model": "tiny"} | settings)
    found = first_steps(config, dataset, 1)
    return found.states[0], found.losses[0]


def test_an_ascent_on_the_whole_batch_is_the_usual_one_and_on_a_part_another(dataset):
    usual, loss = first_state(dataset)
    whole, same_loss = first_state(dataset, ascent_batch=100)
    assert_same(usual.params, whole.params)
    assert loss == same_loss
    part, of_the_part = first_state(dataset, ascent_batch=10)
    outside, of_others = first_state(dataset, ascent_batch=10, ascent_outside=True)
    assert len({loss, of_the_part, of_others}) == 3
    difference = lambda a, b: float(optax.tree.norm(jax.tree.map(np.subtract, a.params, b.params)))
    assert 0 < difference(part, usual) < difference(outside, usual)


@pytest.mark.parametrize("size", [0, 101])
@pytest.mark.parametrize("name", ["ascent_batch", "curvature_batch"])
def test_a_part_that_is_no_part_is_refused(dataset, size, name):
    option = name.replace("_", "-")
    with pytest.raises(UsageError, match=f"--{option} is a part of the batch, from 1 to 100"):
        train.make_program(Config(method="sam", **{name: size}), dataset)


def test_an_eigenvector_of_a_part_of_the_batch(dataset):
    """The gradients are of the whole batch all the same."""
    tracked = lambda state: optax.tree.get(state.opt_state, "eigenvector")
    options = {"method": "eigen_sam", "options": {"alpha": 0.0}}
    usual, loss = first_state(dataset, **options)
    whole, _ = first_state(dataset, **options, curvature_batch=100)
    part, of_the_part = first_state(dataset, **options, curvature_batch=10)
    assert_same(usual, whole)
    assert_same(usual.params, part.params)
    assert loss == of_the_part
    assert float(optax.tree.norm(jax.tree.map(np.subtract, tracked(usual), tracked(part)))) > 0.1


@pytest.mark.parametrize("model", ["mlp", "strided_cnn"])
def test_every_model_trains(model, dataset):
    config = Config(method="sgd", model=model, batch_size=50, learning_rate=0.05)
    losses = first_steps(config, dataset, 30).losses
    assert np.mean(losses[-5:]) < 0.9 * losses[0]


def test_adamw_gets_the_gradient_of_the_method_and_decouples_its_decay():
    """One step by hand: the first of Adam is the gradient's sign, and the decay is lr · λ · w."""
    config = Config(method="sam", rho=0.1, optimizer="adamw", learning_rate=0.5, weight_decay=0.2)
    tx = make_optimizer(config, 10)
    params = {"w": np.array([1.0, -2.0])}
    value_fn = lambda params: 3.0 * params["w"][0] ** 2 + params["w"][1]
    updates, _ = tx.update(jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn)
    np.testing.assert_allclose(updates["w"], -0.5 * (np.array([1.0, 1.0]) + 0.2 * params["w"]), rtol=1e-4)


def test_seeds_differ_and_repeat(dataset):
    program = train.make_program(Config(model="tiny"), dataset)
    configs = [Config(model="tiny", seed=seed) for seed in (0, 0, 1)]
    states = [first_steps(config, dataset, 3, program).states[-1] for config in configs]
    assert_same(states[0], states[1])
    assert not np.array_equal(*(jax.tree.leaves(states[i].params)[-1] for i in (0, 2)))


def test_label_noise_reaches_training_labels_only(dataset):
    config = Config(label_noise=0.4)
    noisy = train.add_label_noise(dataset.train, config, dataset.num_classes)
    assert (np.asarray(noisy.labels) != dataset.train.labels).sum() == 80
    assert np.array_equal(noisy.images, dataset.train.images)


def test_an_epoch_visits_every_image_once():
    orders = [np.asarray(train.epoch_order(0, epoch, 50)) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert not np.array_equal(*orders)


# A command line of `train` that does so, with the small network.
STOPS_ITSELF = """
import sys
from benchmarks.models import table
from tests.benchmarks.networks import Tiny
table.MODELS["tiny"] = Tiny  # before the command line looks at it
from benchmarks import train
from tests.benchmarks.training import stop
train.train_steps = stop(train.train_steps, int(sys.argv.pop(1)), int(sys.argv.pop(1)))
train.main()
"""


@pytest.fixture
def listens_to_ctrl_c():
    """As in a terminal: tests that are started in the background of a shell ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listens_to_ctrl_c")
def test_run_stopped_at_any_step_and_resumed_ends_with_the_same_bits(data_dir, tmp_path, monkeypatch):
    # 12 steps an epoch, checkpoints every 3 epochs, refreshes every 5 steps: eigenvectors have to be in them.
    settings = {"method": "eigen_sam", "model": "tiny", "interval": 5, "train_size": 600, "batch_size": 50}
    settings |= {"epochs": 7, "checkpoint_every": 3, "data_dir": data_dir}
    config = Config(**settings, output=tmp_path / "stopped", resume=True)
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    arguments += [f"--output={config.output}", "--resume"]
    metrics = config.output / "metrics.jsonl"

    def kill(step):
        """Goes on with the run until it is killed; returns the step of its last checkpoint."""
        command = [sys.executable, "-c", STOPS_ITSELF, str(signal.SIGKILL.value), str(step), *arguments]
        environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # the same bits as in this process
        process = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
        with ocp.CheckpointManager(config.output / "checkpoints") as checkpoints:
            return checkpoints.latest_step()

    assert kill(31) is None  # before the first checkpoint
    assert kill(72) == 36  # between the last step of an epoch and its checkpoint
    with metrics.open("a") as file:
        file.write('{"event": "epo')  # what a kill inside a write leaves

    # Ctrl-C loses nothing; nor does SIGTERM, which clusters send.
    monkeypatch.setattr(train, "make_program", shared_program)
    for number, step in ((signal.SIGINT, 41), (signal.SIGTERM, 48)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "train_steps", stop(train.train_steps, number, step))
            with pytest.raises(KeyboardInterrupt):
                train.run(config)
        assert last_checkpoint(config)[0] == step

    train.run(config)
    whole = dataclasses.replace(config, output=tmp_path / "whole", resume=False)
    train.run(whole)
    assert_same(last_checkpoint(config), last_checkpoint(whole))
    assert without_times(config.output) == without_times(whole.output)
    records = list(map(json.loads, metrics.read_text().splitlines()))
    assert [record["step"] for record in records if record["event"] == "resume"] == [36, 41, 48]

    # TensorBoard shows the same, whatever points were lost in the kills or came twice.
    shown = EventAccumulator(str(config.output / "tensorboard")).Reload()
    epochs = [record for record in records if record["event"] == "epoch"]
    points = [(event.step, event.value) for event in shown.Scalars("train_loss")]
    np.testing.assert_allclose(points, [(line["step"], line["train_loss"]) for line in epochs], rtol=1e-6)
    last = shown.Scalars("test/accuracy")
    assert [event.value for event in last] == [pytest.approx(records[-1]["test"]["accuracy"])]


def test_second_ctrl_c_does_not_wait():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with ask_for_interrupt() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ask_for_interrupt() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGINT, before)


def test_no_signals_outside_of_the_main_thread():
    answers = []

    def ask():
        with ask_for_interrupt() as interrupted:
            answers.append(interrupted())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [False]


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", interrupted)
    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as end:
        train.main()
    assert end.value.code == 130
    assert "--resume continues" in capsys.readouterr().out


def test_resume_with_batch_norm_and_dropout(data_dir, tmp_path, monkeypatch):
    config = Config(
        model="regularised", method="sgd", train_size=200, epochs=4, checkpoint_every=1, data_dir=data_dir
    )
    monkeypatch.setattr(train, "make_program", shared_program)
    whole = dataclasses.replace(config, output=tmp_path / "whole")
    end = train.run(whole)
    stopped = dataclasses.replace(config, output=tmp_path / "stopped")
    with stopped_in_epoch(3):
        train.run(stopped)
    resumed = train.run(dataclasses.replace(stopped, resume=True))
    assert resumed | {"seconds": 0} == end | {"seconds": 0}


def test_a_run_writes_metrics_and_is_not_overwritten_or_continued_with_other_settings(
    data_dir, tmp_path, monkeypatch
):
    config = Config(
        method="sgd",
        model="tiny",
        epochs=2,
        seed=3,
        train_size=200,
        output=tmp_path / "run",
        data_dir=data_dir,
    )
    monkeypatch.setattr(train, "make_program", shared_program)
    finished = train.run(config)
    start, *epochs, end = without_times(config.output)
    assert start["config"]["seed"] == end["seed"] == 3
    assert start["versions"]["jax"] == jax.__version__
    assert [record["epoch"] for record in epochs] == [1, 2]
    assert set(end["test"]) == {"loss", "accuracy"}

    with pytest.raises(UsageError, match="add --resume"):
        train.run(config)
    with pytest.raises(UsageError, match=r"learning_rate: 0.1 -> 0.2"):
        train.run(dataclasses.replace(config, learning_rate=0.2, resume=True))
    again = train.run(dataclasses.replace(config, resume=True))
    assert again["test"] == finished["test"]


def test_a_run_without_validation_images(data_dir, tmp_path, monkeypatch, capsys):
    arguments = (
        f"--method=sgd --epochs=1 --validation-size=0 --data-dir={data_dir} --output={tmp_path / 'run'}"
    )
    monkeypatch.setitem(table.MODELS, "mlp", Tiny)
    monkeypatch.setattr(sys, "argv", ["train", *arguments.split()])
    train.main()
    assert "validation" not in capsys.readouterr().out
    _, epoch, end = without_times(tmp_path / "run")
    assert epoch["step"] == 12
    assert epoch["validation"] == end["validation"] == {"loss": None, "accuracy": None}
    assert end["test"]["accuracy"] > 0.5


def test_divergence_is_reported_with_its_step(data_dir, tmp_path):
    config = Config(
        method="sgd",
        model="tiny",
        learning_rate=1e38,
        epochs=5,
        train_size=200,
        output=tmp_path / "run",
        data_dir=data_dir,
    )
    with pytest.raises(UsageError, match=r"not finite at step \d+ .*smaller --learning-rate"):
        train.run(config)


def test_unknown_option_is_refused_with_the_known_ones(dataset):
    with pytest.raises(UsageError, match=r"'sam' has no option alpha; its options are: rho"):
        train.make_program(Config(options={"alpha": 0.2}), dataset)
    with pytest.raises(UsageError, match="'sgd' has no option rho; its options are: none"):
        train.make_program(Config(method="sgd", rho=0.2), dataset)
    with pytest.raises(UsageError, match="--batch-size 200 or less"):
        train.make_program(Config(batch_size=500), dataset)


def test_help_lists_the_options(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["--help"], train.__doc__)
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in shown
    assert "--config" in shown


def test_options_are_typed():
    config = parse(["--options", "alpha", "0.3", "num_iters", "4", "solver", "lanczos"])
    assert config.options == {"alpha": 0.3, "num_iters": 4, "solver": "lanczos"}
    assert isinstance(config.options["num_iters"], int)
