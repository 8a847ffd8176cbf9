"""Training on four simulated devices, in a process of its own: the numbers of one, however it is laid out."""

import pytest

from tests import xla
from tests.benchmarks import parallel_worker
from tests.devices.processes import Process, checks_of, result

TOLERANCE = 1e-5  # float32; parameters are of order 1

every_layout = pytest.mark.parametrize("layout", parallel_worker.LAYOUTS)
every_method = pytest.mark.parametrize("method", parallel_worker.METHODS)


@pytest.fixture(scope="module")
def checks(data_dir, tmp_path_factory):
    """What the worker found, by the name of the check."""
    folders = map(str, (data_dir, tmp_path_factory.mktemp("runs")))
    num_devices = parallel_worker.NUM_DEVICES
    flags = xla.quick_flags()  # for the worker's many programs
    worker = Process("tests.benchmarks.parallel_worker", *folders, num_devices=num_devices, xla_flags=flags)
    try:
        return checks_of(worker)
    finally:
        worker.kill()


@every_layout
@every_method
def test_four_devices_give_the_numbers_of_one(checks, method, layout):
    found = result(checks, "numbers", method, layout)
    assert found["moved"] > 0.01
    assert found["difference"] <= TOLERANCE
    assert found["loss_difference"] <= TOLERANCE


@every_layout
@every_method
def test_state_lies_where_it_belongs_and_stays_there(checks, method, layout):
    found = result(checks, "numbers", method, layout)
    copies = 2 + (method == "eigen_sam")  # parameters, momentum, eigenvector
    assert found["sharded"] == (5 * copies if layout == "fsdp" else 0)  # all but the 10 biases of the head
    assert found["stayed"]


@pytest.mark.parametrize("layout", ["data", "fsdp"])
def test_each_device_computes_its_part_of_the_batch(checks, layout):
    expected = parallel_worker.BATCH_SIZE // parallel_worker.NUM_DEVICES
    assert result(checks, "program", layout)["batch_sizes"] == [expected]


@every_layout
def test_resumed_run_ends_with_the_same_bits(checks, layout):
    found = result(checks, "resume", layout, "same")
    assert found["step"] == 10
    assert found["devices"] == parallel_worker.NUM_DEVICES
    assert found["difference"] == 0


@every_layout
def test_run_resumes_on_another_number_of_devices(checks, layout):
    found = result(checks, "resume", layout, "other")
    assert found["step"] == 10
    assert found["devices"] == parallel_worker.ELSEWHERE[layout][0]
    assert found["difference"] <= TOLERANCE


@every_layout
def test_batch_norm_and_dropout(checks, layout):
    found = result(checks, "regularised", layout)
    assert found["finite"]
    if layout != "pmap":  # There, statistics are those of a device's part of the batch.
        assert found["difference"] <= TOLERANCE


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("batch", "batch of 102 images cannot be divided among 4 devices; use --batch-size 100 or 104"),
        ("small batch", "use --batch-size 4"),
        ("too many", "--devices 5 is not between 1 and 4, the number of devices here (cpu)"),
        ("none", "--devices 0 is not between 1 and 4"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(checks, wrong, message):
    assert message in result(checks, "error", wrong)["message"]
