"""The cost of a step, by counts of the compiled program: no clock decides here.

XLA's program is counted, which is the same with LLVM's optimizations and, as these tests compile, without.
"""

import dataclasses
import functools

import jax
import optax
import pytest

import optax_sam
from benchmarks.cost import step_cost, steps
from benchmarks.models.cost_networks import Transformer

NUM_ITERS = 2
PARAMETERS_OF_MLP = 784 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10


@functools.cache
def counts(model, row, batch_size=128, num_alphas=21):
    loss, params, batch = steps.make_loss(model, batch_size)
    made = steps.make_steps(loss, params, num_iters=NUM_ITERS, num_alphas=num_alphas)
    return steps.counts(steps.compile_step(*made[row], batch))


def flops_of_a_loss(model):
    loss, *arguments = steps.make_loss(model, 128)
    return jax.jit(loss).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    "row",
    [
        *("sam", "asam", "fisher_sam", "info_sam", "eigen_sam", "xsam"),
        *("vasso", "friendly_sam", "sparse_sam", "gsam", "wsam", "stable_sam"),
    ],
)
def test_a_step_between_refreshes_costs_what_sam_by_hand_costs(row):
    own, by_hand = counts("strided_cnn", row), counts("strided_cnn", "sam by hand")
    assert own["flops"] <= 1.01 * by_hand["flops"]
    assert own["temporary_bytes"] <= 1.02 * by_hand["temporary_bytes"]
    assert own["control_flow"] == 0


@pytest.mark.parametrize("row", ["momentum_sam", "look_sam"])
@pytest.mark.parametrize("model", ["mlp", "strided_cnn"])
def test_a_step_of_one_gradient_costs_what_sgd_costs(model, row):
    """The clean gradient (Momentum-SAM), or the second one (LookSAM between refreshes), is not computed."""
    own, sgd = counts(model, row), counts(model, "sgd")
    assert own["flops"] <= 1.03 * sgd["flops"]
    assert own["control_flow"] == 0


@pytest.mark.parametrize("row", ["rwp", "rwp, adaptive", "rwp, unsafe_rbg"])
@pytest.mark.parametrize(("model", "batch_size"), [("strided_cnn", 128), ("mlp", 512)])
def test_a_step_at_weights_with_noise_costs_what_sgd_costs_and_the_random_numbers(row, model, batch_size):
    """Where a weight is used often enough: with images, or with large batches."""
    assert counts(model, row, batch_size)["flops"] <= 1.05 * counts(model, "sgd", batch_size)["flops"]


@pytest.mark.parametrize("row", ["rwp", "rwp, unsafe_rbg"])
def test_noise_costs_about_a_hundred_operations_a_parameter(row):
    own, sgd = counts("mlp", row), counts("mlp", "sgd")
    assert own["flops"] - sgd["flops"] <= 100 * PARAMETERS_OF_MLP


def test_a_clean_loss_that_is_returned_costs_a_forward_pass():
    loss, params, batch = steps.make_loss("strided_cnn", 128)
    tx = optax.chain(optax_sam.momentum_sam(0.1), optax.sgd(0.1))

    def flops(which):
        def step(params, state, batch):
            value_fn = functools.partial(loss, batch=batch)
            clean, grads = jax.value_and_grad(value_fn)(params)
            updates, state = tx.update(grads, state, params, value_fn=value_fn)
            returned = clean if which == "clean" else optax.tree.get(state, "ascent_value")
            return optax.apply_updates(params, updates), state, returned

        return jax.jit(step).lower(params, tx.init(params), batch).compile().cost_analysis()["flops"]

    assert flops("clean") - flops("ascent") == pytest.approx(flops_of_a_loss("strided_cnn"), rel=0.02)


@pytest.mark.parametrize(("row", "fraction"), [("sam, ascent on 1/4", 4), ("sam, ascent on 1/16", 16)])
def test_an_ascent_on_a_part_of_the_batch_costs_that_part_of_a_gradient(row, fraction):
    own, gradient = counts("strided_cnn", row), counts("strided_cnn", "gradient")
    assert own["flops"] <= (1.02 + 1.02 / fraction) * gradient["flops"]


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="earlier compilers keep more of every method")
@pytest.mark.parametrize(
    ("row", "copies"),
    [("sam", 0), ("asam", 0), ("info_sam", 0), ("fisher_sam", 1), ("eigen_sam", 1), ("xsam", 2)],
)
def test_where_parameters_outweigh_activations_a_method_keeps_few_copies_of_them(row, copies):
    own, by_hand = (counts("mlp", name)["temporary_bytes"] for name in (row, "sam by hand"))
    assert own - by_hand <= (copies + 0.02) * 4 * PARAMETERS_OF_MLP


