"""ReVisual-R1's stages on the tests' random model, and its config."""

import json

from etils import epath
import jax
import numpy as np
import pytest

from mmr1 import resolve
from mmr1 import trees
from mmr1.data import datasets
from mmr1.data import traces
from mmr1.papers import revisual_r1
from tests.papers import runs

N, G, T = 2, 4, 8


def begun(stages, arg, shrink, open_run, folder, **flat):
  c = shrink(runs.config('revisual_r1', arg))
  c.stages, c.text.size = stages, 12
  for name in ('result', 'text_result'):
    c.rewards[name].fn = 'tests.own:even'
  return runs.trainer(c, open_run, folder, samples_per_prompt=G,
                      max_new_tokens=T, optimizer__lr=1e-2, **flat)


@pytest.fixture(scope='module')
def pictures(shrink, open_run, tmp_path_factory):
  """(trainer, its two steps) of the second stage."""
  one = begun(('mrl',), None, shrink, open_run,
              tmp_path_factory.mktemp('mrl') / 'run')
  return one, runs.take(one, one.start.state, range(2))[1]


@pytest.fixture(scope='module')
def texts(shrink, open_run, tmp_path_factory):
  """(trainer, its four steps, the last state) of the third."""
  one = begun(('text', 'trl'), None, shrink, open_run,
              tmp_path_factory.mktemp('trl') / 'run')
  state, steps = runs.take(one, one.start.state, range(4))
  return one, steps, state


def test_responses_train_as_often_as_they_are_drawn(pictures):
  one, steps = pictures
  for k, step in enumerate(steps):
    block, size = step.block, np.abs(step.block.advantage[..., 0])
    times = block.times[..., 0]
    np.testing.assert_array_equal(times, revisual_r1.pad_counts(
        revisual_r1.pad_probabilities(size), one.judging._rng(k)))
    inside = (size > .03) & (size < .97)
    assert inside.any() and times.sum() == 12 == step.metrics['select/drawn']
    assert not times[~inside].any()
    assert step.metrics['select/effective'] == inside.sum()
    np.testing.assert_array_equal(
        block.mask, (block.completions.kind > 0) & (times > 0)[..., None])
  assert max(step.block.times.max() for step in steps) > 1


def test_the_loss_counts_every_copy(pictures):
  """One update per rollout: the ratio is 1 and a token's loss -A."""
  for step in pictures[1]:
    block = step.block
    tokens = (block.mask * block.times).sum()
    wanted = -(block.advantage * block.mask * block.times).sum() / tokens
    assert step.metrics['loss/policy'] == pytest.approx(wanted, abs=1e-6)


def test_rewards_are_those_of_the_stage(pictures, texts):
  weights = dict(result=.8, self_critic=.05, image_revisit=.05, repetition=.05,
                 length=.05)
  for (one, steps, *_), weights in (
      (pictures, weights),
      (texts, dict(text_result=.85, text_repetition=.1, self_critic=.05))):
    assert one.plan.scorer.weights == pytest.approx(weights)
    for step in steps:
      total = sum(w * step.rewards[name] for name, w in weights.items())
      assert step.metrics['reward/mean'] == pytest.approx(total.mean())


def test_text_only_with_a_frozen_tower(texts):
  """No media; what sees stays as it was, to the bit; the rest does not."""
  one, steps, state = texts
  for step in steps:
    assert not np.any([x.segment for x in step.block.prompts.media.values()])
    assert all(not row['images'] and row['prompt'].startswith('Digits ')
               for row in step.samples)
  before = trees.named(steps[0].before.params['policy'])
  after = trees.named(jax.device_get(state.params['policy']))
  same = {name: np.array_equal(x, after[name]) for name, x in before.items()}
  assert all(ok == name.startswith('visual/') for name, ok in same.items())


def test_entropy_is_off_and_then_fades(texts):
  coefficients = [texts[0].knobs(_Nothing, k)['coef/entropy'] for k in range(5)]
  np.testing.assert_allclose(
      coefficients, [0, 0, .02, .018, .0162], rtol=1e-6)


class _Nothing:

  @staticmethod
  def named():
    return {}


def test_told_says_what_there_is_to_see(texts):
  """The same problems: the text has the digits, the trace is the solver's."""
  lines = [json.loads(line) for line in epath.Path(
      texts[0]._ctx.files['text']).read_text().splitlines()]
  source = datasets.open_split(texts[0]._ctx.config, 'train')
  world = {example.uid: example for example in (source[i] for i in range(64))}
  for line in lines:
    example = world[line['uid']]
    digits = ','.join(map(str, example.meta['scene']['digits']))
    assert line['problem'] == (
        f'Digits {digits}. ' + example.question.removeprefix('<image>'))
    assert not line['images'] and line['answer'] == example.answer
    (solved,), _ = traces.solved([example], None, 'base')
    assert line['completion'] == solved.completions[0]


