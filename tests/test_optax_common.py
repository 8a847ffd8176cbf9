"""Optax's own suite for contributed optimizers, run on every method.

The suite hands its objective to an optimizer named "sophia" only (as `obj_fn`), so each method in turn takes
that name, with `obj_fn` handed on as `value_fn`. It lies in Optax's wheel, but not in its public interface:
hence a private import, here only, and the file skips itself where the module is gone.
"""

import inspect
import unittest

import optax
import pytest
from packaging.version import Version

from tests.registry import METHODS

suite = pytest.importorskip("optax.contrib._common_test")

STEPS = 30_000  # That the suite trains for, to within 3e-2 of the optimum.
# The learning rate is the base optimizer's, so whether it may be a schedule is asked once.
LEARNING_RATE = "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such"
CONVERGENCE = "test_optimizers"


def cases() -> dict[str, list[str]]:
    """Returns the suite's tests of sophia: the method that is written once ↦ its generated variants."""
    found: dict[str, list[str]] = {}
    for name in unittest.TestLoader().getTestCaseNames(suite.ContribTest):
        test = getattr(suite.ContribTest, name)
        if "opt_name='sophia'" in test.__x_params_repr__:
            found.setdefault(test.__wrapped__.__name__, []).append(name)
    return found


def contributed(method):
    """Returns the method as an optimizer of Optax would be written."""

    def sophia(learning_rate: optax.ScalarOrSchedule):
        # Constant radii keep a sharpness-aware method off the optimum by about that much: let them decay.
        # A method that is reused counts its refreshes, every third step.
        counted = STEPS // 2 // (3 if method.is_reused else 1)
        decaying = lambda start: optax.linear_schedule(start, 0.0, counted)
        searches = "rho_max" in inspect.signature(method.make).parameters
        radii = {"rho_max": decaying(0.1)} if searches else {}
        tx = optax.chain(method.make(decaying(0.05), **radii), optax.adam(learning_rate))

        def update(updates, state, params=None, *, obj_fn=None, **extra_args):
            return tx.update(updates, state, params, value_fn=obj_fn, **extra_args)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return sophia


def is_run(method, test):
    # Bayesian SAM divides by its precision, and its samples keep their noise: with Adam behind it, it follows
    # no gradient, and need not converge.
    if test == CONVERGENCE and not method.is_base_at_zero:
        return False
    return test != LEARNING_RATE or method.name == "sam"


@pytest.mark.parametrize(
    ("method", "test"),
    [
        pytest.param(method, test, id=f"{method.name}-{test.removeprefix('test_')}")
        for method in METHODS
        for test in cases()
        if is_run(method, test)
    ],
)
def test_optax_suite(method, test, monkeypatch):
    monkeypatch.setattr(optax.contrib, "sophia", contributed(method), raising=False)
    result = unittest.TestResult()
    for name in cases()[test]:
        suite.ContribTest(name).run(result)
    problems = [f"{case.id()} {case}\n{traceback}" for case, traceback in result.failures + result.errors]
    assert not problems, "\n".join(problems)
    assert result.testsRun == len(cases()[test])
    assert not result.skipped, result.skipped


def test_the_suite_is_the_one_we_know():
    """Fails when a new Optax renames its tests, in which case the rows above would silently thin out."""
    known = 16 if Version(optax.__version__) >= Version("0.2.8") else 11  # optax 0.2.6 had fewer
    assert sum(map(len, cases().values())) >= known
    assert "test_optimizers" in cases()
