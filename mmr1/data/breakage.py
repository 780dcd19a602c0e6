"""Records that cannot be used: each named once, and how many are too many."""

import collections
import logging
from collections.abc import Sequence
from typing import Any

from mmr1 import records
from mmr1.data import sources

_LOG = logging.getLogger(__name__)
_NAMED = 5  # reasons that an error message lists
# The broken fraction is never taken over fewer records than this.
AT_LEAST = 100


class Breakage:
  """What was broken of a mixture.

  Attributes:
    broken: Broken records so far, each once, in order of appearance.
  """

  def __init__(self, mixture: sources.Mixture, max_broken_frac: float):
    """Nothing is broken yet.

    Args:
      mixture: what is read.
      max_broken_frac: 0..1, see `pipeline.Stream`.

    Raises:
      ValueError: a fraction outside its range.
    """
    if not 0 <= max_broken_frac <= 1:
      raise ValueError(f'max_broken_frac: got {max_broken_frac}; allowed: 0 to '
                       '1.')
    self._mixture = mixture
    self._fraction = max_broken_frac
    self.broken: list[records.Broken] = []
    self._known: dict[tuple[int, int], int] = {}  # place -> index in broken

  def note(self, k: int, broken: records.Broken) -> None:
    """Records item k, logs it once, refuses when there are too many.

    Raises:
      ValueError: too many records of a member are broken.
    """
    place = self._mixture.place(k)
    if (place.member, place.index) in self._known:
      return
    self._known[place.member, place.index] = len(self.broken)
    self.broken.append(broken)
    _LOG.warning('skipped %s: %s', broken.where, broken.reason)
    size = len(self._mixture.sources[place.member])
    seen = min(place.seen + 1, size)
    mine = [i for (m, _), i in self._known.items() if m == place.member]
    allowed = self._fraction * max(seen, min(size, AT_LEAST))
    if len(mine) > allowed or len(mine) == seen == size:
      raise ValueError(refusal(
          [self.broken[i] for i in mine], seen, size, place.member,
          self._fraction))

  def in_a_row(self, size: int) -> int:
    """How many broken records one after the other are possible at all, of a
    shuffled source of `size` with no more of them than is allowed."""
    good = 1 - self._fraction
    return size if AT_LEAST >= size * good else int(AT_LEAST / good)

  def counts(self) -> dict[str, int]:
    """Broken records by kind, the part of the reason before the colon."""
    return dict(collections.Counter(
        broken.reason.split(':')[0] for broken in self.broken))

  def state(self) -> dict[str, Any]:
    """{'broken': JSON-able}."""
    return {'broken': [
        [*place, self.broken[i].where, self.broken[i].reason]
        for place, i in self._known.items()]}

  def restore(self, state: dict[str, Any]) -> None:
    """From `state`."""
    self.broken, self._known = [], {}
    for member, index, where, reason in state['broken']:
      self._known[member, index] = len(self.broken)
      self.broken.append(records.Broken(where=where, reason=reason))


def refusal(broken: Sequence[records.Broken], seen: int, size: int,
            member: int, fraction: float) -> str:
  """The message where too many are."""
  first = '\n'.join(
      f'  {b.where}: {b.reason}' for b in broken[:_NAMED])
  return (
      f'{len(broken)} of the {seen} records seen (of {size}) of source '
      f'{member} cannot be used; max_broken_frac={fraction} allows fewer. '
      f'The first:\n{first}\n'
      'Repair them, or raise data.max_broken_frac, or where prompts are too '
      'long raise data.prompt_tokens or data.patches.')
