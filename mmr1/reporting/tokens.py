"""Numbers of single tokens, of the rows of a report that recorded them."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmr1.reporting import entries

CHUNK = 20  # rows that are unpacked together


def read(found: Any) -> dict[str, Any] | None:
  """Texts of tokens, their kinds, and numbers of each; None if there are none.

  Args:
    found: `tokens` of a row, see docs/report.md.
  """
  if not isinstance(found, dict) or not isinstance(found.get('text'), list):
    return None
  count = len(found['text'])
  made: dict[str, Any] = {
      'text': [str(x) for x in found['text']],
      'numbers': {str(key): [entries.number(x) for x in value]
                  for key, value in found.items() if key != 'text'
                  and isinstance(value, list) and len(value) == count}}
  if isinstance(found.get('kind'), str) and len(found['kind']) == count:
    made['kind'] = found['kind']
  if type(found.get('left_out')) is int:
    made['left_out'] = found['left_out']
  return made


def collect(rows: Sequence[Mapping[str, Any]], budget: int,
            notes: list[str]) -> tuple[list[int | None], list[str]]:
  """Of the rows that have tokens as many as fit, evenly.

  Args:
    rows: of one page.
    budget: characters of all chunks.
    notes: grow by what did not fit.

  Returns:
    for each row its number among those, or None; chunks.
  """
  where = [i for i, row in enumerate(rows)
           if isinstance(row.get('tokens'), dict)]
  found = {i: made for i in where
           if (made := read(rows[i]['tokens'])) is not None}
  order, wanted = list(found), len(found)
  while True:
    chosen = [order[i] for i in entries.even(len(order), wanted)]
    made = [entries.packed([found[i] for i in chosen[start:start + CHUNK]])
            for start in range(0, len(chosen), CHUNK)]
    size = sum(map(len, made))
    if size <= budget or not wanted:
      break
    wanted = min(wanted - 1, int(0.97 * wanted * budget / size))
  if wanted < len(order):
    notes.append(f'{wanted} of {len(order)} samples have their tokens on this '
                 'page; the others are in samples/.')
  places: list[int | None] = [None] * len(rows)
  for k, i in enumerate(chosen):
    places[i] = k
  return places, made
