"""SophiaVL-R1's judge: what it learns from, and when its stages do so."""

import math

import numpy as np
import pytest

from mmr1 import handover
from mmr1 import resolve
from mmr1 import runner
from mmr1.data.tasks import digits
from mmr1.papers import sophiavl_r1_judge
from mmr1.rewards import number
from mmr1.rewards import steps
from tests.papers import runs

EXAMPLES = [digits.digits(0, 'train', i, max_digits=3) for i in range(400)]


@pytest.mark.parametrize('said, want', [
    ('<think>I see digits 3,4. 3+4=7.</think> <answer>7</answer>', 1),
    ('<think>I see digits 3,4. 3+4=27.</think> <answer>7</answer>', 0),
    # Two of three, in tenths; the answer does not count.
    ('<think>2*3=6,6+4=10,10+1=12.</think> <answer>11</answer>', .7),
    ('<think>2*3=6,6+4=10. Hmm, wait. 2*3=6,6+4=1.</think>', .8),
    ('3+4=7', 0), ('<think>I see d', 0)])
def test_scores_by_hand(said, want):
  assert sophiavl_r1_judge.score(said, EXAMPLES[0]) == want


def test_mistakes_are_spread_evenly():
  """Of n equations 0 to n are wrong, each as often; all off by 20 to 40."""
  found = {}
  for example in EXAMPLES:
    said = sophiavl_r1_judge.response(
        example, off=20, again=0, cut=0, wrong=0)
    assert said == sophiavl_r1_judge.response(
        example, off=20, again=0, cut=0, wrong=0)
    chain = said.partition('. ')[2].partition('.</think>')[0].split(',')
    right = steps.equations(said)
    assert len(right) == len(chain) == len(example.meta['steps'])
    for one, true, ok in zip(chain, example.meta['steps'], right):
      left, _, result = one.partition('=')
      assert left == true.partition('=')[0]
      off = abs(int(result) - int(true.partition('=')[2]))
      assert off == 0 if ok else 20 <= off <= 40
    assert said.endswith(f'<answer>{example.answer}</answer>')
    found.setdefault(len(right), []).append(sum(right))
  for n, counts in found.items():
    shares = np.bincount(counts, minlength=n + 1) / len(counts)
    spread = 4 * math.sqrt(1 / (n + 1) / len(counts))
    np.testing.assert_allclose(shares, 1 / (n + 1), atol=spread)
  assert sorted(found) == [1, 2, 3]


def test_other_mistakes():
  make = sophiavl_r1_judge.response
  wrong = [make(e, wrong=1, cut=0) for e in EXAMPLES[:50]]
  assert not any(f'<answer>{e.answer}<' in s for e, s in zip(EXAMPLES, wrong))
  cut = [make(e, cut=1) for e in EXAMPLES[:50]]
  assert not any(s.endswith('</answer>') for s in cut)
  assert all(s.startswith('<think>') for s in cut)
  twice = [make(e, again=1, cut=0) for e in EXAMPLES[:50]]
  assert all(len(steps.equations(s)) == 2 * len(e.meta['steps'])
             for e, s in zip(EXAMPLES, twice))


def test_the_data_are_balanced():
  made, counts = sophiavl_r1_judge.graded(
      EXAMPLES, None, 'base', suffix='\nS: ', most=30)
  found = [e.completions[0] for e in made]
  assert max(map(found.count, found)) == 30 and len(set(found)) >= 6
  assert counts['surplus'] == len(EXAMPLES) - len(made)
  assert all(counts[f'score/{x}'] == found.count(x) for x in found)
  for example in made:
    said, suffix = example.given
    assert suffix == '\nS: ' and example.completions == (
        f'{sophiavl_r1_judge.score(said, example):.1f}',)
    assert example.images and example.answer
  with pytest.raises(ValueError, match='most=0'):
    sophiavl_r1_judge.graded(EXAMPLES, None, '', suffix='', most=0)


@pytest.mark.parametrize('reply, want', [
    ('0.7', .7), (' 1.0\n', 1), ('7', 1), ('-0.5', 0), ('70%', .7), ('0', 0),
    ('', None), ('0.7 or so', None), ('nan', None), ('0.7.0', None)])
def test_replies(reply, want):
  assert number.unit(reply) == want


