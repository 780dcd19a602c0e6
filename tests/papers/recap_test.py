"""RECAP by hand: convergence, instability, and the weights they make."""

import json

import numpy as np
import pytest

from mmr1 import advantages
from mmr1 import boxes
from mmr1 import columns
from mmr1 import records
from mmr1 import resolve
from mmr1.papers import recap
from tests.papers import runs

A, B, C = [.2, .2, .6, .6], [.5] * 4, [.6, .6, .3, .3]


def weights(*histories, **kw):
  return list(recap.objective_weights(
      dict(zip('abc', histories)), **kw).values())


def test_signals_by_hand():
  """A rises: c = .4 / 1.2; std .2, mean .4. C falls: c = 1.2 / .6; std .15,
  mean .45."""
  assert recap.signals(A, False) == pytest.approx((1 / 3, .5))
  assert recap.signals(B, False) == pytest.approx((1, 0))
  assert recap.signals(C, False) == pytest.approx((2, 1 / 3))
  # A loss that falls gets better.
  assert recap.signals(C, True) == pytest.approx((.5, 1 / 3))
  assert recap.signals(A, True) == pytest.approx((3, .5))
  # Of three values the oldest is left out of both; of one there is nothing.
  assert recap.signals([9, .2, .6], False) == pytest.approx((1 / 3, .5))
  assert recap.signals([.7], False) == recap.signals([.7], True) == (1, 0)


@pytest.mark.parametrize('histories, kw, want', [
    ((A, B), {}, [.991695, 1.008305]),
    ((A, B), dict(temperature=1.0), [.961703, 1.038297]),
    ((A, B, C), dict(temperature=1.0), [.793483, .725357, 1.481160]),
    # The two softmaxes by themselves.
    ((A, B), dict(alpha=1.0), [2 * .466716, 2 * .533284]),
    ((A, B), dict(alpha=0.0), [2 * .524979, 2 * .475021]),
    ((A, B), dict(alpha=1.0, temperature=1.0), [2 * .339244, 2 * .660756]),
    ((A, B), dict(alpha=0.0, temperature=1.0), [2 * .622459, 2 * .377541]),
    # s = .8333 and 1: 2 / (1 + e^(.16667 / T)).
    ((A, B), dict(form='paper', temperature=1.0),
     [2 / (1 + np.exp(1 / 6)), 2 / (1 + np.exp(-1 / 6))]),
    ((A, B), dict(form='paper'),
     [2 / (1 + np.exp(1 / 30)), 2 / (1 + np.exp(-1 / 30))])])
def test_weights_by_hand(histories, kw, want):
  got = weights(*histories, **kw)
  np.testing.assert_allclose(got, want, atol=2e-6)
  assert sum(got) == pytest.approx(len(histories))


def test_a_loss_is_read_the_other_way():
  """A falling loss that looks like C is one that gets better."""
  up = weights(B, C, alpha=1.0, temperature=1.0)
  down = weights(B, C, alpha=1.0, temperature=1.0, falling=('b',))
  assert up[1] > 1 > down[1]
  assert weights(B, C, falling=('a',)) == pytest.approx(weights(B, C))


def test_the_scale_of_a_reward_does_not_matter():
  rng = np.random.default_rng(0)
  for form in recap.FORMS:
    for _ in range(30):
      past = rng.random((3, rng.integers(1, 21))) + .01
      scale = np.exp(rng.normal(0, 3, (3, 1)))
      np.testing.assert_allclose(
          weights(*past * scale, form=form), weights(*past, form=form),
          rtol=1e-9)


def test_weights_are_positive_and_sum_to_k_whatever_comes():
  odd = [[0.0] * 4, [0, 0, 1, 1], [1, 1, 0, 0], [-1, -1, 1, 1], [1, -1],
         [-2, -2, -1, -1], [1e300] * 4, [1e-300] * 4, [-.1, .1], [5.0]]
  for form in recap.FORMS:
    for falling in ((), ('3', '4')):
      got = np.array(list(recap.objective_weights(
          {str(i): past for i, past in enumerate(odd)}, form=form,
          falling=falling, temperature=1.0).values()))
      assert np.isfinite(got).all() and (got >= 0).all()
      assert got.sum() == pytest.approx(len(odd))


