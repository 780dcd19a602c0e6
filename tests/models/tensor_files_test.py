"""Files of tensors: the format, its pieces, and what can be wrong with it."""

import json

from etils import epath
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from mmr1.models import tensor_files

AGAIN = 'ownload the file again'


def tensors(dtype=np.float32):
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=shape).astype(dtype) for name, shape in (
      ('a', (7, 5)), ('b', (4, 3, 2)), ('scale', (6,)), ('one', ()),
      ('none', (0, 3)))}


def write(folder, most=10**9, dtype=np.float32, given=None):
  given = given or tensors(dtype)
  tensor_files.write(
      epath.Path(folder), {name: x.shape for name, x in given.items()},
      given.values(), dtype=dtype, max_shard_bytes=most)


def read(folder):
  result = {}
  for name, tensor in tensor_files.find(epath.Path(folder)).items():
    with tensor.file.open('rb') as f:
      parts = list(tensor_files.pieces(f, tensor))
    x = np.zeros(tensor.shape, tensor_files.DTYPES[tensor.code])
    for begin, part in parts:
      if part.ndim:
        x[begin:begin + len(part)] = part
      else:
        x[...] = part
    result[name] = x
  return result


def edit(file, change):
  """The header, changed."""
  raw = file.read_bytes()
  size = int.from_bytes(raw[:8], 'little')
  header = json.loads(raw[8:8 + size])
  text = change(header)
  text = json.dumps(header).encode() if text is None else text
  file.write_bytes(len(text).to_bytes(8, 'little') + text + raw[8 + size:])


