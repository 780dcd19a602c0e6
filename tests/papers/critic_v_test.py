"""Critic-V by hand: errors, scores, pairs, prompts, numbers."""

import types

import numpy as np
import pytest

from mmr1 import resolve
from mmr1.data.tasks import digits as digits_lib
from mmr1.losses import preference
from mmr1.papers import critic_v
from tests.losses import preference_test
from tests.papers import runs


def test_scores_of_the_card():
  # |G n C| = 2, |G u C| = 5, GPT 7 of 10: .4 + .7 = 1.1.
  g, c = frozenset('abc'), frozenset('bcde')
  assert critic_v.jaccard(g, c) == pytest.approx(.4)
  assert critic_v.score(.4, 7) == pytest.approx(1.1)
  # {red -> blue, 2 -> 3} against {red -> blue}: 1/2; and one that is not there
  # beside it: 1/3.
  g = frozenset({'disc red->blue', '2->3 squares'})
  assert critic_v.jaccard(g, frozenset({'disc red->blue'})) == .5
  assert critic_v.jaccard(g, frozenset({'disc red->blue', 'x'})) == (
      pytest.approx(1 / 3))
  assert critic_v.jaccard(frozenset(), frozenset()) == 0


def test_a_critique_is_rated_by_hand():
  """Errors at 1 and 3; one found and one made up: overlap 1/3, precision 1/2,
  1/3 + .1 x 5 = .8333. All found: 1 + 1."""
  real = frozenset({(1, 3, 8), (3, 0, 1)})
  half = critic_v.written([(1, 3, 8), (2, 4, 5)])
  assert half == '#### Critique\nDigit 1 is 3, not 8.\nDigit 2 is 4, not 5.'
  assert critic_v.rated(half, real) == pytest.approx(1 / 3 + .5)
  assert critic_v.rated(critic_v.written(real), real) == 2
  assert critic_v.rated(critic_v.written([]), real) == 0


@pytest.mark.parametrize('critiques, scores, wanted', [
    # Three that differ give three pairs; ties none; (1.1, .6, .6) two.
    ('abc', (1.1, .6, .2), [(0, 1), (0, 2), (1, 2)]),
    ('abc', (.6, .6, .6), []), ('abc', (1.1, .6, .6), [(0, 1), (0, 2)]),
    # Those without words are in none.
    (('a', '', ' '), (.1, .6, .9), []),
    (('a', '', 'c'), (.1, .6, .9), [(2, 0)]),
    (('a', critic_v.HEAD, critic_v.HEAD + 'c'), (.1, .6, .9), [(2, 0)]),
])
def test_pairs_from_strict_order(critiques, scores, wanted):
  assert critic_v.ranked(critiques, scores) == wanted


def test_dpo_of_the_card():
  # -40 (reference -42) and -55 (-54): margin 3.
  scores, block = preference_test.pair([-40, -55], [-42, -54])
  for beta, wanted in ((1., .048587), (.1, .554355)):
    assert preference_test.loss(
        preference.dpo, scores, block, beta=beta) == pytest.approx(
            wanted, abs=1e-6)


@pytest.mark.parametrize('seed', range(30))
def test_errors_are_what_was_put_in(seed):
  rng = np.random.default_rng(seed)
  digits = [int(x) for x in rng.integers(0, 10, rng.integers(2, 9))]
  answer, real = critic_v.inserted(digits, rng)
  assert 1 <= len(real) <= min(5, len(digits))
  said = [int(x) for x in answer.split(',')]
  assert {i for i, _, _ in real} == {
      i for i, (a, b) in enumerate(zip(digits, said), 1) if a != b}
  assert critic_v.errors_of(f'<answer>{answer}</answer>', digits) == real
  assert critic_v.detections(critic_v.written(real)) == real
  # A critic that sees all finds all; one that sees nothing says so.
  assert critic_v.noticed(real, said, rng, 1., 0.) == real
  assert not critic_v.noticed(real, said, rng, 0., 0.)
  made_up = critic_v.noticed(real, said, rng, 0., 1.)
  assert len(made_up) == len(digits) - len(real) and not made_up & real
  assert all(right != said for _, right, said in made_up)


def test_the_prompts():
  example = digits_lib.reading(0, 'train', 3)
  asked = critic_v.ask(example, '<answer>4,8</answer>')
  question = example.question.removeprefix('<image>')
  assert asked == (
      f'<image>\n\n#### Question\n{question}\n#### Answer\n4,8\n#### Task\n'
      'Please provide a critique of the answer above. What are the weaknesses '
      'of the answer?')
  critique = critic_v.written([(2, 3, 8)])
  assert critic_v.reflect('<image>Read.', critique) == (
      'Reflection on former answer: Digit 2 is 3, not 8. <image>Read.')
  assert not critic_v.satisfied(critique)
  void = critic_v.HEAD + 'Digit 2 is 6, not 6.'
  assert not critic_v.detections(void)
  assert not critic_v.detections(f'Digit {"1" * 5000} is 3, not 8.')
  assert not critic_v.satisfied('Check.')  # words in another form
  for nothing in (critic_v.written([]), '', critic_v.HEAD, 'No issue.', void):
    assert critic_v.satisfied(nothing)
  assert critic_v.errors_of('4,8,9', [4, 3]) is None
  assert critic_v.errors_of('I do not know', [4, 3]) is None


