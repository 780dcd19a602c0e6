"""Packed rows against rows of one example, through real encoders and models."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from mmr1 import forward
from mmr1 import records
from mmr1 import trees
from mmr1 import types
from mmr1 import update
from mmr1.data import packing
from mmr1.data import pipeline
from mmr1.data import processor as processor_lib
from mmr1.data import template
from mmr1.losses import reduce
from mmr1.losses import terms
from mmr1.models import checkpoints
from mmr1.models import splash
from mmr1.models import triton
from mmr1.stages import sft
from tests import small
from tests.stages import families_test

# Gemma 3 has windows of 6 tokens in every other layer, and image tokens that
# see each other both ways; the rest share what packing touches with these two.
FAMILIES = ('qwen2_5_vl', 'gemma3', *(
    pytest.param(name, marks=pytest.mark.slow) for name in (
        'paligemma', 'gemma2', 'internvl', 'llava_onevision', 'qwen3_vl')))
# (length of the question, sizes of images, tokens of the completion), by rows.
PACKED = (((9, (), 7), (2, ((32, 32),), 4), (3, ((16, 32), (32, 32)), 6)),
          ((14, (), 1), (1, ((32, 16),), 9)))
E = 4


class Case:
  """A family's tiny model and its examples, packed and alone."""

  def __init__(self, family, folder):
    families_test.write(family, folder, weights=False)
    self.family = family
    self.processor = processor_lib.Processor.open(str(folder))
    config = functools.partial(checkpoints.read_config, folder)
    code = families_test.FAMILIES[family][0]
    self.params = small.drawn(jax.eval_shape(
        lambda: code.init_params(config(), jax.random.key(0))))
    self.policy, self.scanned = (
        forward.Policy(
            code.build(config(layers=layers)), self.processor.banned,
            self.processor.eos_id, self.processor.pad_id, head_chunk=20)
        for layers in ('unrolled', 'scan'))
    text = family in processor_lib.TEXT_FAMILIES
    open_ = pipeline.Shape(
        self.processor, template.plain, prompt_length=10**6, patches=10**6)
    self.rows = [[self.example(open_, i, n, () if text else sizes, t)
                  for i, (n, sizes, t) in enumerate(row, 10 * k)]
                 for k, row in enumerate(PACKED)]
    size = lambda name: max(sum(len(getattr(one.encoded, name)) for one in row)
                            for row in self.rows)
    self.shape = pipeline.Shape(
        self.processor, template.plain, prompt_length=size('tokens') + 3,
        patches=size('patches'))

  def example(self, shape, uid, length, sizes, tokens):
    rng = np.random.default_rng(uid)
    item = records.Example(uid=uid, question='7' * length, images=tuple(
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        for size in sizes))
    pair = shape.encode(item, uid)
    assert not isinstance(pair, records.Broken), pair
    return packing.Example(pair, rng.integers(10, 60, tokens, np.int32))

  def packed(self, rows=None):
    room = packing.Room(
        self.shape.prompt_length, 20, self.shape.patches, E)
    return sft.assemble_packed(rows or self.rows, self.shape, room)

  def alone(self):
    return sft.assemble(
        [one for row in self.rows for one in row], self.shape, 20)

  def logp(self, block, policy=None):
    return np.asarray(small.logp(
        policy or self.policy, self.params, block.prompts, block.completions,
        block.mask, 1.0)[0])


@pytest.fixture(scope='module', params=FAMILIES)
def case(request, tmp_path_factory):
  return Case(request.param, tmp_path_factory.mktemp('family') / 'model')


@pytest.fixture(scope='module')
def qwen(tmp_path_factory):
  return Case('qwen2_5_vl', tmp_path_factory.mktemp('qwen') / 'model')


def apart(packed, x):
  """[2, 1, T] of packed rows -> one array for every example."""
  segment = np.asarray(packed.completions.segment)[:, 0]
  return [np.asarray(x)[i, 0, segment[i] == k + 1]
          for i, row in enumerate(PACKED) for k in range(len(row))]


