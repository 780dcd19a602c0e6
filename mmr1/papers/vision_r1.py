"""Vision-R1 (Huang et al., arXiv 2503.06749): what only this paper needs."""

from collections.abc import Mapping

from mmr1 import records
from mmr1 import text
from mmr1.rewards import answer
from mmr1.rewards import math

# ------------------------------------------------------------------ rewards


def hard_format_result(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    prefilled: bool = False,
    limit_s: float = math.LIMIT_S,
) -> float | None:
  r"""The hard formatting result reward function (HFRRF).

      r(o) = 1  if format_ok(o) and match(extract(o), y),  else 0

  No partial credit: a well-formed wrong answer and a right answer without tags
  both earn 0, and a completion cut at the length cap has no `</answer>`, so it
  earns 0 too; this is what suppresses over-long chains in PTST.

  Source: https://arxiv.org/abs/2503.06749, section on the reward. The paper
  does not print its pattern. Ours is EasyR1's `r1v` scorer of March 2025 (the
  authors' stated base), fullmatch `<think>.*?</think>\s*<answer>.*?</answer>`
  with DOTALL (inferred), with outer white space stripped and repeated, nested
  and empty tags refused; an optional 'Final Answer:' is removed as in the
  official evaluation. The match is `rewards.answer.match`, where that scorer
  used mathruler.

  Args:
    sample: the completion.
    knobs: unused.
    prefilled: the prompt's template already wrote `<think>`.
    limit_s: seconds for symbolic algebra; see `answer.match` for its errors.

  Returns:
    0.0 or 1.0; None when the example has no gold answer.
  """
  del knobs
  if sample.example.answer is None:
    return None
  parsed = text.parse_think_answer(sample.text, prefilled=prefilled)
  if not parsed.ok:
    return 0.0
  return float(answer.match(parsed.answer, sample.example, limit_s=limit_s))


hard_format_result.range = (0.0, 1.0)
hard_format_result.perfect = 1.0


def soft_format_result(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    prefilled: bool = False,
    limit_s: float = math.LIMIT_S,
) -> float | None:
  """The soft reward of the paper's Zero ablation: 0.5 format + 0.5 result.

  The paper gives the ratio 1:1; the scale is that of EasyR1's `r1v` scorer.
  The result part reads the one answer block, whatever surrounds it. Arguments
  and None as in `hard_format_result`.
  """
  del knobs
  if sample.example.answer is None:
    return None
  parsed = text.parse_think_answer(sample.text, prefilled=prefilled)
  extracted = text.extract_answer(
      sample.text, strict=True, prefilled=prefilled)
  matched = answer.match(extracted, sample.example, limit_s=limit_s)
  return 0.5 * parsed.ok + 0.5 * matched


soft_format_result.range = (0.0, 1.0)
soft_format_result.perfect = 1.0
