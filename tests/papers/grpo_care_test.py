"""GRPO-CARE by hand: the bonus, the average, both styles of chains; its config.

Steps are in grpo_care_steps_test.py.
"""

import functools
import re
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import advantages
from mmr1 import average
from mmr1 import records
from mmr1 import resolve
from mmr1 import text
from mmr1 import training
from mmr1 import types as records_of_device
from mmr1.data import traces
from mmr1.data.tasks import digits
from mmr1.data.tasks import motion
from mmr1.papers import grpo_care
from mmr1.rewards import answer
from tests.papers import runs

NAMES = ('result', 'format', 'likelihood')
WEIGHTS = dict(result=1.0, format=1.0, likelihood=0.0)
ACC = [1, 1, 1, 0, 1, 0, 0, 1]
LIKELY = [.9, .5, .97, .99, .2, .6, .3, .7]


def rewards(acc, p, fmt=1.0, **kw):
  """(rewards [G], metrics) of one group."""
  columns = np.stack(np.broadcast_arrays(acc, fmt, p), -1).astype(float)[None]
  total, says, state = grpo_care.consistency(
      columns, NAMES, {}, {'kept': 1}, weights=WEIGHTS, **kw)
  assert state == {'kept': 1} and total.shape == (1, len(acc), 1)
  return total[0, :, 0], says


def test_the_bonus_by_hand():
  """Right are 0, 1, 2, 4, 7; capped at .95 their mean is
  (.9 + .5 + .95 + .2 + .7) / 5 = .65, which 0, 2 and 7 reach. The rewards have
  mean 1.8125 and variance 3.46875 / 7: .6875 / (.703943 + .0001) = .976503."""
  got, says = rewards(ACC, LIKELY)
  assert got.tolist() == [2.5, 2, 2.5, 1, 2, 1, 1, 2.5]
  assert says['reward/bonus/mean'] == pytest.approx(1.5 / 8)
  np.testing.assert_allclose(
      advantages.grpo(got[None, :, None], ddof=1, eps=1e-4)[0, :, 0],
      [.976503, .266319, .976503, -1.154049, .266319, -1.154049, -1.154049,
       .976503], atol=1e-6)
  # Without the bonus: 5/8 right, deviation sqrt(1.875 / 7) = .517549.
  plain, says = rewards(ACC, LIKELY, bonus=0.0)
  assert plain.tolist() == [2, 2, 2, 1, 2, 1, 1, 2]
  assert says['reward/bonus/mean'] == 0
  np.testing.assert_allclose(
      advantages.grpo(plain[None, :, None], ddof=1, eps=1e-4)[0, [0, 3], 0],
      [.724429, -1.207381], atol=1e-6)


def test_soft_accuracies_by_hand():
  """Their mean is .4375: right are 0 and 1, mu = (.5 + .8) / 2; .2 is above
  .1 and below the mean. The bonus is .5 x .6."""
  got, _ = rewards([.9, .6, .2, .05], [.5, .8, .9, .9])
  np.testing.assert_allclose(got, [1.9, 1.9, 1.2, 1.05])
  np.testing.assert_allclose(
      advantages.grpo(got[None, :, None], ddof=1, eps=1e-4)[0, :, 0],
      [.857837, .857837, -.691804, -1.023870], atol=1e-6)


@pytest.mark.parametrize('kw, paid', [
    ({}, [0, 2, 7]),
    (dict(cap=.6), [0, 1, 2, 7]),  # (.6 + .5 + .6 + .2 + .6) / 5 = .5
    (dict(cap=.2), [0, 1, 2, 4, 7]),  # all alike
    (dict(margin=.15), [0, 1, 2, 7]),
    (dict(margin=.45), [0, 1, 2, 4, 7]),
    (dict(least=1.0), [])])
def test_numbers_of_the_bonus(kw, paid):
  got, _ = rewards(ACC, LIKELY, **kw)
  assert np.flatnonzero(got - np.asarray(ACC) - 1).tolist() == paid
  np.testing.assert_allclose((got - np.asarray(ACC) - 1)[paid], .5)


def test_a_wrong_answer_never_earns_a_bonus():
  rng = np.random.default_rng(0)
  for _ in range(50):
    acc, p = rng.random(8) < .5, rng.random(8)
    p[~acc] = 1.0
    got, _ = rewards(acc.astype(float), p)
    assert (got[~acc] == 1).all() and set(got[acc]) <= {2, 2.5}
    assert not acc.any() or (got == 2.5).any()  # the likeliest right one
  # All wrong: nothing varies, and A is exactly 0.
  got, says = rewards([0.0] * 8, LIKELY)
  assert says['reward/bonus/mean'] == 0
  assert not advantages.grpo(got[None, :, None], ddof=1, eps=1e-4).any()


