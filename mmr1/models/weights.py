"""Tensors of a Hugging Face folder <-> a tree of stacked parameters.

A family describes itself by rows of `Weight`; `read` and `write` use the same
rows. `tensor_files` has the files, which are read and written in pieces.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
from typing import Any, NamedTuple

from etils import epath
import jax
import numpy as np

from mmr1.models import tensor_files

_ALIGNED = 64  # bytes
_LISTED = 12  # names shown per kind of error


class Weight(NamedTuple):
  """One leaf of the tree.

  Fields:
    path: keys of the leaf joined by '/'. A leaf named 'kernel' is [inputs,
      outputs] where the file has [outputs, inputs...].
    name: of the tensor; with `{}` for the layer if `layers`.
    layers: L if the leaf is stacked [L, ...] from L tensors, else 0.
    file_shape: of a kernel's tensor, where it has more than two axes.
    optional: zeros where the file does not have it.
  """
  path: str
  name: str
  layers: int = 0
  file_shape: tuple[int, ...] = ()
  optional: bool = False

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

  def rows(self, index: Sequence[slice]) -> slice:
    """Rows of the tensor that hold a part of it, by the leaf's axes."""
    return index[-1 if self.kernel else 0] if index else slice(0, 1)

  def fill(self, target: np.ndarray, index: Sequence[slice], begin: int,
           x: np.ndarray) -> None:
    """Puts rows `begin`... of the tensor into `target`, the part `index`."""
    if not index:
      target[...] = x
      return
    begin -= self.rows(index).start
    if self.kernel:
      target[:, begin:begin + len(x)] = x.reshape(len(x), -1)[:, index[0]].T
    else:
      target[begin:begin + len(x)] = x[(slice(None), *index[1:])]

  def to_file(self, x: np.ndarray) -> np.ndarray:
    if not self.kernel:
      return x
    return x.T.reshape(self.file_shape or x.shape[::-1])


class Leaf:
  """A parameter that is still in its files, and can be read in parts.

  Attributes:
    path: keys of the leaf joined by '/'.
    shape, dtype: of the whole leaf.
  """

  def __init__(self, row: Weight, shape: tuple[int, ...], dtype: np.dtype,
               pieces: Callable[..., Iterator[tuple[int, np.ndarray]]] | None):
    self.path, self.shape, self.dtype = row.path, shape, dtype
    self._row, self._pieces = row, pieces

  def parts(self) -> Iterator[np.ndarray]:
    """Layer by layer [...], or a leaf of no layers as a whole."""
    for i in range(self._row.layers):
      yield self.read((slice(i, i + 1),))[0]
    if not self._row.layers:
      yield self.read()

  def read(self, index: Sequence[slice] = ()) -> np.ndarray:
    """The part `index` of the leaf (one slice an axis; missing ones: all).

    Rows of the files outside of it are not read. A host array that nobody
    else holds.

    Raises:
      ValueError: a file that is damaged, nan or inf; names file and tensor.
    """
    slices = [slice(*part.indices(size)[:2]) for part, size in zip(
        (*index, *[slice(None)] * (len(self.shape) - len(index))), self.shape)]
    result = _empty([part.stop - part.start for part in slices], self.dtype)
    if self._pieces is None:
      result.fill(0)
      return result
    row, names = self._row, self._row.names
    inner = slices[1:] if row.layers else slices
    rows = row.rows(inner)
    for i, name in enumerate(names[slices[0]] if row.layers else names):
      target = result[i if row.layers else ...]
      for begin, x in self._pieces(name, rows.start, rows.stop):
        row.fill(target, inner, begin, x)
    return result


@dataclasses.dataclass(frozen=True)
class Made:
  """A leaf that is made while it is written.

  Fields:
    shape: of the whole leaf.
    parts: () -> its layers one by one, or a leaf of no layers as a whole.
  """
  shape: tuple[int, ...]
  parts: Callable[[], Iterator[np.ndarray]]


def read(
    folder: epath.PathLike,
    table: Sequence[Weight],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    canonical: Callable[[str], str | None],
    tied: Mapping[str, str],
    dtype: Any,
    place: Callable[[Leaf], Any] = Leaf.read,
) -> dict[str, Any]:
  """Reads a folder's tensors into a nested dict, a leaf at a time.

  Args:
    place: reads of a leaf what belongs here and puts it where it belongs.
    folder, table, shapes, canonical, tied, dtype: see `opened`.

  Raises:
    ValueError: as `opened`.
  """
  result: dict[str, Any] = {}
  with opened(folder, table, shapes, canonical=canonical, tied=tied,
              dtype=dtype) as leaves:
    for path, leaf in leaves.items():
      *parents, last = path.split('/')
      node = result
      for key in parents:
        node = node.setdefault(key, {})
      node[last] = place(leaf)
  return result


