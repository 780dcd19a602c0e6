"""Metis-SPECS' four stages on the tests' random model, two steps each."""

import dataclasses
import json

import numpy as np
import pytest

from mmr1 import log
from mmr1 import runner
from mmr1.papers import metis_specs
from mmr1.stages import preference
from tests import small
from tests.papers import runs

GOOD = '<think>{}</think><answer>{}</answer>'


@pytest.fixture(scope='module')
def run(shrink, tmp_path_factory):
  """(rows of metrics, the learner's blocks, workdir); what the random model
  says is replaced by right answers where pairs are made of it."""
  c = shrink(runs.config('metis_specs'))
  for name, n in (('zero', 2), ('metis_specs', 2)):
    c[name].steps, c[name].prompts_per_step = 2, n
    c[name].samples_per_prompt, c[name].max_new_tokens = 4, 8
  c.rewards.format.fn = 'tests.own:even'  # the model meets no format
  c.zero.optimizer.lr = .02
  c.pairs.size = 12
  c.pairs.kwargs.screen = ''
  c.cold_start.steps, c.cold_start.pairs_per_step = 2, 4
  c.cold_start.eval_every = 1
  said, blocks = metis_specs.several.responses, []

  def responses(ctx, params, examples, **given):
    assert runs.same(params, ctx.params('zero'))
    found = said(ctx, params, examples, **given)
    assert [len(row) for row in found] == [4] * len(examples)
    return [[dataclasses.replace(s, text=GOOD.format(
        'so ' + s.text.replace('<', '')[:9], s.example.answer))
             for s in row[:2]] for row in found]
  scored = preference.PairLearner.scored

  def keep(self, state, block):
    block = scored(self, state, block)
    blocks.append((self._ctx, block))
    return block
  folder = tmp_path_factory.mktemp('specs') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(metis_specs.several, 'responses', responses)
    patch.setattr(preference.PairLearner, 'scored', keep)
    runner.run(c, str(folder), quiet=True)
  return log.read_rows(folder / 'metrics.jsonl'), blocks, folder


def test_all_stages_ran(run):
  rows, _, folder = run
  steps = {(row['stage'], row['step']) for row in rows if 'loss' in row}
  assert steps == {(name, k) for name in ('zero', 'cold_start', 'metis_specs')
                   for k in (1, 2)}
  (collected,) = [row for row in rows if row['stage'] == 'pairs']
  assert collected['collect/kept'] > 4
  assert [collected[f'collect/{kind}'] > 0
          for kind in metis_specs.KINDS].count(True) == 5
  for line in (folder / 'data/pairs/train.jsonl').read_text().splitlines():
    one = json.loads(line)
    assert metis_specs.stripped(one['chosen']) == metis_specs.stripped(
        one['rejected'])


def test_the_reference_is_the_base_and_not_the_generator(run):
  rows, blocks, _ = run
  assert len(blocks) == 2
  for ctx, block in blocks:
    for name, equal in (('base', True), ('zero', False)):
      logp = np.asarray(small.logp(
          ctx.policy, ctx.params(name), block.prompts, block.completions,
          block.mask, np.float32(1))[0])
      far = np.abs(logp - block.ref)[np.asarray(block.mask)].max()
      assert (far < 1e-4) == equal, (name, far)
  first, second = [row for row in rows if row['stage'] == 'cold_start'
                   and 'loss' in row]
  assert first['loss/preference'] == pytest.approx(np.log(2), rel=1e-5)
  assert first['rewards/margins'] == pytest.approx(0, abs=1e-5)
  assert second['rewards/margins'] != first['rewards/margins']


def test_both_evaluations_and_the_factor_are_logged(run):
  rows, _, folder = run
  made = [row for row in rows if 'eval/accuracy' in row]
  assert [(row['stage'], row['step']) for row in made] == [
      ('base', 0), ('zero', 2), ('cold_start', 1), ('cold_start', 2),
      ('metis_specs', 2)]
  base = made[0]
  assert 'eval/generalisation_factor' not in base
  for row in made[1:]:
    inside = 100 * (
        row['eval/accuracy_sampled'] - base['eval/accuracy_sampled'])
    outside = 100 * (row['eval/other_form/accuracy_sampled']
                     - base['eval/other_form/accuracy_sampled'])
    assert row['eval/gain/in'] == pytest.approx(inside)
    assert row['eval/gain/out'] == pytest.approx(outside)
    assert row['eval/generalisation_factor'] == pytest.approx(
        metis_specs.generalisation(inside, outside))
  # Another instruction: other prompts, under the same problems.
  cards = [json.loads((folder / 'eval' / f'base_0{name}.json').read_text())
           for name in ('', '_other_form')]
  assert cards[0]['prompt_hash'] != cards[1]['prompt_hash']
  assert cards[0]['n'] == cards[1]['n']
  assert [card['sampling']['instruction'] for card in cards] == [
      None, 'Answer with a number only.']
