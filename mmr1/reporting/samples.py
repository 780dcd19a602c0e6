"""The samples of a report: an index to sort and filter by, texts in chunks.

A page holds what fits: whole steps are left out, evenly, until the texts are
within their budget, and the page says how many.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import base64
import gzip
import json
import math
from typing import Any, NamedTuple

from mmr1 import text
from mmr1.reporting import reading

CHUNK = 250  # samples that are unpacked together
_LONGEST = 20_000  # characters of a text
# Of a row, what has a place of its own on the page.
_OWN = ('stage', 'step', 'prompt', 'completion', 'answer', 'images', 'rewards',
        'reward', 'advantage', 'length', 'truncated', 'uid', 'group', 'slot',
        'tokens')


class Samples(NamedTuple):
  """What the page gets.

  Fields:
    index: {column: values of each sample}.
    rewards: {name: values of each sample, None where there is none}.
    chunks: base64 of gzip of JSON, of CHUNK samples each.
    rows: the rows that were kept, of each run.
    left_out: rows that did not fit, of each run.
  """
  index: dict[str, list[Any]]
  rewards: dict[str, list[float | None]]
  chunks: list[str]
  rows: list[list[dict[str, Any]]]
  left_out: list[int]


def packed(value: Any) -> str:
  """base64 of gzip of JSON: safe inside of HTML, and small."""
  data = json.dumps(value, ensure_ascii=False, separators=(',', ':'),
                    allow_nan=False).encode('utf-8', 'backslashreplace')
  return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def number(value: Any) -> float | None:
  """A finite number of a row; None for 'nan', for text, and for nothing."""
  good = type(value) in (int, float) and math.isfinite(value)
  return float(f'{value:.5g}') if good else None


def rewards_of(row: Mapping[str, Any]) -> dict[str, float | None]:
  """{name: its value or None} of a row."""
  found = row.get('rewards')
  return {str(name): number(value) for name, value in found.items()} if (
      isinstance(found, dict)) else {}


def total_of(row: Mapping[str, Any]) -> float | None:
  """The combined reward if the row has it, else the mean of its rewards."""
  if number(row.get('reward')) is not None:
    return number(row['reward'])
  values = [x for x in rewards_of(row).values() if x is not None]
  return sum(values) / len(values) if values else None


def unparsed(row: Mapping[str, Any]) -> bool:
  """True if no answer is found in a completion, in the lenient reading."""
  said = row.get('completion')
  if not isinstance(said, str):
    return False
  prefilled = '</think>' in said and '<think>' not in said
  return text.extract_answer(
      said[-_LONGEST:], strict=False, prefilled=prefilled) is None


def collect(runs: Sequence[reading.Run], budget: int) -> Samples:
  """The samples of some runs, within `budget` characters of chunks."""
  share = budget // max(1, len(runs))
  rows, left_out, chunks, entries = [], [], [], []
  for i, run in enumerate(runs):
    kept, made = _fitted(run.samples, share)
    rows.append(kept)
    left_out.append(len(run.samples) - len(kept))
    if left_out[-1]:
      run.notes.append(
          f'{len(kept)} of {len(run.samples)} samples are on this page, of '
          'steps that are evenly far apart; the others are in samples/.')
    entries += [(i, len(chunks) + k // CHUNK, k % CHUNK)
                for k in range(len(kept))]
    chunks += made
  flat = [row for part in rows for row in part]
  stages = [{name: k for k, name in enumerate(run.stages)} for run in runs]
  spread = [x for part in rows for x in spreads(part)]
  index = {
      'run': [run for run, _, _ in entries],
      'chunk': [chunk for _, chunk, _ in entries],
      'at': [at for _, _, at in entries],
      'stage': [stages[run][row['stage']]
                for (run, _, _), row in zip(entries, flat)],
      'step': [row['step'] for row in flat],
      'length': [_length(row) for row in flat],
      'measured': [number(row.get('length')) is not None for row in flat],
      'advantage': [number(row.get('advantage')) for row in flat],
      'reward': [number(total_of(row)) for row in flat],
      'spread': spread,
      'unparsed': [int(unparsed(row)) for row in flat],
      'truncated': [int(row.get('truncated') is True) for row in flat]}
  names = dict.fromkeys(name for row in flat for name in rewards_of(row))
  rewards = {name: [rewards_of(row).get(name) for row in flat]
             for name in names}
  return Samples(index, rewards, chunks, rows, left_out)


def spreads(rows: Sequence[Mapping[str, Any]]) -> list[float]:
  """How far the rewards of each sample disagree, 0 to 1.

  Each reward is put on 0 to 1 by its least and greatest value in the stage;
  one that never changes says nothing.
  """
  limits: dict[tuple[str, str], tuple[float, float]] = {}
  for row in rows:
    for name, value in rewards_of(row).items():
      if value is not None:
        low, high = limits.get((row['stage'], name), (value, value))
        limits[row['stage'], name] = min(low, value), max(high, value)
  result = []
  for row in rows:
    places = []
    for name, value in rewards_of(row).items():
      low, high = limits.get((row['stage'], name), (0.0, 0.0))
      if value is not None and high > low:
        places.append((value - low) / (high - low))
    result.append(round(max(places) - min(places), 4) if places else 0.0)
  return result


def _length(row: Mapping[str, Any]) -> float:
  """Tokens, or characters where a row does not count them."""
  found = number(row.get('length'))
  said = row.get('completion')
  return found if found is not None else float(
      len(said) if isinstance(said, str) else 0)


def _fitted(rows: list[dict[str, Any]], budget: int,
            ) -> tuple[list[dict[str, Any]], list[str]]:
  """Rows of evenly spaced steps whose chunks are within the budget."""
  steps: dict[tuple[str, int], list[dict[str, Any]]] = {}
  for row in rows:
    steps.setdefault((row['stage'], row['step']), []).append(row)
  groups, kept = list(steps.values()), len(steps)
  raw = sum(len(str(row.get('completion', ''))) + len(str(row.get('prompt', '')))
            for row in rows)
  if raw > 12 * budget:  # not even packed would it fit
    kept = max(1, int(kept * 12 * budget / raw))
  while True:
    chosen = [row for i in _even(len(groups), kept) for row in groups[i]]
    chunks, size = [], 0
    for chunk in _chunks(chosen):
      chunks.append(chunk)
      size += len(chunk)
      if size > budget and kept > 1:
        break
    else:
      return chosen, chunks
    seen = len(chunks) * CHUNK / max(1, len(chosen))
    kept = max(1, min(kept - 1, int(0.97 * kept * seen * budget / size)))


def _even(count: int, wanted: int) -> list[int]:
  """`wanted` of range(count), the first and the last among them."""
  if wanted >= count:
    return list(range(count))
  if wanted == 1:
    return [count - 1]
  return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def _chunks(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  for start in range(0, len(rows), CHUNK):
    yield packed([_entry(row) for row in rows[start:start + CHUNK]])


def _entry(row: Mapping[str, Any]) -> dict[str, Any]:
  """What the page shows of a sample."""
  entry = {key: _cut(row[key]) for key in ('prompt', 'completion', 'answer')
           if row.get(key) is not None}
  entry |= {key: row[key] for key in ('uid', 'group', 'slot')
            if type(row.get(key)) is int}
  entry['images'] = images_of(row)
  more = {key: _plain(value) for key, value in row.items()
          if key not in _OWN and value is not None}
  if more:
    entry['more'] = more
  tokens = _tokens(row.get('tokens'))
  if tokens:
    entry['tokens'] = tokens
  return entry


def images_of(row: Mapping[str, Any]) -> list[str]:
  """Names of a sample's thumbnails, wherever they are in its row."""
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
  walk([value for key, value in row.items()
        if key not in ('prompt', 'completion', 'answer', 'tokens')])
  return list(found)