@pytest.mark.parametrize('piece', [1, 48, 1 << 24])
@pytest.mark.parametrize('dtype', [
    np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_there_and_back_in_pieces(tmp_path, monkeypatch, dtype, piece):
  """Less than a row at a time, a few rows, all of it."""
  monkeypatch.setattr(tensor_files, 'PIECE', max(piece, 8))
  write(tmp_path, dtype=dtype)
  found = read(tmp_path)
  for name, x in tensors(dtype).items():
    assert found[name].dtype == x.dtype
    np.testing.assert_array_equal(found[name], x, err_msg=name)
  theirs = safetensors_numpy.load_file(tmp_path / 'model.safetensors')
  assert {name: x.tobytes() for name, x in theirs.items()} == {
      name: x.tobytes() for name, x in found.items()}
  raw = (tmp_path / 'model.safetensors').read_bytes()
  assert int.from_bytes(raw[:8], 'little') % 8 == 0


def test_pieces_are_small(tmp_path, monkeypatch):
  monkeypatch.setattr(tensor_files, 'PIECE', 48)
  write(tmp_path)
  a = tensor_files.find(epath.Path(tmp_path))['a']
  with a.file.open('rb') as f:
    sizes = [(begin, x.shape) for begin, x in tensor_files.pieces(f, a)]
  assert sizes == [(0, (2, 5)), (2, (2, 5)), (4, (2, 5)), (6, (1, 5))]


def test_shards_by_hand(tmp_path):
  """a 140 bytes, b 96, scale 24, one 4, none 0, at most 130 in a shard."""
  write(tmp_path, most=130)
  index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
  one, two = (f'model-0000{i}-of-00002.safetensors' for i in (1, 2))
  assert index == {
      'metadata': {'total_size': 264},
      'weight_map': {'a': one, 'b': two, 'scale': two, 'one': two,
                     'none': two}}
  assert sorted(f.name for f in tmp_path.iterdir()) == [
      one, two, 'model.safetensors.index.json']
  np.testing.assert_array_equal(read(tmp_path)['b'], tensors()['b'])
  exact, less = tmp_path / 'exact', tmp_path / 'less'
  write(exact, most=264)
  assert [f.name for f in exact.iterdir()] == ['model.safetensors']
  write(less, most=263)
  assert len(list(less.iterdir())) == 3
  with pytest.raises(ValueError, match='max_shard_bytes: got 0'):
    write(tmp_path, most=0)


def test_tensors_are_taken_one_at_a_time(tmp_path):
  """No tensor is asked for before the one ahead of it is in its file."""
  given, seen = tensors(), []

  def arrays():
    for x in given.values():
      files = list(tmp_path.glob('.model*'))
      seen.append(max((f.stat().st_size for f in files), default=0))
      yield np.tile(x, 1)
  big = {name: np.ones((3000, 10), np.float32) for name in 'abc'}
  given = big
  tensor_files.write(
      epath.Path(tmp_path), {name: x.shape for name, x in big.items()},
      arrays(), dtype=np.float32, max_shard_bytes=10**9)
  assert 0 == seen[0] < 110_000 < seen[1] < 230_000 < seen[2]


def no_dtype(header):
  del header['b']['dtype']


def no_shape(header):
  header['b']['shape'] = None


def no_numbers(header):
  header['b']['data_offsets'] = ['x', 4]


def too_short(header):
  header['b']['data_offsets'][1] -= 4


def backwards(header):
  header['b']['data_offsets'] = header['b']['data_offsets'][::-1]


def negative(header):
  header['b']['shape'] = [-4, -3, 2]


def an_int(header):
  header['b'] = 3


@pytest.mark.parametrize('change', [
    no_dtype, no_shape, no_numbers, too_short, backwards, negative, an_int])
def test_a_corrupt_header_names_file_and_tensor(tmp_path, change):
  write(tmp_path)
  file = tmp_path / 'model.safetensors'
  edit(file, change)
  with pytest.raises(ValueError) as error:
    read(tmp_path)
  assert f'{file}: the header is corrupt' in str(error.value)
  assert "tensor 'b'" in str(error.value) and AGAIN in str(error.value)


@pytest.mark.parametrize('text', [b'{"a": ', b'\xff\xfe\x00\x01', b'[1, 2]'])
def test_a_header_that_is_no_json(tmp_path, text):
  write(tmp_path)
  edit(tmp_path / 'model.safetensors', lambda _: text)
  with pytest.raises(ValueError, match='model.safetensors: the header is '
                     'corrupt.*again'):
    read(tmp_path)


def test_a_git_lfs_pointer(tmp_path):
  (tmp_path / 'model.safetensors').write_text(
      'version https://git-lfs.github.com/spec/v1')
  with pytest.raises(ValueError, match='not a safetensors file.*LFS'):
    read(tmp_path)
  (tmp_path / 'model.safetensors').write_bytes(b'\x01')
  with pytest.raises(ValueError, match='not a safetensors file'):
    read(tmp_path)


class TestShards:

  @pytest.fixture
  def second(self, tmp_path):
    write(tmp_path, most=130)
    return tmp_path / 'model-00002-of-00002.safetensors'

  def refused(self, folder, *words):
    with pytest.raises(ValueError) as error:
      read(folder)
    for word in words:
      assert word in str(error.value), error.value

  def test_truncated(self, second):
    second.write_bytes(second.read_bytes()[:-40])
    self.refused(second.parent, f"{second}: truncated: tensor 'b'", AGAIN)

  def test_truncated_while_it_is_read(self, second):
    b = tensor_files.find(epath.Path(second.parent))['b']
    second.write_bytes(second.read_bytes()[:-40])
    with pytest.raises(ValueError, match="truncated inside tensor 'b'"):
      with second.open('rb') as f:
        list(tensor_files.pieces(f, b))

  def test_missing(self, second):
    second.unlink()
    self.refused(second.parent, f'{second} is missing', "holds 'b'", 'Fetch')

  def test_index_of_another_save(self, second):
    def rename(header):
      header['c'] = header.pop('b')
    edit(second, rename)
    self.refused(second.parent, f"{second}: holds no tensor 'b'",
                 'different saves')

  @pytest.mark.parametrize('text', ['{"weight_', '{}', '{"weight_map": [1]}',
                                    '{"weight_map": {"a": 1}}', '[]'])
  def test_a_corrupt_index(self, second, text):
    index = second.parent / 'model.safetensors.index.json'
    index.write_text(text)
    self.refused(second.parent, str(index))

  def test_a_tensor_that_the_index_forgot_is_seen(self, second):
    """So that what is unknown can be listed."""
    index = second.parent / 'model.safetensors.index.json'
    listed = json.loads(index.read_text())
    del listed['weight_map']['scale']
    index.write_text(json.dumps(listed))
    assert 'scale' in tensor_files.find(epath.Path(second.parent))


@pytest.mark.parametrize('row', [0, 5, 6])
def test_nan_is_found_in_the_piece_it_is_in(tmp_path, monkeypatch, row):
  monkeypatch.setattr(tensor_files, 'PIECE', 48)
  given = {**tensors(), 'a': tensors()['a'].copy()}
  given['a'][row, 4] = np.nan
  safetensors_numpy.save_file(given, tmp_path / 'model.safetensors')
  with pytest.raises(ValueError, match=rf"'a' has nan or inf, first at "
                     rf"\[{row}, 4\] of \[7, 5\]"):
    read(tmp_path)


def test_a_large_float_is_no_bfloat16(tmp_path):
  """Above its largest number a float32 becomes inf: refused by name."""
  given = {**tensors(), 'scale': np.full(6, 3.4e38, np.float32)}
  write(tmp_path, given=given)
  with pytest.raises(ValueError, match="'scale' has nan or inf as bfloat16"):
    write(tmp_path, given=given, dtype=ml_dtypes.bfloat16)
  assert read(tmp_path).keys() == given.keys()  # the earlier save is whole