def test_a_stage_reads_a_file_of_its_own(shrink, open_run, tmp_path):
  """Not the mixture of the run; without completions."""
  file = tmp_path / 'text.jsonl'
  file.write_text(''.join(json.dumps(
      {'problem': f'What is {i}+1?', 'answer': str(i + 1)}) + '\n'
                          for i in range(8)))
  one = begun(('trl',), None, shrink, open_run, tmp_path / 'run',
              data=str(file))
  pairs = one.rollouts.next(one.start.state, 0).prompted.pairs
  assert len(pairs) == N and all(
      example.question == f'What is {int(example.answer) - 1}+1?'
      for example, _ in pairs)


def test_m22_a_file_that_is_not_there_is_said_before_anything_runs():
  with pytest.raises(ValueError, match='none.jsonl: no such file'):
    runs.commanded('revisual_r1', ['--config.trl.data=none.jsonl'],
                   change=lambda c: setattr(c, 'stages', ('text', 'trl')))


# The config.


@pytest.mark.parametrize('arg, stages', [
    (None, ('text', 'cold_start', 'mrl', 'trl')), ('cs', ('text', 'cold_start')),
    ('cs_trl_mrl', ('text', 'cold_start', 'trl', 'mrl')),
    ('qwen2_5_vl_7b', ('cold_start', 'mrl', 'trl')),
    ('qwen2_5_vl_7b,cs_trl', ('cold_start', 'trl'))])
def test_orders_of_stages(arg, stages):
  assert runs.config('revisual_r1', arg).stages == stages


def test_the_papers_numbers_at_7b(tmp_path):
  (tmp_path / 'text.jsonl').write_text('{"problem": "1+1?", "answer": "2"}\n')
  c, plans = runs.commanded(
      'revisual_r1', [f'--config.trl.data={tmp_path}/text.jsonl'],
      'qwen2_5_vl_7b', change=lambda c: setattr(c, 'stages', ('mrl', 'trl')))
  for name in ('mrl', 'trl'):
    s = c[name]
    assert (s.prompts_per_step, s.samples_per_prompt, s.minibatches_per_step,
            s.max_new_tokens, s.top_p, s.optimizer.lr) == (
                512, 8, 4, 8192, .95, 1e-6)
    assert plans[name].objective.knobs['policy/dual_clip'] == 3.0
  assert c.mrl.kl.coefficient == 0 and c.trl.kl.coefficient == 2e-3
  assert c.mrl.select.kwargs.low == .03 and c.mrl.select.kwargs.high == .97
  assert tuple(c.trl.optimizer.freeze) == ('visual/.*',)
  assert not c.mrl.optimizer.freeze
  assert runs.config(
      'revisual_r1', 'qwen2_5_vl_7b').cold_start.optimizer.lr == 2e-5
  # 140 updates are 35 steps of 4; .985 an update.
  knobs = [plans['trl'].hooks['entropy'](
      {'coef/entropy': 0.0}, {}, {}, {}, k)[0]['coef/entropy']
           for k in (34, 35, 60)]
  np.testing.assert_allclose(knobs, [0, .02, .02 * .985**100], rtol=1e-6)


def test_paper_form_and_grpo():
  c, plans = runs.commanded('revisual_r1', [], 'paper')
  assert c.mrl.select.kwargs.form == 'paper' and not c.trl.select.kwargs
  knobs = [plans['mrl'].hooks['sharper'](
      dict(plans['mrl'].knobs), {}, {}, {}, k)[0]['select/temperature']
           for k in (0, 6, 12)]
  np.testing.assert_allclose(knobs, [1, .65, .3])
  assert runs.config('revisual_r1', 'grpo').mrl.select.fn is None or (
      resolve.finalise(runs.config('revisual_r1', 'grpo')).mrl.select.fn
      == 'keep_all')
  for bad in ('cs,cs_trl', 'paper,grpo'):
    with pytest.raises(ValueError, match='revisual_r1:.*take one of'):
      runs.config('revisual_r1', bad)


def test_every_ablation_is_a_command():
  for given in runs.ablations('revisual_r1'):
    final, _ = runs.commanded('revisual_r1', given)
    assert final.mrl.select.fn.endswith(':distil')
