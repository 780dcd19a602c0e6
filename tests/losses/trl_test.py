"""Values and gradients against TRL's own code (a test-only dependency).

The methods of TRL's trainer run here on a stand-in for the trainer: an object
with the attributes they read, whose forward pass returns given numbers.
"""

import ast
import collections
import inspect
import math
import textwrap
import types as pytypes

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmr1 import advantages
from mmr1 import types
from mmr1.losses import kl
from mmr1.losses import reduce
from mmr1.losses import surrogate
from mmr1.losses import terms
from mmr1.losses import weights
from tests.losses import blocks

LENGTH = 9  # TRL's max_completion_length, longer than any row
SHAPE = (3, 4, 7)
GRPO = dict(mode='seq_mean', rows='all')
TOKENS = dict(mode='token_mean')
SUMS = dict(mode='seq_sum', rows='all')
CONSTANT = dict(mode='constant', rows='all', length=LENGTH)


@pytest.fixture(scope='module')
def trl():
  # Takes seconds to import, so not for merely collecting these tests.
  from trl.trainer import grpo_trainer
  return grpo_trainer


@pytest.fixture(scope='module', params=[
    # Seed, spread of the log-ratios.
    (0, 0.4), (1, 0.4), (2, 4.0)], ids=['0', '1', 'extreme'])
def numbers(request):
  """Random log-probs, advantages and ragged masks.

  One row is empty; after seed 0 a whole group is, and another one has no
  variance. Multiples of 1/1024: fp32 has the differences exactly.
  """
  seed, spread = request.param
  rng = np.random.default_rng(seed)
  n, g, t = SHAPE
  lengths = rng.integers(1, t + 1, (n, g))
  lengths[1, 2] = 0
  draw = lambda scale: np.round(
      1024 * scale * rng.normal(size=SHAPE)).clip(-2**14, 2**14) / 1024
  logp = -np.abs(draw(1.0))
  x = dict(
      logp=logp,
      old=logp + draw(spread),
      ref=logp + draw(spread),
      sampler=logp + draw(spread),
      entropy=np.abs(draw(1.0)),
      advantage=rng.normal(size=(n, g, 1)).astype(np.float32),
      mask=np.arange(t) < lengths[..., None])
  if seed:
    x['mask'][0] = False
    x['advantage'][1] = 0.0
  return x


def theirs(trl, x, *, with_old=True, importance=None, **settings):
  """TRL's loss, its gradient in the log-probs, and its metrics."""
  rows = lambda a: torch.tensor(
      a.reshape(-1, a.shape[-1]).astype(np.float64))
  logp = rows(x['logp']).requires_grad_()
  mask = rows(x['mask'])
  args = dict(use_bias_correction_kl=False, delta=None,
              sapo_temperature_pos=1.0, sapo_temperature_neg=1.05,
              steps_per_generation=1)
  args.update({k: settings.pop(k) for k in list(settings) if k in args})
  trainer = pytypes.SimpleNamespace(**{**dict(
      aux_loss_enabled=False, top_entropy_quantile=1.0, beta=0.0,
      off_policy_mask_threshold=None, importance_sampling_level='token',
      loss_type='grpo', epsilon_low=0.2, epsilon_high=0.2,
      use_vllm=importance is not None,
      vllm_importance_sampling_correction=True,
      max_completion_length=LENGTH, current_gradient_accumulation_steps=1,
      use_adaptive_entropy=False, entropy_coef=0.0,
      _entropy_bonus_enabled=settings.get('entropy_coef', 0) != 0,
      model=pytypes.SimpleNamespace(training=True),
      accelerator=pytypes.SimpleNamespace(
          num_processes=1, sync_gradients=True, gather=lambda a: a,
          reduce=lambda a, reduction: a),
      _metrics=collections.defaultdict(
          lambda: collections.defaultdict(list)),
      args=pytypes.SimpleNamespace(**args),
      _get_per_token_logps_and_entropies=lambda *a, **k: (
          logp, rows(x['entropy']), None),
  ), **settings})
  trainer.get_high_entropy_mask = pytypes.MethodType(
      trl.GRPOTrainer.get_high_entropy_mask, trainer)
  trainer.accelerator.pad_across_processes = lambda a, **k: a
  ids = torch.zeros(mask.shape, dtype=torch.long)
  inputs = dict(
      prompt_ids=ids[:, :1], prompt_mask=ids[:, :1], completion_ids=ids,
      completion_mask=mask, ref_per_token_logps=rows(x['ref']),
      advantages=rows(x['advantage'])[:, 0], num_items_in_batch=mask.sum())
  if with_old:
    inputs['old_per_token_logps'] = rows(x['old'])
  inputs['importance_sampling_ratio'] = importance
  loss = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
  loss.backward()
  return loss.item(), logp.grad.numpy().reshape(x['logp'].shape), (
      trainer._metrics['train'])


