"""Rows of several examples: who goes where, what is lost, what is written."""

import dataclasses
import json

import numpy as np
from PIL import Image
import pytest

from mmr1 import records
from mmr1.data import encode
from mmr1.data import packing
from mmr1.data import pipeline
from mmr1.data import template

ROOM = packing.Room(prompt=10, completion=10, patches=10, examples=3)


def example(uid, prompt=1, completion=1, patches=0):
  return packing.Example(
      (uid, encode.Encoded(
          tokens=np.zeros(prompt, np.int32), positions=None, next_position=0,
          patches=np.zeros((patches, 1)), patch_position=None,
          patch_segment=None, slot=None, uid=uid)),
      np.zeros(completion, np.int32))


class Line:
  """A source of given examples."""

  def __init__(self, examples):
    self.examples, self.position = list(examples), 0

  def take(self, n):
    assert n == 1
    self.position += 1
    return [self.examples[self.position - 1]]

  def state(self):
    return {'position': self.position}

  def restore(self, state):
    self.position = state['position']


def uids(rows):
  return [[one.pair[0] for one in row] for row in rows]


@pytest.mark.parametrize('name', ['prompt', 'completion', 'patches'])
def test_first_fit_by_hand(name):
  """Two rows of 10: 6, 5; 3 fits beside 6 and 4 beside 5, then 2 fits nowhere
  (9 and 9 are taken) and begins the next step, where 7 goes with it; 9 fits
  into the second row, and 2 waits again."""
  items = [example(i, **{name: size})
           for i, size in enumerate([6, 5, 3, 4, 2, 7, 9, 2])]
  packer = packing.Packer(Line(items), ROOM)
  assert uids(packer.take(2)) == [[0, 2], [1, 3]]
  assert uids(packer.take(2)) == [[4, 5], [6]]
  assert packer.state() == {'position': 7}


def test_no_row_has_more_examples_than_its_room():
  packer = packing.Packer(Line(map(example, range(9))), ROOM)
  assert uids(packer.take(2)) == [[0, 1, 2], [3, 4, 5]]


def test_m15_nothing_is_lost_or_used_twice():
  rng = np.random.default_rng(0)
  items = [example(i, *rng.integers(1, 6, 2), rng.integers(0, 5))
           for i in range(200)]
  line = Line(items)
  packer, seen, states = packing.Packer(line, ROOM), [], []
  for _ in range(20):
    states.append(json.loads(json.dumps(packer.state())))
    rows = packer.take(3)
    seen.append(uids(rows))
    for row in rows:
      assert row and len(row) <= 3
      assert sum(len(one.ids) for one in row) <= 10
      assert sum(len(one.encoded.tokens) for one in row) <= 10
      assert sum(len(one.encoded.patches) for one in row) <= 10
  used = sorted(uid for step in seen for row in step for uid in row)
  assert used == list(range(len(used))) and len(used) > 90
  # An example that waits was read, and is not yet consumed.
  assert packer.state() == {'position': len(used)} != line.state()
  for k in (0, 7, 19):
    other = packing.Packer(Line(items), ROOM)
    other.restore(states[k])
    assert [uids(other.take(3)) for _ in seen[k:]] == seen[k:]
  packer.restore(states[3])  # with an example waiting that is not the state's
  assert uids(packer.take(3)) == seen[3]


def test_metrics_by_hand():
  rows = [[example(0, 4, 5, 2), example(1, 2, 2, 2)], [example(2, 9, 2, 0)]]
  assert packing.metrics(rows, ROOM) == pytest.approx({
      'pack/examples': 3,
      # (6 + 7 + 9 + 2) / (2 * 20); 15 / 20; 9 / 20; 4 / 20.
      'pack/fill_frac': 0.6, 'pack/fill_frac/prompt': 0.75,
      'pack/fill_frac/completion': 0.45, 'pack/fill_frac/patches': 0.2})
  text = dataclasses.replace(ROOM, patches=0)
  assert 'pack/fill_frac/patches' not in packing.metrics(rows[1:], text)


@pytest.fixture
def shape(proc):
  return pipeline.Shape(
      processor=proc, template=template.think_answer, prompt_length=400,
      patches=160, prompt_buckets=(300,), patch_buckets=(0, 96))


