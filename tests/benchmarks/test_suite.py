"""The suite: what a row tries, and what is chosen."""

import numpy as np

from benchmarks import __main__
from benchmarks.data import arrays
from benchmarks.experiments.suite.rows import Row, best, known_trials
from benchmarks.experiments.suite.tables import gradients

SUITES = {name: own for name, own in __main__.EXPERIMENTS.items() if hasattr(own, "row_config")}


def test_a_row_that_starts_from_another_one_has_its_settings():
    made_up = {
        "tuned": Row("sgd", "tuned", [{"weight_decay": 1}, {"weight_decay": 2}], {"learning_rate": 3}),
        "sam": Row("sam", "SAM on tuned", [{"rho": 4}, {"rho": 5}], starts_from="tuned"),
        "long": Row("sgd", "longer", starts_from="tuned"),
    }
    trials = []

    def make(row, accuracy, **settings):
        trials.append({"row": row, "label_noise": 0.0, "settings": settings, "validation_accuracy": accuracy})

    known = lambda name: known_trials(trials, name, 0.0, made_up)
    first = [{"weight_decay": 1}, {"weight_decay": 2}]
    assert known("tuned") == (first, False)
    assert known("sam") == known("long") == ([], False)
    make("tuned", 0.5, weight_decay=1)
    make("tuned", 0.6, weight_decay=2)
    last = {"weight_decay": 2, "learning_rate": 3}
    assert known("tuned") == ([*first, last], False)
    assert known("sam") == known("long") == ([], False)
    make("tuned", 0.7, **last)
    assert known("tuned") == ([*first, last], True)
    assert known("long") == ([], True)
    assert best(trials, "long", 0.0, made_up) == last
    assert known("sam") == ([last | {"rho": 4}, last | {"rho": 5}], False)
    make("sam", 0.8, **last, rho=5)
    make("sam", 0.7, **last, rho=4)
    assert best(trials, "sam", 0.0, made_up) == last | {"rho": 5}


def test_best_is_of_the_row_and_noise_level_and_the_first_of_equals():
    made_up = [
        {"row": row, "label_noise": noise, "settings": settings, "validation_accuracy": accuracy}
        for row, noise, settings, accuracy in [
            ("sam", 0.0, "a", 0.5),
            ("sam", 0.0, "b", 0.7),
            ("sam", 0.0, "c", 0.7),
            ("sam", 0.4, "d", 0.9),
            ("sgd", 0.0, "e", 0.8),
        ]
    ]
    assert best(made_up, "sam", 0.0) == "b"


def test_more_test_images_come_from_those_held_out_and_no_image_is_used_twice():
    split = lambda *numbers: arrays.Split(np.array(numbers)[:, None], np.array(numbers))
    whole = arrays.Dataset(split(1, 2), split(3, 4, 5), split(6, 7), 10)
    for name, size in (("suite_cifar_resnet", 2500), ("suite_cifar_resnet_fitted", 1000)):
        suite = __main__.EXPERIMENTS[name]
        config, more_test = suite.config, suite.more_test  # as the protocol says
        assert (config["train_size"], config["validation_size"] - more_test) == (size, 1500)
    object.__setattr__(small := type(suite)(rows=suite.rows), "more_test", 2)
    moved = small.with_more_test_images(whole)
    assert moved.validation.labels.tolist() == [3]
    assert moved.test.labels.tolist() == [4, 5, 6, 7]
    assert moved.test.images[:, 0].tolist() == [4, 5, 6, 7]
    assert moved.train == whole.train


def test_every_row_has_its_configuration():
    for suite in SUITES.values():
        for name, row in suite.rows.items():
            assert suite.row_config(name, 0.0).epochs == row.epochs
        if "sgd_long" in suite.rows:
            assert suite.rows["sgd_long"].epochs == 2 * suite.rows["sgd"].epochs


def test_prices():
    rows = __main__.EXPERIMENTS["suite_cifar_resnet"].rows
    named = ("sgd_long", "xsam3", "look_sam", "momentum_sam", "part_16")
    assert [gradients(rows, row, 128) for row in named] == [2, 4, 1.2, 1, 1 + 16 / 128]
