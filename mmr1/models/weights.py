"""Tensors of a Hugging Face folder <-> a tree of stacked parameters.

A family describes itself by rows of `Weight`; `read` and `write` use the same
rows. Files are in the safetensors format
(https://huggingface.co/docs/safetensors: 8 bytes of header length, a JSON
header, the raw data), read here tensor by tensor through etils.epath so that
buckets work like local folders and no tensor is held twice.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import contextlib
import json
import math
import os
from typing import Any, NamedTuple

from etils import epath
import ml_dtypes
import numpy as np

_DTYPES = {
    'F64': np.dtype(np.float64), 'F32': np.dtype(np.float32),
    'F16': np.dtype(np.float16), 'BF16': np.dtype(ml_dtypes.bfloat16)}
_FILE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
_LISTED = 12  # names shown per kind of error


class Weight(NamedTuple):
  """One leaf of the tree.

  Fields:
    path: keys of the leaf joined by '/'. A leaf named 'kernel' is [inputs,
      outputs] where the file has [outputs, inputs...].
    name: of the tensor; with `{}` for the layer if `layers`.
    layers: L if the leaf is stacked [L, ...] from L tensors, else 0.
    file_shape: of a kernel's tensor, where it has more than two axes.
  """
  path: str
  name: str
  layers: int = 0
  file_shape: tuple[int, ...] = ()

  @property
  def names(self) -> list[str]:
    return [self.name.format(i) for i in range(self.layers)] or [self.name]

  @property
  def kernel(self) -> bool:
    return self.path.endswith('/kernel')

  def shape_in_file(self, leaf_shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of each tensor, given the whole leaf's."""
    shape = tuple(leaf_shape[1:] if self.layers else leaf_shape)
    return self.file_shape or (shape[::-1] if self.kernel else shape)

  def from_file(self, x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[0], -1).T if self.kernel else x

  def to_file(self, x: np.ndarray) -> np.ndarray:
    if not self.kernel:
      return x
    return x.T.reshape(self.file_shape or x.shape[::-1])


class _Tensor(NamedTuple):
  file: epath.Path
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int


def _read_header(path: epath.Path) -> dict[str, _Tensor]:
  with path.open('rb') as f:
    size = int.from_bytes(f.read(8), 'little')
    length = path.stat().length
    if not 0 < size <= length - 8:
      raise ValueError(f'{path}: not a safetensors file (header of {size} '
                       f'bytes in a file of {length}). A Git LFS pointer?')
    header = json.loads(f.read(size))
  tensors = {}
  for name, entry in header.items():
    if name == '__metadata__':
      continue
    if entry['dtype'] not in _DTYPES:
      raise ValueError(
          f"{path}: tensor {name!r} has dtype {entry['dtype']}; allowed are "
          f'{sorted(_DTYPES)}. Quantised checkpoints are not supported.')
    start, stop = entry['data_offsets']
    if 8 + size + stop > length:
      raise ValueError(f'{path}: truncated: tensor {name!r} ends at byte '
                       f'{8 + size + stop}, the file at {length}.')
    tensors[name] = _Tensor(path, _DTYPES[entry['dtype']],
                            tuple(entry['shape']), 8 + size + start)
  return tensors


def _headers(folder: epath.Path) -> dict[str, _Tensor]:
  """All tensors of a folder: one file, or shards listed in an index."""
  if (folder / _FILE).exists():
    return _read_header(folder / _FILE)
  if not (folder / _INDEX).exists():
    raise ValueError(
        f'{folder}: neither {_FILE} nor {_INDEX}. Weights must be in the '
        'safetensors format (save_pretrained of transformers writes it).')
  shards = json.loads((folder / _INDEX).read_text())['weight_map']
  tensors = {}
  for shard in sorted(set(shards.values())):
    if not (folder / shard).exists():
      raise ValueError(f'{folder / shard} is missing; {_INDEX} lists it. '
                       'Download interrupted?')
    tensors |= _read_header(folder / shard)
  return tensors


def _read(f: Any, tensor: _Tensor) -> np.ndarray:
  f.seek(tensor.start)
  size = math.prod(tensor.shape) * tensor.dtype.itemsize
  return np.frombuffer(f.read(size), tensor.dtype).reshape(tensor.shape)


