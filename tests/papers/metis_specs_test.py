"""Metis-SPECS by hand: corruptions, pairs, the factor, numbers."""

import types

import numpy as np
import pytest

from mmr1 import records
from mmr1 import resolve
from mmr1 import text
from mmr1.losses import preference
from mmr1.papers import metis_specs
from mmr1.rewards import answer
from mmr1.rewards import pool
from tests.losses import preference_test
from tests.papers import runs

GOOD = '<think>3+4=7.</think> <answer> Final Answer:7 </answer>'


@pytest.mark.parametrize('kind, made', [
    ('bare', '3+4=7.\n7'),
    ('no_answer', '<think>3+4=7.</think>\n7'),
    ('displaced', '<answer>3+4=7.</answer><think>7</think>'),
    ('plain', 'Reasoning: 3+4=7.\nAnswer: 7'),
    ('open', '<think>3+4=7.<answer>7</answer>')])
def test_corruptions_by_hand(kind, made):
  assert metis_specs.corrupt(
      '<think>3+4=7.</think><answer>7</answer>', kind) == made


@pytest.mark.parametrize('seed', range(40))
def test_content_stays_and_form_goes(seed):
  """Random well-formed texts, every kind: nothing but the form differs, no two
  kinds are alike, and none earns the format."""
  rng = np.random.default_rng(seed)
  words = lambda: ' '.join(map(str, rng.choice(
      ['so', '3+4=7,', 'x', 'wait.', '\\boxed{7}', 'is\nit'],
      rng.integers(1, 9))))
  said = (f'<think>{words()}</think>{" " * rng.integers(3)}'
          f'<answer> {words()} </answer>')
  made = [metis_specs.corrupt(said, kind) for kind in metis_specs.KINDS]
  assert len({*made, said}) == 6
  for one in made:
    assert metis_specs.stripped(one) == metis_specs.stripped(said)
    assert not text.parse_think_answer(one).ok
    assert text.extract_answer(one, strict=True) in (
        None, text.extract_answer(said, strict=True),
        ' '.join(said[7:said.index('</think>')].split(' ')).strip())


@pytest.mark.parametrize(
    'failure', [pool.TimedOut, pool.WorkerDied, pool.RemoteError])
def test_m10_an_answer_that_cannot_be_checked_is_wrong(monkeypatch, failure):
  example = records.Example(uid=0, question='?', answer='7')
  assert metis_specs._right(GOOD, example)
  def fail(*args):
    raise failure('on purpose')
  monkeypatch.setattr(answer, 'match', fail)
  assert metis_specs._right(GOOD, example) is False


def test_what_has_no_form_is_refused():
  with pytest.raises(ValueError, match='not well-formed'):
    metis_specs.corrupt('7', 'bare')
  with pytest.raises(ValueError, match="'bare', 'no_answer'"):
    metis_specs.corrupt(GOOD, 'bear')


def test_the_factor_by_hand():
  # 5 x 50 / (40 + 5) = 5.5556; 5 x 50 / (20 + 10) = 8.3333;
  # 5 x 60 / (120 + 2) = 2.4590: gains outside count more.
  for gains, wanted in (
      ((10, 5), 5.5556), ((5, 10), 8.3333), ((30, 2), 2.4590)):
    made = metis_specs.generalisation(*gains)
    assert made == pytest.approx(wanted, abs=1e-4)
  # With beta = 1 it is the harmonic mean, 2 x 50 / 15.
  assert metis_specs.generalisation(10, 5, beta=1) == pytest.approx(100 / 15)
  assert metis_specs.generalisation(-1, 5) == 0
  assert metis_specs.generalisation(-1, -5) == 0
  base = {'eval/accuracy_sampled': .1, 'eval/other/accuracy_sampled': .3}
  made = metis_specs.factor(
      {'eval/accuracy_sampled': .2, 'eval/other/accuracy_sampled': .35}, base,
      outside='other')
  assert made == pytest.approx({
      'eval/gain/in': 10, 'eval/gain/out': 5,
      'eval/generalisation_factor': 5.5556}, abs=1e-4)


def test_the_loss_of_the_card():
  """(-10, -12) against (-11, -11), beta .1, lambda 1, NLL .7 a token."""
  scores, block = preference_test.pair([-10, -12], [-11, -11])
  dpo = preference_test.loss(preference.dpo, scores, block, beta=.1)
  assert dpo + 1. * .7 == pytest.approx(1.298139, abs=1e-6)
  c = resolve.finalise(runs.config('metis_specs')).cold_start
  assert c.loss.kwargs.as_dict() == dict(beta=.1, length='sum')
  assert (c.nll.coefficient, c.nll.reduce) == (1., 'seq_mean')
  assert (c.init, c.reference) == ('base', 'init')


