"""What a rule of a benchmark says of a completion."""

from collections.abc import Callable
from typing import NamedTuple

from mmr1 import records
from mmr1 import text

# What a benchmark asks a language model. It reads the completion and its
# example and gives the answer that it finds, or that with a score of 0 to 1;
# None: it finds none.
Judge = Callable[
    [str, records.Example], str | tuple[str | None, float] | None]


class Verdict(NamedTuple):
  """What was extracted, its score of 0 to 1, and by what: 'rule', 'chance',
  'judge' or 'unjudged'."""
  extracted: str | None
  score: float
  by: str = 'rule'


def by_rules(said: str, example: records.Example) -> str | None:
  """A judge that is no model: what `text.extract_answer` finds, not strict.

  For scores without a judge model; they are not those of the benchmark's paper.
  """
  del example
  found = text.extract_answer(said, strict=False)
  return found and text.unwrap(found)