def read(
    folder: epath.PathLike,
    table: Sequence[Weight],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    canonical: Callable[[str], str | None],
    tied: Mapping[str, str],
    dtype: Any,
) -> dict[str, Any]:
  """Reads a folder's tensors into a nested dict of host arrays.

  Args:
    folder: with model.safetensors, or shards and their index.
    table: one row per leaf.
    shapes: {path: shape} of every leaf.
    canonical: a file's tensor name -> the table's, or None to skip it.
    tied: {name: other}: a name that may be there if it equals `other`.
    dtype: of the arrays.

  Raises:
    ValueError: missing, unknown or wrongly shaped tensors, all listed.
  """
  folder = epath.Path(folder)
  found = {}
  for name, tensor in _headers(folder).items():
    if canonical(name) is not None:
      found[canonical(name)] = tensor
  _check(folder, table, shapes, found, tied)
  result: dict[str, Any] = {}
  with contextlib.ExitStack() as stack:
    files = {path: stack.enter_context(path.open('rb'))
             for path in {tensor.file for tensor in found.values()}}

    def get(name):
      return _read(files[found[name].file], found[name])

    for name, other in tied.items():
      if name in found and not np.array_equal(get(name), get(other)):
        raise ValueError(
            f'{folder}: config.json ties {name!r} to {other!r}, but the '
            'tensors differ. Set tie_word_embeddings to false?')
    for row in table:
      leaf = np.empty(shapes[row.path], dtype)
      for i, name in enumerate(row.names):
        leaf[i if row.layers else ...] = row.from_file(get(name))
      *parents, last = row.path.split('/')
      node = result
      for key in parents:
        node = node.setdefault(key, {})
      node[last] = leaf
  return result


def _check(folder, table, shapes, found, tied):
  """Raises one ValueError that lists everything wrong with the tensors."""
  wrong = collections.defaultdict(list)
  known = set(tied)
  for row in table:
    expected = row.shape_in_file(shapes[row.path])
    for name in row.names:
      known.add(name)
      if name not in found:
        wrong['missing'].append(name)
      elif found[name].shape != expected:
        wrong['wrong shape'].append(
            f'{name} {list(found[name].shape)}, not {list(expected)}')
  wrong['unknown'] = sorted(set(found) - known)
  lines = [
      f"{kind} ({len(names)}): {', '.join(names[:_LISTED])}"
      + (' ...' if len(names) > _LISTED else '')
      for kind, names in wrong.items() if names]
  if lines:
    raise ValueError(
        f'{folder}: the tensors do not fit config.json.\n  '
        + '\n  '.join(lines)
        + '\nIs this config.json of the same model?')


def write(
    folder: epath.PathLike,
    table: Sequence[Weight],
    leaves: Mapping[str, Any],
    *,
    dtype: Any,
) -> None:
  """Writes {path: array} as `folder`/model.safetensors, tensor by tensor.

  The file appears under its name only when complete.

  Raises:
    ValueError: `leaves` and `table` do not name the same paths.
  """
  paths = {row.path for row in table}
  if set(leaves) != paths:
    raise ValueError(
        'parameters do not fit the family: missing '
        f'{sorted(paths - set(leaves))}, unknown '
        f'{sorted(set(leaves) - paths)}.')
  dtype = np.dtype(dtype)
  code = {value: key for key, value in _DTYPES.items()}[dtype]
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  offset = 0
  for row in table:
    shape = row.shape_in_file(leaves[row.path].shape)
    size = math.prod(shape) * dtype.itemsize
    for name in row.names:
      header[name] = {'dtype': code, 'shape': list(shape),
                      'data_offsets': [offset, offset + size]}
      offset += size
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  partial = folder / f'.{_FILE}.{os.getpid()}'
  with partial.open('wb') as f:
    f.write(len(text).to_bytes(8, 'little') + text)
    for row in table:
      leaf = np.asarray(leaves[row.path])
      for x in leaf if row.layers else leaf[None]:
        x = np.ascontiguousarray(row.to_file(x).astype(dtype))
        f.write(x.tobytes())
  partial.replace(folder / _FILE)
