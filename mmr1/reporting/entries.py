"""What a report's browser shows of a completion, and how it is packed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import base64
import gzip
import json
import math
from typing import Any

CHUNK = 250  # rows that are unpacked together
LONGEST = 20_000  # characters of a text
# Of a row, what has a place of its own on the page.
_OWN = ('stage', 'step', 'prompt', 'completion', 'answer', 'images', 'rewards',
        'reward', 'advantage', 'length', 'truncated', 'uid', 'group', 'slot',
        'tokens', 'turns', 'boxes', 'size', 'captions', 'kept')
_TEXTS = ('prompt', 'completion', 'answer')


def packed(value: Any) -> str:
  """base64 of gzip of JSON: safe inside of HTML, and small."""
  data = json.dumps(value, ensure_ascii=False, separators=(',', ':'),
                    allow_nan=False).encode('utf-8', 'backslashreplace')
  return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def number(value: Any) -> float | None:
  """A finite number of a row, whole or with five digits; None for 'nan', for
  text, and for nothing."""
  value = finite(value)
  if value is None:
    return None
  whole = value.is_integer() and abs(value) < 1e15
  return int(value) if whole else float(f'{value:.5g}')


def finite(value: Any) -> float | None:
  """As `number`, with all of its digits."""
  good = type(value) in (int, float) and math.isfinite(value)
  return float(value) if good else None


def entry(row: Mapping[str, Any]) -> dict[str, Any]:
  """What the page shows of a row."""
  made = {key: cut(row[key]) for key in _TEXTS if row.get(key) is not None}
  made |= {key: row[key] for key in ('uid', 'group', 'slot')
           if type(row.get(key)) is int}
  made['images'] = _names(row.get('images'))
  if isinstance(row.get('captions'), list) and (
      isinstance(row.get('images'), list)):
    # One for each, also of two pictures that are the same.
    made['images'] = [x for x in row['images']
                      if isinstance(x, str) and is_thumbnail(x)]
  for key in ('captions', 'boxes', 'size'):
    if isinstance(row.get(key), list):
      made[key] = row[key]
  if isinstance(row.get('turns'), list):
    made['turns'] = [turn for turn in map(_turn, row['turns']) if turn]
  rest = {key: value for key, value in row.items()
          if key not in _OWN and value is not None}
  # Pictures that have a name of their own are shown with the others.
  made['images'] += [name for name in _names(list(rest.values()))
                     if name not in made['images']]
  more = {key: _plain(value) for key, value in rest.items()
          if not (isinstance(value, str) and is_thumbnail(value))}
  return made | ({'more': more} if more else {})


def _turn(turn: Any) -> dict[str, Any] | None:
  """Of an episode: {role, text, images, ...}, or [role, text]."""
  if isinstance(turn, list) and len(turn) == 2:
    turn = {'role': turn[0], 'text': turn[1]}
  if not isinstance(turn, dict):
    return None
  said = {'role': str(turn.get('role', '')), 'text': cut(turn.get('text', '')),
          'images': _names(turn.get('images'))}
  return said | {key: _plain(turn[key]) for key in ('call', 'error')
                 if turn.get(key)}


def _names(value: Any) -> list[str]:
  """Thumbnails anywhere inside, each once, in order."""
  found: dict[str, None] = {}
  def walk(value):
    if isinstance(value, str):
      if is_thumbnail(value):
        found[value] = None
    elif isinstance(value, dict):
      walk(list(value.values()))
    elif isinstance(value, list):
      for item in value:
        walk(item)
  walk(value)
  return list(found)


def is_thumbnail(name: str) -> bool:
  """True for '0123456789abcdef.png', and never for a path."""
  return (len(name) == 20 and name.endswith('.png')
          and all(c in '0123456789abcdef' for c in name[:16]))


def _plain(value: Any) -> str:
  return cut(value if isinstance(value, str) else json.dumps(
      value, ensure_ascii=False))


def cut(value: Any) -> str:
  """Text that is not too long."""
  value = value if isinstance(value, str) else json.dumps(
      value, ensure_ascii=False)
  if len(value) <= LONGEST:
    return value
  return (f'{value[:LONGEST]}\n[{len(value) - LONGEST} more characters are in '
          'the run\'s files]')


def thumbnails(rows: Iterable[Mapping[str, Any]]) -> list[str]:
  """Names of the thumbnails of some rows, each once."""
  return _names([value for row in rows for key, value in row.items()
                 if key not in (*_TEXTS, 'tokens')])


def fitted(groups: Sequence[Sequence[Mapping[str, Any]]], budget: int,
           ) -> tuple[list[int], list[str]]:
  """Which groups of rows stay, evenly spaced, and their chunks.

  Args:
    groups: rows that stay or go together.
    budget: characters of all chunks.
  """
  kept = len(groups)
  raw = sum(len(str(row.get('completion', ''))) + len(str(row.get('prompt', '')))
            for group in groups for row in group)
  if raw > 12 * budget:  # not even packed would it fit
    kept = max(1, int(kept * 12 * budget / raw))
  while True:
    chosen = even(len(groups), kept)
    rows = [row for i in chosen for row in groups[i]]
    made, size = [], 0
    for chunk in chunks(rows):
      made.append(chunk)
      size += len(chunk)
      if size > budget and kept > 1:
        break
    else:
      return chosen, made
    seen = len(made) * CHUNK / max(1, len(rows))
    kept = max(1, min(kept - 1, int(0.97 * kept * seen * budget / size)))


def even(count: int, wanted: int) -> list[int]:
  """`wanted` of range(count), the first and the last among them."""
  if wanted >= count:
    return list(range(count))
  if wanted <= 1:
    return [count - 1] if wanted else []
  return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def chunks(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  """Of CHUNK rows each, the last of what is left."""
  for start in range(0, len(rows), CHUNK):
    yield packed([entry(row) for row in rows[start:start + CHUNK]])


def at(count: int) -> dict[str, list[int]]:
  """Where rows are: columns of an index."""
  return {'chunk': [i // CHUNK for i in range(count)],
          'at': [i % CHUNK for i in range(count)]}