def ours(x, *, beta=0.0, entropy_coef=0.0, reduction=GRPO, with_old=True,
         bias_correction=False, weight=None, **policy_kw):
  """Our objective in fp32 and its gradient in the log-probs."""
  f32 = lambda a: jnp.asarray(a, jnp.float32)
  block = types.Block(
      prompts=None, completions=blocks.UNPACKED, mask=jnp.asarray(x['mask']),
      advantage=f32(x['advantage']), ref=f32(x['ref']),
      old=f32(x['old']) if with_old else None, weight=weight)
  def loss(logp):
    scores = types.Scores(logp=logp, entropy=f32(x['entropy']))
    parts = [(1.0, terms.policy(
        scores, block, {}, clamp=None, reduction=reduction, **policy_kw))]
    if beta:
      parts.append((beta, terms.kl(
          scores, block, {}, reduction=reduction, estimator=kl.k3,
          difference_clamp=None, value_clamp=None,
          bias_correction=bias_correction)))
    if entropy_coef:
      parts.append((entropy_coef, terms.entropy(
          scores, block, {}, reduction=TOKENS)))
    return sum(c * reduce.finish(*part) for c, part in parts)
  value, gradient = jax.value_and_grad(loss)(f32(x['logp']))
  return float(value), np.asarray(gradient)


def assert_equal(value, gradient, want, slope):
  assert value == pytest.approx(want, abs=1e-6, rel=1e-6)
  np.testing.assert_allclose(
      gradient, slope, rtol=0, atol=1e-5 * max(1e-2, np.abs(slope).max()))


CISPO = dict(surrogate=surrogate.cispo, ratio_high=1.3, reduction=TOKENS)
CASES = {
    'grpo': (dict(), dict()),
    'bnpo': (dict(loss_type='bnpo'), dict(reduction=TOKENS)),
    'dapo': (dict(loss_type='dapo', epsilon_high=0.28),
             dict(reduction=TOKENS, eps_high=0.28)),
    'dr_grpo': (dict(loss_type='dr_grpo'), dict(reduction=CONSTANT)),
    'gspo': (
        dict(importance_sampling_level='sequence', epsilon_low=0.03,
             epsilon_high=0.04),
        dict(level='sequence', eps_low=0.03, eps_high=0.04)),
    'luspo': (
        dict(loss_type='luspo', importance_sampling_level='sequence'),
        dict(level='sequence', reduction=SUMS)),
    'delta': (dict(delta=1.5), dict(delta=1.5)),
    'cispo': (dict(loss_type='cispo', epsilon_high=1.3), CISPO),
    'sapo': (dict(loss_type='sapo'), dict(surrogate=surrogate.sapo)),
    'entropy': (dict(entropy_coef=0.01), dict(entropy_coef=0.01)),
}


@pytest.mark.parametrize('beta', [0.0, 0.04])
@pytest.mark.parametrize('their_kw, our_kw', CASES.values(), ids=CASES)
def test_loss_equals_trl(trl, numbers, their_kw, our_kw, beta):
  want, slope, _ = theirs(trl, numbers, beta=beta, **their_kw)
  got, gradient = ours(numbers, beta=beta, **our_kw)
  assert_equal(got, gradient, want, slope)
  assert np.any(slope)


def test_one_update_per_rollout_equals_trl(trl, numbers):
  want, slope, _ = theirs(trl, numbers, with_old=False, beta=0.04)
  got, gradient = ours(numbers, with_old=False, beta=0.04)
  assert_equal(got, gradient, want, slope)


def test_bias_corrected_kl_equals_trl(trl, numbers):
  want, slope, _ = theirs(
      trl, numbers, beta=0.04, use_bias_correction_kl=True)
  got, gradient = ours(numbers, beta=0.04, bias_correction=True)
  assert_equal(got, gradient, want, slope)


def test_clip_metrics_equal_trl(trl, numbers):
  _, _, metrics = theirs(trl, numbers)
  f32 = lambda a: jnp.asarray(a, jnp.float32)
  scores = types.Scores(
      logp=f32(numbers['logp']), entropy=f32(numbers['entropy']))
  block = types.Block(
      prompts=None, completions=blocks.UNPACKED,
      mask=jnp.asarray(numbers['mask']),
      advantage=f32(numbers['advantage']), old=f32(numbers['old']))
  means, _ = terms.policy_metrics(scores, block, {}, clamp=None)
  for end in ('low', 'high'):
    want, = metrics[f'clip_ratio/{end}_mean']
    got = reduce.finish(*means[f'clip_frac/{end}'])
    assert 0 < want == pytest.approx(float(got), abs=1e-6)


def test_high_entropy_weight_equals_trl(trl, numbers):
  want, slope, _ = theirs(
      trl, numbers, beta=0.04, top_entropy_quantile=0.3)
  block = types.Block(
      prompts=None, completions=blocks.UNPACKED,
      mask=jnp.asarray(numbers['mask']),
      advantage=jnp.asarray(numbers['advantage']))
  scores = types.Scores(
      logp=jnp.asarray(numbers['logp']),
      entropy=jnp.asarray(numbers['entropy'], jnp.float32))
  weight = weights.high_entropy(
      scores, block, jax.random.key(0), fraction=0.3)
  assert 0 < weight.sum() < 0.5 * numbers['mask'].sum()
  got, gradient = ours(numbers, beta=0.04, weight=weight)
  assert_equal(got, gradient, want, slope)