@pytest.mark.parametrize('size', [2, 3, 6, 7, 8])
@pytest.mark.parametrize('acc', [.2, .35, .7, .9, 1.0])
def test_equals_reach_their_own_mean(size, acc):
  """As of .2 + .2 + .2 = .6000000000000001, whose third is above .2."""
  got, _ = rewards([acc] * size, [.7] * size)
  np.testing.assert_allclose(got, 1 + 1.5 * acc)


def test_what_has_no_value_is_in_no_mean_and_earns_no_bonus():
  nan = np.nan
  # Known are .8 and .4: mean .6; were the missing one 0, .4 would be right.
  got, _ = rewards([.8, nan, .4], [.5, .9, .9])
  np.testing.assert_allclose(got, [2.2, 1, 1.4])
  # A right answer of unknown likelihood lowers no mean either.
  got, _ = rewards([1, 1, 1], [.9, nan, .5])
  np.testing.assert_allclose(got, [2.5, 2, 2])
  got, _ = rewards([nan, nan], [nan, nan], fmt=[1, nan])
  np.testing.assert_array_equal(got, [1, nan])


def test_groups_are_judged_by_themselves():
  columns = np.stack([np.stack([x, np.ones(2), p], -1) for x, p in (
      ([1., 1.], [.9, .8]), ([1., 1.], [.2, .1]))])
  total, says, _ = grpo_care.consistency(
      columns, NAMES, {}, {}, weights=WEIGHTS)
  assert total[..., 0].tolist() == [[2.5, 2], [2.5, 2]]
  assert says['reward/bonus/mean'] == .25


def test_a_column_that_is_not_there_is_named():
  for kw in (dict(accuracy='exact'), dict(likelihood='p')):
    with pytest.raises(ValueError, match=r"no column '(exact|p)'.*\['result'"):
      rewards([1.0], [.5], **kw)


# The average.


def after(every, steps, *, decay=.995, start=2.0, learnt=3.0, skip=(),
          dtype=jnp.float32):
  """What the average of one number is after each of these updates."""
  section = types.SimpleNamespace(decay=decay, every=every)
  one = average.Average(section, 'device')
  layout = types.SimpleNamespace(
      own=lambda tree: {k: jnp.array(x) for k, x in tree.items()})
  state = records_of_device.TrainState(
      step=jnp.int32(0), opt={},
      params={'policy': {
          'w': dtype(start), 'frozen': jnp.float32(7)}})
  begun = one.begin(training.Start(
      state, None, {'w': True, 'frozen': False}, ('.*',)), layout)
  state, seen = begun.state, []
  for done in range(1, steps + 1):
    def update(state, batch, knobs, ref, done=done):
      assert state.slow == {}  # an update does not see it
      if done in skip:
        return state, {}
      return state.replace(params={'policy': {
          **state.params['policy'], 'w': dtype(learnt)}}), {}
    state, _ = one.after(update, state, (), {}, None, done)
    assert set(state.slow) == {'ema'}
    seen.append(float(state.slow['ema']['w']))
    assert state.slow['ema'].get('frozen') is None
  read = one.reader(layout, whole=True)(state)
  assert read['w'].dtype == dtype and read['frozen'] == 7
  np.testing.assert_allclose(read['w'].astype(float), seen[-1], rtol=2**-8)
  return seen


def test_the_average_by_hand():
  """.995 x 2 + .005 x 3 = 2.005 at the 10th update, and at the 20th
  .995 x 2.005 + .015 = 2.009975; in between nothing moves."""
  seen = after(10, 25)
  np.testing.assert_allclose(
      seen, [2.0] * 9 + [2.005] * 10 + [2.009975] * 6, rtol=1e-6)
  # Every update: 3 - .995^k.
  np.testing.assert_allclose(
      after(1, 5), 3 - .995**np.arange(1, 6), rtol=1e-6)
  # A decay of 0 is the policy itself.
  assert after(2, 4, decay=0.0) == [2, 3, 3, 3]


def test_the_average_of_a_policy_in_bfloat16_moves():
  """From 1 towards 1.25: 1.25 - .25 x .995^500. A step of it, .00125, is less
  than bfloat16 has between 1 and the next number."""
  seen = after(1, 500, start=1.0, learnt=1.25, dtype=jnp.bfloat16)
  np.testing.assert_allclose(
      seen, 1.25 - .25 * .995**np.arange(1, 501), rtol=1e-5)


def test_an_update_that_is_skipped_leaves_the_average_where_it_was():
  """It counts as one; the parameters it averages are those before."""
  assert after(2, 2, skip=(1, 2)) == [2, 2]
  np.testing.assert_allclose(
      after(2, 3, skip=(2,)), [2, 2.005, 2.005], rtol=1e-6)


