"""Critic-V's stages on the tests' random model: what trains, what does not, and
the loop between two models of the run."""

import json

import numpy as np
import pytest

from mmr1 import log
from mmr1 import resolve
from mmr1 import runner
from mmr1 import sections
from mmr1.papers import critic_v
from mmr1.stages import refine
from tests.papers import runs


@pytest.fixture(scope='module')
def run(shrink, tmp_path_factory):
  """(context as the last stage saw it, rows, workdir, parameters of the
  reasoner before its loop, who was asked)."""
  c = shrink(runs.config('critic_v'))
  for name in ('reasoner', 'critic_start', 'critic'):
    c[name].steps = 2
    c[name].max_new_tokens = 96
  c.reasoner.rows_per_step = c.critic_start.rows_per_step = 4
  c.critic.pairs_per_step, c.critic.optimizer.lr = 4, .02
  c.critic.optimizer.warmup_steps = c.critic_start.optimizer.warmup_steps = 0
  c.reasoner.optimizer.warmup_steps = 0
  for name in ('lessons', 'starts', 'pairs'):
    c[name].size = 16
  c.refine.examples, c.refine.prompts_per_batch = 6, 4
  c.refine.max_new_tokens = c.refine.critic_tokens = 8
  c.refine.satisfied.fn = 'tests.own:never'  # the model may say nothing
  c.evaluate_base = False
  seen, inner = [], refine.several.responses

  def responses(ctx, params, examples, **given):
    seen.append((ctx, params, [e.question for e in examples], given))
    return inner(ctx, params, examples, **given)
  folder = tmp_path_factory.mktemp('critic') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(refine.several, 'responses', responses)
    runner.run(c, str(folder), quiet=True)
  return seen, log.read_rows(folder / 'metrics.jsonl'), folder


def test_the_reference_is_the_critic_without_adapters(run):
  """Loss ln 2 at the start, whatever beta is, and then it moves."""
  _, rows, _ = run
  first, second = [row for row in rows
                   if row['stage'] == 'critic' and 'loss' in row]
  assert first['loss'] == pytest.approx(np.log(2), rel=1e-5)
  assert first['rewards/chosen'] == pytest.approx(0, abs=1e-5)
  assert second['loss'] != pytest.approx(np.log(2), rel=1e-3)
  assert second['grad_norm'] > 0


def test_two_models_speak_in_turn_and_stay_as_they_are(run):
  seen, rows, folder = run
  ctx = seen[0][0]
  for name, critic in (('untrained', 'critic_start'), ('critic_v', 'critic')):
    section = ctx.config[name]
    turns = [json.loads(line) for line in (
        folder / 'eval' / f'{name}_0.jsonl').read_text().splitlines()]
    assert len(turns) == 6 and section.rounds == 2
    (row,) = [row for row in rows if row['stage'] == name]
    assert row['eval/accuracy'] == row['eval/round_2/accuracy'] == np.mean(
        [one['correct'][-1] for one in turns])
    assert row['eval/critic/length'] > 0 and row['eval/n'] == 6
    for one in turns:
      first, *rest = one['turns']
      for before, turn in zip(one['turns'], rest):
        assert turn['asked'] == critic_v.reflect(
            first['asked'], before['critique'])
  reasoner, critics = ctx.params('reasoner'), [
      ctx.params('critic_start'), ctx.params('critic')]
  assert not runs.same(*critics[:1], critics[1])
  spoke = {'reasoner': 0, 'critic_start': 0, 'critic': 0}
  for _, params, questions, given in seen:
    task = '#### Task' in questions[0]
    assert given['temperature'] == 0 and given['rows'] == 4
    if not task:
      assert runs.same(params, reasoner)
      spoke['reasoner'] += 1
    else:
      name = 'critic_start' if runs.same(params, critics[0]) else 'critic'
      assert runs.same(params, ctx.params(name)) and given['instruction'] == ''
      spoke[name] += 1
  assert spoke == {'reasoner': 6, 'critic_start': 2, 'critic': 2}


def test_the_same_words_ask_no_critic(run, monkeypatch):
  seen, _, _ = run
  ctx = seen[0][0]
  monkeypatch.setattr(refine.several, 'responses', None)  # would fail
  section = sections.Section(
      {**ctx.config.critic_v.as_dict(), 'fixed': 'Check.'}, 'critic_v')
  plan = refine.setup(section, 'critic_v', ctx.config)
  critic = refine._Critic(ctx, section, plan, None)
  assert critic([None, None], ['a', 'b']) == ['Check.', 'Check.']


def test_m22_what_cannot_work_is_named(shrink):
  for key, value, message in (
      ('rounds', -1, 'critic_v.rounds: got -1'),
      ('history', 'append', "history: got 'append'"),
      ('parser', 'loose', "parser: got 'loose'"),
      ('critic', 'crtic', "critic_v.critic: got 'crtic'"),
      ('critic', 'pairs', 'makes no model'),
      ('ask.fn', 'critic_v.aks', 'Nearest: .*ask'),
      ('critic_tokens', 0, 'critic_tokens: got 0')):
    c = shrink(runs.config('critic_v'))
    c.update_from_flattened_dict({f'critic_v.{key}': value})
    with pytest.raises(ValueError, match=message):
      runner.plan(resolve.finalise(c))