def test_the_papers_numbers_at_7b():
  c = resolve.finalise(runs.config('sophiavl_r1', 'qwen2_5_vl_7b'))
  one = c[c.stages[-1]]
  assert c.stages == ('sophiavl_r1',) and one.steps == 1500
  assert (one.prompts_per_step, one.samples_per_prompt) == (16, 8)
  assert one.max_new_tokens == 1024 and c.data.prompt_tokens == 8192
  assert (c.data.min_pixels, c.data.max_pixels) == (262_144, 4_194_304)
  assert one.kl.coefficient == .04 and one.kl.estimator == 'k3'
  assert one.entropy.coefficient == 1e-3
  assert one.optimizer.lr == 5e-7 and one.optimizer.weight_decay == 1e-2
  assert one.optimizer.clip_norm == 4 and one.optimizer.freeze == ()
  assert one.policy.kwargs.as_dict() == dict(eps_low=.2, eps_high=.2)
  assert one.policy.reduce == 'token_mean' and one.temperature == 1
  assert one.combine.kwargs.alpha == .3 and one.judges == ('thinking',)
  assert one.combine.kwargs.judge_min_outcome is None
  assert c.rewards.outcome.kwargs.transcript == 'exp'
  released = resolve.finalise(
      runs.config('sophiavl_r1', 'qwen2_5_vl_7b,released'))
  assert released.sophiavl_r1.optimizer.lr == 6e-7
  other, _ = runs.commanded(
      'sophiavl_r1', ['--config.rewards.outcome.kwargs.transcript=negative'],
      'qwen2_5_vl_7b')
  assert other.rewards.outcome.kwargs.transcript == 'negative'
  # A third of it is left at the end.
  decay = runner.plan(c)[1]['sophiavl_r1'].hooks['decay']
  knobs, _ = decay({'combine/decay': 1.0}, {}, {}, {}, 1500)
  assert knobs['combine/decay'] * .3 == pytest.approx(.110364, abs=1e-6)
  judge = resolve.finalise(runs.config('sophiavl_r1', 'qwen2_5_vl_3b,judge'))
  assert judge.stages == ('judge',)
  # Two epochs of 156K.
  assert judge.judge.steps * judge.judge.rows_per_step == 2 * 156_000
  assert judge.judge.instruction == c.judges.thinking.instruction


@pytest.mark.parametrize('arg, rewards, judges, stages', [
    (None, ('outcome',), ('thinking',), ('traces', 'judge', 'sophiavl_r1')),
    ('judge', None, None, ('traces', 'judge')),
    ('longer', ('outcome', 'thinking'), (), ('sophiavl_r1',)),
    ('rule', ('outcome', 'thinking'), (), ('sophiavl_r1',)),
    ('released', ('outcome',), ('thinking',),
     ('traces', 'judge', 'sophiavl_r1'))])
def test_options(arg, rewards, judges, stages):
  c = resolve.finalise(runs.config('sophiavl_r1', arg))
  assert c.stages == stages
  _, plans = runner.plan(c)
  if rewards:
    one = c[c.stages[-1]]
    assert (one.rewards, one.judges) == (rewards, judges)
    weights = plans['sophiavl_r1'].weights
    assert weights == {'outcome': 1, 'thinking': 0}
  if arg == 'released':
    assert one.combine.kwargs.judge_min_outcome == .2
    assert c.hooks.decay.kwargs.steps == 500
    assert c.rewards.outcome.kwargs.choices == 'released'
  if arg is None:  # what the judge learns from is what it reads
    assert c.judges.thinking.suffix == c.traces.kwargs.suffix
    assert c.judges.thinking.instruction == c.judge.instruction
    assert one.init == 'base'


def test_m22_one_judge():
  with pytest.raises(ValueError, match='take one of'):
    runs.config('sophiavl_r1', 'longer,rule')


@pytest.mark.parametrize('init, follower', [
    ('base', None), ('previous', 'sophiavl_r1'), ('judge', 'sophiavl_r1')])
def test_m12_what_no_rl_starts_from_need_not_earn_its_rewards(
    init, follower, shrink, open_run, tmp_path):
  c = shrink(runs.config('sophiavl_r1'))
  c.sophiavl_r1.init = init
  ctx, _ = open_run(c, tmp_path / 'run')
  assert handover._next_rl(ctx, 'judge') == follower
