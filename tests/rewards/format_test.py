"""Format rewards: one think block, then one boxed answer."""

import pytest

from mmr1.rewards import format as format_lib

THINK = '<think> The image shows 3 + 4 = 7. </think>'


@pytest.mark.parametrize('text, want', [
    (rf'{THINK} \boxed{{7}}', 1),
    (rf'{THINK}\boxed{{7}}', 1),
    (f'\n {THINK}\n\nThe answer is\n\\boxed{{\\frac{{1}}{{2}}}}. Done.\n', 1),
    ('<think>two\nlines</think>\\boxed{B}', 1),
    # The pattern asks for both, in this order, from the start.
    ('', 0), (THINK, 0), (r'\boxed{7}', 0), ('7', 0),
    (rf'\boxed{{7}} {THINK}', 0),
    (rf'So: {THINK} \boxed{{7}}', 0),
    (rf'{THINK}<answer> 7 </answer>', 0),
    # Each tag once, and closed.
    (r'<think> I look. \boxed{7}', 0),
    (r'I look. </think> \boxed{7}', 0),
    (rf'{THINK}{THINK} \boxed{{7}}', 0),
    (rf'<think>{THINK} \boxed{{7}}', 0),
    (rf'{THINK}</think> \boxed{{7}}', 0),
    (rf'{THINK} \boxed{{7}} <think>', 0),
    # Both have content.
    (r'<think></think> \boxed{7}', 0), (r'<think> </think> \boxed{7}', 0),
    (rf'{THINK} \boxed{{}}', 0), (rf'{THINK} \boxed{{ }}', 0),
    # One box, whole, and not in the think block.
    (rf'{THINK} \boxed{{7', 0), (rf'{THINK} \boxed{{\frac{{1}}{{2}}', 0),
    (rf'{THINK} \boxed 7', 0),
    (rf'{THINK} \boxed{{7}} or \boxed{{8}}', 0),
    (r'<think> \boxed{7} </think> \boxed{7}', 0),
    (r'<think> \boxed{7} </think> 7', 0),
])
def test_think_boxed(text, want, make):
  assert format_lib.think_boxed(make(text), {}) == want


def test_think_boxed_after_a_prefilled_tag(make):
  """What the template wrote is not written again (M12)."""
  text = rf'{THINK} \boxed{{7}}'
  rest = text.removeprefix('<think>')
  assert format_lib.think_boxed(make(rest), {}, prefilled=True) == 1
  assert format_lib.think_boxed(make(rest), {}) == 0
  assert format_lib.think_boxed(make(text), {}, prefilled=True) == 0


def test_a_completion_cut_after_the_box_has_the_format(make):
  text = rf'{THINK} \boxed{{7}} which is'
  assert format_lib.think_boxed(make(text, truncated=True), {}) == 1
