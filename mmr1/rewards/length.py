"""Rewards on the length of a completion."""

from collections.abc import Mapping

from mmr1 import records


def overlong(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    max_length: int,
    buffer: int,
) -> float:
  """DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13), 0 to -1.

  min(0, -(L - (max_length - buffer)) / buffer), L the sampled tokens, -1 from
  max_length on. verl's penalty factor is the `weight` of this reward.

  Args:
    sample: the completion; reads length.
    knobs: unused.
    max_length: L_max, usually the stage's max_new_tokens.
    buffer: L_cache, the tokens before max_length over which it falls.

  Raises:
    ValueError: not 1 <= buffer <= max_length.
  """
  del knobs
  if not 1 <= buffer <= max_length:
    raise ValueError(
        f'overlong: got buffer={buffer}, max_length={max_length}; allowed: '
        '1 <= buffer <= max_length.')
  left = max_length - buffer - sample.length
  return max(min(left / buffer, 0.0), -1.0)


overlong.range = (-1.0, 0.0)
overlong.no_gold = 'a penalty on length'


def rising(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    full: int,
) -> float:
  """min(L / full, 1), L the sampled tokens: longer is better, 0 to 1.

  A judge that is not to be trusted, to see what a method does with it [ours].

  Args:
    sample: the completion; reads length.
    knobs: unused.
    full: tokens from which on it is 1.

  Raises:
    ValueError: full below 1.
  """
  del knobs
  if full < 1:
    raise ValueError(f'rising: got full={full}; allowed: at least 1.')
  return min(sample.length / full, 1.0)


rising.range = (0.0, 1.0)
rising.no_gold = 'grows with the length of the text'