@pytest.mark.parametrize(("model", "batch_size"), [("strided_cnn", 128), ("transformer", 8)])
def test_sam_by_hand_is_two_gradients_and_so_is_sam(model, batch_size, monkeypatch):
    _, *shapes = steps.NETWORKS["transformer"]
    smaller = functools.partial(Transformer, num_blocks=1)
    monkeypatch.setitem(steps.NETWORKS, "transformer", (smaller, *shapes))
    gradient, by_hand, sam = (
        counts(model, row, batch_size)["flops"] for row in ("gradient", "sam by hand", "sam")
    )
    # Eight examples do not outweigh what is done once for every parameter.
    assert by_hand == pytest.approx(2 * gradient, rel=0.05)
    assert sam <= 1.01 * by_hand


@pytest.mark.parametrize("row", ["eigen_sam, refresh", "eigen_sam, refresh by lanczos"])
def test_a_refresh_of_eigen_sam_costs_little_more_than_its_products(row):
    refresh = counts("strided_cnn", row)["flops"] - counts("strided_cnn", "eigen_sam")["flops"]
    assert refresh <= (1 + 2.2 * NUM_ITERS) * counts("strided_cnn", "gradient")["flops"]


def test_memory_of_a_search_does_not_depend_on_the_number_of_losses():
    many, few = (counts("strided_cnn", "xsam, refresh", num_alphas=n)["temporary_bytes"] for n in (21, 3))
    assert many == pytest.approx(few, rel=0.01)


class Clock:
    """Time passes only where a row says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def row(self, durations, is_refresh=False):
        """A row whose n-th turn takes `durations[n]` seconds a step; the last one stays."""
        turns = iter(range(10**6))

        def run(steps):
            self.now += steps * durations[min(next(turns), len(durations) - 1)]

        return step_cost.Row(run, {}, is_refresh)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(step_cost, "time", clock)
    return clock


def test_the_first_round_is_not_counted_and_refreshes_are_measured_three_times(clock):
    rows = {
        "sgd": clock.row([9.0, 1.0, 2.0, 4.0, 1.0]),
        "sam": clock.row([9.0, 2.0, 4.0, 8.0, 3.0]),
        "refresh": clock.row([9.0, 10.0, 20.0, 40.0, 7.0], is_refresh=True),
    }
    times = step_cost.take_turns(rows, rounds=5, seconds=1e9, description="test")
    assert times["sgd"] == pytest.approx([1.0, 2.0, 4.0, 1.0, 1.0])
    assert times["refresh"] == pytest.approx([10.0, 20.0, 40.0])
    # Within a round, so that a machine that slows down does not matter.
    ratios = {name: step_cost.seconds(times[name], times["sgd"])["seconds_relative_to_sgd"] for name in rows}
    assert ratios["refresh"] == pytest.approx([10.0, 10.0, 10.0])
    assert ratios["sam"] == pytest.approx([2.0, 2.0, 3.0])


def test_fast_rows_make_many_steps_in_a_turn(clock):
    turns = []
    fast = clock.row([0.01])
    row = dataclasses.replace(fast, run=lambda n: (turns.append(n), fast.run(n)))
    times = step_cost.take_turns({"sgd": row}, rounds=2, seconds=1e9, description="test")
    assert turns == [1, 5, 5]
    assert times["sgd"] == pytest.approx([0.01, 0.01])


def test_slow_networks_get_seven_rounds(clock):
    rows = {"sgd": clock.row([100.0])}
    assert len(step_cost.take_turns(rows, rounds=30, seconds=1.0, description="test")["sgd"]) == 7


def rows_of(*rows, **settings):
    return step_cost.compiled_rows(step_cost.StepCost(rows=rows, **settings), "mlp")


def test_a_search_is_counted_as_often_as_its_loop_runs():
    rows = rows_of("xsam", "xsam, refresh", num_alphas=20)
    search = rows["xsam, refresh"].counts["flops"] - rows["xsam"].counts["flops"]
    assert search == pytest.approx(20 * flops_of_a_loss("mlp"), rel=0.1)


@pytest.mark.parametrize("row", ["eigen_sam, refresh", "eigen_sam, refresh by lanczos"])
def test_products_are_counted_as_often_as_their_loop_runs(row):
    """Without a convolution they are in one."""
    one, four = (rows_of("eigen_sam", row, num_iters=n) for n in (1, 4))
    assert not one[row].counts["control_flow"]
    assert four[row].counts["control_flow"]
    products = {
        n: found[row].counts["flops"] - found["eigen_sam"].counts["flops"]
        for n, found in ((1, one), (4, four))
    }
    assert products[4] == pytest.approx(4 * products[1], rel=0.1)
