"""Tensors in files: a folder of safetensors, read and written in pieces.

A file is 8 bytes of header length, a JSON header and the raw data
(https://huggingface.co/docs/safetensors). A folder has one file, or shards and
an index that says which tensor is in which. Everything goes through
etils.epath, so that buckets work like local folders, and in pieces of at most
`PIECE` bytes: neither a file nor a large tensor is held beside its array.
"""

from collections.abc import Iterable, Iterator, Mapping
import json
import math
import re
from typing import Any, NamedTuple

from etils import epath
import ml_dtypes
import numpy as np

ONE_FILE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
MAX_SHARD_BYTES = 5_000_000_000
PIECE = 1 << 24
_LONGEST_HEADER = 100_000_000  # as the format has it

DTYPES = {
    'F64': np.dtype(np.float64), 'F32': np.dtype(np.float32),
    'F16': np.dtype(np.float16), 'BF16': np.dtype(ml_dtypes.bfloat16)}
# The bits that are all set in inf and nan alone, and the integer of that size.
_EXPONENT = {
    'F64': (np.uint64, 0x7ff << 52), 'F32': (np.uint32, 0xff << 23),
    'F16': (np.uint16, 0x1f << 10), 'BF16': (np.uint16, 0xff << 7)}
_AGAIN = 'Download the file again; an interrupted download looks like this.'
_PARTIAL = '.partial'
_OURS = re.compile(r'model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?')


class Tensor(NamedTuple):
  """Where a tensor is.

  Fields:
    name: in the file.
    file: that holds it.
    code: its dtype in the words of the format, perhaps none of DTYPES.
    shape: of the tensor.
    start: its first byte in the file.
  """
  name: str
  file: epath.Path
  code: str
  shape: tuple[int, ...]
  start: int


def read_json(path: epath.Path) -> dict[str, Any]:
  """A JSON file with an object in it.

  Raises:
    ValueError: it is something else; names the file.
  """
  try:
    result = json.loads(path.read_text())
  except ValueError as error:  # no UTF-8, no JSON
    raise ValueError(f'{path}: not JSON ({error}). {_AGAIN}') from error
  if not isinstance(result, dict):
    raise ValueError(f'{path}: a JSON {type(result).__name__}, not an object.')
  return result


def exist(folder: epath.Path) -> bool:
  """Whether `find` has anything to read."""
  return any((folder / name).exists() for name in (ONE_FILE, INDEX))


def find(folder: epath.Path) -> dict[str, Tensor]:
  """{name: where it is} of all tensors of a folder, reading only headers.

  Raises:
    ValueError: no weights, or a file that is missing, damaged or not the one
      that the index describes; names it and a tensor.
  """
  if (folder / ONE_FILE).exists():
    return _header(folder / ONE_FILE)
  index = folder / INDEX
  if not index.exists():
    raise ValueError(
        f'{folder}: neither {ONE_FILE} nor {INDEX}. Weights must be in the '
        'safetensors format (save_pretrained of transformers writes it).')
  listed = read_json(index).get('weight_map')
  if not isinstance(listed, dict) or not all(
      isinstance(shard, str) for shard in listed.values()):
    raise ValueError(f'{index}: no weight_map of tensor names to file names. '
                     f'{_AGAIN}')
  shards, tensors = {}, {}
  for name, shard in sorted(listed.items(), key=lambda item: item[1]):
    if shard not in shards:
      if not (folder / shard).exists():
        raise ValueError(
            f'{folder / shard} is missing; {INDEX} says it holds {name!r}. '
            'Download interrupted? Fetch the file.')
      shards[shard] = _header(folder / shard)
      tensors = shards[shard] | tensors
    if name not in shards[shard]:
      raise ValueError(
          f'{folder / shard}: holds no tensor {name!r}; {INDEX} says it does. '
          'They come from different saves: fetch both again.')
    tensors[name] = shards[shard][name]
  return tensors


