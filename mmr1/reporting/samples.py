"""The samples of training stages on a report's page.

A page holds what fits: whole steps are left out, evenly, until the texts are
within their budget, and the page says how many.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmr1 import text
from mmr1.reporting import entries
from mmr1.reporting import reading
from mmr1.reporting import tokens as tokens_lib


_TAG = 60  # characters


class Samples(NamedTuple):
  """What the page gets.

  Fields:
    index: {column: values of each sample}.
    rewards: {name: values of each sample, None where there is none}.
    chunks: of entries; tokens: of tokens, see `tokens.collect`.
    rows: the rows that were kept, of each run.
    left_out: rows that did not fit, of each run.
  """
  index: dict[str, list[Any]]
  rewards: dict[str, list[float | None]]
  chunks: list[str]
  tokens: list[str]
  rows: list[list[dict[str, Any]]]
  left_out: list[int]


def rewards_of(row: Mapping[str, Any]) -> dict[str, float | None]:
  """{name: its value or None} of a row."""
  found = row.get('rewards')
  return {str(name): entries.finite(value) for name, value in found.items()
          } if isinstance(found, dict) else {}


def total_of(row: Mapping[str, Any]) -> float | None:
  """The combined reward; of rows that do not have it the mean of the rewards."""
  if 'reward' in row:
    return entries.finite(row['reward'])
  values = [x for x in rewards_of(row).values() if x is not None]
  return sum(values) / len(values) if values else None


def unparsed(row: Mapping[str, Any]) -> bool:
  """True if no answer is found in a completion, in the lenient reading."""
  said = row.get('completion')
  if not isinstance(said, str):
    return False
  prefilled = '</think>' in said and '<think>' not in said
  return text.extract_answer(
      said[-entries.LONGEST:], strict=False, prefilled=prefilled) is None


def collect(runs: Sequence[reading.Run], budget: int,
            tokens_budget: int = 1_000_000) -> Samples:
  """The samples of some runs, within `budget` characters of chunks."""
  share = budget // max(1, len(runs))
  rows, left_out, chunks = [], [], []
  index: dict[str, list[Any]] = {'run': [], 'chunk': [], 'at': []}
  for i, run in enumerate(runs):
    groups = _steps(run.samples)
    chosen, made = entries.fitted(groups, share)
    kept = [row for k in chosen for row in groups[k]]
    rows.append(kept)
    left_out.append(len(run.samples) - len(kept))
    if left_out[-1]:
      run.notes.append(
          f'{len(kept)} of {len(run.samples)} samples are on this page, of '
          'steps that are evenly far apart; the others are in samples/.')
    where = entries.at(len(kept))
    index['run'] += [i] * len(kept)
    index['chunk'] += [len(chunks) + k for k in where['chunk']]
    index['at'] += where['at']
    chunks += made
  flat = [row for part in rows for row in part]
  stages = [{name: k for k, name in enumerate(run.stages)} for run in runs]
  index['stage'] = [stages[run][row['stage']]
                    for run, row in zip(index['run'], flat)]
  index['spread'] = [x for part in rows for x in spreads(part)]
  places, made = tokens_lib.collect(
      flat, tokens_budget, runs[0].notes if runs else [])
  index['tokens'] = places
  names = dict.fromkeys(name for row in flat for name in rewards_of(row))
  rewards = {name: [entries.number(rewards_of(row).get(name)) for row in flat]
             for name in names}
  return Samples(index | _columns(flat), rewards, chunks, made, rows, left_out)


def _steps(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
  steps: dict[tuple[str, int], list[dict[str, Any]]] = {}
  for row in rows:
    steps.setdefault((row['stage'], row['step']), []).append(row)
  return list(steps.values())


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
  """Of an index, what each row says itself."""
  return {
      'step': [row['step'] for row in rows],
      'length': [_length(row) for row in rows],
      'measured': [int(entries.number(row.get('length')) is not None)
                   for row in rows],
      'advantage': [entries.number(row.get('advantage')) for row in rows],
      'reward': [entries.number(total_of(row)) for row in rows],
      'unparsed': [int(unparsed(row)) for row in rows],
      'truncated': [int(row.get('truncated') is True) for row in rows],
      # None: such rows are in no group, and nothing was chosen.
      'group': [row['group'] if type(row.get('group')) is int else None
                for row in rows],
      'dropped': [int(row.get('kept') == 0) for row in rows],
      'tag': [_tag(row) for row in rows]}


def _tag(row: Mapping[str, Any]) -> str:
  """What a row without rewards or words is known by: which of a pair, or its
  prompt."""
  if 'preferred' in row:
    return 'chosen' if row['preferred'] else 'rejected'
  if isinstance(row.get('side'), str):
    return row['side']
  prompt = row.get('prompt')
  if not isinstance(prompt, str) or (
      rewards_of(row) and isinstance(row.get('completion'), str)):
    return ''
  return prompt.replace('<image>', '')[:_TAG]


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


def _length(row: Mapping[str, Any]) -> float | None:
  """Tokens, or characters where a row does not count them; None: of nothing."""
  found = entries.number(row.get('length'))
  said = row.get('completion')
  if found is None and isinstance(said, str):
    return float(len(said))
  return found
