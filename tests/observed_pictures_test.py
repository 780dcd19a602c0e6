"""A picture that a tool brings inside a completion is read, and never trained
on, whatever is said of its placeholders and of the words around it (M18)."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import forward
from mmr1 import records
from mmr1 import resolve
from mmr1 import rl_setup
from mmr1 import types
from mmr1 import update
from mmr1.data import inserting
from mmr1.data import trajectories
from mmr1.losses import kl as kl_lib
from mmr1.losses import ratio
from mmr1.losses import reduce
from mmr1.losses import surrogate
from mmr1.losses import terms
from mmr1.losses import weights
from tests import noise
from tests import tiles
from tests.papers import runs

N, G = 1, 2
CONFIGS = ('chain_of_focus', 'vlm_r3')


@pytest.fixture(scope='module', params=['qwen2_5_vl', 'qwen3_vl', 'internvl'])
def case(request, tmp_path_factory):
  return made(request.param, tmp_path_factory.mktemp('model') / 'm')


def made(family, folder):
  """(policy, parameters, a block of two episodes with crops between turns)."""
  policy, params, processor, prompts = noise.opened(family, folder)
  played = episodes(processor, int(prompts.next_position[0]))
  completions = trajectories.collate(
      [played], max(map(len, played)) + 1,
      max(whole.patches for whole in played), processor.pad_id,
      processor.codec)
  rng = np.random.default_rng(0)
  shape = completions.tokens.shape
  draw = lambda: jnp.asarray(-rng.random(shape) * 3, jnp.float32)
  return policy, params, jax.tree.map(jnp.asarray, types.Block(
      prompts=prompts, completions=completions,
      mask=completions.kind == types.KIND_SAMPLED,
      advantage=np.float32(rng.normal(size=shape)), old=draw(), ref=draw(),
      extra={'sampler_logp': draw()}))


def episodes(processor, following):
  """Turns of 3, 2 and 2 tokens with a crop, and 2 and 4 with another."""
  rng = np.random.default_rng(1)
  found = []
  for lengths, sides in (((3, 2, 2), ((16, 32), (32, 16))),
                         ((2, 4), ((32, 32),))):
    whole = trajectories.Trajectory(following)
    for i, length in enumerate(lengths):
      whole.say(rng.integers(5, 200, length))
      if i < len(sides):
        whole.insert(inserting.encode(records.Observation(
            text='<image>again', images=(tiles.noise(*sides[i]),)),
                                      processor, closed=False))
    found.append(whole)
  return found


def observed(block):
  """bool[N, G, T], and at least one of them a cell of a picture."""
  seen = block.completions.kind == types.KIND_OBSERVATION
  slot = block.completions.media['vision'].slot
  assert bool(jnp.any(seen & (slot >= 0)))
  return seen


def instead(block, value, *, advantage=1e3):
  """The block, other things being said of what was observed."""
  seen = observed(block)
  other = lambda x, v: jnp.where(seen, jnp.float32(v), x)
  return dataclasses.replace(
      block, advantage=other(block.advantage, advantage),
      old=other(block.old, -value), ref=other(block.ref, value),
      extra={name: other(x, -value) for name, x in block.extra.items()})


def same(got, want, what):
  got, want = jax.device_get((got, want))
  for (path, a), (_, b) in zip(*map(
      jax.tree_util.tree_leaves_with_path, (got, want)), strict=True):
    np.testing.assert_array_equal(
        a, b, err_msg=f'{what} {jax.tree_util.keystr(path)}')


# Whole objectives: other logits where the tool speaks.


def _noisy_score(policy, params, prefix, block, temperature, **unused):
  """`forward.score` with other logits where `extra['noise']` is not 0."""
  del unused
  hidden = forward.hidden_states(
      policy, params, prefix, block.prompts, block.completions)
  found = forward.token_scores(
      policy, params, hidden + block.extra['noise'][..., None],
      block.completions.tokens, block.mask, temperature)
  return types.Scores(logp=found.logp, entropy=found.entropy)


@functools.partial(jax.jit, static_argnames=('policy', 'of', 'chunks'))
def _gradient(policy, params, block, knobs, *, of, chunks):
  return update.gradient(
      policy, params, lambda x: x, (block,), of, knobs, chunks=chunks,
      score=_noisy_score)


def objective(name):
  """(terms, knobs) of the last stage of a config, as its stage makes them."""
  c = resolve.finalise(runs.config(name))
  stage = c.stages[-1]
  found = rl_setup.objective_of(c[stage], stage, c)
  return found.terms, {key: jnp.float32(x) for key, x in {
      'temperature': 1.0, **found.knobs}.items()}


def test_m18_logits_of_a_picture_change_nothing_that_trains(case, request):
  """Gradients and metrics of the environments' configs to the bit, detectors
  of a sampler that has gone astray included; what was said counts."""
  policy, params, block = case
  noise = jnp.zeros(block.mask.shape)
  first = 'qwen2_5_vl' in request.node.name
  for name in CONFIGS if first else CONFIGS[:1]:
    of, knobs = objective(name)
    took = lambda noise, block: _gradient(
        policy, params, dataclasses.replace(
            block, extra={**block.extra, 'noise': noise}), knobs, of=of,
        chunks=1)
    want = took(noise, block)
    seen = observed(block)
    same(took(jnp.where(seen, 7.0, 0.0), instead(block, 50.0)), want, name)
    metrics = want[1]
    assert {'sampler/logp_diff_mean', 'sampler/logp_diff_max', 'kl_old',
            'ratio/max', 'entropy', 'loss'} <= metrics.keys()
    other = took(jnp.where(block.mask, 7.0, 0.0), block)
    for key in ('sampler/logp_diff_max', 'ratio/max', 'entropy', 'loss'):
      assert abs(metrics[key] - other[1][key]) > 1e-4, key


def test_m18_the_picture_itself_is_read(case):
  """What is said behind it changes with its pixels, nothing before."""
  policy, params, block = case
  score = jax.jit(forward.logp_and_hidden, static_argnums=0)
  vision = block.completions.media['vision']
  blank = block.completions.replace(media={
      'vision': vision.replace(patches=0 * vision.patches)})
  a, b = (np.asarray(score(policy, params, block.prompts, completions,
                           block.mask, jnp.float32(1.0))[0])
          for completions in (block.completions, blank))
  turn = np.asarray(block.completions.turn)
  assert not np.abs(a - b)[turn == 0].any()
  assert (np.abs(a - b)[turn > 0] > 1e-7).all()


# Every convention, over scores that are given.


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  """(block, scores) of one family."""
  *_, block = made('qwen2_5_vl', tmp_path_factory.mktemp('model') / 'm')
  rng = np.random.default_rng(3)
  draw = lambda sign: jnp.asarray(
      sign * 3 * rng.random(block.mask.shape), jnp.float32)
  block = dataclasses.replace(block, extra={
      **block.extra, 'values': draw(1), 'returns': draw(1)})
  return block, types.Scores(
      logp=draw(-1), entropy=draw(1), pairs={'kl_ref': draw(1)}, value=draw(1))


REDUCTIONS = [
    dict(mode=mode, rows=rows, length=9.0 if mode == 'constant' else None)
    for mode, rows in itertools.product(reduce.MODES, reduce.ROWS)
    if not (rows == 'none' and mode != 'constant')
    and not (rows != 'live' and mode == 'token_mean')]
POLICIES = [
    dict(surrogate=fn, level=level, sequence=sequence)
    for fn in (surrogate.clip, surrogate.cispo, surrogate.sapo, surrogate.none,
               surrogate.linear, surrogate.geo_mean)
    for level in ratio.LEVELS for sequence in ratio.SEQUENCES
    if sequence == 'geometric' or level != 'token'
    if not (fn is surrogate.geo_mean and level != 'token')]
KLS = [
    functools.partial(
        terms.kl, estimator=fn, target=target, bias_correction=bias)
    for fn in (kl_lib.k1, kl_lib.absolute, kl_lib.k2, kl_lib.k3, kl_lib.k3_plus)
    for target in terms.TARGETS for bias in (False, True)]
# What is one value a token, in every reduction; what makes it, in one.
TERMS = [
    functools.partial(terms.policy, **POLICIES[0]), KLS[0], terms.kl_full,
    *(functools.partial(terms.entropy, source=x) for x in terms.ENTROPIES),
    terms.nll, terms.imitation, terms.critic]
CASES = [*itertools.product(TERMS, REDUCTIONS), *itertools.product(
    [*(functools.partial(terms.policy, **kw) for kw in POLICIES[1:]),
     *KLS[1:]], REDUCTIONS[:1])]


def _evaluated(block, scores):
  """{name: (values, gradient in what scores say)} of every term."""
  found = {}
  for i, (term, reduction) in enumerate(CASES):
    value = lambda scores: term(scores, block, {}, reduction=reduction)
    (total, count), pull = jax.vjp(value, scores)
    grad, = pull((jnp.float32(1.0), jnp.float32(0.0)))
    found[f'{i}: {term} {reduction}'] = (total, count, grad)
  for i, kw in enumerate(POLICIES):
    found[f'metrics {i}: {kw}'] = terms.policy_metrics(scores, block, {}, **kw)
  for fn in (weights.high_entropy, weights.clip_cov, weights.top_cov,
             *(functools.partial(weights.importance, level=level, mode=mode)
               for level in weights.LEVELS for mode in weights.MODES)):
    found[f'weight {fn}'] = fn(scores, block, jax.random.key(0))
  return found


def test_m18_in_every_reduction_term_metric_and_weight(given):
  """Also where nothing that is said of them is a number."""
  block, scores = given
  evaluated = jax.jit(_evaluated)
  want = evaluated(block, scores)
  seen = observed(block)
  for value in (50.0, 1e4, np.nan):
    got = evaluated(
        instead(block, value, advantage=value),
        jax.tree.map(lambda x: jnp.where(seen, jnp.float32(value), x), scores))
    same(got, want, value)
  for name, results in want.items():
    if not name.startswith(('weight', 'metrics')):
      for x in jax.tree.leaves(results[2]):
        assert not np.asarray(x)[~np.asarray(block.mask)].any(), name
