"""Losses of pairs: by hand, in float64, and against TRL's own trainers."""

import collections
import contextlib
import math
import types as pytypes

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmr1 import types
from mmr1.losses import preference
from tests.losses import blocks

SHAPE = (5, 2, 7)


def pair(policy, ref):
  """Scores and a block of one pair with one token a side."""
  at = lambda x: jnp.asarray(x, jnp.float32).reshape(1, 2, 1)
  scores = types.Scores(logp=at(policy), entropy=at([0, 0]))
  return scores, types.Block(
      prompts=None, completions=blocks.UNPACKED, mask=jnp.ones((1, 2, 1), bool),
      advantage=jnp.zeros((1, 2, 1)), ref=at(ref))


def loss(fn, scores, block, **kwargs):
  total, count = fn(scores, block, {}, **kwargs)
  return float(total / count)


def test_dpo_by_hand():
  # Policy sums (-10, -12), reference (-11, -11): h = 1 - (-1) = 2, beta h = .2,
  # -log sigma(.2) = log(1 + e^-.2) = .598139.
  scores, block = pair([-10, -12], [-11, -11])
  assert loss(preference.dpo, scores, block, beta=.1) == pytest.approx(
      .598139, abs=1e-6)
  # A label that is wrong one time of ten: .9 x .598139 + .1 x .798139.
  assert loss(preference.dpo, scores, block, beta=.1, label_smoothing=.1
              ) == pytest.approx(.618139, abs=1e-6)
  # With the chosen one's -log p of .7 a token: 1.298139.
  nll, count = preference.nll(
      *pair([-.7, -9], [0, 0]), {}, reduction={'mode': 'seq_mean'})
  assert (float(nll), float(count)) == (pytest.approx(.7), 1)
  # -40 (ref -42) and -55 (ref -54): h = 2 + 1 = 3.
  scores, block = pair([-40, -55], [-42, -54])
  assert loss(preference.dpo, scores, block, beta=1.) == pytest.approx(
      .048587, abs=1e-6)
  assert loss(preference.dpo, scores, block, beta=.1) == pytest.approx(
      .554355, abs=1e-6)


@pytest.mark.parametrize('beta', [.01, .1, 1., 5.])
def test_unchanged_parameters_lose_ln_2(beta):
  scores, block = pair([-40, -55], [-40, -55])
  assert loss(preference.dpo, scores, block, beta=beta) == pytest.approx(
      math.log(2))


def test_ipo_and_simpo_by_hand():
  # h = 3: (3 - 1 / (2 x .25))^2 = 1; at tau .1 (3 - 5)^2 = 4.
  scores, block = pair([-40, -55], [-42, -54])
  assert loss(preference.ipo, scores, block, beta=.25) == pytest.approx(1)
  assert loss(preference.ipo, scores, block) == pytest.approx(4)
  # 2 x (-1 - (-2)) - 1 = 1: log(1 + e^-1) = .313262; there is no reference.
  scores, block = pair([-1, -2], [0, 0])
  assert loss(preference.simpo, scores, block.replace(ref=None)
              ) == pytest.approx(.313262, abs=1e-6)


def random(seed=0):
  """(scores, block) of pairs of ragged length, the last one half there."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, SHAPE[-1] + 1, SHAPE[:2])
  lengths[-1, 1] = 0
  return blocks.block(seed, SHAPE, lengths=lengths)


def theirs(trl, scores, block, *, loss_type, **settings):
  """TRL's loss, its gradient in the log-probs, and its metrics, in float64."""
  n = SHAPE[0] - 1  # of a pair with an empty side TRL makes a pair
  flat = lambda x: torch.tensor(np.asarray(x, np.float64)[:n].swapaxes(
      0, 1).reshape(2 * n, -1))
  logp, ref = flat(scores.logp).requires_grad_(), flat(block.ref)
  mask = flat(block.mask)
  zeros = torch.zeros((2 * n, SHAPE[-1]), dtype=torch.float64)
  def forward(x):
    return lambda **_: pytypes.SimpleNamespace(
        log_probs=x * mask, entropy=zeros, mean_logits=zeros,
        is_top1=zeros.bool())
  model = forward(logp)
  trainer = pytypes.SimpleNamespace(
      model=pytypes.SimpleNamespace(training=True), aux_loss_enabled=False,
      ld_alpha=None, precompute_ref_logps=False, f_divergence_type='reverse_kl',
      use_weighting=False, _tp_size=1, _total_train_tokens=0,
      args=pytypes.SimpleNamespace(
          gradient_checkpointing=False, gradient_checkpointing_kwargs=None),
      accelerator=pytypes.SimpleNamespace(
          device='cpu', gather=lambda x: x, gather_for_metrics=lambda x: x),
      ref_model=forward(ref), loss_types=[loss_type], loss_weights=[1.0],
      _metrics={'train': collections.defaultdict(list)}, **settings)
  # Its masks have the prompt's last token in front.
  whole = torch.cat([torch.zeros(2 * n, 1), mask], 1)
  calls = lambda **kw: model(**kw)
  calls.training = True
  total = trl.DPOTrainer._compute_loss(trainer, calls, {
      'input_ids': whole.long(), 'completion_mask': whole,
      'attention_mask': whole}, False)
  total.backward()
  grad = logp.grad.numpy().reshape(2, n, -1).swapaxes(0, 1)
  return total.item(), grad, {
      key: value[0] for key, value in trainer._metrics['train'].items()
      if isinstance(value, list)}


