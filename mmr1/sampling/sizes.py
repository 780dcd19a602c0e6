"""Sizes that the cache of a call of the sampler can have."""


def caches(length: int, chunk: int, *, waits: bool, spare: int,
           grows: bool) -> list[int]:
  """Tokens of the caches, from the first on, `spare` not counted.

  Args:
    length: T, tokens of a completion at most.
    chunk: of the first cache; a full one is doubled.
    waits: samples wait for rows, which begin at different tokens then.
    spare: tokens that every cache has beside these, for what is read at once
      where rows stop on their way; 0: rows do not stop.
    grows: False: there is only the last size.
  """
  cap = length
  if waits:
    cap += chunk
  elif spare:  # rows that stop are closed up at every turn
    cap += min(chunk, -(-length // 8))
  if not grows:
    return [cap]
  # `spare` is a part of what is doubled, but for the last: attention pays for
  # every token of a cache.
  sizes = [max(chunk, 2 * spare)]
  while sizes[-1] < cap + spare:
    sizes.append(min(2 * sizes[-1], cap + spare))
  return [min(size - spare, cap) for size in sizes]
