"""Sources over users' files: JSON lines and parquet, local or remote."""

import bisect
import collections
import contextlib
import json
import re
import threading
from collections.abc import Collection
from typing import Any

import numpy as np
from etils import epath

from mmr1 import records
from mmr1.data import rows
from mmr1.data import sources

_PEEKED = 200  # lines whose keys are columns of a JSONL file in any case
_OPEN_GROUPS = 4  # parquet row groups kept decoded


class JsonlSource:
  """One JSON object per line; blank lines do not count.

  Opening reads the file once to note where lines start and which columns
  there are; an item is then read by seeking to its line. No image is touched
  before its item is asked for.
  """

  def __init__(
      self,
      path: str,
      *,
      form: rows.RowFormat = rows.RowFormat(),
      offset: int = 0,
  ):
    """Opens the file.

    Args:
      path: the file; anything etils.epath can read.
      form: columns and requirements.
      offset: uid of the first record.

    Raises:
      ValueError: no such file, no usable line, or unknown columns.
    """
    self.path = str(path)
    self.offset = offset
    _check_file(epath.Path(path))
    self._starts, self._ends, self._lines, columns = _index_lines(
        self.path, form.names())
    self.form = rows.resolve(form, columns, self.path)

  def __len__(self) -> int:
    return len(self._starts)

  def __getitem__(self, i: int) -> sources.Item:
    return self._item(i, load=True)

  def header(self, i: int) -> sources.Item:
    """Item i with images that are opened but not decoded."""
    return self._item(i, load=False)

  def _item(self, i: int, load: bool) -> sources.Item:
    i = sources.check_index(i, len(self), self.path)
    where = f'{self.path}:{self._lines[i]}'
    with epath.Path(self.path).open('rb') as file:
      file.seek(int(self._starts[i]))
      line = file.read(int(self._ends[i] - self._starts[i]))
    row, reason = _parse(line)
    if row is None:
      return records.Broken(where=where, reason=reason)
    return rows.to_example(
        row, self.form, folder=str(epath.Path(self.path).parent),
        uid=self.offset + i, where=where, load=load)


def _check_file(path: epath.Path):
  if not path.exists():
    raise ValueError(
        f'{path}: no such file. Check data.path (and data.eval_path).')


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str]:
  """The object on a line, or None and why not."""
  try:
    row = json.loads(line.decode('utf-8-sig'))
  except (ValueError, RecursionError) as error:
    return None, f'bad json: {error}'
  if not isinstance(row, dict):
    return None, f'bad json: a {type(row).__name__}, needed is an object'
  return row, ''


def _index_lines(path: str, names: Collection[str]):
  """Start, end and number of every line that is not blank, and the columns:
  past the first lines only `names` are looked for."""
  starts, ends, numbers = [], [], []
  columns, parsed, first_error = set(), 0, ''
  wanted = _naming(names)
  position = 0
  with epath.Path(path).open('rb') as file:
    for number, line in enumerate(file, start=1):
      if line.strip():
        starts.append(position)
        ends.append(position + len(line))
        numbers.append(number)
        # A name may stand in a text: parsing tells.
        if parsed < _PEEKED or wanted and wanted.search(line):
          row, reason = _parse(line)
          first_error = first_error or reason and f'line {number}: {reason}'
          if row is not None:
            columns.update(row if parsed < _PEEKED else {*names} & {*row})
            parsed += 1
            wanted = _naming({*names} - columns)
      position += len(line)
  if not parsed:
    raise ValueError(
        f'{path}: no line holds a JSON object ({first_error or "it is empty"})'
        '. Needed is one object per line; a JSON array must be written out '
        'as lines first.')
  return (np.asarray(starts, np.int64), np.asarray(ends, np.int64),
          np.asarray(numbers, np.int64), columns)


def _naming(names: Collection[str]) -> re.Pattern[bytes] | None:
  """Finds lines that may have one of these columns; None: there are none."""
  forms = {form.encode() for name in names for form in (
      json.dumps(name), json.dumps(name, ensure_ascii=False))}
  if not forms:
    return None
  inside = b'|'.join(re.escape(form[1:-1]) for form in sorted(forms))
  return re.compile(b'"(?:' + inside + b')"')