def encoded(shape, uid, *sizes):
  """Pictures of random pixels: (height, width)."""
  rng = np.random.default_rng(uid)
  item = records.Example(
      uid=uid, question='x' * (3 + uid), images=tuple(Image.fromarray(
          rng.integers(0, 256, (*size, 3), dtype=np.uint8))
          for size in sizes))
  return shape.encode(item, uid)[1]


def test_m5_a_packed_row_is_its_prompts_one_after_the_other(shape):
  """Two images, text, one image: cells and frames count on, places do not."""
  row = [encoded(shape, 1, (32, 32), (16, 48)), encoded(shape, 2),
         encoded(shape, 3, (48, 32))]
  text = [encoded(shape, 4)]
  packed = packing.prompts([row, text], shape, 5)
  lengths = [len(one.tokens) for one in row]
  p = packed.tokens.shape[1]
  begins = p - np.cumsum(lengths[::-1])[::-1]
  assert p == 300 and packed.ends.shape == (2, 5)
  np.testing.assert_array_equal(
      packed.ends[0, :3], np.append(begins[1:], p) - 1)
  assert packed.ends[1, 0] == p - 1
  vision = packed.media['vision']
  first, frames = 0, 0
  for number, (one, begin) in enumerate(zip(row, begins), 1):
    alone = shape.collate([one])
    here = slice(begin, begin + len(one.tokens))
    assert (packed.segment[0] == number).sum() == len(one.tokens)
    assert (packed.segment[0, here] == number).all()
    for name in ('tokens', 'mask', 'positions'):
      np.testing.assert_array_equal(
          getattr(packed, name)[0, here],
          getattr(alone, name)[0, -len(one.tokens):])
    count = len(one.patches)
    slot = vision.slot[0, here]
    assert (slot == -1).sum() == (one.slot == -1).sum()
    if count:
      own = alone.media['vision']
      # Every token reads the same pixels at the same place in the frame.
      cells = vision.patches[0].reshape(-1, 4, vision.patches.shape[-1])
      held = own.patches[0].reshape(-1, 4, own.patches.shape[-1])
      np.testing.assert_array_equal(
          cells[slot[slot >= 0]], held[one.slot[one.slot >= 0]])
      np.testing.assert_array_equal(
          vision.position[0, first:first + count], own.position[0, :count])
      segment = vision.segment[0, first:first + count]
      np.testing.assert_array_equal(
          segment, np.where(one.patch_segment, one.patch_segment + frames, 0))
      frames = segment.max()
    first += count
  assert frames == 3  # images: no two share a number
  assert not vision.segment[0, first:].any() and not vision.segment[1].any()
  assert not packed.segment[0, :begins[0]].any()
  assert list(packed.uid) == [3, 4]
  # A row of one is what it is without packing.
  whole = shape.collate([row[0], text[0]])
  for name in ('tokens', 'positions', 'next_position'):
    np.testing.assert_array_equal(
        getattr(packed, name)[1], getattr(whole, name)[1][-p:]
        if name != 'next_position' else whole.next_position[1])


def test_m6_rows_of_text_take_the_bucket_without_media(shape):
  packed = packing.prompts([[encoded(shape, 1), encoded(shape, 2)]], shape, 2)
  assert not packed.media


def test_what_is_blended_counts_on_too(shape):
  """Tokens that are sums of cells, as some families have them."""
  one = encoded(shape, 1, (32, 32))
  taps = np.arange(2 * len(one.tokens), dtype=np.int32).reshape(-1, 2) % 4
  one = dataclasses.replace(one, taps=taps, weights=taps * 0.5)
  packed = packing.prompts([[one, one]], shape, 2)
  cells = len(one.patches) // shape.processor.codec.unit
  both = packed.media['vision'].taps[0, -2 * len(taps):]
  np.testing.assert_array_equal(both, np.concatenate([taps, taps + cells]))


def test_a_bug_is_no_endless_loop():
  with pytest.raises(AssertionError, match='empty row'):
    packing.Packer(Line([example(0, prompt=11)]), ROOM).take(1)