def _header(path: epath.Path) -> dict[str, Tensor]:
  with path.open('rb') as f:
    size = int.from_bytes(f.read(8), 'little')
    length = path.stat().length
    if not 0 < size <= min(length - 8, _LONGEST_HEADER):
      raise ValueError(
          f'{path}: not a safetensors file (header of {size} bytes in a file '
          f'of {length}). A Git LFS pointer? Fetch the real file.')
    raw = f.read(size)
  try:
    header = json.loads(raw)
    if not isinstance(header, dict):
      raise ValueError(f'a {type(header).__name__}')
  except ValueError as error:
    raise ValueError(
        f'{path}: the header is corrupt ({error}). {_AGAIN}') from error
  tensors = {}
  for name, entry in header.items():
    if name == '__metadata__':
      continue
    tensors[name], stop = _entry(path, name, entry, 8 + size)
    if stop > length:
      raise ValueError(
          f'{path}: truncated: tensor {name!r} ends at byte {stop}, the file '
          f'at {length}. {_AGAIN}')
  return tensors


def _entry(path, name, entry, offset) -> tuple[Tensor, int]:
  """A tensor and the byte after it; what the header says must add up."""
  try:
    start, stop = map(int, entry['data_offsets'])
    tensor = Tensor(name, path, str(entry['dtype']),
                    tuple(map(int, entry['shape'])), offset + start)
  except (TypeError, KeyError, ValueError) as error:
    raise ValueError(f'{path}: the header is corrupt at tensor {name!r}: '
                     f'{entry!r}. {_AGAIN}') from error
  known = tensor.code in DTYPES
  size = math.prod(tensor.shape) * (DTYPES[tensor.code].itemsize if known
                                    else 0)
  if start < 0 or min(tensor.shape, default=0) < 0 or stop < start or (
      known and stop - start != size):
    raise ValueError(
        f'{path}: the header is corrupt: tensor {name!r} of {tensor.code}'
        f'{list(tensor.shape)} at bytes {start} to {stop}. {_AGAIN}')
  return tensor, offset + stop