def test_guards_where_the_code_would_divide_by_nothing_or_flip():
  assert recap.signals([0.0] * 4, False) == (0, 0)
  c, i = recap.signals([1, 1, 0, 0], False)  # it has fallen to nothing
  assert c > 1e14 and i == pytest.approx(1)
  # Of a negative mean the spread is still above 0.
  assert recap.signals([-1, -3], False)[1] == pytest.approx(.5)
  # From below 0 to above it is a rise, and back a fall.
  assert recap.signals([-1, 1], False)[0] == 0
  assert recap.signals([1, -1], False)[0] > 1e14


# The combine.


NAMES = ('r', 's', 'logged')
ONES = dict(r=1.0, s=1.0, logged=0.0)


def step(state, r, s, *, names=NAMES, given=ONES, **kw):
  """r, s [N, G], or None: of another source."""
  r, s = (np.full((1, 4), np.nan) if x is None else np.asarray(x, float)
          for x in (r, s))
  return recap.reweighted(
      np.stack([r, s, np.full_like(r, 7)], -1), names, {}, state,
      weights=given, **kw)


def test_a_group_by_hand(monkeypatch):
  """R = .8 r + 1.2 s; mean 1.3, deviation .503322."""
  monkeypatch.setattr(
      recap, 'objective_weights', lambda *a, **kw: dict(r=.8, s=1.2))
  total, _, _ = step({}, [[1, 0, 1, 0]], [[1, 1, 0, 1]])
  np.testing.assert_allclose(total[0, :, 0], [2, 1.2, .8, 1.2])
  np.testing.assert_allclose(
      advantages.grpo(total, eps=1e-4)[0, :, 0],
      [1.390483, -.198640, -.993202, -.198640], atol=1e-6)


def test_the_first_step_has_weights_of_1():
  total, says, state = step({}, [[1, 0, 1, 0]], [[.1, .2, .3, .4]])
  np.testing.assert_allclose(total[0, :, 0], [1.1, .2, 1.3, .4])
  assert says == {'reward/r/weight': 1, 'reward/s/weight': 1}
  assert state == {'history': {'r': [.5], 's': [.25]}}


def test_the_value_of_a_step_counts_in_its_own_weights():
  state = {'history': {'r': A[:3], 's': B[:3]}}
  total, says, after = step(
      state, [[.6] * 4], [[.5] * 4], temperature=1.0)
  assert says['reward/r/weight'] == pytest.approx(.961703, abs=1e-6)
  np.testing.assert_allclose(
      total, .961703 * .6 + 1.038297 * .5, atol=1e-6)
  assert after['history']['r'] == pytest.approx(A)
  assert state == {'history': {'r': A[:3], 's': B[:3]}}  # not changed


def test_only_the_source_of_a_step_gets_a_value():
  _, says, state = step({}, [[1, 0, 1, 0]], None)
  assert says == {'reward/r/weight': 1}  # K is 1
  assert state == {'history': {'r': [.5]}}
  total, says, state = step(state, None, [[.5] * 4])
  assert state == {'history': {'r': [.5], 's': [.5]}}
  np.testing.assert_allclose(total, .5)
  # The weight of the other one goes on from its last values.
  for value in (.2, .2, .6, .6):
    _, says, state = step(state, [[value] * 4], None, temperature=1.0)
  total, says, state = step(state, None, [[.5] * 4], temperature=1.0)
  assert len(state['history']['r']) == 5 and len(state['history']['s']) == 2
  want = recap.objective_weights(state['history'], temperature=1.0)
  assert says == {'reward/s/weight': pytest.approx(want['s'])}
  assert want['s'] != pytest.approx(1)
  np.testing.assert_allclose(total, .5 * want['s'])


def test_sources_may_share_a_batch_and_rows_may_have_no_value():
  nan = np.nan
  r, s = [[1, 0, nan, nan], [nan] * 4], [[nan] * 4, [.4, .2, nan, .3]]
  total, _, state = step({}, r, s)
  np.testing.assert_array_equal(
      total[..., 0], [[1, 0, nan, nan], [.4, .2, nan, .3]])
  assert state['history'] == {'r': [.5], 's': [pytest.approx(.3)]}


def test_a_window_is_all_that_is_kept():
  state = {}
  for k in range(9):
    _, _, state = step(state, [[k] * 4], None, window=3)
  assert state['history']['r'] == [3, 4, 5, 6, 7, 8]
  _, _, state = step(state, None, [[1] * 4], window=3)
  assert state['history']['r'] == [3, 4, 5, 6, 7, 8]