# The engine.


def example(uid, gold='7'):
  return records.Example(uid=uid, question='What?', answer=gold)


def said(what, one):
  return records.Sample(
      text=what, tokens=(1,), kinds=(1,), length=1, truncated=False,
      example=one, uid=one.uid, group=0, slot=0)


RIGHT = '<think>3+4=7.</think><answer>7</answer>'
WRONG = '<think>3+5=8.</think><answer>8</answer>'
LUCKY = '<think>3+5=9.</think><answer>7</answer>'  # a chain that is not true


@pytest.fixture
def made(monkeypatch):
  """(texts of every problem, **kwargs) -> pairs, counts."""
  def run(texts, **kwargs):
    examples = [example(i) for i in range(len(texts))]
    asked = []
    def responses(ctx, params, found, **given):
      asked.append((params, given))
      source = kwargs['theirs'] if params == 'base' else texts
      return [[said(x, one) for x in row] for one, row in zip(found, source)]
    monkeypatch.setattr(metis_specs.several, 'responses', responses)
    ctx = types.SimpleNamespace(params=lambda name: name)
    pairs, counts = metis_specs.pairs(
        examples, ctx, 'zero', screen='steps.true_steps',
        **{k: v for k, v in kwargs.items() if k != 'theirs'})
    assert asked[0][0] == 'zero'
    return pairs, counts
  return run


def test_every_pair_differs_in_form_alone(made):
  texts = [[WRONG, RIGHT]] * 7 + [[WRONG, LUCKY, '7', '<think>7</think>']]
  pairs, counts = made(texts)
  assert counts['examples'] == 8 and counts['unsolved'] == 1
  assert [counts[kind] for kind in metis_specs.KINDS] == [2, 2, 1, 1, 1]
  for one in pairs:
    chosen, rejected = one.completions
    assert chosen == RIGHT
    assert metis_specs.stripped(chosen) == metis_specs.stripped(rejected)
    # The answer is equal, and the rejected one earns no format.
    assert answer.match('7', one) and not text.parse_think_answer(rejected).ok


def test_the_ablations(made):
  texts = [[WRONG, RIGHT], [RIGHT, RIGHT]]
  pairs, counts = made(texts, coupled=True, kinds=('bare',))
  assert [x.completions[1] for x in pairs] == ['3+5=8.\n8', '3+4=7.\n7']
  assert counts['wrong'] == 1
  # Of the base: a right answer in whatever form, broken if there is any.
  pairs, counts = made(texts + [[RIGHT]], rejects='base', kinds=('plain',),
                       theirs=[['8', 'Answer: 7'], [RIGHT], ['8']])
  assert [x.completions[1] for x in pairs] == [
      'Answer: 7', 'Reasoning: 3+4=7.\nAnswer: 7']
  assert (counts['as_it_was'], counts['no_reject']) == (1, 1)
  with pytest.raises(ValueError, match="kind 'bear'"):
    made(texts, kinds=('bear',))


# The config.


def test_the_papers_numbers_at_7b():
  c = resolve.finalise(runs.config('metis_specs', 'qwen2_5_vl_7b'))
  assert c.stages == ('zero', 'pairs', 'cold_start', 'metis_specs')
  cold, last = c.cold_start, c.metis_specs
  assert (c.zero.init, c.pairs.init, cold.init, last.init) == (
      'previous', 'zero', 'base', 'cold_start')
  assert (cold.pairs_per_step, cold.optimizer.lr) == (64, 1e-6)
  assert cold.max_new_tokens + c.data.prompt_tokens == 16_384
  assert (last.prompts_per_step, last.samples_per_prompt) == (128, 8)
  assert (last.max_new_tokens, last.optimizer.lr) == (10_240, 1e-6)
  assert last.kl.coefficient == 0
  assert last.policy.kwargs.as_dict() == dict(eps_low=.2, eps_high=.28)
  assert {name: c.rewards[name].weight for name in last.rewards} == dict(
      format=.5, result=1.)
  sample = said('<think>a</think><answer> The answer is \\boxed{7} </answer>',
                example(0))
  assert answer.correct(sample, {}) == 1


@pytest.mark.parametrize('arg, kind, fn', [
    ('sft', 'sft', None), ('ipo', 'preference', 'ipo'),
    ('simpo', 'preference', 'simpo')])
def test_options_are_other_cold_starts(arg, kind, fn):
  for scale in ('tiny', 'qwen2_5_vl_7b'):
    stage = resolve.finalise(runs.config(
        'metis_specs', f'{scale},{arg}')).cold_start
    assert stage.kind == kind and stage.data == 'pairs'
    assert fn is None or stage.loss.fn == fn
  with pytest.raises(ValueError, match='take one of'):
    runs.config('metis_specs', 'sft,ipo')
