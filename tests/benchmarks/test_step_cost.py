"""The cost of a step, by counts of the compiled program: no clock decides here."""

import dataclasses
import functools

import pytest

from benchmarks import step_cost

CONFIG = step_cost.Config()


@pytest.fixture(scope="module")
def counts():
    loss, params, batch = step_cost.make_loss("strided_cnn", CONFIG.batch_size)
    steps = step_cost.make_steps(CONFIG, loss, params)
    return functools.cache(lambda row: step_cost.counts(step_cost.compile_step(*steps[row], batch)))


@pytest.mark.parametrize("row", ["sam", "asam", "fisher_sam", "info_sam", "eigen_sam", "xsam"])
def test_a_step_between_refreshes_costs_what_sam_by_hand_costs(counts, row):
    own, by_hand = counts(row), counts("sam by hand")
    assert own["flops"] <= 1.01 * by_hand["flops"]
    assert own["temporary_bytes"] <= 1.02 * by_hand["temporary_bytes"]
    assert own["control_flow"] == 0


@pytest.mark.parametrize("row", ["eigen_sam, refresh", "eigen_sam, refresh by lanczos"])
def test_a_refresh_of_eigen_sam_costs_little_more_than_its_products(counts, row):
    refresh = counts(row)["flops"] - counts("eigen_sam")["flops"]
    assert refresh <= (1 + 2.2 * CONFIG.num_iters) * counts("gradient")["flops"]


def test_sam_by_hand_is_two_gradients(counts):
    assert counts("sam by hand")["flops"] == pytest.approx(2 * counts("gradient")["flops"], rel=0.01)


def test_prints_a_table_and_writes_every_number(tmp_path, capsys, monkeypatch):
    make_steps = step_cost.make_steps
    rows = ("sam by hand", "sgd", "sam")
    monkeypatch.setattr(step_cost, "make_steps", lambda *args: {row: make_steps(*args)[row] for row in rows})
    config = step_cost.Config(models=("mlp",), batch_size=8, rounds=1, steps=1, num_iters=1, num_alphas=2)
    records = step_cost.measure(config, "mlp")
    step_cost.print_table(records)
    step_cost.write(records, tmp_path / "step_cost.jsonl")
    step_cost.write(records, tmp_path / "step_cost.jsonl")
    assert [record["row"] for record in records] == list(rows)
    assert len((tmp_path / "step_cost.jsonl").read_text().splitlines()) == len(records)
    table = capsys.readouterr().out
    assert all(record["row"] in table for record in records)


def test_memory_of_a_search_does_not_depend_on_the_number_of_losses():
    loss, params, batch = step_cost.make_loss("strided_cnn", CONFIG.batch_size)

    def memory(num_alphas):
        steps = step_cost.make_steps(dataclasses.replace(CONFIG, num_alphas=num_alphas), loss, params)
        return step_cost.counts(step_cost.compile_step(*steps["xsam, refresh"], batch))["temporary_bytes"]

    assert memory(21) == pytest.approx(memory(3), rel=0.01)
