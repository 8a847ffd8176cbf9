"""The engine: nothing is lost, nothing is done twice, and every record says where it comes from."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from benchmarks import __main__
from benchmarks.errors import DivergenceError, UsageError
from benchmarks.experiment import Experiment, changes, is_done, measure_again, measure_missing, read
from benchmarks.records import read_records, write_records
from tests.benchmarks.conftest import REPOSITORY


@dataclasses.dataclass(frozen=True)
class Squares(Experiment):
    """Squares of the seeds; when all of them are there, also their sum."""

    name: str = "squares"
    seeds: tuple[int, ...] = (0, 1, 2, 3)

    @property
    def files(self):
        return {"one": "squares", "all": "squares_sum"}

    def jobs(self, records):
        ones = [{"part": "one", "seed": seed} for seed in self.seeds]
        if not all(is_done(job, records) for job in ones):
            return ones
        return [*ones, {"part": "all", "seeds": list(self.seeds)}]

    def measure(self, job, data_dir):
        if job["part"] == "all":
            return [{"kind": kind} for kind in ("sum", "mean")]
        if job["seed"] == 3:
            raise DivergenceError("diverged")
        return [{"square": job["seed"] ** 2}]

    def tables(self, frame, results):
        return {}


def seeds(records):
    return [record["seed"] for record in records if record["part"] == "one"]


def test_later_jobs_follow_and_what_is_done_is_not_repeated(tmp_path):
    added = measure_missing(Squares(), tmp_path, tmp_path, 1)
    assert seeds(added) == [0, 1, 2, 3]
    assert [record["kind"] for record in added[4:]] == ["sum", "mean"]
    assert measure_missing(Squares(), tmp_path, tmp_path, 1) == []
    # Cut in the middle of a line, as by a full disk: only that job is done again.
    file = tmp_path / "squares.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-30])
    assert seeds(measure_missing(Squares(), tmp_path, tmp_path, 1)) == [3]
    assert file.read_text() == whole
    # More seeds, or fewer, leave the others alone.
    assert seeds(measure_missing(Squares(seeds=(5, 1)), tmp_path, tmp_path, 1)) == [5]
    assert sorted(seeds(read(Squares(), tmp_path))) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("processes", [1, 2])
def test_recorded_jobs_are_done_again_and_compared(tmp_path, processes):
    own, place = Squares(seeds=(0, 1, 2, 4)), (tmp_path, tmp_path, processes)
    measure_missing(own, *place)
    file = tmp_path / "squares.jsonl"
    changed = file.read_text().replace('"square": 4', '"square": 5')
    file.write_text(changed)
    found = [(job.get("seed"), differences) for job, differences in measure_again(own, *place, 9)]
    # The last is the job of all seeds.
    assert sorted(found, key=str) == [(0, []), (1, []), (2, ["square: 5, now 4"]), (4, []), (None, [])]
    assert file.read_text() == changed
    assert len(list(measure_again(own, *place, 2))) == 2


def test_settings_are_compared_where_both_records_have_them():
    old = {"config": {"epochs": 20, "rho": 0.1}, "seconds": 1.0, "commit": "a"}
    new = {"config": {"epochs": 10, "rho": 0.1, "augment": "none"}, "seconds": 2.0, "commit": "b", "more": 1}
    assert changes(old, new) == ["config.epochs: 20, now 10"]


def test_a_training_that_diverges_is_a_result(tmp_path):
    measure_missing(Squares(), tmp_path, tmp_path, 1)
    (last,) = [record for record in read(Squares(), tmp_path) if record["seed"] == 3]
    assert last["diverged"]
    assert last["test_accuracy"] == last["validation_accuracy"] == 0.1


def test_two_processes_do_the_same_work_in_any_order(tmp_path):
    measure_missing(Squares(seeds=(0, 1, 2)), tmp_path, tmp_path, 2)
    assert seeds(read(Squares(), tmp_path)) == [0, 1, 2]  # in the file in the order of the jobs


def test_an_error_of_a_worker_is_not_lost(tmp_path):
    with pytest.raises(TypeError):
        measure_missing(Squares(seeds=(0, "one")), tmp_path, tmp_path, 2)
    assert seeds(read(Squares(), tmp_path)) in ([], [0])


def test_only_what_is_wanted(tmp_path):
    wanted = lambda job: __main__.is_wanted(job, {"seed": ["1", "2"]})
    assert seeds(measure_missing(Squares(), tmp_path, tmp_path, 1, wanted)) == [1, 2]


def test_a_record_says_from_which_code_versions_machine_and_seed_it_is(tmp_path):
    measure_missing(Squares(), tmp_path, tmp_path, 1)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    for record in read(Squares(), tmp_path):
        assert isinstance(record["seed"], int)
        assert {"jax", "optax", "flax", "optax_sam"} == set(record["versions"])
        assert "cores" in record["machine"]
        assert record["device"]
        if head.returncode == 0:
            assert record["commit"].removesuffix(" with changes") == head.stdout.strip()


def test_records_of_older_code_are_read(tmp_path):
    """What is called `interval` now was `refresh_every`."""
    old = {"row": "xsam", "settings": {"refresh_every": 5}, "config": {"refresh_every": 5}}
    write_records(tmp_path / "old.jsonl", [old])
    (record,) = read_records(tmp_path / "old.jsonl")
    assert record == {"row": "xsam", "settings": {"interval": 5}, "config": {"interval": 5}}


def test_the_suite_refuses_to_mix_settings(tmp_path):
    suite = __main__.EXPERIMENTS["suite_digits"]
    other = {"row": "sgd", "label_noise": 0.0, "seed": 0, "settings": {"weight_decay": 0.7}}
    write_records(tmp_path / "suite_digits.jsonl", [other])
    with pytest.raises(UsageError, match="other settings"):
        measure_missing(suite, tmp_path, tmp_path, 1)


def command(folder, data_dir):
    words = ["-m", "benchmarks", "suite_digits", "--results", folder, "--data-dir", data_dir]
    return [sys.executable, *map(str, words), "--processes", "2", "--where", "row=sgd,sgd_tuned"]


def lines(folder):
    return [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def test_a_suite_that_is_killed_loses_nothing_and_does_nothing_twice(tmp_path, data_dir):
    """SIGKILL in the middle, on two cores; then the same command."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    first = subprocess.Popen(
        command(tmp_path, data_dir),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        began = time.monotonic()
        while len(lines(tmp_path)) < 3 and time.monotonic() - began < 600 and first.poll() is None:
            time.sleep(0.01)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    kept = lines(tmp_path)
    assert 3 <= len(kept) < 8
    same = command(tmp_path, data_dir)
    again = subprocess.run(same, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert Counter(kept) <= Counter(lines(tmp_path))
    own = read(__main__.EXPERIMENTS["suite_digits"], tmp_path)
    done = Counter(json.dumps([r["part"], r["row"], r["seed"], r["settings"]]) for r in own)
    assert set(done.values()) == {1}
    assert Counter((record["part"], record["row"]) for record in own) == {
        ("trial", "sgd_tuned"): 4,
        ("network", "sgd"): 2,
        ("network", "sgd_tuned"): 2,
    }
    assert "SGD, tuned" in again.stdout


def test_there_is_one_command_beside_train():
    mains = [
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "benchmarks").rglob("*.py")
        if "tyro.cli(" in path.read_text(encoding="utf-8") or path.name == "__main__.py"
    ]
    assert sorted(mains) == ["benchmarks/__main__.py", "benchmarks/training/config.py"]
