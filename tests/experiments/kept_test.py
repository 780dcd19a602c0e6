"""What records of rollouts say about tokens, by hand."""

import numpy as np
import pytest
import transformers

from experiments import kept

SAID = '<think>I see digits 5,13. 5+13=18.</think><answer>18</answer>'


@pytest.fixture(scope='module')
def tokens():
  tokenizer = transformers.AutoTokenizer.from_pretrained(kept.MODEL)
  return np.asarray(tokenizer(SAID)['input_ids']), tokenizer


def test_classes_of_tokens(tokens):
  ids, tokenizer = tokens
  said = {name: ''.join(
      tokenizer.decode([i]) for i in ids[kept.classes(ids) == name])
      for name in ('digits', 'numbers', 'words')}
  assert said['digits'].replace(' ', '') == '513'
  assert said['numbers'].replace(' ', '') == '5131818'
  assert '<think>' in said['words'] and '+' in said['words']


def test_share_kept(tokens, tmp_path):
  """Two rows; in one of them only the digits depend on the picture, in the
  other, half as long, nothing does, and the first tokens are kept."""
  ids, _ = tokens
  what, size = kept.classes(ids), len(ids)
  rows, kind = np.stack([ids, ids]), np.ones((2, size), np.int8)
  half = size // 2
  kind[1, half:] = 0
  blind = np.zeros((2, size), np.float32)
  blind[0, what == 'digits'] = -2.0
  blind[1, half:] = -5.0  # padding counts for nothing
  np.savez(tmp_path / 'vppo_1.npz', **{
      '0/completions/tokens': rows[None], '0/completions/kind': kind[None],
      '0/extra/sampler_logp': np.zeros((1, 2, size), np.float32),
      '0/extra/view/masked': blind[None]})
  found = kept.share_kept(tmp_path / 'vppo_1.npz')
  first = np.arange(size) < int(np.ceil(0.4 * half))
  others = np.flatnonzero(what != 'digits')
  in_row = what == 'digits'
  in_row[others[:int(np.ceil(0.4 * size)) - in_row.sum()]] = True
  for name in ('digits', 'numbers', 'words'):
    of, live = what == name, np.arange(size) < half
    assert found[f'kept/{name}'] == pytest.approx(
        ((of & in_row).sum() + (of & first).sum())
        / (of.sum() + (of & live).sum()))
  assert found['kept/numbers'] < found['kept/digits']


def test_branches(tmp_path):
  """Rows are raw and noisy by turns; padding counts for nothing."""
  kind = np.ones((4, 1, 3), np.int8)
  kind[1, 0, 2] = 0
  entropy = np.zeros((4, 1, 3), np.float32)
  entropy[::2], entropy[1::2] = 0.25, 0.5
  entropy[1, 0, 2] = 9.0
  pair = np.zeros_like(entropy)
  pair[1, 0, :2] = 1.0
  np.savez(tmp_path / 'vogue_1.npz', **{
      '0/completions/kind': kind, '0/extra/entropy/raw': entropy,
      '0/extra/pair/raw': pair})
  assert kept.branches(tmp_path / 'vogue_1.npz') == pytest.approx({
      'entropy/raw': 0.25, 'entropy/noisy': 0.5, 'uncertainty/noisy': 2 / 5})


def test_sizes_of_what_trained(tmp_path):
  """1 twice, .5 once, one that trains not, and of two replayed rows one that is
  there, of -1: (2 + .5 + 0 + 1) / 5; 4 of 5 have an advantage."""
  path = tmp_path / 'x_1.npz'
  np.savez(path, **{
      '0/mask': np.array([[[1], [1], [1], [0]]], bool),
      '0/advantage': np.array([[[1.], [-.5], [0], [3]]]),
      '0/times': np.array([[[2.], [1], [1], [1]]]),
      '1/mask': np.array([[[1]], [[0]]], bool),
      '1/advantage': np.array([[[-1.]], [[7]]])})
  assert kept.sizes(path) == {
      'train/size': pytest.approx(3.5 / 5), 'train/effective': .8}


def test_lengths_by_difficulty(tmp_path):
  """Two thirds right, none right, and half right, which is neither."""
  path = tmp_path / 'x_1.npz'
  kind = np.zeros((3, 6, 4), np.int8)
  kind[0, :, :1], kind[1, :, :3], kind[2, :, :4] = 1, 1, 1
  right = np.array([[1, 1, 1, 1, 0, 0], [0] * 6, [1, 1, 1, 0, 0, 0]], float)
  np.savez(path, **{'0/completions/kind': kind, 'rewards/result': right})
  assert kept.by_difficulty(path) == {'length/easy': 1, 'length/hard': 3}
  np.savez(path, **{'0/completions/kind': kind[2:], 'rewards/result': right[2:]})
  assert kept.by_difficulty(path) == {}
