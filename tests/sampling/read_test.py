"""From arrays to Samples."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import records
from mmr1 import types
from mmr1.data import processor as processor_lib
from mmr1.sampling import read

ASSETS = pathlib.Path(read.__file__).parent.parent / 'assets' / 'tiny'


@pytest.fixture(scope='module')
def processor():
  return processor_lib.Processor.open(str(ASSETS))


@pytest.fixture(scope='module')
def host(processor):
  """Three rows (the last is padding), two samples: ended, cut; ended at
  once, and one with two observed tokens in the middle."""
  pad, eos = processor.pad_id, processor.eos_id
  ids = processor.tokenizer('a+b=7', add_special_tokens=False)['input_ids']
  t = len(ids) + 3
  tokens = np.full((3, 2, t), pad, np.int32)
  kind = np.zeros((3, 2, t), np.int8)
  for place, row, kinds in (
      ((0, 0), [*ids, eos], None), ((0, 1), ids[:2], None),
      ((1, 0), [eos], None),
      ((1, 1), [*ids[:2], *ids[:2], eos], [1, 1, 2, 2, 1])):
    tokens[place][:len(row)] = row
    kind[place][:len(row)] = kinds or 1
  done = np.asarray([[True, False], [True, True], [False, False]])
  return read.Host(tokens, kind, done)


def test_samples_by_hand(host, processor):
  examples = [records.Example(uid=70, answer='7'), records.Example(uid=3)]
  samples = read.read(host, examples, processor)
  ids = processor.tokenizer('a+b=7', add_special_tokens=False)['input_ids']
  two = processor.tokenizer.decode(ids[:2])
  eos = processor.eos_id
  assert [s.text for s in samples] == ['a+b=7', two, '', two + two]
  assert [s.tokens for s in samples] == [
      (*ids, eos), tuple(ids[:2]), (eos,), (*ids[:2], *ids[:2], eos)]
  assert [s.truncated for s in samples] == [False, True, False, False]
  # Observed tokens are part of the text and not of the length.
  assert [s.length for s in samples] == [len(ids) + 1, 2, 1, 3]
  assert samples[3].kinds == (1, 1, 2, 2, 1)
  assert all(len(s.tokens) == len(s.kinds) for s in samples)
  assert [(s.uid, s.group, s.slot) for s in samples] == [
      (70, 0, 0), (70, 0, 1), (3, 1, 0), (3, 1, 1)]
  assert samples[1].example is examples[0]
  assert samples[0].turns == (records.Turn('assistant', 'a+b=7'),)


def test_m18_masks_are_by_kind(host):
  assert host.sampled[1, 1].sum() == 3
  np.testing.assert_array_equal(host.lengths[2], 0)
  np.testing.assert_array_equal(host.sampled, host.kind == types.KIND_SAMPLED)


def test_padding_in_the_middle_of_text_is_by_kind_not_by_id(processor):
  """A sampled id that happens to be the padding id is a token."""
  tokens = np.full((1, 1, 3), processor.pad_id, np.int32)
  host = read.Host(tokens, np.asarray([[[1, 1, 0]]], np.int8),
                   np.asarray([[False]]))
  sample, = read.read(host, [records.Example(uid=0)], processor)
  assert sample.tokens == (processor.pad_id,) * 2 and sample.length == 2


def test_to_host_copies_what_is_read(host):
  rollout = types.Rollout(
      prompts=None, completions=types.Completions(
          tokens=jnp.asarray(host.tokens), kind=jnp.asarray(host.kind),
          positions=None),
      logp=None, behaviour=None,
      done=jnp.asarray(host.done), version=jnp.int32(4))
  got = read.to_host(rollout)
  assert all(isinstance(x, np.ndarray) for x in got[:3])
  assert not got.inserted
  np.testing.assert_array_equal(got.tokens, host.tokens)
  np.testing.assert_array_equal(got.kind, host.kind)
  np.testing.assert_array_equal(got.done, host.done)
