"""Batches in files: what comes back is what was saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import flow_objectives
from mmr1 import recording
from mmr1 import types
from tests import small

GIVEN = {'knobs': {'coef/kl': jnp.float32(0.1), 'temperature': jnp.float32(1)},
         'rewards': {'one': np.asarray([[0.0, np.nan], [1.0, 0.5]])}}


def block():
  made = small.block(small.prompts(small.MIXED[:2]), 2, 5)
  return made.replace(
      prompts=made.prompts.replace(noise=jnp.zeros((2, 2), jnp.uint32)),
      extra={**made.extra, 'view/masked': jnp.ones((2, 2, 5))}, ref=None, ref_hidden=jax.random.normal(
          jax.random.key(0), (2, 2, 5, 3), jnp.bfloat16))


def test_m15_everything_comes_back_bit_for_bit(tmp_path):
  batch = (block(), small.block(small.prompts(media=False), 1, 3))
  path = tmp_path / 'rollouts' / 'grpo_11.npz'
  assert recording.save(path, batch, GIVEN, stage='grpo', step=11) == path
  assert [x.name for x in path.parent.iterdir()] == [path.name]
  got = recording.load(path)
  assert (got.stage, got.step) == ('grpo', 11)
  assert jax.tree.structure(got.batch) == jax.tree.structure(batch)
  for a, b in zip(jax.tree.leaves(got.batch), jax.tree.leaves(batch)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
  assert got.batch[0].ref is None and got.batch[1].prompts.media == {}
  assert got.knobs == {'coef/kl': np.float32(0.1), 'temperature': 1}
  np.testing.assert_array_equal(got.rewards['one'], GIVEN['rewards']['one'])


def test_m8_names_in_a_file(tmp_path):
  batch = ({'tokens': jnp.arange(3), 'half': jnp.ones(2, jnp.bfloat16)},
           {'nan': jnp.array([jnp.nan]), 'none': None})
  path = recording.save(tmp_path / 'bad' / 'sft_3.npz', batch, {},
                        stage='sft', step=3)
  with np.load(path) as back:
    assert sorted(back) == ['0/half', '0/tokens', '1/nan', 'record']
    np.testing.assert_array_equal(back['0/tokens'], [0, 1, 2])
    np.testing.assert_array_equal(back['0/half'], [1.0, 1.0])
    assert np.isnan(back['1/nan']).all()


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
  path = tmp_path / 'grpo_1.npz'
  recording.save(path, (block(),), GIVEN, stage='grpo', step=1)
  before = path.read_bytes()

  def fail(self, target):
    assert self.read_bytes() != before  # all of it is there, beside
    raise OSError('no space')
  with monkeypatch.context() as patch:
    patch.setattr(type(recording.epath.Path(path)), 'replace', fail)
    with pytest.raises(OSError, match='no space'):
      recording.save(path, (block(),), {}, stage='grpo', step=1)
  assert path.read_bytes() == before


def test_remote_and_one_writer(remote, monkeypatch):
  path = 'gs://bucket/run/rollouts/grpo_1.npz'
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  recording.save(path, (block(),), GIVEN, stage='grpo', step=1)
  assert not [*remote.rglob('*.npz')]
  monkeypatch.setattr(jax, 'process_index', lambda: 0)
  recording.save(path, (block(),), GIVEN, stage='grpo', step=1)
  assert [x.name for x in remote.rglob('*.npz')] == ['grpo_1.npz']
  assert isinstance(recording.load(path).batch[0], types.Block)


def test_m22_what_is_no_record(tmp_path):
  with pytest.raises(ValueError, match='there is no such file'):
    recording.load(tmp_path / 'none.npz')
  for name, write in {
      'text': lambda path: path.write_text('hello'),
      'empty': lambda path: path.write_bytes(b''),
      'old': lambda path: np.savez(path, **{'0/mask': np.ones(2)})}.items():
    path = tmp_path / f'{name}.npz'
    write(path)
    with pytest.raises(ValueError, match=f'{name}.npz is not a record'):
      recording.load(path)
  path = recording.save(
      tmp_path / 'pictures_3.npz', flow_objectives.Round(
          condition=jnp.zeros((2, 3), jnp.int32), source=None,
          uid=jnp.arange(2), x0=jnp.zeros((2, 1, 4, 4, 3)),
          advantage=jnp.zeros((2, 1)), keep=jnp.ones((2, 1)),
          schedule=jnp.ones(3)), {'rewards': {}}, stage='pictures', step=3)
  with pytest.raises(ValueError, match="pictures_3.npz is of stage 'pictures', "
                     "whose batches hold 'advantage'.*language models"):
    recording.load(path)
