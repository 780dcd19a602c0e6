"""DINO-R1: the term by hand, its checks, and what the config says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dino_r1 as config
from mmr1 import resolve
from mmr1.papers import dino_r1
from tests.papers import runs

# Six queries, two boxes; a = [-1, -2, -4, -3, -6, -8].
COSTS = jnp.float32([[[1, 4], [2.5, 2], [4, 5], [3, 6], [6, 7], [8, 9]]])
SCORES = jnp.float32([[2, 1, .5, 0, -1, -2]])
BEFORE = jnp.float32([[2, .5, .5, .4, -1, -1.5]])
REAL = jnp.ones((1, 2), bool)


def of_quality(a, **kwargs):
  """The term as a function of a f32[Q]: one box at the cost -a."""
  return dino_r1.grqo(-a[None, :, None], SCORES, SCORES, REAL[:, :1],
                      **kwargs)[0]


def test_the_worked_example():
  # Mean -4, std (ddof 1) 2.607681: A = [1.1504, .7670, 0, .3835, 0, 0] with the
  # last two muted; -.01 x their mean = -.003835. KL = [0, .012265, 0, .017243,
  # 0, .104863], .04 x its mean = .000896.
  loss, metrics = dino_r1.grqo(COSTS, SCORES, BEFORE, REAL, mute=2)
  assert float(metrics['quality']) == pytest.approx(-4)
  assert float(metrics['advantage']) == pytest.approx(.3835, abs=1e-4)
  assert .04 * float(metrics['kl']) == pytest.approx(.000896, abs=1e-6)
  assert float(loss) == pytest.approx(-.002939, abs=1e-6)


def test_the_kl_of_every_query():
  each = [float(dino_r1.grqo(
      COSTS[:, :2], SCORES[:, i:i + 1].repeat(2, 1),
      BEFORE[:, i:i + 1].repeat(2, 1), REAL, mute=1)[1]['kl'])
          for i in range(6)]
  np.testing.assert_allclose(
      each, [0, .012265, 0, .017243, 0, .104863], atol=2e-6)


def test_without_muting_advantages_have_no_gradient():
  """Check a: they sum to 0 whatever a is."""
  a = jnp.float32([-1, -2, -4, -3, -6, -8])
  gradient = lambda mute: np.asarray(
      jax.grad(lambda a: of_quality(a, mute=mute))(a))
  np.testing.assert_allclose(gradient(0), 0, atol=1e-8)
  np.testing.assert_allclose(
      gradient(2), [1.25e-4, 1.3e-5, -2.13e-4, -1.00e-4, 2.01e-4, -2.5e-5],
      atol=1e-6)
  assert abs(gradient(2).sum()) < 1e-8


def test_m7_queries_alike_have_no_advantage_and_a_finite_slope():
  """.9 seven times has another mean in float32."""
  for quality in (.9, -.3, 0.0):
    a = jnp.full(7, quality, jnp.float32)
    one = lambda a: dino_r1.grqo(
        -a[None, :, None], jnp.zeros((1, 7)), jnp.zeros((1, 7)),
        jnp.ones((1, 1), bool), mute=2)
    assert float(one(a)[1]['advantage']) == 0
    assert np.isfinite(jax.grad(lambda a: one(a)[0])(a)).all()


def test_raising_what_counts_over_what_is_muted_lowers_the_loss():
  a = jnp.float32([-1, -2, -4, -3, -6, -8])
  better = a.at[:4].add(1.0)
  assert of_quality(better, mute=2) < of_quality(a, mute=2)


def test_the_reference_itself_has_no_kl_and_no_gradient():
  """Check b; and the reference is never differentiated."""
  term = lambda s, r: dino_r1.grqo(
      COSTS, s, r, REAL, mute=2, alpha=0.0)[0]
  value, (by_score, by_reference) = jax.value_and_grad(term, (0, 1))(
      SCORES, SCORES)
  assert float(value) == pytest.approx(0, abs=1e-8)
  np.testing.assert_allclose(by_score, 0, atol=1e-8)
  assert not np.asarray(by_reference).any()
  by_score = np.asarray(jax.grad(term)(SCORES, BEFORE))
  # Towards the reference: up where it is higher, down where it is lower.
  apart = np.asarray(BEFORE - SCORES)
  assert (np.sign(-by_score) == np.sign(apart))[apart != 0].all()
  np.testing.assert_allclose(by_score[apart == 0], 0, atol=1e-8)


def test_pictures_without_boxes_are_left_out():
  costs = jnp.concatenate([COSTS, 0 * COSTS + 1e4])
  real = jnp.asarray([[True, True], [False, False]])
  two = lambda x: jnp.concatenate([x, x + 1])
  loss = lambda s: dino_r1.grqo(costs, s, two(BEFORE), real, mute=2)[0]
  value, gradient = jax.value_and_grad(loss)(two(SCORES))
  assert float(value) == pytest.approx(-.002939, abs=1e-6)
  assert np.isfinite(gradient).all() and not np.asarray(gradient)[1].any()
  by_cost = jax.grad(lambda c: dino_r1.grqo(
      c, two(SCORES), two(BEFORE), real, mute=2)[0])(costs)
  assert np.isfinite(by_cost).all()


@pytest.mark.parametrize('mute', [-1, 6])
def test_m22_mute_out_of_range(mute):
  with pytest.raises(ValueError, match='below the 6 queries'):
    dino_r1.grqo(COSTS, SCORES, BEFORE, REAL, mute=mute)


def test_the_papers_numbers():
  c = resolve.finalise(config.get_config('paper'))
  one = c.dino_r1
  assert c.detector.queries == 900 and one.queries.fn == 'dino_r1.grqo'
  assert one.queries.kwargs.as_dict() == dict(mute=300, alpha=.01, beta=.04)
  assert one.cost.as_dict() == dict(label=2.0, l1=5.0, giou=2.0)
  assert one.loss.as_dict() == dict(label=1.0, l1=5.0, giou=2.0)
  assert one.alignment == 100 and one.rows_per_step == 64
  assert (one.optimizer.lr, one.optimizer.weight_decay,
          one.optimizer.clip_norm) == (4e-4, 1e-4, .1)
  # Twelve epochs, the term in all of them, a new reference at each one's start.
  assert one.queries.after == 0
  assert one.reference_every == one.steps // 12 == 20_000 // 64


def test_the_baseline_is_the_same_without_the_term():
  ours, plain = (resolve.finalise(config.get_config(arg))
                 for arg in (None, 'sft'))
  differs = [line.partition(':')[0]
             for line in resolve.difference(ours, plain)]
  assert differs and all(
      line.startswith('dino_r1.queries.') for line in differs)
  # A third of the queries is muted.
  assert 3 * ours.dino_r1.queries.kwargs.mute == ours.detector.queries

@pytest.mark.parametrize('given', runs.ablations('dino_r1'))
def test_m22_every_ablation_plans(given):
  final, _ = runs.commanded('dino_r1', given)
  assert final.dino_r1.queries.fn
