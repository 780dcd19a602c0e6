"""Whether an answer solves the puzzle of its example, by the puzzle's rules."""

from collections.abc import Mapping

from mmr1 import puzzle_rules
from mmr1 import records
from mmr1 import text


def solved(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    strict: bool = True,
    prefilled: bool = False,
) -> float | None:
  """1 when the completion's answer solves the puzzle, else 0; None: no puzzle.

  The answer is played from the initial state (`puzzle_rules.passes`), so it
  need not be the solver's: the verifier of MM-HELIX (arXiv 2510.08540).

  Args:
    sample: the completion; its example's `meta['puzzle']` is the puzzle.
    knobs: unused.
    strict, prefilled: see `text.extract_answer`.

  Raises:
    ValueError: the puzzle is malformed; no text makes it raise.
  """
  del knobs
  puzzle = sample.example.meta.get('puzzle')
  if puzzle is None:
    return None
  answer = text.extract_answer(
      sample.text, strict=strict, prefilled=prefilled)
  return float(answer is not None and puzzle_rules.passes(puzzle, answer))


solved.range = (0.0, 1.0)
solved.perfect = 1.0
