"""Reads a run's folder for its report; what cannot be read becomes a note.

A run may be going on, may have been killed in the middle of a line, or may
have lost files: its report says so and shows the rest.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import os
import re
from typing import Any, NamedTuple

from etils import epath

from mmr1 import resolve

_SHOWN = 3  # lines named in a note; the rest are counted


class Evaluation(NamedTuple):
  """One evaluation: its stage and step, which problems ('': the run's own), and
  a row per completion."""
  stage: str
  step: int
  name: str
  rows: list[dict[str, Any]]


@dataclasses.dataclass
class Run:
  """What a workdir holds.

  Fields:
    name: of the run, for a person.
    path: the workdir.
    config: the resolved config as nested dicts; {} if it cannot be read.
    rows: of metrics.jsonl, one per stage and step, in order of time.
    samples: rows of samples/*.jsonl.
    cards: of eval/*.json, with their file's name under 'file'.
    evaluations: of eval/*.jsonl.
    finished: the run has ended.
    notes: what is missing or broken, a sentence each.
  """
  name: str
  path: epath.Path
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  samples: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  cards: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  evaluations: list[Evaluation] = dataclasses.field(default_factory=list)
  finished: bool = False
  notes: list[str] = dataclasses.field(default_factory=list)

  @property
  def planned(self) -> list[str]:
    """Names of the stages that the config lists, in order."""
    return [str(name) for name in self.config.get('stages') or ()]

  @property
  def stages(self) -> list[str]:
    """All stages that left rows or samples: the base, those of the config, and
    what the config does not know."""
    seen = dict.fromkeys(row['stage'] for row in (*self.rows, *self.samples))
    first = [name for name in ('base', *self.planned) if name in seen]
    return first + [name for name in seen if name not in first]

  def kind(self, stage: str) -> str:
    """Kind of a stage; '' if the config does not say."""
    section = self.config.get(stage)
    return str(section.get('kind', '')) if isinstance(section, dict) else ''


def read(path: Any) -> Run:
  """Reads a workdir.

  Raises:
    ValueError: there is no such folder, or nothing of a run in it.
  """
  path = epath.Path(path).expanduser()
  if not path.is_dir():
    raise ValueError(f'--workdir: {path} is no folder. Give that of a run, as '
                     'in runs/vision_r1.')
  known = ('config.json', 'metrics.jsonl', 'samples', 'eval')
  if not any((path / name).exists() for name in known):
    raise ValueError(f'--workdir: {path} has none of {", ".join(known)}: it is '
                     'not the folder of a run.')
  run = Run(absolute(path).name, path)
  run.config = _config(run)
  run.finished = (path / 'FINISHED').exists()
  run.rows = _merged(_metrics(run))
  run.samples = _samples(run)
  run.cards = _cards(run)
  run.evaluations = _evaluations(run)
  planned = {'base', *run.planned}
  unknown = [name for name in run.stages if name not in planned]
  if unknown and run.config:
    run.notes.append(
        f'Not among the stages of config.json: {", ".join(unknown)}. Their '
        'rows are shown after the others.')
  return run


def absolute(path: epath.Path) -> epath.Path:
  """With the names of its folders, also of '.' and '..'; gs:// as it is."""
  return path if path.is_absolute() else epath.Path(os.path.abspath(path))


def _config(run: Run) -> dict[str, Any]:
  path = run.path / 'config.json'
  try:
    found = resolve.from_json(path.read_text())
    if isinstance(found, dict):
      return found
    reason = 'not an object'
  except FileNotFoundError:
    reason = 'there is none'
  except (OSError, ValueError) as error:
    reason = str(error)
  run.notes.append(f'config.json could not be read ({reason}): stages are in '
                   'the order of their first rows.')
  return {}


def lines(path: epath.Path, notes: list[str],
          where: str) -> Iterator[dict[str, Any]]:
  """Objects of a file of JSON lines; what is none is noted and left out."""
  try:
    content = path.read_bytes()
  except OSError as error:
    notes.append(f'{where} could not be read: {error}.')
    return
  broken, parts = [], content.split(b'\n')
  for number, line in enumerate(parts, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line.decode('utf-8', 'replace'))
    except (ValueError, RecursionError):
      if number == len(parts):
        notes.append(f'{where}: the last line is half-written and left out.')
      else:
        broken.append(number)
      continue
    if isinstance(row, dict):
      yield row
    else:
      broken.append(number)
  if broken:
    named = ', '.join(map(str, broken[:_SHOWN]))
    more = f' and {len(broken) - _SHOWN} more' if len(broken) > _SHOWN else ''
    notes.append(f'{where}: no JSON object in line {named}{more}; left out.')


def _usable(rows: Iterator[dict[str, Any]], notes: list[str],
            where: str) -> list[dict[str, Any]]:
  """Those that say their stage and step."""
  good, bad = [], 0
  for row in rows:
    step = row.get('step')
    if isinstance(row.get('stage'), str) and type(step) in (int, float) and (
        step == step and abs(step) < 1e15):
      good.append({**row, 'step': int(step)})
    else:
      bad += 1
  if bad:
    notes.append(f'{where}: {bad} rows without stage or step; left out.')
  return good


def _metrics(run: Run) -> list[dict[str, Any]]:
  path = run.path / 'metrics.jsonl'
  if not path.exists():
    run.notes.append('There is no metrics.jsonl: no curves.')
    return []
  rows = _usable(lines(path, run.notes, 'metrics.jsonl'), run.notes,
                 'metrics.jsonl')
  if not rows:
    run.notes.append('metrics.jsonl has no rows yet: no curves.')
  return rows


def _merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """One row per stage and step: a later one adds to the earlier one, whose
  time stays."""
  result: dict[tuple[str, int], dict[str, Any]] = {}
  for row in rows:
    key = row['stage'], row['step']
    if key in result:
      row = {**row, 'time': result[key].get('time', row.get('time'))}
      result[key].update(row)
    else:
      result[key] = dict(row)
  return list(result.values())


def _samples(run: Run) -> list[dict[str, Any]]:
  folder = run.path / 'samples'
  files = [] if not folder.is_dir() else sorted(
      entry for entry in folder.iterdir() if entry.name.endswith('.jsonl'))
  rows = []
  for file in files:
    where = f'samples/{file.name}'
    rows += _usable(lines(file, run.notes, where), run.notes, where)
  if not rows:
    run.notes.append('No samples were written.')
  order = {name: i for i, name in enumerate(['base', *run.planned])}
  return sorted(rows, key=lambda row: (
      order.get(row['stage'], len(order)), row['step']))


def _cards(run: Run) -> list[dict[str, Any]]:
  folder, cards = run.path / 'eval', []
  if not folder.is_dir():
    return []
  for file in sorted(folder.iterdir()):
    if not file.name.endswith('.json'):
      continue
    try:
      card = json.loads(file.read_text())
    except (OSError, ValueError) as error:
      run.notes.append(f'eval/{file.name} could not be read: {error}.')
      continue
    if isinstance(card, dict):
      cards.append({**card, 'file': file.name})
  return cards


def _evaluations(run: Run) -> list[Evaluation]:
  """In the order of stages; what a file is of, its name says."""
  folder, found = run.path / 'eval', []
  if not folder.is_dir():
    return []
  for file in sorted(folder.iterdir()):
    named = _named(run, file.name)
    if named is None:
      continue
    rows = list(lines(file, run.notes, f'eval/{file.name}'))
    if rows:
      found.append(Evaluation(*named, rows))
  order = {name: i for i, name in enumerate(['base', *run.planned])}
  return sorted(found, key=lambda e: (
      order.get(e.stage, len(order)), e.stage, e.step))


def _named(run: Run, file: str) -> tuple[str, int, str] | None:
  """Stage, step and problems of <stage>_<step>[_<name>].jsonl. Stages may have
  numbers in their own names: those that are known come first."""
  for stage in sorted({'base', *run.planned}, key=len, reverse=True):
    found = re.fullmatch(
        rf'({re.escape(stage)})_(\d+)(?:_(.+))?\.jsonl', file)
    if found:
      break
  else:
    found = re.fullmatch(r'(.+?)_(\d+)(?:_(.+))?\.jsonl', file)
  if found is None:
    return None
  stage, step, name = found.groups()
  return stage, int(step), name or ''