def test_m3_examples_score_as_in_rows_of_their_own(case):
  """Every token, the first of each completion included; scanned layers too."""
  packed, alone = case.packed(), case.alone()
  found, wanted = case.logp(packed), case.logp(alone)
  found_by_scan = case.logp(packed, case.scanned)
  lengths = [t for row in PACKED for _, _, t in row]
  assert [len(x) for x in apart(packed, found)] == lengths
  for i, (x, by_scan) in enumerate(zip(
      apart(packed, found), apart(packed, found_by_scan))):
    expected = wanted[i, 0, :lengths[i]]
    assert (expected < -0.01).all()
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=0)
    np.testing.assert_allclose(by_scan, expected, rtol=1e-5, atol=0)
  assert (found[~np.asarray(packed.mask)] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize('family, name, kernel', [
    ('qwen2_5_vl', 'splash', splash), ('gemma3', 'triton', triton)])
def test_m3_kernels_keep_examples_apart_too(
    tmp_path, monkeypatch, family, name, kernel):
  monkeypatch.setattr(
      kernel, 'attend', functools.partial(kernel.attend, interpret=True))
  case = Case(family, tmp_path / 'model')
  packed = case.packed()
  config = dataclasses.replace(case.policy.module.config, attention=name)
  policy = dataclasses.replace(
      case.policy, module=type(case.policy.module)(config))
  found, wanted = case.logp(packed, policy), case.logp(packed)
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def changed(array, place, value):
  result = np.array(array)
  result[place] = value
  return result


def test_m3_an_example_knows_nothing_of_its_neighbours(case):
  """To the bit: the second of three changes, in all that it has."""
  packed = case.packed()
  base = apart(packed, case.logp(packed))
  prompts, completions = packed.prompts, packed.completions
  here = np.flatnonzero(np.asarray(prompts.segment)[0] == 2)
  own = np.flatnonzero(np.asarray(completions.segment)[0, 0] == 2)
  others = {
      'prompt': packed.replace(prompts=prompts.replace(
          tokens=changed(prompts.tokens, (0, here[-1]), 13))),
      'completion': packed.replace(completions=completions.replace(
          tokens=changed(completions.tokens, (0, 0, own[0]), 61)))}
  if prompts.media:
    vision = prompts.media['vision']
    patches = slice(0, np.sum(np.asarray(vision.segment)[0] == 1))
    others['image'] = packed.replace(prompts=prompts.replace(media={
        'vision': vision.replace(
            patches=vision.patches * changed(
                np.ones_like(vision.patches), (0, patches), -0.5))}))
  for name, other in others.items():
    found = apart(packed, case.logp(other))
    for i, (x, before) in enumerate(zip(found, base)):
      if i == 1:
        assert (x != before).all(), name
      else:
        np.testing.assert_array_equal(x, before, err_msg=name)


def term(mode):
  return update.Term('nll', functools.partial(
      terms.nll, reduction={'mode': mode}))


KNOBS = {'temperature': jnp.float32(1), 'coef/nll': jnp.float32(1)}
SEQ_MEAN = (term('seq_mean'),)


def gradient(case, block, chunks=1):
  return small.gradient(case.params, (block,), KNOBS, chunks=chunks,
                        policy_=case.policy, terms=SEQ_MEAN)


def test_m3_the_gradient_is_that_of_rows_alone(qwen):
  """Of every parameter, tower and embeddings included; sequences, not rows,
  are what a mean over sequences counts."""
  (found, metrics), (wanted, expected) = (
      gradient(qwen, qwen.packed(), chunks=2), gradient(qwen, qwen.alone()))
  for name in ('loss', 'entropy'):
    assert metrics[name] == pytest.approx(expected[name], rel=1e-5)
  found, wanted = trees.named(found), trees.named(wanted)
  assert any('visual/merger' in name for name in wanted)
  for name, value in wanted.items():
    scale = np.linalg.norm(value)
    assert scale > 1e-4, name
    assert np.linalg.norm(found[name] - value) < 1e-5 * scale, name


def test_m6_m9_text_alone_and_nothing_at_all(qwen):
  """The program of the packed rows with images, and what it makes of others."""
  text = [[one for one in row if not len(one.encoded.patches)]
          for row in qwen.rows]
  whole = qwen.packed()
  packed = qwen.packed(text)
  count = small._gradient_jit._cache_size()
  found, metrics = gradient(qwen, packed, chunks=2)
  assert metrics['loss'] > 0
  for name, value in trees.named(found).items():
    assert np.isfinite(value).all()
    assert np.any(value) == ('visual' not in name), name
  found, metrics = gradient(
      qwen, whole.replace(mask=np.zeros_like(whole.mask)), chunks=2)
  assert metrics['loss'] == 0 and not any(
      np.any(value) for value in jax.tree.leaves(found))
  assert small._gradient_jit._cache_size() <= count + 1


@pytest.mark.parametrize('mode, rows, count', [
    ('token_mean', 'live', 23), ('seq_mean', 'live', 4), ('seq_mean', 'all', 5),
    ('seq_sum', 'live', 4), ('seq_sum', 'all', 5)])
def test_m3_reductions_mean_sequences(qwen, mode, rows, count):
  packed, alone = qwen.packed(), qwen.alone()
  # One whole completion, the second of all, is masked.
  packed = packed.replace(mask=packed.mask & ~(
      (np.asarray(packed.completions.segment) == 2)
      & (np.arange(2)[:, None, None] == 0)))
  alone = alone.replace(mask=alone.mask & (
      np.arange(5)[:, None, None] != 1))
  values = np.random.default_rng(0).normal(size=alone.mask.shape)
  flat = np.zeros(packed.mask.shape)
  segment = np.asarray(packed.completions.segment)
  lengths = [t for row in PACKED for _, _, t in row]
  for i, (row, k) in enumerate(
      (row, k) for row in (0, 1) for k in range(len(PACKED[row]))):
    flat[row, 0, segment[row, 0] == k + 1] = values[i, 0, :lengths[i]]
  found, wanted = (
      [float(x) for x in terms.nll(
          types.Scores(logp=jnp.asarray(x, jnp.float32), entropy=None),
          block, {}, reduction=dict(mode=mode, rows=rows))]
      for x, block in ((flat, packed), (values, alone)))
  assert found[1] == wanted[1] == count
  assert found[0] == pytest.approx(wanted[0], rel=1e-5)
  assert reduce.finish(*found) == pytest.approx(
      float(reduce.finish(*wanted)), rel=1e-5)


def test_one_completion_for_several_prompts_is_refused(qwen):
  packed = qwen.packed()
  with pytest.raises(ValueError, match='prompts.segment without completions'):
    qwen.logp(packed.replace(
        completions=packed.completions.replace(segment=None)))


def test_a_ratio_of_whole_rows_is_refused(qwen):
  packed = qwen.packed()
  scores = types.Scores(logp=jnp.zeros(packed.mask.shape), entropy=None)
  with pytest.raises(ValueError, match="ratio 'sequence' is one of a whole row"):
    terms.policy(scores, packed, {}, level='sequence')


def test_rows_that_are_not_packed_carry_nothing_more(qwen):
  alone = qwen.alone()
  assert alone.prompts.segment is None and alone.prompts.ends is None
  assert alone.completions.segment is None
  prefix = jax.eval_shape(
      qwen.policy.prompt_pass, qwen.params, alone.prompts)
  assert prefix.last.shape == (5, 32)
