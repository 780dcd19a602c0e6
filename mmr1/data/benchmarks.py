"""Benchmarks, read from local files in the layouts they are published in.

Parquet files as on Hugging Face, or the same columns as JSON lines or a JSON
list; `mmr1.data.benchmark_rows` reads a row.
"""

import json
from typing import Any

from etils import epath

from mmr1 import records
from mmr1 import resolve
from mmr1.data import benchmark_rows
from mmr1.data import media
from mmr1.data import sources

NAMES = tuple(benchmark_rows.READERS)
_KINDS = ('.parquet', '.jsonl', '.json')


def files(path: str) -> list[str]:
  """The files of a path: one, all of a folder, or those that fit '*' and '?'.

  Raises:
    ValueError: there are none, or one that is no parquet or JSON.
  """
  parts = path.split('/')
  first = next((i for i, part in enumerate(parts)
                if '*' in part or '?' in part), None)
  if first is not None:
    base = epath.Path('/'.join(parts[:first]) or ('/' if first else '.'))
    found = [str(x) for x in base.glob('/'.join(parts[first:]))]
  elif epath.Path(path).is_dir():
    found = [str(x) for x in epath.Path(path).iterdir()
             if x.name.endswith(_KINDS)]
  else:
    found = [path] if epath.Path(path).exists() else []
  if not found:
    raise ValueError(f'{path}: no such file. Check benchmark_path; it may be a '
                     "file, a folder, or a pattern with '*'.")
  for file in found:
    if not file.endswith(_KINDS):
      raise ValueError(f'{file}: known are files ending in .parquet, .jsonl or '
                       '.json.')
  return sorted(found)


def _rows(path: str) -> list[Any]:
  file = epath.Path(path)
  if path.endswith('.parquet'):
    from pyarrow import parquet  # only users of parquet pay for it
    with file.open('rb') as opened:
      return parquet.read_table(opened).to_pylist()
  try:
    said = file.read_bytes().decode('utf-8-sig')
    if path.endswith('.jsonl'):
      # Not splitlines: JSON may hold U+2028 and others that end lines there.
      return [json.loads(x) for x in said.split('\n') if x.strip()]
    whole = json.loads(said)
  except ValueError as error:
    raise ValueError(f'{path}: bad json: {error}') from error
  if isinstance(whole, dict):  # DocVQA's, and MathVista's by pid
    whole = whole['data'] if 'data' in whole else list(whole.values())
  return whole


class Benchmark:
  """A benchmark as a source; uid is the number of the problem."""

  def __init__(self, name: str, path: str):
    """Reads the files; images are opened when asked for.

    Raises:
      ValueError: an unknown name, file or layout.
    """
    if name not in NAMES:
      raise ValueError(f'benchmark: got {name!r}. '
                       f'{resolve.nearest(name, NAMES)}')
    self.name, self.path = name, path
    self._read = benchmark_rows.READERS[name]
    self._all = []  # (file, row's number, row)
    for file in files(path):
      rows = _rows(file)
      if not rows:
        raise ValueError(f'{file}: no rows.')
      for number, row in enumerate(rows):
        self._all += [(file, number, problem)
                      for problem in benchmark_rows.problems(name, row)]
      self._check(file, rows[0])

  def _check(self, file: str, row: Any) -> None:
    """Refuses a file whose first row is of another layout."""
    try:
      for problem in benchmark_rows.problems(self.name, row):
        self._read(problem)
    except benchmark_rows.BAD as error:
      got = sorted(row) if isinstance(row, dict) else type(row).__name__
      raise ValueError(
          f'{file}: not a layout of {self.name}: {type(error).__name__} '
          f'{error}; got columns {got}; allowed: '
          f'{" ".join(self._read.__doc__.split())}') from error

  def __len__(self) -> int:
    return len(self._all)

  def __getitem__(self, i: int) -> sources.Item:
    i = sources.check_index(i, len(self), self.path)
    file, number, row = self._all[i]
    where = f'{file}:row {number}'
    try:
      question, golds, images, meta = self._read(row)
      folder = str(epath.Path(file).parent)
      images = tuple(media.image(x, folder) for x in images)
    except benchmark_rows.BAD as error:
      return records.Broken(where, f'bad row: {type(error).__name__} {error}')
    if 'unit_box' in meta:
      w, h = images[0].size
      a, b, c, d = meta.pop('unit_box')
      meta['box'] = [a * w, b * h, c * w, d * h]
    return records.Example(
        uid=i, question=question, answer=golds[0] if golds else None,
        images=images, source=where, meta={
            'id': str(i), 'labels': {}, **meta, 'golds': golds,
            'benchmark': self.name})
