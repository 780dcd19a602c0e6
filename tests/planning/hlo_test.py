"""Bytes and collectives of programs, read from their text."""

import jax
import jax.numpy as jnp
import pytest

from mmr1.planning import hlo
from mmr1.planning import traffic

# A loop of 7 turns: a slice [4] of a stack [7, 4], gathered from 2 devices,
# added to a carry.
TEXT = '''HloModule jit_f, is_scheduled=true

%fused (param_0: f32[7,4], param_1: s32[], param_2: f32[8]) -> f32[8] {
  %param_0 = f32[7,4]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[] parameter(1)
  %c = s32[] constant(0)
  %cut = f32[1,4]{1,0} dynamic-slice(%param_0, %param_1, %c), dynamic_slice_sizes={1,4}
  %param_2 = f32[8]{0} parameter(2)
  ROOT %sum = f32[8]{0} custom-call(%cut, %param_2), custom_call_target="x"
}

%body (carry: (s32[], f32[8], f32[7,4])) -> (s32[], f32[8], f32[7,4]) {
  %carry = (s32[], f32[8]{0}, f32[7,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = f32[8]{0} get-tuple-element(%carry), index=1
  %stack = f32[7,4]{1,0} get-tuple-element(%carry), index=2
  %y = f32[8]{0} fusion(%stack, %i, %x), kind=kLoop, calls=%fused
  %part = f32[4]{0} slice(%y), slice={[0:4]}
  %whole = f32[8]{0} all-gather(%part), channel_id=1, replica_groups=[2,2]<=[4], dimensions={0}
  ROOT %out = (s32[], f32[8]{0}, f32[7,4]{1,0}) tuple(%i, %whole, %stack)
}

%cond (c: (s32[], f32[8], f32[7,4])) -> pred[] {
  %c.1 = (s32[], f32[8]{0}, f32[7,4]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: (s32[], f32[8], f32[7,4])) -> f32[8] {
  %a = (s32[], f32[8]{0}, f32[7,4]{1,0}) parameter(0)
  %loop = (s32[], f32[8]{0}, f32[7,4]{1,0}) while(%a), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  ROOT %r = f32[8]{0} get-tuple-element(%loop), index=1
}
'''


def test_a_loop_counts_as_often_as_it_runs():
  """Per turn: the fusion reads a slice of 4 and a carry of 8 and an index,
  writes 8 (16 + 32 + 4 + 32 bytes); the slice 2 * 16; the gather 16 + 32."""
  moved = traffic.moved(hlo.Module(TEXT))
  assert moved.bytes == 7 * ((16 + 4 + 32 + 32) + 2 * 16 + (16 + 32))
  # 16 bytes to the one other device of the group, 7 times.
  assert moved.collectives == {'all-gather': (7, 7 * 16)}
  assert moved.sent == 112 and moved.unknown_loops == 0


def test_a_loop_of_unknown_length_is_told():
  text = TEXT.replace(', backend_config={"known_trip_count":{"n":"7"}}', '')
  module = hlo.Module(text)
  assert traffic.moved(module).unknown_loops == 1
  assert traffic.moved(module, trips=5).bytes == 5 * traffic.moved(module).bytes


def test_the_bound_of_a_loop_is_read_from_its_condition():
  """What TPU programs have: i < 7 in the condition, also inside of a fusion."""
  text = TEXT.replace(', backend_config={"known_trip_count":{"n":"7"}}', '')
  plain = text.replace('ROOT %less = pred[] constant(true)', '''%j = s32[] get-tuple-element(%c.1), index=0
  %n = s32[] constant(7)
  ROOT %less = pred[] compare(%j, %n), direction=LT''')
  fused = text.replace('ROOT %less = pred[] constant(true)', '''%j = s32[] get-tuple-element(%c.1), index=0
  %n = s32[] constant(7)
  ROOT %less = pred[] fusion(%n, %j), kind=kLoop, calls=%below''').replace(
      '%cond (c', '''%below (p: s32[], q: s32[]) -> pred[] {
  %p = s32[] parameter(0)
  %q = s32[] parameter(1)
  ROOT %lt = pred[] compare(%q, %p), direction=LT
}

%cond (c''')
  for one in (plain, fused):
    found = traffic.moved(hlo.Module(one))
    assert found.unknown_loops == 0
    assert found.collectives == {'all-gather': (7, 7 * 16)}
  other = hlo.Module(plain.replace('direction=LT', 'direction=NE'))
  assert traffic.moved(other).unknown_loops == 1


def test_a_slice_is_cut_out_two_fusions_deep():
  """A product that takes a layer of a stack: 4 of 28 values are read."""
  text = '''
%cut (s: f32[7,4], i: s32[]) -> f32[4] {
  %s = f32[7,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %d = f32[1,4]{1,0} dynamic-slice(%s, %i, %z), dynamic_slice_sizes={1,4}
  ROOT %b = f32[4]{0} bitcast(%d)
}

%product (s.1: f32[7,4], i.1: s32[], x: f32[4]) -> f32[4] {
  %s.1 = f32[7,4]{1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %x = f32[4]{0} parameter(2)
  %layer = f32[4]{0} fusion(%s.1, %i.1), kind=kLoop, calls=%cut
  ROOT %y = f32[4]{0} multiply(%layer, %x)
}

ENTRY %main (a: f32[7,4], b: s32[], c: f32[4]) -> f32[4] {
  %a = f32[7,4]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[4]{0:T(128)S(1)} parameter(2)
  ROOT %r = f32[4]{0} fusion(%a, %b, %c), kind=kOutput, calls=%product
}
'''
  # The slice, the index, the result; c is on the chip.
  assert traffic.moved(hlo.Module(text)).bytes == 16 + 4 + 16


def test_shapes():
  assert hlo.size('(f32[2,3]{1,0:T(8,128)}, bf16[5], pred[], s32[0])') == (
      24 + 10 + 1)
  assert ('f32', (7, 4)) in set(hlo.Module(TEXT).shapes())


@pytest.mark.parametrize('kind, opcode, sent', [
    ('reduce-scatter', 'reduce-scatter', 16), ('all-reduce', 'all-reduce', 32),
    ('all-to-all', 'all-to-all', 16), ('all-gather', 'all-gather-start', 32)])
def test_what_a_device_sends(kind, opcode, sent):
  """Of 32 bytes among 2: half, in both halves of an all-reduce; gathered, all
  of its own to the other."""
  text = f'''
ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8]{{0}} parameter(0)
  ROOT %r = f32[8]{{0}} {opcode}(%a), replica_groups={{{{0,1}},{{2,3}}}}, to_apply=%x
}}
'''
  assert traffic.moved(hlo.Module(text)).collectives == {kind: (1, sent)}


def test_a_real_program():
  """A scan of 5 products [8, 8] x [8, 8] as XLA writes it: each turn reads two
  matrices at least, and not the stack of all five."""
  def run(x, stack):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, stack)[0]
  arguments = jnp.ones((8, 8)), jnp.ones((5, 8, 8))
  program = jax.jit(run).lower(*arguments).compile()
  moved = traffic.moved(hlo.Module(program.as_text()))
  matrix = 8 * 8 * 4
  assert 5 * 3 * matrix <= moved.bytes < 5 * 9 * matrix
  assert not moved.collectives and not moved.unknown_loops