class ParquetSource:
  """Rows of one parquet file, or of several that a `*` pattern names.

  An item costs reading its row group (a few are kept), so files with small
  row groups shuffle fast; 100 rows with images is a good size.
  """

  def __init__(
      self,
      path: str,
      *,
      form: rows.RowFormat = rows.RowFormat(),
      offset: int = 0,
  ):
    """Opens the files.

    Args:
      path: file, or pattern such as `folder/train-*.parquet`.
      form: columns and requirements.
      offset: uid of the first row.

    Raises:
      ValueError: no such file, not parquet, no rows, or unknown columns.
    """
    self.path = str(path)
    self.offset = offset
    self._files = _expand(self.path)
    self._groups = []  # (file, group inside it)
    counts, columns = [], None
    for number, name in enumerate(self._files):
      with _open_parquet(name) as file:
        columns = columns or list(file.schema_arrow.names)
        if list(file.schema_arrow.names) != columns:
          raise ValueError(
              f'{name}: columns {file.schema_arrow.names} differ from those '
              f'of {self._files[0]}, {columns}.')
        for group in range(file.num_row_groups):
          self._groups.append((number, group))
          counts.append(file.metadata.row_group(group).num_rows)
    self._ends = [int(end) for end in np.cumsum(counts)]
    if not self._ends or not self._ends[-1]:
      raise ValueError(f'{self.path}: no rows.')
    self.form = rows.resolve(form, columns, self.path)
    self._reset()

  def _reset(self):
    self._lock = threading.Lock()  # readers may share a source
    self._cache = collections.OrderedDict()

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items()
            if k not in ('_lock', '_cache')}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._reset()

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, i: int) -> sources.Item:
    return self._item(i, load=True)

  def header(self, i: int) -> sources.Item:
    """Item i with images that are opened but not decoded."""
    return self._item(i, load=False)

  def _item(self, i: int, load: bool) -> sources.Item:
    i = sources.check_index(i, len(self), self.path)
    group = bisect.bisect_right(self._ends, i)
    start = self._ends[group - 1] if group else 0
    number = self._groups[group][0]
    name = self._files[number]
    # Rows are named by their place in their own file, from 0.
    first = self._first_row(number)
    where = f'{name}:row {i - first}'
    try:
      row = self._table(group).slice(i - start, 1).to_pylist()[0]
    except Exception as error:  # any damage to the group: named, not hidden
      return records.Broken(
          where=where,
          reason=f'unreadable row: {type(error).__name__}: {error}')
    return rows.to_example(
        row, self.form, folder=str(epath.Path(name).parent),
        uid=self.offset + i, where=where, load=load)

  def _first_row(self, number: int) -> int:
    group = next(
        g for g, (file, _) in enumerate(self._groups) if file == number)
    return self._ends[group - 1] if group else 0

  def _table(self, group: int):
    with self._lock:
      if group in self._cache:
        self._cache.move_to_end(group)
        return self._cache[group]
      number, inside = self._groups[group]
      with _open_parquet(self._files[number]) as file:
        table = file.read_row_group(inside, use_threads=False)
      self._cache[group] = table
      if len(self._cache) > _OPEN_GROUPS:
        self._cache.popitem(last=False)
      return table


def _expand(path: str) -> list[str]:
  if '*' in path:
    folder = epath.Path(path).parent
    names = sorted(str(p) for p in folder.glob(epath.Path(path).name))
    if not names:
      raise ValueError(f'{path}: no file matches. Check data.path.')
    return names
  _check_file(epath.Path(path))
  return [path]


def exists(path: str) -> bool:
  """Whether a path names a file, or files by '*'; of TFDS nobody knows."""
  if path.startswith('tfds:'):
    return True
  try:
    return bool(_expand(path))
  except ValueError:
    return False


@contextlib.contextmanager
def _open_parquet(name: str):
  import pyarrow  # only users of parquet pay for it
  from pyarrow import parquet
  with epath.Path(name).open('rb') as file:
    try:
      reader = parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
      raise ValueError(f'{name}: not a parquet file: {error}') from error
    yield reader


def open_path(
    path: str,
    *,
    form: rows.RowFormat = rows.RowFormat(),
    offset: int = 0,
) -> sources.Source:
  """Opens what a path names: `*.jsonl`, `*.parquet` or `tfds:name/split`.

  Raises:
    ValueError: another ending, or as the source says.
  """
  if path.startswith('tfds:'):
    from mmr1.data import tfds_source  # loads tensorflow_datasets
    name, _, split = path.removeprefix('tfds:').rpartition('/')
    if not name:
      raise ValueError(
          f'{path}: needed is tfds:<name>/<split>, for example '
          'tfds:mnist/train.')
    return tfds_source.TfdsSource(name, split, form=form, offset=offset)
  if path.endswith('.jsonl'):
    return JsonlSource(path, form=form, offset=offset)
  if path.endswith('.parquet'):
    return ParquetSource(path, form=form, offset=offset)
  raise ValueError(
      f'{path}: known are files ending in .jsonl or .parquet, and '
      'tfds:<name>/<split>.')