def is_thumbnail(name: str) -> bool:
  """True for '0123456789abcdef.png', and never for a path."""
  return (len(name) == 20 and name.endswith('.png')
          and all(c in '0123456789abcdef' for c in name[:16]))


def _tokens(found: Any) -> dict[str, list[Any]] | None:
  """Texts of tokens, and numbers of each, of a row that recorded them."""
  if not isinstance(found, dict) or not isinstance(found.get('text'), list):
    return None
  count = len(found['text'])
  numbers = {key: [number(x) for x in value] for key, value in found.items()
             if key != 'text' and isinstance(value, list)
             and len(value) == count}
  return {'text': [str(x) for x in found['text']], **numbers}


def _plain(value: Any) -> str:
  return _cut(value if isinstance(value, str) else json.dumps(
      value, ensure_ascii=False))


def _cut(value: Any) -> str:
  value = value if isinstance(value, str) else json.dumps(
      value, ensure_ascii=False)
  if len(value) <= _LONGEST:
    return value
  return (f'{value[:_LONGEST]}\n[{len(value) - _LONGEST} more characters are '
          'in samples/]')


def thumbnails(rows: Iterable[Mapping[str, Any]]) -> list[str]:
  """Names of the thumbnails of some rows, each once."""
  return [*dict.fromkeys(name for row in rows for name in images_of(row))]
