"""Format rewards."""

from collections.abc import Mapping

from mmr1 import records
from mmr1 import text


def think_answer(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    prefilled: bool = False,
) -> float:
  """1 when the text is one think block and one answer block, else 0.

  The structure is `text.parse_think_answer`'s; a truncated completion has no
  closing tag and earns 0.

  Args:
    sample: the completion.
    knobs: unused.
    prefilled: the prompt's template already wrote `<think>`.
  """
  del knobs
  return float(text.parse_think_answer(sample.text, prefilled=prefilled).ok)


think_answer.range = (0.0, 1.0)
think_answer.perfect = 1.0
