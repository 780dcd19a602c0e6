"""The TPU kernel, interpreted, against XLA's attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1.models import attention
from mmr1.models import sight
from mmr1.models import splash
from tests import small
from tests.models import attending

N, G = 2, 3
# Sizes that fill no block; (T, P, heads, key heads, width, what is asked).
CASES = {
    'group': (40, 70, 4, 2, 64, {}),
    'window': (20, 140, 2, 1, 32, dict(window=30, sliding=True)),
    'packed': (130, 130, 2, 1, 32, dict(packed=True, cap=5.0)),
    'prompts': (260, 0, 2, 1, 16, dict(window=150, sliding='traced')),
    'frames': (70, 0, 2, 2, 72, dict(packed=True, causal=False)),
}


def example(name, dtype=np.float32):
  """(query, arrays of keys and values, sights, weight of the result, cap).

  Completions are padded on the right, prompts on the left, each its own way;
  'prompts' and 'frames' are rows without a prompt before them.
  """
  t, p, heads, kv_heads, d, asked = CASES[name]
  asked = dict(asked)
  rng = np.random.default_rng(len(name))
  draw = lambda *shape: jnp.asarray(2 * rng.normal(size=shape), dtype)
  lengths = rng.integers(t // 4, t + 1, (N, G, 1))
  before = rng.integers(p // 4, p + 1, (N, 1, 1))
  real = jnp.asarray(np.arange(t) < lengths)
  if name == 'prompts':
    real = real[..., ::-1]
  hidden = jnp.asarray(np.arange(p) >= p - before)
  cap, packed = asked.pop('cap', None), asked.pop('packed', False)
  if asked.get('sliding') == 'traced':
    asked['sliding'] = jnp.asarray(True)
  own = sight.Sight(keys=real, **{'causal': True, **asked})
  prompt = sight.Sight(keys=hidden, **asked, places=None if not asked else (
      jnp.asarray(before + np.arange(t)) + jnp.zeros((1, G, 1), int),
      jnp.cumsum(hidden, -1) - 1))
  if packed:
    queries, keys = (jnp.asarray(np.sort(rng.integers(0, 4, shape)))
                     for shape in ((N, G, t), (N, 1, p)))
    own = own.replace(segments=(queries, queries))
    prompt = prompt.replace(segments=(queries, keys))
  arrays = [draw(N, G, kv_heads, t, d) for _ in range(2)]
  arrays += [draw(N, kv_heads, p, d) for _ in range(2)]
  weight = rng.normal(size=(N, G, t, heads, d)) * real[..., None, None]
  return draw(N, G, t, heads, d), arrays, (own, prompt), weight, cap


@pytest.mark.parametrize('name', CASES)
def test_kernel_is_xla_in_values_and_gradients(name):
  query, arrays, sights, weight, cap = example(name)
  expected = attending.both_ways(query, arrays, sights, weight, cap=cap)
  got = attending.both_ways(
      query, arrays, sights, weight, kernel=splash, cap=cap)
  assert len(got) == 6
  for a, b in zip(got, expected):
    assert attending.error(a, b) < 5e-6


def test_bfloat16_is_as_near_as_products_are():
  """To float32 of the same numbers; queries are rounded once more."""
  query, arrays, sights, weight, cap = example('group', jnp.bfloat16)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), (query, arrays))
  expected = attending.both_ways(*wide, sights, weight, cap=cap)
  plain, kernel = (attending.both_ways(
      query, arrays, sights, weight, kernel=module, cap=cap)
                   for module in (attending.Plain, splash))
  for a, b, c in zip(kernel, plain, expected):
    assert attending.error(b, c) > 1e-4  # it is bfloat16 that is looked at
    assert attending.error(a, c) < 2 * attending.error(b, c) + 4e-3


@pytest.mark.parametrize('causal, window, prompt, count', [
    (True, None, 256, 3), (True, 300, 256, 2), (True, 40, 0, 2),
    (True, 512, 512, 1), (False, None, 0, 2)])
def test_blocks_of_the_mask_are_what_token_by_token_says(
    causal, window, prompt, count):
  length = 384
  mask = splash.Group(prompt, count, length, causal, window, 128)
  query, key = np.indices(mask.shape)
  token, own = query % length, key - prompt
  same = (own >= 0) & (own // length == query // length)
  back = token - np.where(own >= 0, own % length, own)
  expected = np.where(own >= 0, same & ((back >= 0) | (not causal)), True)
  if window is not None:
    expected &= back < window
  for i, j in np.ndindex(*(size // 128 for size in mask.shape)):
    block = slice(i * 128, i * 128 + 128), slice(j * 128, j * 128 + 128)
    np.testing.assert_array_equal(mask[block], expected[block], f'{i} {j}')


def test_tables_of_a_long_group_look_at_few_tokens(monkeypatch):
  """8 completions of 4,096 tokens on 2,048: 1.1e9 pairs. Of the 64 x 68 blocks
  only those on the diagonal are looked at, for three tables of two passes."""
  looked = []
  sees = splash.Group.sees
  monkeypatch.setattr(splash.Group, 'sees', lambda self, query, key: (
      looked.append(query.size * key.size), sees(self, query, key))[1])
  group = splash.Group(2048, 8, 4096, True, None, 512)
  kernel = splash._kernel(group, 2, None, False)
  assert kernel.fwd_mask_info.block_mask.shape == (1, 64, 4 + 8)
  assert 0 < sum(looked) <= 6 * 64 * 512**2
  assert splash._kernel(group, 2, None, False) is kernel


def test_a_model_with_the_kernel_is_the_model(monkeypatch):
  """Prompts with images, both kinds of the tower's layers, completions: every
  pass tells the kernel what it tells XLA."""
  monkeypatch.setattr(splash, 'attend', functools.partial(
      splash.attend, interpret=True))
  block = small.block(small.prompts(), g=2, t=5)
  made = []
  original = splash._kernel
  monkeypatch.setattr(splash, '_kernel', lambda group, *args: (
      made.append(group), original(group, *args))[1])
  got, expected = (
      small.logits(
          small.policy(layers='scan', attention=backend), small.params(),
          block.prompts, block.completions, 1.0)
      for backend in ('splash', 'xla'))
  # The prompt, its completions, a window and a frame of the tower.
  assert {(g.prompt > 0, g.causal) for g in made} == {
      (False, True), (True, True), (False, False)}
  keep = np.asarray(block.completions.kind > 0)
  np.testing.assert_allclose(
      np.asarray(got)[keep][:, 2:60], np.asarray(expected)[keep][:, 2:60],
      atol=2e-4)


def refused(change=None, at=0, query=None, arrays=None, **kw):
  given, keys, sights, _, _ = example('group')
  sights = list(sights)
  if change:
    sights[at] = sights[at].replace(**change)
  return attention.attend(
      given if query is None else query,
      attending.sources(keys if arrays is None else arrays, sights),
      **{'precision': 'default', 'chunk': 512, 'backend': 'splash', **kw})


@pytest.mark.parametrize('kw, message', [
    (dict(precision='highest'), "precision 'highest': it multiplies"),
    (dict(change=dict(blocks=jnp.ones((N, 40), int))), 'see each other'),
    (dict(change=dict(at=jnp.int32(0))), 'against a cache'),
    (dict(change=dict(segments=(jnp.ones((N, G, 40), int),) * 2)),
     'of the completions or of the prompt alone'),
    (dict(at=1, change=dict(causal=True)), 'or prompts that are'),
    (dict(at=1, change=dict(window=9, sliding=True, segments=(
        jnp.ones((N, G, 40), int), jnp.ones((N, 1, 70), int)))),
     'a window over packed prompts'),
    (dict(at=1, change=dict(window=9, sliding=True)), 'whose places nothing'),
    (dict(query=jnp.ones((N, G, 40, 4, 64), jnp.float16)), 'float16: it reads'),
    (dict(query=jnp.ones((N, G, 40, 4, 12)),
          arrays=[jnp.ones((N, G, 2, 40, 12))] * 2 +
          [jnp.ones((N, 70, 2, 12))] * 2), 'heads of width 12'),
])
def test_what_the_kernel_cannot_do_is_an_error(kw, message):
  with pytest.raises(ValueError, match=message) as error_:
    refused(**kw)
  assert "model.attention='splash'" in str(error_.value)
  assert "'xla' computes everything" in str(error_.value)
