"""Rows, refills, growing caches: what is sampled does not depend on them."""

import jax
import numpy as np
import pytest

from mmr1 import compiles
from mmr1 import types
from mmr1.models import attention
from mmr1.sampling import keys
from mmr1.sampling import rows
from mmr1.sampling import sample
from tests import small

G, T = 4, 24
KEY = keys.step_key(2, 1, 5)
WAYS = {
    'cache grows': dict(cache_chunk=5),
    'rows wait': dict(rows=5),
    'one row': dict(rows=1, cache_chunk=7),
    'rows shrink': dict(shrink=True),
    'scanned layers': dict(layers='scan', cache_chunk=7),
    'all of it': dict(rows=8, cache_chunk=8, shrink=True),
}


@pytest.fixture(scope='module')
def params():
  """eos is a likely token: lengths from 1 to the cap."""
  return small.prefer(small.params(), small.EOS, 12.5)


@pytest.fixture(scope='module')
def batch():
  """Text, images, a video; the last prompt is padding."""
  return small.prompts((*small.MIXED, ([], [], [])), uid=range(100, 105))


def run(params, batch, **decoding):
  return small.rollout(
      params, batch, KEY, group=G, length=T, temperature=0.9, top_p=0.95,
      decoding=sample.Decoding(**decoding))


@pytest.fixture(scope='module')
def whole(params, batch):
  return run(params, batch)


@pytest.mark.parametrize('way', WAYS)
def test_m3_m27_rows_and_caches_change_nothing(params, batch, whole, way):
  expected, _ = whole
  lengths = (np.asarray(expected.completions.kind)
             == types.KIND_SAMPLED).sum(-1)
  assert {1, T} <= set(lengths[:4].ravel()) and not lengths[4].any()
  found, _ = run(params, batch, **WAYS[way])
  for a, b in ((found.completions.tokens, expected.completions.tokens),
               (found.completions.kind, expected.completions.kind),
               (found.done, expected.done)):
    np.testing.assert_array_equal(a, b)
  for a, b in ((found.logp, expected.logp),
               (found.behaviour, expected.behaviour)):
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)


def test_rows_that_end_are_refilled(params, batch, whole):
  """8 rows for 16 samples: fewer steps than two batches of 8 would take."""
  expected, steps = whole
  lengths = (np.asarray(expected.completions.kind) > 0).sum(-1)[:4]
  assert steps == lengths.max() - 1
  _, refilled = run(params, batch, rows=8)
  batches = sum(part.max() - 1 for part in lengths.reshape(2, 8))
  work = lengths.sum() - lengths.size
  assert work / 8 <= refilled < batches


def test_m28_lengths_compile_nothing(params, batch):
  """The first call, of short samples, leaves the programs of all lengths."""
  ways = sample.Decoding(**WAYS['all of it'])

  def lengths(step, cap):
    found, steps = small.rollout(
        params, batch, keys.step_key(0, 1, step), group=G, length=T,
        temperature=1.0 + step / 10, max_new_tokens=cap, decoding=ways)
    return (np.asarray(found.completions.kind) > 0).sum(-1)[:4].ravel(), steps
  first, steps = lengths(0, 3)
  # Sixteen samples of up to 3 in eight rows; nobody else is decoded.
  assert first.max() == 3 and steps <= 2 * (3 - 1)
  counter = compiles.CompileCounter()
  later = [lengths(step, cap)[0]
           for step, cap in ((1, T), (2, 11), (3, T), (4, 1))]
  counter.close()
  assert [x.max() for x in later] == [T, 11, T, 1]
  assert len({tuple(x) for x in later}) == len(later)
  assert counter.count == 0


def test_m27_a_prompt_twice_in_rows_draws_new_noise(params):
  twice = small.prompts((small.MIXED[1],) * 2, uid=[5, 5])
  found, _ = run(params, twice, rows=3)
  expected, _ = run(params, twice)
  np.testing.assert_array_equal(
      found.completions.tokens, expected.completions.tokens)
  assert len(np.unique(np.asarray(
      found.completions.tokens).reshape(2 * G, T), axis=0)) > G


def test_law_1_prompts_are_read_by_seats(params, batch):
  """In rows, too, nothing has the keys of a prompt once for each row."""
  n, p, r, g = 5, 26, 7, 3
  policy = small.policy()

  def decode(tree, batch):
    asked = rows.ask(policy, tree, batch, KEY, group=g)
    seating = rows.Seating(
        task=np.arange(r)[None], start=np.zeros((1, r), np.int32),
        seats=attention.Seats(row=np.zeros((1, n * g), np.int32),
                              seat=np.arange(r)[None]))
    state = rows.begin(policy, 1, r, n * g, T, T)
    return rows.decode(
        policy, tree, asked, asked.prefix, asked.mask, seating, state,
        sample.knobs(max_new_tokens=T), np.array([-1]), np.int32(0))

  shapes = set(small.shapes_in(jax.make_jaxpr(decode)(params, batch).jaxpr))
  assert any({p, g, n} <= set(s) for s in shapes)  # the scores, in seats
  width = policy.module.config.head_width
  assert not [s for s in shapes if {r, p, width} <= set(s)]
  assert not [s for s in shapes if {g, p, width} <= set(s)]

