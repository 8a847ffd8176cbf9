"""The TPU's own compiler, where it is installed: `make test-tpu`. It needs no TPU."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import pandas as pd
import pytest

from benchmarks.cost import chips, tpu
from benchmarks.cost.by_hand import BY_HAND
from benchmarks.cost.published import published_program
from benchmarks.cost.tpu_programs import HAND, NETWORKS
from benchmarks.errors import UsageError
from benchmarks.experiment import read
from benchmarks.methods import METHODS

# In a process of its own: JAX may have been started for other devices in this one.
PROGRAM = """
import sys
from pathlib import Path
from benchmarks.cost.tpu import TPU
from benchmarks.experiment import measure_missing
sam = "base", "sam by hand", "sam"
plan = (
    ("v5e", 8, "tiny_decoder", "data", (*sam, "eigen_sam refresh")),
    ("v5e", 8, "tiny_decoder", "fsdp", ("base", "sam")),
    ("v5e", 8, "tiny_decoder", "local", ("sam",)),
)
measure_missing(TPU(plan=plan, configs=()), Path(sys.argv[1]), Path(), 1)
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Row -> record, by layout."""
    pytest.importorskip("libtpu")
    folder = tmp_path_factory.mktemp("results")
    environment = os.environ | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], check=True, env=environment)
    found = {}
    for record in read(tpu.TPU(), folder):
        found.setdefault(record["layout"], {})[record["row"]] = record
    return found


def test_sam_costs_two_gradients_and_no_more_than_by_hand(records):
    base, by_hand, sam, _ = records["data"].values()
    assert base["device"] == "TPU v5 lite"
    assert "libtpu" in base["versions"]
    assert sam["flops"] == pytest.approx(2 * base["flops"], rel=0.02)
    assert sam["flops"] == pytest.approx(by_hand["flops"], rel=0.02)
    assert sam["cycles"] <= 1.05 * by_hand["cycles"]
    # Both gradients are summed over the chips, in the precision of the computation.
    half = base["parameter_bytes"] / 2
    assert sam["collective_bytes"]["all-reduce"] == pytest.approx(2 * half, rel=0.01)
    assert base["collective_bytes"]["all-reduce"] == pytest.approx(half, rel=0.01)


def test_sharded_parameters_are_gathered_while_something_is_computed(records):
    for record in records["fsdp"].values():
        assert record["asynchronous"]["all-gather"] > 0
        assert record["hidden_cycles"] > 0
        assert record["peak_bytes"] < records["data"]["base"]["peak_bytes"]


def test_with_m_sharpness_chips_send_one_gradient(records):
    assert records["local"]["sam"]["collectives"] == {"all-reduce": 1}


def test_the_tables_show_every_program(records):
    every = [record for rows in records.values() for record in rows.values()]
    tables = tpu.TPU().tables(pd.DataFrame(every), None)["docs/evidence/tpu.md"]
    assert not re.search(r"\bnan\b", json.dumps(tables))
    assert tables["networks"].count("| eigen_sam refresh") == 1
    assert "by hand" not in tables["networks"]
    assert tables["sent"].count("FSDP") == 2


# --- Without the compiler -----------------------------------------------------------------------------


def test_without_the_compiler_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for chip, package in (("v5e", "tpu"), ("h100", "cuda12")):
        with pytest.raises(UsageError, match=rf"pip install 'jax\[{package}\]'"):
            chips.chips(chip, 8)


def test_every_program_of_the_plan_exists():
    jobs = tpu.TPU().jobs([])
    assert len({json.dumps(job) for job in jobs}) == len(jobs)
    for job in jobs:
        assert (job["chip"], job["chips"]) in chips.TOPOLOGIES
        if "config" not in job:
            assert job["network"] in NETWORKS
            row = job["row"]
            if row.endswith(HAND):
                assert row.removesuffix(HAND) in BY_HAND
            else:
                assert row == "base" or row.removesuffix(tpu.REFRESH) in METHODS


def test_a_published_setting_is_a_program_that_keeps_its_state():
    file = tpu.CONFIGS / "sam_cifar100_resnet18.toml"
    program = published_program(file, jax.devices()[0], False)
    state, loss = jax.eval_shape(program.step, *program.arguments)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(state) == shapes(program.arguments[0])
    assert loss.shape == ()
    assert program.batch_size == 256