def pieces(f: Any, tensor: Tensor, start: int = 0, stop: int | None = None,
           ) -> Iterator[tuple[int, np.ndarray]]:
  """Reads a tensor row by row, as many at a time as fit into PIECE.

  Args:
    f: its file, open.
    tensor: with a dtype of DTYPES.
    start, stop: the rows that are wanted; the others are not read.

  Yields:
    The first row's number and rows [r, ...]; a tensor without axes is one
    piece.

  Raises:
    ValueError: nan or inf, or the file ends early.
  """
  dtype, shape = DTYPES[tensor.code], tensor.shape
  rows, rest = (shape[0], shape[1:]) if shape else (1, ())
  rows = rows if stop is None else stop
  size = math.prod(rest) * dtype.itemsize
  step = max(1, PIECE // max(1, size))
  for begin in range(start, rows, step):
    count = min(step, rows - begin)
    f.seek(tensor.start + begin * size)  # others read this file too
    data = f.read(count * size)
    if len(data) != count * size:
      raise ValueError(f'{tensor.file}: truncated inside tensor '
                       f'{tensor.name!r}. {_AGAIN}')
    x = np.frombuffer(data, dtype).reshape((count, *rest))
    if not _finite(x, tensor.code):
      where = np.argwhere(~np.isfinite(x.astype(np.float64)))[0]
      where[0] += begin
      raise ValueError(
          f'{tensor.file}: tensor {tensor.name!r} has nan or inf, first at '
          f'{where.tolist()} of {list(shape)}. The file is damaged (download '
          'it again), or the training that wrote it diverged (take an earlier '
          'checkpoint).')
    yield begin, x if shape else x.reshape(())


def _finite(x: np.ndarray, code: str) -> bool:
  """Far cheaper than isfinite, which is slow for bfloat16."""
  kind, exponent = _EXPONENT[code]
  exponent = kind(exponent)
  return not x.size or int((x.view(kind) & exponent).max()) != int(exponent)


def write(
    folder: epath.Path,
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Iterable[np.ndarray],
    *,
    dtype: Any,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
  """Writes model.safetensors, or shards and their index where it is larger.

  Everything is written under other names first. Weights of an earlier save
  are removed then, and the index, without which shards are no model, comes
  last: a save that is cut off leaves the old weights or none.

  Args:
    folder: made if absent.
    shapes: {name: shape} in the order of the file.
    arrays: the tensors in that order, taken one at a time.
    dtype: one of DTYPES, of the file.
    max_shard_bytes: of tensors per shard; a larger tensor is a shard alone.

  Raises:
    ValueError: nan or inf, which no reader takes.
  """
  if max_shard_bytes < 1:
    raise ValueError(
        f'max_shard_bytes: got {max_shard_bytes}; allowed: at least 1.')
  dtype = np.dtype(dtype)
  shards = _divide(shapes, dtype, max_shard_bytes)
  names = [ONE_FILE] if len(shards) == 1 else [
      f'model-{i:05d}-of-{len(shards):05d}.safetensors'
      for i in range(1, len(shards) + 1)]
  folder.mkdir(parents=True, exist_ok=True)
  _remove(folder, lambda name: name.endswith(_PARTIAL))
  arrays = iter(arrays)
  for file, shard in zip(names, shards):
    with _partial(folder / file).open('wb') as f:
      _write(f, shard, arrays, dtype)
  if len(shards) == 1:
    # This rename is the switch: the one file goes before an index.
    _partial(folder / ONE_FILE).replace(folder / ONE_FILE)
    _remove(folder, lambda name: name not in (ONE_FILE, INDEX))
    _remove(folder, lambda name: name == INDEX)
    return
  _remove(folder, lambda name: name in (ONE_FILE, INDEX))
  _remove(folder, lambda name: not name.endswith(_PARTIAL))
  for file in names:
    _partial(folder / file).replace(folder / file)
  total = dtype.itemsize * sum(map(math.prod, shapes.values()))
  write_text(folder / INDEX, json.dumps({
      'metadata': {'total_size': total},
      'weight_map': {name: file for file, shard in zip(names, shards)
                     for name in shard}}, indent=2) + '\n')


def write_one(
    path: epath.Path,
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Iterable[np.ndarray],
    *,
    dtype: Any,
) -> None:
  """Writes one file of any name, whole or not at all; see `write`."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with _partial(path).open('wb') as f:
    _write(f, shapes, iter(arrays), np.dtype(dtype))
  _partial(path).replace(path)


def write_text(path: epath.Path, text: str) -> None:
  """A text file that is whole or not there."""
  _partial(path).write_text(text)
  _partial(path).replace(path)


def _divide(shapes, dtype, most) -> list[dict[str, tuple[int, ...]]]:
  """Shards in order, each as large as it may be."""
  shards, room = [{}], most
  for name, shape in shapes.items():
    size = math.prod(shape) * dtype.itemsize
    if size > room and shards[-1]:
      shards.append({})
      room = most
    shards[-1][name] = tuple(shape)
    room -= size
  return shards


def _write(f, shard, arrays, dtype) -> None:
  code = {value: key for key, value in DTYPES.items()}[dtype]
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  offset = 0
  for name, shape in shard.items():
    stop = offset + math.prod(shape) * dtype.itemsize
    header[name] = {'dtype': code, 'shape': list(shape),
                    'data_offsets': [offset, stop]}
    offset = stop
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)  # so that the data is aligned
  f.write(len(text).to_bytes(8, 'little') + text)
  for name, shape in shard.items():
    x = next(arrays)
    assert x.shape == shape, (name, x.shape, shape)
    flat = np.ascontiguousarray(x, dtype).reshape(-1)
    step = max(1, PIECE // dtype.itemsize)
    for begin in range(0, flat.size, step):
      piece = flat[begin:begin + step]
      if not _finite(piece, code):
        raise ValueError(
            f'tensor {name!r} has nan or inf as {dtype}: not saved. Did the '
            'training diverge? Save an earlier state.')
      f.write(piece.tobytes())


def _partial(path: epath.Path) -> epath.Path:
  return path.parent / f'.{path.name}{_PARTIAL}'


def _remove(folder: epath.Path, chosen) -> None:
  """Removes the chosen ones of the weight files that a save makes."""
  for path in list(folder.iterdir()):
    name = path.name.removeprefix('.').removesuffix(_PARTIAL)
    if _OURS.fullmatch(name) and chosen(path.name):
      path.unlink()