def test_without_a_decay_there_is_no_average():
  section = resolve.finalise(runs.config('vogue')).vogue.ema
  one, state = average.Average(section, 'device'), object()
  begun = training.Start(state, None, None, ())
  assert one.begin(begun, None) is begun


# Two styles of chains.


def sample(said, choices=('row 1, column 1', 'row 1, column 2'), gold='B'):
  meta = {} if choices is None else dict(choices=choices)
  example = records.Example(uid=0, answer=gold, meta=meta)
  return records.Sample(
      text=said, tokens=(1,), kinds=(1,), length=1, truncated=False,
      example=example, uid=0, group=0, slot=0)


@pytest.mark.parametrize('think, says, wanted', [
    ('It is at row 1, column 2.', 'B', 1.0),
    ('It is at row 1, column 1.', 'B', 0.0),
    # What is named last counts, right or wrong.
    ('row 1, column 1, no, row 1, column 2.', 'B', 1.0),
    ('row 1, column 2, no, row 1, column 1.', 'B', 0.0),
    ('row 1, column 1.', 'A', 1.0),
    ('row 1, column 2.', '(B)', 1.0),
    ('row 1, column 2.', 'row 1, column 2', 1.0),
    ('row 1, column 2.', 'perhaps', 0.0),
    # It names none, so that no answer follows.
    ('I see it.', 'B', 0.0), ('row 1, column 2 it is', 'B', 0.0)])
def test_consistent_by_hand(think, says, wanted):
  said = f'<think>{think}</think> <answer>{says}</answer>'
  assert grpo_care.consistent(sample(said), {}) == wanted


@pytest.mark.parametrize('think, says, wanted', [
    ('I see digits 5,3. 5+3=8.', '8', 1.0),
    ('I see digits 5,3. 5+3=8.', ' Final Answer:8 ', 1.0),
    ('I see digits 5,3. 5+3=9.', '8', 0.0),
    ('I see digits 8,3. 8+3=11.', '8', 0.0),
    # The end of another number is not that number.
    ('9+9=18.', '8', 0.0), ('5-8=-3', '-3', 1.0)])
def test_consistent_of_numbers_by_hand(think, says, wanted):
  said = f'<think>{think}</think><answer>{says}</answer>'
  assert grpo_care.consistent(sample(said, choices=None), {}) == wanted


def test_consistent_of_any_text_is_the_rule_that_searches():
  """By a regex from every place of the text."""
  rng, ones = np.random.default_rng(0), 0
  for _ in range(3000):
    value, think = (''.join(rng.choice(list('ab. \n'), int(count)))
                    for count in (rng.integers(1, 4), rng.integers(0, 9)))
    want = re.search(rf'(?<!\w){re.escape(value)}\W*$', think) is not None
    assert grpo_care._ends(think, value) == want, (think, value)
    ones += want
  assert 200 < ones < 2800