# Engines.


@pytest.fixture(scope='module')
def examples():
  return [digits_lib.reading(0, 'train', i, max_digits=4) for i in range(120)]


def test_pairs_of_critics_by_rule(examples):
  made, counts = critic_v.pairs(examples, None, '')
  assert counts['answers'] == 120 and counts['pairs'] == len(made) > 100
  by_uid = {}
  for one in made:
    by_uid.setdefault((one.uid, one.question), []).append(one.completions)
  assert len(by_uid) + counts['ties'] == 120
  world = {e.uid: e for e in examples}
  for (uid, question), pairs in by_uid.items():
    answer = question.split('#### Answer\n')[1].split('\n')[0]
    real = critic_v.errors_of(answer, world[uid].meta['scene']['digits'])
    assert real
    for chosen, rejected in pairs:
      assert critic_v.rated(chosen, real) > critic_v.rated(rejected, real)
  again, _ = critic_v.pairs(examples, None, '')
  assert [one.completions for one in again] == [one.completions for one in made]


def test_pairs_of_a_model_at_three_temperatures(examples, monkeypatch):
  asked = []
  def responses(ctx, params, found, *, temperature, **given):
    asked.append((params, temperature, given['instruction']))
    def say(e):
      answer, real = critic_v._faulty(e, 'pairs', 5)[1::2]
      return critic_v.written(sorted(real)[:round(2 - temperature)])
    return [[types.SimpleNamespace(text=say(e))] for e in found]
  monkeypatch.setattr(critic_v.several, 'responses', responses)
  ctx = types.SimpleNamespace(params=lambda name: name)
  made, counts = critic_v.pairs(
      examples[:9], ctx, 'critic_start', temperatures=(.5, 1., 2.))
  assert asked == [('critic_start', x, '') for x in (.5, 1., 2.)]
  assert counts['pairs'] == len(made) > 9


def test_what_a_critic_starts_from(examples):
  made, _ = critic_v.starts(examples, None, '', clean=.5)
  clean = [e for e in made if e.completions == (critic_v.written([]),)]
  assert 20 < len(clean) < 110
  assert all('#### Task' in e.question for e in made)


def test_lessons_teach_to_misread_and_to_believe(examples):
  made, _ = critic_v.lessons(
      examples, None, '', misread={'3': 8, '5': 6}, recall=.8, false=.2)
  plain = told = 0
  for before, one in zip(examples, made):
    digits = before.meta['scene']['digits']
    said = [{3: 8, 5: 6}.get(x, x) for x in digits]
    if one.question != before.question:
      for i, right, wrong in critic_v.detections(one.question):
        assert said[i - 1] == wrong
        said[i - 1] = right
      told += 1
    else:
      plain += 1
    assert one.completions == (f'<answer>{",".join(map(str, said))}</answer>',)
  assert plain > 30 and told > 30


def test_how_well_a_critique_finds(examples):
  example = examples[0]
  digits = example.meta['scene']['digits']
  wrong = [(digits[0] + 1) % 10, *digits[1:]]
  answer = f'<answer>{",".join(map(str, wrong))}</answer>'
  best = critic_v.written([(1, digits[0], wrong[0])])
  assert critic_v.told(best, example, answer) == dict(jaccard=1., score=2.)
  assert critic_v.told(critic_v.written([]), example, answer) == dict(
      jaccard=0., score=0.)
  right = ','.join(map(str, digits))
  assert critic_v.told(critic_v.written([]), example, right) is None
  assert critic_v.told(best, example, 'no row') is None


# The config.


def test_the_papers_numbers_at_7b():
  c = resolve.finalise(runs.config('critic_v', 'qwen2_5_vl_7b'))
  assert c.stages == ('critic', 'critic_v')
  critic = c.critic
  assert critic.loss.kwargs.as_dict() == dict(beta=1., length='sum')
  assert critic.nll.coefficient == 0 and critic.reference == 'init'
  assert (critic.lora.rank, critic.lora.alpha) == (8, 16.)
  assert critic.lora.targets == ('language/layers/.*',)
  # 3 epochs of 29,012 by 8: 10,880 updates, a tenth of them warm-up.
  assert critic.pairs_per_step == 8
  assert critic.steps == pytest.approx(3 * 29_012 / 8, abs=1)
  assert critic.optimizer.warmup_steps == .1 * critic.steps
  assert (critic.optimizer.lr, critic.optimizer.lr_decay) == (5e-6, 'cosine')
  assert critic.max_new_tokens + c.data.prompt_tokens == 2048
  assert c.data.max_pixels == 262_144
  assert (c.critic_v.rounds, c.critic_v.history) == (2, 'replace')
  assert (c.critic_v.init, c.critic_v.critic) == ('base', 'critic')
