"""The stream: exact resume, workers, broken and over-long records."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
from PIL import Image

from mmr1 import records
from mmr1.data import pipeline
from mmr1.data import sources
from mmr1.data import template


def task(seed, split, i):
  """Item i; its image says i, its length varies."""
  image = Image.fromarray(np.full((16, 32, 3), i % 256, np.uint8))
  return records.Example(
      uid=0, question=f'<image>{split}{"!" * (i % 5)}', answer=str(i),
      images=(image,), source='task')


class Flawed:
  """Items whose index is in `bad` are Broken."""

  def __init__(self, size, bad):
    self.size, self.bad = size, frozenset(bad)

  def __len__(self):
    return self.size

  def __getitem__(self, i):
    if i in self.bad:
      return records.Broken(where=f'file:{i}', reason=f'corrupt image: {i}')
    return records.Example(
        uid=i, question='q', answer='1', source=f'file:{i}')


def _tasks(size=11):
  return sources.TaskSource(task, seed=0, split='train', size=size)


def _shape(proc, prompt_length=160, patches=32):
  return pipeline.Shape(
      processor=proc, template=template.think_answer,
      prompt_length=prompt_length, patches=patches)


def _stream(proc, members=None, *, seed=3, frac=0.5, weights=None, **kwargs):
  return pipeline.Stream(
      sources.Mixture(members or [_tasks()], weights, seed=seed),
      _shape(proc), max_broken_frac=frac, **kwargs)


def _same(a, b):
  assert [x.uid for x, _ in a] == [x.uid for x, _ in b]
  assert [x.answer for x, _ in a] == [x.answer for x, _ in b]
  for (_, x), (_, y) in zip(a, b, strict=True):
    for name in vars(x):
      np.testing.assert_array_equal(vars(x)[name], vars(y)[name])


def test_stream_gives_the_mixture_in_order(proc):
  stream = _stream(proc)
  pairs = stream.take(7) + stream.take(9)
  mixture = stream.mixture
  assert [e.uid for e, _ in pairs] == [mixture[k].uid for k in range(16)]
  assert all(x.uid == e.uid for e, x in pairs)
  # The pixels belong to the example: grey level i, normalised red.
  for example, encoded in pairs:
    red = (int(example.answer) / 255 - 0.48145466) / 0.26862954
    np.testing.assert_allclose(
        encoded.patches[encoded.patch_segment > 0][:, 0], red, atol=1e-5)


@pytest.mark.parametrize('cut', [1, 10, 11, 12, 25])
def test_m15_resume_is_exact_across_epochs(proc, cut):
  # 11 + 5 records; 40 items are several epochs of each.
  def members():
    return [_tasks(11), Flawed(5, {2})]
  whole = _stream(proc, members(), weights=(2, 1))
  expected = whole.take(40)
  first = _stream(proc, members(), weights=(2, 1))
  first.take(cut)
  state = json.loads(json.dumps(first.state()))
  second = _stream(proc, members(), weights=(2, 1))
  second.restore(state)
  _same(second.take(40 - cut), expected[cut:])
  assert second.state() == whole.state()
  assert second.broken == whole.broken


def test_m15_workers_change_nothing_and_prefetched_is_not_consumed(proc):
  stream = _stream(proc, worker_count=2, worker_buffer=4)
  reference = _stream(proc)
  try:
    _same(stream.take(3), reference.take(3))
    assert stream.state()['position'] == 3  # up to 8 more were prefetched
    _same(stream.take(20), reference.take(20))
    state = stream.state()
  finally:
    stream.close()
  assert state == reference.state()
  restored = _stream(proc)
  restored.restore(state)
  _same(restored.take(5), reference.take(5))


def test_m26_broken_are_skipped_named_once_and_counted(proc, caplog):
  stream = _stream(proc, [_tasks(4), Flawed(10, {1, 4, 7})], weights=(1, 1))
  with caplog.at_level(logging.WARNING):
    pairs = stream.take(60)
  assert len(pairs) == 60
  assert {b.where for b in stream.broken} == {'file:1', 'file:4', 'file:7'}
  assert stream.counts() == {'corrupt image': 3}
  assert len([r for r in caplog.records if 'skipped' in r.message]) == 3
  assert 'file:4' in caplog.text and 'corrupt image: 4' in caplog.text


def test_m26_past_the_fraction_the_run_refuses(proc):
  source = Flawed(10, {1, 4, 7})
  _stream(proc, [source], frac=0.3).take(30)  # 3 of 10 are allowed
  with pytest.raises(ValueError) as error:
    _stream(proc, [source], frac=0.29).take(30)
  for word in ('3 of the', 'file:', 'corrupt image', 'max_broken_frac=0.29'):
    assert word in str(error.value)


def test_m26_one_bad_member_of_a_large_mixture_refuses(proc):
  members = [_tasks(100_000), Flawed(5, range(5))]
  for frac in (0.5, 1.0):
    with pytest.raises(ValueError, match='source 1'):
      _stream(proc, members, weights=(1, 1), frac=frac).take(200)
  with pytest.raises(ValueError, match='51 of the 51 records seen'):
    _stream(proc, [Flawed(100_000, range(100_000))]).take(1)


def test_each_order_is_whole_epochs_in_an_order_of_its_own(proc):
  orders = []
  for order in range(3):
    stream = pipeline.Stream(
        sources.Mixture([_tasks(11), _tasks(5)], seed=3, order=order),
        _shape(proc), max_broken_frac=0.5)
    uids = [e.uid for e, _ in stream.take(32)]
    for epoch in (uids[:16], uids[16:]):
      assert sorted(epoch) == sorted(
          [*range(11), *range(sources.UID_STRIDE, sources.UID_STRIDE + 5)])
    orders.append(tuple(uids))
  assert len(set(orders)) == 3
  # A stage that made no order of its own reads the seed's first.
  assert orders[0] == tuple(e.uid for e, _ in pipeline.Stream(
      sources.Mixture([_tasks(11), _tasks(5)], seed=3), _shape(proc),
      max_broken_frac=0.5).take(32))


def test_m5_over_long_prompts_are_dropped_and_counted(proc):
  full = _stream(proc).take(11)
  lengths = {e.uid: len(x.tokens) for e, x in full}
  limit = sorted(lengths.values())[5]
  short = pipeline.Stream(
      sources.Mixture([_tasks()], seed=3), _shape(proc, prompt_length=limit),
      max_broken_frac=0.9)
  kept = [e.uid for e, _ in short.take(22)]
  assert {u for u, n in lengths.items() if n <= limit} == set(kept)
  dropped = [u for u, n in lengths.items() if n > limit]
  assert short.counts() == {'too long': len(dropped)}
  assert {b.where for b in short.broken} == {f'task:{u}' for u in dropped}
  none = pipeline.Stream(
      sources.Mixture([_tasks()], seed=3), _shape(proc, prompt_length=5),
      max_broken_frac=0.5)
  with pytest.raises(ValueError, match='data.prompt_tokens'):
    none.take(1)


def test_text_that_cannot_be_encoded_is_broken(proc):

  def odd(seed, split, i):
    return records.Example(
        uid=0, question='q<|image_pad|>' if i == 2 else 'q', answer='1',
        source='odd')

  stream = _stream(
      proc, [sources.TaskSource(odd, seed=0, split='train', size=6)])
  stream.take(12)
  assert [b.where for b in stream.broken] == ['odd:2']
  assert 'special token' in stream.broken[0].reason


def test_all_examples_keeps_order_and_skips(proc):
  pairs, broken = pipeline.all_examples(Flawed(8, {0, 3}), _shape(proc), 4)
  assert [e.uid for e, _ in pairs] == [1, 2, 4, 5]
  assert [b.where for b in broken] == ['file:0', 'file:3']
  pairs, broken = pipeline.all_examples(Flawed(8, {0, 3}), _shape(proc))
  assert len(pairs) == 6 and len(broken) == 2
  # 11 items, 7 of them from a member of 2: each problem is asked once.
  twice = sources.Mixture([_tasks(2), _tasks(9)], (2, 1), seed=0)
  pairs, _ = pipeline.all_examples(twice, _shape(proc))
  assert len({e.uid for e, _ in pairs}) == len(pairs) == 2 + 4
  with pytest.raises(ValueError, match='file:0'):
    pipeline.all_examples(Flawed(3, range(3)), _shape(proc))


@pytest.mark.parametrize('bad, said', [
    (dict(frac=-0.1), 'max_broken_frac: got -0.1; allowed: 0 to 1'),
    (dict(frac=1.5), 'max_broken_frac: got 1.5; allowed: 0 to 1'),
    (dict(worker_count=-1), r'worker_count: got -1 \(allowed: 0 or more'),
    (dict(worker_buffer=0), r'worker_buffer: got 0 \(allowed: 1 or more')])
def test_arguments_in_range(proc, bad, said):
  with pytest.raises(ValueError, match=said):
    _stream(proc, **bad)


def test_m26_an_evaluation_split_may_be_too_broken(proc):
  source = Flawed(8, {0, 1, 2})
  pairs, _ = pipeline.all_examples(source, _shape(proc), max_broken_frac=0.4)
  assert len(pairs) == 5
  with pytest.raises(ValueError, match=(
      r'(?s)3 of the 8 records.*max_broken_frac=0.3.*file:0')):
    pipeline.all_examples(source, _shape(proc), max_broken_frac=0.3)


def test_m6_a_batch_takes_the_smallest_bucket_that_holds_it(proc):
  """Windows of 16 patches: text has none, 32 x 32 pixels one, 64 x 64 four."""
  shape = dataclasses.replace(_shape(proc, patches=64), patch_buckets=(0, 16))

  def encoded(*images):
    item = records.Example(uid=1, question='?', images=images)
    return shape.encode(item, 0)[1]
  text, small, large = encoded(), *(
      encoded(Image.new('RGB', (size, size))) for size in (32, 64))
  for rows, patches in (([text], 0), ([text, small], 16), ([small, large], 64)):
    prompts = shape.collate(rows, pad_rows=1)
    assert prompts.tokens.shape == (len(rows) + 1, 160)
    assert set(prompts.media) == ({'vision'} if patches else set())
    if patches:
      assert prompts.media['vision'].patches.shape[1] == patches
    # Nothing but the padding differs from a batch without buckets.
    whole = dataclasses.replace(shape, patch_buckets=()).collate(rows, pad_rows=1)
    np.testing.assert_array_equal(prompts.tokens, whole.tokens)
    for x, y in zip(jax.tree.leaves(prompts.media),
                    jax.tree.leaves(whole.media)):
      cut = y[:, :x.shape[1]]
      np.testing.assert_array_equal(x, cut)


def test_m3_a_batch_takes_the_shortest_prompts_that_hold_it(proc):
  shape = _shape(proc)

  def encoded(words):
    item = records.Example(uid=words, question='7' * words)
    return shape.encode(item, 0)[1]
  base = len(encoded(1).tokens) - 1
  shape = dataclasses.replace(
      shape, prompt_buckets=(base + 4, base + 8))
  for words, held in (((1, 4), 4), ((1, 5), 8), ((8,), 8), ((9, 1), None)):
    prompts = shape.collate([encoded(n) for n in words], pad_rows=1)
    length = prompts.tokens.shape[1]
    assert length == (160 if held is None else base + held)
    # Nothing but the padding differs from a batch without buckets.
    whole = dataclasses.replace(shape, prompt_buckets=()).collate(
        [encoded(n) for n in words], pad_rows=1)
    assert not whole.mask[:, :-length].any()
    for name in ('tokens', 'mask', 'positions'):
      np.testing.assert_array_equal(
          getattr(prompts, name), getattr(whole, name)[:, -length:])
    np.testing.assert_array_equal(
        prompts.next_position, whole.next_position)


def test_m26_a_long_source_of_broken_items_is_refused_soon(proc):
  """Not after all of it: a procedural one has a million."""
  class Counting(Flawed):
    asked = 0

    def __getitem__(self, i):
      type(self).asked += 1
      return super().__getitem__(i)
  source = Counting(10_000, range(20, 10_000))
  with pytest.raises(ValueError, match='max_broken_frac'):
    pipeline.all_examples(source, _shape(proc), 50, max_broken_frac=0.5)
  assert source.asked == 100


def test_a_box_is_asked_for_in_the_familys_frame(proc):
  """Rewards then know what numbers of a completion mean."""
  shape = _shape(proc)
  example = records.Example(
      uid=0, question='<image>Where?', answer='[0,0,4,4]',
      images=(Image.new('RGB', (50, 30)),), meta={'box': (0, 0, 4, 4)})
  item, _ = shape.encode(example, 0)
  assert item.meta['box_frame'] == proc.codec.box_frame == 'seen'
  assert item.meta['seen'] == tuple(proc.codec.seen(30, 50))
  assert item.meta['box'] == (0, 0, 4, 4)
  bare = dataclasses.replace(example, meta={})
  assert shape.encode(bare, 0)[0] is bare


def test_who_is_imitated_needs_a_completion(proc):
  shape = dataclasses.replace(_shape(proc), completion_tokens=3)
  def of(*texts):
    return shape.encode(records.Example(
        uid=0, question='q', completions=texts,
        member=records.Member(imitate=True)), 0)
  assert '0 completions, 1 needed' in of().reason
  assert 'allowed are 3' in of('a long completion').reason
  assert not isinstance(of('ok'), records.Broken)


@pytest.mark.parametrize('fewer', [False, True])
def test_a_trace_that_is_missing_is_broken_or_left_out(proc, fewer):
  shape = dataclasses.replace(
      _shape(proc), completions=2, fewer=fewer, completion_tokens=3)
  def of(*texts):
    return shape.encode(records.Example(
        uid=0, question='q', completions=texts), 0)
  for texts in (), ('ok',):
    assert isinstance(of(*texts), records.Broken) != fewer
  assert not isinstance(of('ok', 'ok', 'one too long, not used'),
                        records.Broken)
  assert 'allowed are 3' in of('ok', 'a long completion').reason
