"""The reader of compiled programs, on a program written by hand."""

from benchmarks.cost.collectives import count

PROGRAM = """HloModule example, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%body (state: (s32[], f32[])) -> (s32[], f32[]) {
  %state = (s32[], f32[]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[] get-tuple-element(%state), index=1
  %loss = f32[] all-reduce(%x), replica_groups={{0,1}}, to_apply=%sum
  ROOT %next = (s32[], f32[]) tuple(%i, %loss)
}

%condition (state.1: (s32[], f32[])) -> pred[] {
  %state.1 = (s32[], f32[]) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (p: f32[3,5], q: bf16[7]) -> (f32[], bf16[7]) {
  %p = f32[3,5]{1,0} parameter(0)
  %q = bf16[7]{0} parameter(1)
  %whole = f32[6,5]{1,0} all-gather(%p), dimensions={0}
  %norm = f32[] reduce(%whole), dimensions={0,1}, to_apply=%sum
  %both = (f32[], bf16[7]{0}) all-reduce(%norm, %q), to_apply=%sum
  %first = f32[] get-tuple-element(%both), index=0
  %second = bf16[7]{0} get-tuple-element(%both), index=1
  %start = (s32[], f32[]) tuple(%first, %first)
  %loop = (s32[], f32[]) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"4"}}
  %last = f32[] get-tuple-element(%loop), index=1
  %part = bf16[2]{0} reduce-scatter(%second), dimensions={0}, to_apply=%sum
  ROOT %result = (f32[], bf16[2]) tuple(%last, %part)
}
"""  # noqa: E501


def test_counts_a_known_program():
    assert count(PROGRAM, num_devices=2) == {
        "collective_bytes": {"all-reduce": 7 * 2, "all-gather": 30 * 4, "reduce-scatter": 2 * 2 * 2},
        "collective_scalars": 1 + 4,
        "rounds": 2 + 4,  # The gather, the norm, then one loss after the other.
    }


def test_rounds_are_a_chain_and_not_what_was_combined():
    """`%q` is summed together with the norm but does not wait for the gather."""
    without_loop = PROGRAM.replace('"4"', '"0"')
    assert count(without_loop, num_devices=2)["rounds"] == 2