@pytest.fixture
def trl(monkeypatch):
  from trl.trainer import dpo_trainer  # takes seconds to import
  for name, value in dict(
      disable_gradient_checkpointing=lambda *_: contextlib.nullcontext(),
      is_peft_model=lambda model: False).items():
    monkeypatch.setattr(dpo_trainer, name, value)
  return dpo_trainer


@pytest.mark.parametrize('fn, kwargs, loss_type, settings', [
    (preference.dpo, dict(beta=.1), 'sigmoid', {}),
    (preference.dpo, dict(beta=1.), 'sigmoid', {}),
    (preference.dpo, dict(beta=.3, length='mean'), 'sigmoid_norm', {}),
    (preference.ipo, dict(beta=.1), 'ipo', {})],
    ids=['dpo .1', 'dpo 1', 'dpo by length', 'ipo'])
@pytest.mark.parametrize('seed', [0, 1])
def test_as_trl(trl, fn, kwargs, loss_type, settings, seed):
  scores, block = random(seed)
  value, grad, told = theirs(
      trl, scores, block, loss_type=loss_type,
      beta=kwargs['beta'], label_smoothing=0.0, **settings)
  def ours(logp):
    total, count = fn(scores.replace(logp=logp), block, {}, **kwargs)
    return total / count
  mine, slope = jax.value_and_grad(ours)(scores.logp)
  assert float(mine) == pytest.approx(value, rel=1e-5)
  np.testing.assert_allclose(slope[:-1], grad, atol=1e-5)
  assert not slope[-1].any()
  said = {name: float(total / count) for name, (total, count) in
          preference.metrics(scores, block, fn.rewards(
              scores, block, **kwargs)).items()}
  if kwargs.get('length', 'sum') == 'sum' and fn is preference.dpo:
    for name in said:
      assert said[name] == pytest.approx(told[name], abs=1e-5), name
  else:
    assert said['logps/chosen'] == pytest.approx(
        told['logps/chosen'], abs=1e-5)


def test_simpo_and_smoothing_as_trl():
  cpo = pytest.importorskip('trl.experimental.cpo.cpo_trainer')
  scores, block = random()
  masked = np.where(block.mask, scores.logp, 0)[:-1].sum(-1)
  means = torch.tensor(masked / np.asarray(block.mask)[:-1].sum(-1))
  trainer = pytypes.SimpleNamespace(
      accelerator=pytypes.SimpleNamespace(device='cpu'), beta=2.0,
      loss_type='simpo', simpo_gamma=1.0, label_smoothing=0.0,
      cpo_alpha=0.0, alpha=0.0)
  made = cpo.CPOTrainer.cpo_loss(trainer, means[:, 0], means[:, 1])[0]
  assert loss(preference.simpo, scores, block) == pytest.approx(
      made.mean().item(), rel=1e-5)
  rel = np.where(block.mask, scores.logp - block.ref, 0)[:-1].sum(-1)
  trainer.loss_type, trainer.label_smoothing, trainer.beta = 'sigmoid', .2, .1
  made = cpo.CPOTrainer.cpo_loss(
      trainer, torch.tensor(rel[:, 0]), torch.tensor(rel[:, 1]))[0]
  assert loss(preference.dpo, scores, block, label_smoothing=.2
              ) == pytest.approx(made.mean().item(), rel=1e-5)


@pytest.mark.parametrize('fn', [
    preference.dpo, preference.ipo, preference.simpo])
def test_masked_tokens_and_half_pairs_say_nothing(fn):
  """Whatever they hold, nan included (m9): value, count and gradient."""
  scores, block = random(3)
  def ours(logp):
    return fn(scores.replace(logp=logp), block, {})[0]
  value, slope = jax.value_and_grad(ours)(scores.logp)
  bad = jnp.where(block.mask, scores.logp, jnp.nan)
  assert jax.value_and_grad(ours)(bad)[0] == value
  same = jax.grad(ours)(bad)
  np.testing.assert_array_equal(same, slope)
  assert not np.asarray(slope)[~np.asarray(block.mask)].any()
  empty = block.replace(mask=jnp.zeros_like(block.mask))
  total, count = fn(scores, empty, {})
  assert (float(total), float(count)) == (0, 0)


def test_m8_far_apart_is_finite():
  for far in (1e4, -1e4):
    scores, block = pair([far, 0], [0, 0])
    slope = jax.grad(lambda x: preference.dpo(
        scores.replace(logp=x), block, {}, beta=1.)[0])(scores.logp)
    assert np.isfinite(slope).all()
    assert np.isfinite(loss(preference.dpo, scores, block, beta=1.))


def test_what_is_no_pair_is_refused():
  scores, block = blocks.block(0, (2, 4, 5))
  with pytest.raises(ValueError, match='groups of 4'):
    preference.dpo(scores, block, {})
  scores, block = random()
  with pytest.raises(ValueError, match='reference'):
    preference.dpo(scores, block.replace(ref=None), {})
  with pytest.raises(ValueError, match="'sum', 'mean'"):
    preference.dpo(scores, block, {}, length='average')