def test_it_goes_on_alike_after_a_checkpoint():
  values = np.random.default_rng(1).random((30, 2, 1, 4))
  def go(state, steps):
    seen = []
    for r, s in steps:
      total, says, state = step(
          state, r, s if r[0, 0] < .5 else None, window=4)
      seen.append((total.tolist(), says))
    return seen, state
  whole, last = go({}, values)
  first, state = go({}, values[:17])
  second, again = go(json.loads(json.dumps(state)), values[17:])
  assert first + second == whole and again == last
  assert json.loads(json.dumps(last)) == last


def test_fixed_weights_multiply_and_do_not_move_the_ratio():
  state = {'history': {'r': A, 's': B}}
  one = step(state, [[.6] * 4], [[.5] * 4])
  two = step(state, [[.6] * 4], [[.5] * 4], given=dict(r=2.0, s=1.0, logged=0))
  assert one[1] == two[1] and one[2] == two[2]
  np.testing.assert_allclose(two[0] - one[0], .6 * one[1]['reward/r/weight'])
  # What fixed weights would never do: the ratio moves with the rewards.
  three = step(state, [[0.1] * 4], [[.5] * 4])
  assert three[1]['reward/r/weight'] > one[1]['reward/r/weight']


def test_what_is_wrong_is_said():
  nothing = [[1.0] * 4]
  with pytest.raises(ValueError, match=r"falling names \['t'\].*'r', 's'"):
    step({}, nothing, nothing, falling=('t',))
  with pytest.raises(ValueError, match="form='log'.*'code', 'paper'"):
    step({}, nothing, nothing, form='log')
  with pytest.raises(ValueError, match='temperature=0.0'):
    step({}, nothing, nothing, temperature=0.0)
  with pytest.raises(ValueError, match='alpha=-1.0'):
    step({}, nothing, nothing, alpha=-1.0)
  with pytest.raises(ValueError, match='window=0'):
    step({}, nothing, nothing, window=0)
  with pytest.raises(ValueError, match='finite'):
    recap.pushed({}, {'r': np.inf}, 3)


def test_no_objective_no_weights():
  total, says, state = step({}, None, None)
  assert np.isnan(total).all() and not says and state == {'history': {}}


def test_a_loss_counts_by_its_weight_and_falls():
  """Rows of demonstrations are worth w_k weight_k; the loss is what moves it."""
  def of(state, loss, fixed=1.0, **kw):
    x = np.array([[[loss, np.nan]], [[loss, np.nan]]])
    return recap.reweighted(
        x, ('nll', 'r'), {}, state, weights=dict(nll=0.0, r=1.0),
        losses=dict(nll=fixed), temperature=1.0, **kw)
  state = {'history': {'nll': A[:3], 'r': B}}
  total, says, after = of(state, .6)
  # As of A, but read the other way: c = 3, i = .5 against 1 and 0.
  w = sum(.5 * 2 / (1 + np.exp(-x)) for x in (2, .5))
  np.testing.assert_allclose(total, w)
  assert says == {'reward/nll/weight': pytest.approx(w)} and w > 1
  assert after['history'] == {'nll': [.2, .2, .6, .6], 'r': B}
  np.testing.assert_allclose(of(state, .6, .25)[0], .25 * w)
  assert of({}, 3.0)[0][0, 0, 0] == 1
  with pytest.raises(ValueError, match=r"losses names \['sft'\]"):
    recap.reweighted(np.zeros((1, 1, 1)), ('nll',), {}, {},
                     weights=dict(nll=0.0), losses=dict(sft=1.0))


def test_the_baseline_has_weights_of_1():
  assert weights(A, B, C, form='none') == [1, 1, 1]
  total, says, state = step({'history': {'r': A, 's': B}}, [[1, 0, 1, 0]],
                            None, form='none', given=dict(r=2.0, s=1, logged=0))
  np.testing.assert_array_equal(total[..., 0], [[2, 0, 2, 0]])
  assert says == {'reward/r/weight': 1} and len(state['history']['r']) == 5


def test_demonstrations_are_in_no_group():
  rewards = np.array([[2, 1.2, .8, 1.2], [.9, .9, 1, 0]])[..., None]
  expert = np.array([[False] * 4, [True, True, False, False]])
  got = recap.mixed(rewards, columns.Tokens(expert=expert))[..., 0]
  np.testing.assert_allclose(
      got[0], [1.390483, -.198640, -.993202, -.198640], atol=1e-6)
  # 1 and 0: mean .5, deviation .707107.
  np.testing.assert_allclose(got[1], [.9, .9, .707007, -.707007], atol=1e-6)
  np.testing.assert_allclose(recap.mixed(
      rewards, columns.Tokens(expert=expert), std='none')[1, :, 0],
                             [.9, .9, .5, -.5])
  with pytest.raises(ValueError, match='needs tokens.expert'):
    recap.mixed(rewards, columns.Tokens())


