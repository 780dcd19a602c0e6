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


def answer_alone(
    sample: records.Sample, knobs: Mapping[str, float]) -> float:
  """1 when the text is one answer block and nothing else, else 0.

  For questions that need no reasoning. A block inside the block, or without
  content, is none.
  """
  del knobs
  said = sample.text.strip()
  return float(
      said.startswith('<answer>') and said.endswith('</answer>')
      and '<think>' not in said and '</think>' not in said
      and text.extract_answer(said, strict=True) is not None)


answer_alone.range = (0.0, 1.0)
answer_alone.perfect = 1.0


def think_boxed(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    prefilled: bool = False,
) -> float:
  r"""1 when a think block is followed by one boxed answer, else 0.

  EasyR1's pattern `<think>.*</think>.*\boxed{.*}.*` over the whole response,
  made strict: each tag once, both blocks with content, one box, after the think
  block. A truncated completion may have all of that.

  Args: as of `think_answer`.
  """
  del knobs
  said = ('<think>' if prefilled else '') + sample.text.strip()
  think, closed, rest = said.removeprefix('<think>').partition('</think>')
  alone = '<think>' not in think + rest and '</think>' not in rest
  boxed = text.last_boxed(rest)
  return float(
      said.startswith('<think>') and bool(closed) and alone
      and bool(think.strip()) and '\\boxed' not in think
      and rest.count('\\boxed{') == 1 and bool(boxed and boxed.strip()))


think_boxed.range = (0.0, 1.0)
think_boxed.perfect = 1.0
