"""Equal budgets: how settings are chosen, what is called a difference, how networks are changed."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from benchmarks import methods
from benchmarks.data.arrays import Dataset, Split
from benchmarks.errors import DivergenceError
from benchmarks.experiments.budgets import equal_budgets
from benchmarks.experiments.budgets.differences import differences, holm
from benchmarks.experiments.budgets.equal_budgets import ROWS, EqualBudgets, Row, follow, stopped
from benchmarks.experiments.budgets.robustness import calibration_error, changes, pruned, rounded
from benchmarks.experiments.budgets.search import GRIDS, neighbours, walk
from benchmarks.models import table
from benchmarks.training.config import Config
from benchmarks.training.program import make_program
from tests.benchmarks.networks import Tiny


def test_the_search_ends_where_no_neighbour_is_better_and_never_at_an_edge():
    peak = {"epochs": 5, "rho": 0.3}
    place = lambda name, value: GRIDS[name].index(value)
    score = lambda own: -sum(abs(place(name, own[name]) - place(name, peak[name])) for name in peak)
    trials, seeds = [], (7, 8)
    for _ in range(20):
        tried, chosen = walk(trials, {"epochs": 20, "rho": 0.1}, seeds, "score")
        if chosen is not None:
            break
        known = [trial["settings"] for trial in trials]
        new = [settings for settings in tried if settings not in known]
        assert new
        trials += [{"settings": own, "seed": seed, "score": score(own)} for own in new for seed in seeds]
    assert chosen == peak
    assert all(settings in tried for settings in neighbours(peak))
    assert len(tried) == len({tuple(settings.items()) for settings in tried}) < 20


def test_the_search_waits_for_all_seeds_and_stays_where_neighbours_are_equal():
    start = {"epochs": 10}
    one = [{"settings": own, "seed": 7, "score": 0.5} for own in (start, *neighbours(start))]
    assert walk(one, start, (7, 8), "score").chosen is None
    both = one + [trial | {"seed": 8} for trial in one]
    assert walk(both, start, (7, 8), "score").chosen == start


def test_a_grid_that_ends_says_so():
    with pytest.raises(ValueError, match="the grid of epochs ends at 320"):
        neighbours({"epochs": 320})


def test_every_search_begins_on_its_grids():
    for row in ROWS.values():
        assert len(neighbours({"epochs": 10, **row.start})) == 2 * (1 + len(row.start))


def test_holm_by_hand():
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])


def test_words_need_a_difference_that_survives_the_correction():
    values = {
        "a": (0.8, 0.81, 0.79, 0.8, 0.8),
        "b": (0.7, 0.71, 0.69, 0.7, 0.701),
        "c": (0.81, 0.8, 0.8, 0.8, 0.79),
    }
    frame = pd.DataFrame(
        [{"row": row, "seed": seed, "x": x} for row, own in values.items() for seed, x in enumerate(own)]
    )
    found = differences(frame, [("x", "a", "b"), ("x", "c", "a"), ("x", "a", "a"), ("x", "d", "a")])
    assert list(found) == [("x", "a", "b"), ("x", "c", "a")]
    assert found["x", "a", "b"].word == "more"
    assert found["x", "a", "b"].text("better", "worse") == "+10.0 ± 0.0, better"
    assert found["x", "c", "a"].word == "no difference"
    assert found["x", "c", "a"].text() == "+0.0 ± 0.4, no difference"
    assert found["x", "c", "a"].text(no_word="") == "+0.0 ± 0.4"


def test_rounding_keeps_the_largest_weight_and_has_few_values():
    w = jnp.array(np.random.default_rng(0).normal(size=(50, 4)) * [1, 2, 3, 10], jnp.float32)
    for per_channel in (False, True):
        own = np.asarray(rounded(w, 3, per_channel))
        assert max(len(np.unique(own[:, i])) for i in range(4)) == 7
        np.testing.assert_allclose(np.abs(own).max(), np.abs(w).max(), rtol=1e-6)
    assert len(np.unique(rounded(w, 3, False)[:, 0])) < 7  # a scale for all columns is coarse for small ones
    for i in range(4):
        np.testing.assert_allclose(
            rounded(w, 3, True)[:, i], rounded(w[:, i : i + 1], 3, False)[:, 0], rtol=1e-6
        )


def test_pruning_takes_the_smallest_weights_of_all_layers_together():
    params = {
        "a": jnp.array([[1.0, -2.0], [3.0, 4.0]]),
        "b": jnp.array([[0.1, -0.2]]),
        "bias": jnp.array([1e-3]),
    }
    own = pruned(params, 0.5)
    assert own["a"].tolist() == [[0, 0], [3, 4]] or own["a"].tolist() == [[0, -2], [3, 4]]
    assert own["b"].tolist() == [[0, 0]]
    assert own["bias"].tolist() == params["bias"].tolist()


def test_noise_on_weights_is_relative():
    params = {"a": jnp.array([[0.0, 100.0], [0.0, -100.0]])}
    for name, own in changes(params, seed=0):
        if name.startswith("weight_noise"):
            assert own["a"][0, 0] == 0
            assert own["a"][0, 1] != 100


def test_calibration_error_by_hand():
    logits = np.log(np.array([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.4, 0.6]]))
    assert calibration_error(logits, np.array([0, 0, 1, 0])) == pytest.approx(0.5 * 0.2 + 0.5 * 0.1)


def test_label_smoothing_is_the_mixture_of_the_two_losses(monkeypatch):
    monkeypatch.setitem(table.MODELS, "tiny", Tiny)
    rng = np.random.default_rng(0)
    split = Split(rng.normal(size=(20, 8, 8, 1)).astype(np.float32), rng.integers(0, 10, 20))
    losses = []
    for smoothing in (0.0, 0.3):
        config = Config(model="tiny", batch_size=10, epochs=1, label_smoothing=smoothing)
        program = make_program(config, Dataset(split, split, split, 10))
        state = program.init(0)
        losses.append(float(program.loss(state.params, state.rest, *split)[0]))
    log_p = np.asarray(jax.nn.log_softmax(program.predict(state, split.images)))
    assert losses[1] == pytest.approx(0.7 * losses[0] - 0.3 * log_p.mean(), rel=1e-5)


def test_the_running_mean_of_weights():
    mean = {"w": jnp.array(1.0)}
    for value in (2.0, 3.0):
        mean = follow(mean, {"w": jnp.array(value)}, 0.9)
    assert float(mean["w"]) == pytest.approx(0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 3)


def test_stopping_keeps_the_first_of_the_best_epochs(monkeypatch):
    scores = iter((0.3, 0.6, 0.5, 0.6))
    states = [{"w": jnp.array(float(epoch))} for epoch in range(4)]
    monkeypatch.setattr(equal_budgets.networks, "after_epochs", lambda network: enumerate(states, 1))
    monkeypatch.setattr(equal_budgets, "evaluate", lambda *_: {"accuracy": next(scores)})
    network = SimpleNamespace(program=None, dataset=SimpleNamespace(validation=None))
    assert float(stopped(network)["w"]) == 1


def test_stopping_keeps_an_epoch_from_before_a_divergence(monkeypatch):
    def after_epochs(network):
        yield from enumerate(network, 1)
        raise DivergenceError("later")

    monkeypatch.setattr(equal_budgets.networks, "after_epochs", lambda network: after_epochs(network.states))
    monkeypatch.setattr(equal_budgets, "evaluate", lambda *_: {"accuracy": 0.5})
    network = SimpleNamespace(
        program=None, dataset=SimpleNamespace(validation=None), states=[{"w": jnp.ones(())}]
    )
    assert float(stopped(network)["w"]) == 1
    network.states = []
    with pytest.raises(DivergenceError):
        stopped(network)


def test_a_large_batch_costs_as_many_gradients_as_it_has_images(tmp_path):
    usual = {"dataset": "digits", "train_size": 100, "batch_size": 10}
    rows = {"small": Row("sam", "SAM"), "large": Row("sam", "SAM", fixed={"batch_size": 50})}
    experiment = EqualBudgets(config=usual, rows=rows)
    for row in rows:
        job = {"part": "trial", "row": row, "label_noise": 0.0, "seed": 0, "settings": {"epochs": 1}}
        assert experiment.measure(job, tmp_path)[0]["gradients"] == 20


def test_a_random_direction_has_the_key_that_it_is_given():
    params = {"w": jnp.ones(5)}
    seen = []
    for key in (0, 0, 1):
        tx = methods.build("random_direction", {"rho": 0.5, "key": key})
        value_fn = lambda w: (w["w"] ** 2).sum()
        direction, _ = tx.update(jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn)
        seen.append(direction["w"] / 2 - params["w"])
    assert float(optax.tree.norm(seen[0])) == pytest.approx(0.5, rel=1e-5)
    assert seen[0].tolist() == seen[1].tolist() != seen[2].tolist()