@pytest.mark.parametrize('arg, steps, sources', [
    ('qwen2_5_vl_7b', 500, ('reasoning', 'refcoco', 'ocr')),
    ('qwen2_5_vl_7b,reasoning', 500, ('reasoning',)),
    ('qwen2_5_vl_3b,setting1', 328, ('sat', 'lisa', 'geoqa', 'scienceqa'))])
def test_the_papers_numbers(arg, steps, sources):
  c = resolve.finalise(runs.config('recap', arg))
  stage = c.recap
  assert c.data.homogeneous and c.data.path is None
  assert c.data.mixture == sources and stage.steps == steps
  assert (stage.samples_per_prompt, stage.prompts_per_step,
          stage.max_new_tokens) == (4, 16, 2048)
  assert c.data.max_pixels == 401_408 == 14**2 * c.data.patches
  assert stage.optimizer.warmup_steps == steps // 10
  kwargs = stage.combine.kwargs.as_dict()
  assert ('losses' in kwargs) == ('ocr' in sources)
  assert {key: kwargs[key] for key in kwargs if key != 'losses'} == dict(
      window=10, temperature=5.0, alpha=.5, form='code')
  assert stage.kl.coefficient == 0 and stage.old == 'self'
  assert c.data.min_pixels == 3136


# Sources of setting 1: all think, and a right answer is worth 2, a form 1.
SETTING1 = dict(
    sat=dict(accuracy=2, think=1), lisa=dict(lisa=2, lisa_think=1),
    geoqa=dict(geoqa=2, geoqa_think=1),
    scienceqa=dict(scienceqa=2, scienceqa_think=1))
SETTING2 = dict(
    reasoning=dict(accuracy=2, think=1), refcoco=dict(iou=2, box=1), ocr={})


@pytest.mark.parametrize('arg, sources', [
    ('qwen2_5_vl_3b,setting1', SETTING1), ('qwen2_5_vl_7b', SETTING2),
    ('qwen2_5_vl_7b,reasoning', dict(reasoning=SETTING2['reasoning']))])
def test_an_objective_is_a_reward_of_one_source(arg, sources):
  c = resolve.finalise(runs.config('recap', arg))
  for source, want in sources.items():
    own = c.tasks[source].rewards
    assert {name: c.rewards[name].weight for name in own} == want
    thinks = source not in ('refcoco', 'ocr')
    assert ('<think>' in c.tasks[source].instruction) == thinks
  of = [name for source in sources for name in c.tasks[source].rewards]
  assert len({*of}) == len(of) and {*of} == {*c.recap.rewards}


def paid(c, source, said, answer, **meta):
  """The sum of a source's rewards, with their fixed weights."""
  sample = records.Sample(
      text=said, tokens=(), kinds=(), length=0, truncated=False,
      example=records.Example(uid=0, question='?', answer=answer, meta=meta),
      uid=0, group=0, slot=0)
  return sum(c.rewards[name].weight * resolve.function(
      c.rewards[name].fn, 'mmr1.rewards')(
          sample, {}, **c.rewards[name].kwargs.as_dict())
             for name in c.tasks[source].rewards)


def test_setting_1_by_hand():
  c = resolve.finalise(runs.config('recap', 'qwen2_5_vl_3b,setting1'))
  for source in 'sat', 'geoqa', 'scienceqa':
    for said, want in (
        ('<think>so</think><answer>B</answer>', 3), ('<answer>B</answer>', 2),
        ('<think>so</think><answer>A</answer>', 1), ('B', 0)):
      assert paid(c, source, said, 'B') == want
  # Of boxes: [0, 0, 10, 6] in [0, 0, 10, 10] is .6, [0, 0, 10, 4] is .4.
  for bottom, want in ((10, 3), (6, 3), (4, 1)):
    assert paid(c, 'lisa', f'<think>so</think><answer>[0, 0, 10, {bottom}]'
                '</answer>', '', box=[0, 0, 10, 10], answer_type='box') == want


def test_the_overlap_of_boxes_by_hand():
  """inter 25, union 175."""
  a, b = (boxes.Box(*x, 'original') for x in (
      (0, 0, 10, 10), (5, 5, 15, 15)))
  assert boxes.iou(a, b, image=boxes.Size(20, 20)) == pytest.approx(1 / 7)
