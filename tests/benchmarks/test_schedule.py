"""What a program scheduled for a TPU says, read from an excerpt of one."""

from pathlib import Path

import pytest

from benchmarks.cost.schedule import flops_of, read

TEXT = (Path(__file__).parent / "scheduled_program.txt").read_text()


def test_loops_count_as_often_as_they_run():
    found = read(TEXT)
    assert found["cycles"] == 300 + 5 * 1000
    once, again = 2 * 64 * 32 * 128, 2 * 64 * 128 * 128
    assert found["flops_factor"] == pytest.approx((once + 5 * again) / (once + again))
    # Each pass reads one of the five matrices, so the loop reads each once.
    assert 1 < found["bytes_factor"] < 2
    assert found["lines"] == len(TEXT.splitlines())


def test_collectives_are_counted_with_what_runs_meanwhile():
    found = read(TEXT)
    assert found["collectives"] == {"all-gather": 1, "all-reduce": 5, "reduce-scatter": 1}
    assert found["asynchronous"] == {"all-gather": 1}
    assert found["hidden_cycles"] == 300
    assert found["collective_bytes"] == {
        "all-reduce": 5 * 64 * 128 * 2,
        "all-gather": 128 * 128 * 2,
        "reduce-scatter": 128 * 64 * 2,
    }


def test_collectives_with_a_start_and_an_end_of_their_own():
    """The form of the CPU's and the GPU's compilers."""
    program = """
ENTRY %main (a: f32[8,4], b: f32[8]) -> f32[32,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %start = (f32[8,4]{1,0}, f32[32,4]{1,0}) all-gather-start(%a), channel_id=1, dimensions={0}
  %pass = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%b), channel_id=3
  %negate = f32[8,4]{1,0} negate(%a), backend_config={"window_config":{"estimated_cycles":"40"}}
  %sum = f32[8]{0} all-reduce(%b), channel_id=2
  %passed = f32[8]{0} collective-permute-done(%pass)
  ROOT %done = f32[32,4]{1,0} all-gather-done(%start)
}
"""
    found = read(program)
    assert found["collectives"] == {"all-gather": 1, "all-reduce": 1, "collective-permute": 1}
    assert found["asynchronous"] == {"all-gather": 1, "collective-permute": 1}
    assert found["hidden_cycles"] == 40  # both on their way meanwhile
    assert found["collective_bytes"] == {
        "all-reduce": 32,
        "all-gather": 32 * 4 * 4,
        "collective-permute": 32,
    }
    assert found["collective_scalars"] == 0


@pytest.mark.parametrize(
    ("result", "operands", "attributes", "flops"),
    [
        # A product of matrices.
        ("f32[2,5]", ("f32[2,3]", "f32[3,5]"), "dim_labels=bf_io->bf", 2 * 2 * 3 * 5),
        # One product for each of four: every other tap meets only zeros between the entries.
        (
            "f32[4,2,5]",
            ("f32[4,2,3]", "f32[4,5,3]"),
            "window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0oi->0bf",
            4 * 2 * 2 * 3 * 5,
        ),
        # A 3x3 convolution with padding: at the edge a third of the taps are outside.
        (
            "f32[1,4,4,5]",
            ("f32[1,4,4,3]", "f32[3,3,3,5]"),
            "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
            2 * 3 * 5 * (3 * 4 - 2) ** 2,
        ),
        # With stride 2.
        (
            "f32[1,2,5]",
            ("f32[1,4,3]", "f32[1,3,5]"),
            "window={size=1 stride=2}, dim_labels=b0f_0io->b0f",
            2 * 2 * 3 * 5,
        ),
    ],
)
def test_flops_of_a_convolution(result, operands, attributes, flops):
    known = dict(zip(("left", "right"), operands, strict=True))
    assert flops_of(result, f"%left, %right), {attributes}", known) == flops