def test_consistent_of_a_long_text_takes_no_square_of_it():
  n, start = 100_000, time.process_time()
  for think, says, wanted in (
      ('.' * n + 'a', '.', 0.0), ('.' * n, '.', 1.0), ('a.' * (n // 2), 'a', 1),
      ('a' * n, 'a', 0.0), ('8 ' * (n // 2) + 'b', '8', 0.0)):
    said = f'<think>{think}</think><answer>{says}</answer>'
    assert grpo_care.consistent(sample(said, choices=None), {}) == wanted
  assert time.process_time() - start < 1


def test_consistent_needs_both_blocks():
  said = '<think>row 1, column 2</think> <answer>B</answer>'
  for cut in (said[:-9], said.partition(' <answer>')[0], 'B'):
    assert grpo_care.consistent(sample(cut), {}) is None


@pytest.mark.parametrize('world', [
    motion.motion, functools.partial(digits.digits, max_digits=3)],
    ids=['letters', 'numbers'])
def test_two_styles_of_chains_end_with_the_right_answer(world):
  examples = [world(0, 'train', i) for i in range(400)]
  made, counts = grpo_care.two_styles(examples, None, 'base', careless=.3)
  again, _ = grpo_care.two_styles(examples[::-1], None, 'base', careless=.3)
  assert [one.completions for one in made] == [
      one.completions for one in again[::-1]]  # by the uid alone
  careful = 0
  for one in made:
    said = sample(one.completions[0], one.meta.get('choices'), one.answer)
    assert answer.correct(said, {}) == 1
    agrees = grpo_care.consistent(said, {})
    careful += agrees
    # What the chain comes to; only that differs between both styles.
    think = text.parse_think_answer(said.text).think
    value = one.meta.get('value', one.answer)
    right = traces.concise(one.meta['facts'], one.meta['steps'][
        :-1 if 'choices' in one.meta else None])
    assert (think == right) == agrees
    assert think.startswith(right.rpartition(value)[0])
    if not agrees and 'choices' in one.meta:  # another option of the four
      assert sum(think.endswith(f'{x}.') for x in one.meta['choices']) == 1
  assert counts == {'careless': 400 - careful}
  assert 90 < counts['careless'] < 150  # 120 +- 9
  assert grpo_care.two_styles(examples, None, 'base', careless=0.0)[1] == {
      'careless': 0}


# The config.


@pytest.mark.parametrize('option', [None, 'general'])
def test_the_papers_numbers_at_7b(option):
  arg = ','.join(filter(None, ('qwen2_5_vl_7b', option)))
  final, plans = runs.commanded('grpo_care', (), arg)
  stage, plan = final.grpo_care, plans['grpo_care']
  assert final.stages == ('grpo_care',)
  assert (stage.ema.decay, stage.ema.every) == (.995, 10)
  assert final.views.slow.params == 'ema' and final.views.slow.fn == 'same'
  assert tuple(plan.probes) == ('likelihood',)
  assert plan.probes['likelihood'].view == 'slow'
  given = stage.combine.kwargs.as_dict()
  assert given == dict(
      accuracy='result', likelihood='likelihood', bonus=.5, cap=.95, least=.1,
      margin=.01 if option else 0.0)
  assert plan.weights == dict(result=1, format=1, likelihood=0)
  # By the stage's own functions, .65 is reached by .65 and, with the general
  # margin, by .645.
  columns = np.stack([[1.] * 3, [1.] * 3, [.7, .645, .605]], -1)[None]
  combined, _, _ = plan.combine(
      columns, NAMES, plan.knobs, {}, weights=plan.weights)
  assert combined[0, :, 0].tolist() == [2.5, 2.5 if option else 2, 2]
  np.testing.assert_allclose(plan.advantage(
      rewards(ACC, LIKELY)[0][None, :, None], None)[0, 0, 0], .976503,
                             atol=1e-6)
  assert (stage.samples_per_prompt, stage.temperature, stage.top_p) == (
      8, 1.0, .95)
  assert (final.data.prompt_tokens, stage.max_new_tokens) == (16_384, 768)
  assert final.data.max_pixels == 401_408
  assert stage.optimizer.lr == 1e-6 and stage.optimizer.lr_decay == 'cosine'
  assert stage.optimizer.weight_decay == .01
  assert stage.optimizer.clip_norm == 5
  # One update per rollout, no clip, the mean of means; no KL.
  assert stage.minibatches_per_step == stage.epochs_per_step == 1
  assert (stage.policy.surrogate, stage.policy.reduce) == ('linear', 'seq_mean')
  assert stage.policy.kwargs.as_dict() == {}
  assert stage.kl.coefficient == 0 and not plan.objective.reference
  # One epoch of about 6,000 prompts; or 1,000 steps of 4.
  assert stage.prompts_per_step == 32
  assert stage.steps * 32 == (4000 if option else 6016)
  assert stage.optimizer.freeze == ()


def test_the_ablations_change_what_they_say():
  every = [runs.commanded('grpo_care', given)
           for given in runs.ablations('grpo_care')]
  finals = [final for final, _ in every]
  plans = [plan['grpo_care'] for _, plan in every]
  assert len(finals) == 6
  columns = np.stack([ACC, np.ones(8), LIKELY], -1).astype(float)[None]
  names = (*plans[0].scorer.names, 'likelihood')
  with_consistent = np.insert(columns, 2, 0.0, axis=-1)
  bonuses = [plan.combine(
      with_consistent, names, plan.knobs, {}, weights=plan.weights)[1][
          'reward/bonus/mean'] for plan in plans]
  assert bonuses == [0] + [1.5 / 8] * 5
  assert [final.views.slow.params for final in finals] == [
      'ema', 'policy', 'reference', 'ema', 'ema', 'ema']
  assert [final.grpo_care.ema.decay for final in finals] == (
      [.995] * 3 + [.9] + [.995] * 2)
  assert [plan.objective.reference for plan in plans] == (
      [False] * 4 + [True, False])
  assert plans[4].objective.knobs['coef/kl'] == .04
  # k3 of a log-ratio within 10, and no bound on the value.
  assert plans[4].objective.knobs['kl/difference_clamp'] == 10
  assert 'kl/value_clamp' not in plans[4].objective.knobs
  assert finals[4].grpo_care.kl.kwargs.value_clamp is None
  assert finals[4].grpo_care.reference == 'init'
  # The last goes with the one before it.
  final, plan = runs.commanded(
      'grpo_care', [x for given in runs.ablations('grpo_care')[-2:]
                    for x in given])
  assert final.grpo_care.reference == 'ema'
  assert plan['grpo_care'].objective.reference