@pytest.fixture(scope='module')
def trl_importance(trl):
  """TRL's weights of the sampler's tokens: the statements of its source."""
  source = textwrap.dedent(inspect.getsource(
      trl.GRPOTrainer._generate_and_score_completions))
  node, = [
      node for node in ast.walk(ast.parse(source))
      if isinstance(node, ast.If) and any(
          ast.unparse(child).startswith('per_token_logps_diff =')
          for child in node.body)]
  code = compile(ast.Module(node.body, []), 'trl', 'exec')
  def run(x, mode, cap):
    rows = lambda a: torch.tensor(a.reshape(-1, a.shape[-1]) * 1.0)
    names = dict(
        torch=torch, math=math, tool_mask=None,
        completion_mask=rows(x['mask']), old_per_token_logps=rows(x['old']),
        sampling_per_token_logps=rows(x['sampler']),
        self=pytypes.SimpleNamespace(
            vllm_importance_sampling_mode=mode,
            vllm_importance_sampling_clip_min=None,
            vllm_importance_sampling_clip_max=cap))
    exec(code, names)  # pylint: disable=exec-used
    return names['vllm_importance_sampling_ratio']
  return run


@pytest.mark.parametrize('cap', [1.5, 3.0])
@pytest.mark.parametrize('mode', weights.MODES)
@pytest.mark.parametrize('level', weights.LEVELS)
def test_importance_weight_equals_trl(
    trl, trl_importance, numbers, level, mode, cap):
  want = trl_importance(numbers, f'{level}_{mode}', cap)
  block = types.Block(
      prompts=None, completions=blocks.UNPACKED,
      mask=jnp.asarray(numbers['mask']), advantage=None,
      old=jnp.asarray(numbers['old']),
      extra={'sampler_logp': jnp.asarray(numbers['sampler'])})
  weight = weights.importance(
      None, block, None, level=level, mode=mode, cap=cap)
  shape = (*SHAPE[:-1], want.shape[-1])
  np.testing.assert_allclose(weight, np.where(
      numbers['mask'], want.numpy().reshape(shape), 0), rtol=2e-6, atol=1e-9)
  loss, slope, _ = theirs(trl, numbers, importance=want, beta=0.04)
  got, gradient = ours(numbers, weight=weight, beta=0.04)
  assert_equal(got, gradient, loss, slope)


@pytest.fixture(scope='module')
def trl_advantage(trl):
  """TRL's advantage computation: the statements of its source, run as is."""
  source = textwrap.dedent(inspect.getsource(
      trl.GRPOTrainer._generate_and_score_completions))
  body = ast.parse(source).body[0].body
  targets = lambda node: [
      ast.unparse(t) for t in getattr(node, 'targets', ())]
  first = next(i for i, node in enumerate(body)
               if targets(node) == ['unscorable_mask'])
  last = next(i for i, node in enumerate(body) if i > first
              and 'nan_to_num' in ast.unparse(node))
  code = compile(ast.Module(body[first:last + 1], []), 'trl', 'exec')
  def run(rewards, weights, **settings):
    n, g, k = rewards.shape
    names = dict(
        torch=torch, nanstd=trl.nanstd, num_generations=g, device='cpu',
        rewards_per_func=torch.tensor(rewards.reshape(-1, k)),
        self=pytypes.SimpleNamespace(
            reward_weights=torch.tensor(weights, dtype=torch.float64),
            reward_funcs=[None] * k, **settings))
    exec(code, names)  # pylint: disable=exec-used
    return names['advantages'].numpy().reshape(n, g, 1)
  return run


def columns_with_holes(seed):
  rng = np.random.default_rng(seed)
  rewards = rng.integers(0, 3, (6, 5, 2)).astype(float)
  rewards[0] = 1.0              # no variance
  rewards[1, 2] = np.nan        # unscorable
  rewards[2, 1, 0] = np.nan     # one reward does not apply
  rewards[3] *= 1e4
  return rewards


@pytest.mark.parametrize('seed', [3, 4, 5])
@pytest.mark.parametrize('std', ['group', 'batch', 'none'])
def test_advantage_equals_trl(trl_advantage, std, seed):
  rewards, weights = columns_with_holes(seed), [1.0, 0.5]
  want = trl_advantage(
      rewards, weights, scale_rewards=std,
      multi_objective_aggregation='sum_then_normalize')
  total = np.nansum(rewards * weights, axis=-1, keepdims=True)
  total[np.isnan(rewards).all(-1)] = np.nan
  got = advantages.grpo(total, std=std, eps=1e-4)
  np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize('seed', [3, 4, 5])
def test_normalize_then_sum_equals_trl(trl_advantage, seed):
  rewards, weights = columns_with_holes(seed), [1.0, 0.5]
  want = trl_advantage(
      rewards, weights, scale_rewards='group',
      multi_objective_aggregation='normalize_then_sum')
  got = advantages.normalize_then_sum(rewards, weights=weights)
  np.testing.assert_allclose(got, want, atol=1e-12)