@contextlib.contextmanager
def opened(
    folder: epath.PathLike,
    table: Sequence[Weight],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    canonical: Callable[[str], str | None],
    tied: Mapping[str, str],
    dtype: Any,
) -> Iterator[dict[str, Leaf]]:
  """{path: leaf} of a folder whose files stay open in the meantime.

  Args:
    folder: with model.safetensors, or shards and their index.
    table: one row per leaf.
    shapes: {path: shape} of every leaf.
    canonical: a file's tensor name -> the table's, or None to skip it.
    tied: {name: other}: a name that may be there if it equals `other`.
    dtype: of the arrays.

  Raises:
    ValueError: missing, unknown or wrongly shaped tensors, all listed; a file
      that is damaged or a tensor with nan or inf, both named.
  """
  folder = epath.Path(folder)
  found = {}
  for name, tensor in tensor_files.find(folder).items():
    own = canonical(name)
    if own in found:
      raise ValueError(
          f'{folder}: {name!r} and {found[own].name!r} are the same parameter '
          'under two names. Were two checkpoints saved into one folder?')
    if own is not None:
      found[own] = tensor
  _check(folder, table, shapes, found, tied)
  with contextlib.ExitStack() as stack:
    files = {path: stack.enter_context(path.open('rb'))
             for path in {tensor.file for tensor in found.values()}}

    def pieces(name, *rows):
      return tensor_files.pieces(files[found[name].file], found[name], *rows)

    for name, other in tied.items():
      if name in found and not _equal(pieces(name), found[name], found[other],
                                      files[found[other].file]):
        raise ValueError(
            f'{folder}: config.json ties {name!r} to {other!r}, but the '
            'tensors differ. Set tie_word_embeddings to false?')
    yield {row.path: Leaf(row, shapes[row.path], np.dtype(dtype),
                          pieces if row.names[0] in found else None)
           for row in table}


def _empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
  """Aligned as XLA wants it: a CPU device can then take it without a copy."""
  size = math.prod(shape) * dtype.itemsize
  raw = np.empty(size + _ALIGNED, np.uint8)
  start = -raw.ctypes.data % _ALIGNED
  return raw[start:start + size].view(dtype).reshape(shape)


def _equal(pieces, tensor, other, file) -> bool:
  """True if two tensors are equal, compared piece by piece."""
  return (tensor.shape, tensor.code) == (other.shape, other.code) and all(
      np.array_equal(x, y) for (_, x), (_, y) in zip(
          pieces, tensor_files.pieces(file, other)))


def _check(folder, table, shapes, found, tied):
  """Raises one ValueError that lists everything wrong with the tensors."""
  wrong = collections.defaultdict(list)
  known = set(tied)
  for row in table:
    expected = row.shape_in_file(shapes[row.path])
    for name in row.names:
      known.add(name)
      if name not in found and row.optional:
        continue
      if name not in found:
        wrong['missing'].append(name)
      elif found[name].shape != expected:
        wrong['wrong shape'].append(
            f'{name} {list(found[name].shape)}, not {list(expected)}, in '
            f'{found[name].file.name}')
  wrong['unknown'] = [f'{name} in {found[name].file.name}'
                      for name in sorted(set(found) - known)]
  wrong[f'dtype none of {sorted(tensor_files.DTYPES)}, quantised?'] = [
      f'{name} {found[name].code} in {found[name].file.name}'
      for name in sorted(known & set(found))
      if found[name].code not in tensor_files.DTYPES]
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
    max_shard_bytes: int = tensor_files.MAX_SHARD_BYTES,
) -> None:
  """Writes {path: array} as safetensors, tensor by tensor.

  Args:
    folder: weights of an earlier save in it are replaced.
    table: one row per leaf.
    leaves: arrays of this process, on the host or on devices, or `Made`.
    dtype: of the tensors in the files.
    max_shard_bytes: what fits is one file; see `tensor_files.write`.

  Raises:
    ValueError: `leaves` and `table` do not name the same paths; nan or inf.
  """
  paths = {row.path for row in table}
  if set(leaves) != paths:
    raise ValueError(
        'parameters do not fit the family: missing '
        f'{sorted(paths - set(leaves))}, unknown '
        f'{sorted(set(leaves) - paths)}.')
  shapes = {name: row.shape_in_file(leaves[row.path].shape)
            for row in table for name in row.names}
  tensor_files.write(
      epath.Path(folder), shapes, _tensors(table, leaves), dtype=dtype,
      max_shard_bytes=max_shard_bytes)


def _tensors(table, leaves) -> Iterator[np.ndarray]:
  """The tensors in the order of the table; one leaf is on the host, or one
  part of it."""
  for row in table:
    leaf = leaves[row.path]
    if not isinstance(leaf, Made):
      leaf = _on_host(leaf)
      leaf = Made(leaf.shape, (leaf if row.layers else leaf[None]).__iter__)
    for x in leaf.parts():
      yield row.to_file(x)


def _on_host(leaf: Any) -> np.ndarray:
  """An array as NumPy; a jax.Array itself would keep its copy for good."""
  if not isinstance(leaf, jax.Array):
    return np.asarray(leaf)
  shards = leaf.addressable_shards
  if leaf.is_fully_replicated:
    return np.asarray(shards[0].data)
  result = np.empty(leaf.shape, leaf.dtype)
  for shard in shards:
    result[shard.index] = shard.data
  return result
