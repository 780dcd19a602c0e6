"""Evaluation: intervals, parsers, cards, and files of text alone."""

import json

import numpy as np
import pytest

from configs import common
from mmr1 import context
from mmr1 import grades
from mmr1 import log
from mmr1 import records
from mmr1 import resolve
from mmr1 import significance
from mmr1 import text
from mmr1.rewards import pool
from mmr1.stages import evaluate


@pytest.mark.parametrize('correct, n, low, high', [
    # p = .8, z^2 = 3.84146: centre (.8 + .192073) / 1.384146 = .716740,
    # half 1.959964 / 1.384146 * sqrt(.016 + .0096037) = .226577.
    (8, 10, 0.490163, 0.943317),
    # p = 0: centre = half = (z^2 / 2n) / (1 + z^2 / n) = .192073 / 1.384146.
    (0, 10, 0.0, 0.277533),
    (10, 10, 0.722467, 1.0),
    # p = .5, n = 500: half 1.959964 / 1.0076829 * sqrt(.0005 + 3.8415e-6).
    (250, 500, 0.456341, 0.543659),
])
def test_wilson_by_hand(correct, n, low, high):
  np.testing.assert_allclose(
      significance.wilson(correct, n), (low, high), atol=1e-5)


def test_wilson_stays_between_0_and_1_and_covers():
  for n in range(1, 200):  # rounding once gave -5.6e-17 for 0 of 2
    assert 0.0 <= significance.wilson(0, n)[0] < 1e-15
    assert 1.0 - 1e-15 < significance.wilson(n, n)[1] <= 1.0
  # Of 4000 draws of 50 at p = .3, 95% intervals hold p; 3 sigma are 1%, and
  # for this n and p the exact coverage is 95.7%.
  draws = np.random.default_rng(0).binomial(50, 0.3, 4000)
  held = [low <= 0.3 <= high for low, high in (
      significance.wilson(int(k), 50) for k in draws)]
  assert 0.94 < np.mean(held) < 0.97


def sample(length, truncated=False):
  return records.Sample(
      text='', tokens=(), kinds=(), length=length, truncated=truncated,
      example=records.Example(uid=0), uid=0, group=0, slot=0)


def test_summary_by_hand():
  marks = [grades.Grade(*grade) for grade in (
      ('7', True), ('8', False, 'ran out of time'), (None, False),
      ('1', True))]
  samples = [sample(2), sample(4), sample(8, True), sample(2)]
  result = grades.summary(marks, samples, '_sampled')
  assert result['eval/accuracy_sampled'] == 0.5  # 2 of 4
  assert result['eval/response_length_sampled'] == 4.0  # 16 / 4
  assert result['eval/truncated_frac_sampled'] == 0.25
  assert result['eval/unparsed_frac_sampled'] == 0.25
  assert result['eval/unchecked_frac_sampled'] == 0.25
  assert result['eval/n'] == 4
  assert result['eval/accuracy_sampled_low'] == significance.wilson(2, 4)[0]


@pytest.fixture
def config(shrink):
  c = shrink(common.get_base())
  c.stages = ('grpo',)
  c.grpo = common.overlay(c.rl, steps=1, max_new_tokens=8)
  return c


def opened(config, open_run, folder):
  ctx, _ = open_run(config, folder)
  return ctx, evaluate.Evaluation(ctx, ctx.config.evaluation)


def test_m19_the_same_parameters_the_same_metrics_and_a_card(
    config, open_run, tmp_path):
  ctx, one = opened(config, open_run, tmp_path / 'run')
  first = one(ctx.base, 'base', 0)
  second = evaluate.Evaluation(ctx, ctx.config.evaluation)(ctx.base, 'x', 3)
  assert first == second
  assert first['eval/n'] == 6
  # The random model runs into the cap of 8 nearly always.
  assert 4 < first['eval/response_length'] <= 8
  for view in ('', '_sampled'):
    n, low = first['eval/n'], first[f'eval/accuracy{view}_low']
    correct = round(first[f'eval/accuracy{view}'] * n)
    assert low == significance.wilson(correct, n)[0]
  cards = [json.loads((tmp_path / 'run' / 'eval' / name).read_text())
           for name in ('base_0.json', 'x_3.json')]
  assert cards[0]['stage'] == 'base' and cards[1]['step'] == 3
  same = lambda card: {k: v for k, v in card.items()
                       if k not in ('stage', 'step')}
  assert same(cards[0]) == same(cards[1])
  card = cards[0]
  assert str(text.PARSER_VERSION) in card['parser']
  assert 'lenient' in card['parser'] and card['judge'] is None
  assert card['n'] == 6 and card['metrics'] == first
  assert card['sampling']['temperature'] == 1.0
  assert card['pixels'] == [512, 16384] and card['prompt_hash']
  assert card['broken'] == 0
  assert card['subset'] == {
      'split': 'eval', 'mixture': ['digits'], 'weights': [1.0], 'seed': 0}
  rows = log.read_rows(tmp_path / 'run' / 'eval' / 'base_0.jsonl')
  assert len(rows) == 12 and len({row['uid'] for row in rows}) == 6
  for row in rows:
    assert {'source', 'text', 'extracted', 'gold', 'correct', 'length',
            'truncated'} <= set(row)
  for view, suffix in (('greedy', ''), ('sampled', '_sampled')):
    part = [row for row in rows if row['decoding'] == view]
    assert sum(row['correct'] for row in part) / 6 == (
        first[f'eval/accuracy{suffix}'])
    assert np.mean([row['length'] for row in part]) == (
        first[f'eval/response_length{suffix}'])


def test_m3_the_size_of_a_batch_changes_nothing(config, open_run, tmp_path):
  ctx, one = opened(config, open_run, tmp_path / 'a')
  whole = one(ctx.base, 'base', 0)
  config.evaluation.prompts_per_batch = 4  # 6 problems: 4, then 2 and padding
  ctx, one = opened(config, open_run, tmp_path / 'b')
  assert one(ctx.base, 'base', 0) == whole
  read = lambda part: [
      row['text'] for row in log.read_rows(
          tmp_path / part / 'eval' / 'base_0.jsonl')]
  assert read('a') == read('b')


class Watched:
  """A sampler that notes how it is called."""

  def __init__(self, inner):
    self.inner, self.publish, self.calls = inner, inner.publish, []

  def __call__(self, params, prompts, *args, group, **kwargs):
    self.calls.append((prompts.tokens.shape[0], group))
    return self.inner(params, prompts, *args, group=group, **kwargs)


def test_several_samples_share_their_prompt_and_give_metrics_at_k(
    config, open_run, tmp_path):
  _, one = opened(config, open_run, tmp_path / 'single')
  one(one._ctx.base, 'base', 0)
  config.evaluation.samples_per_problem, config.evaluation.at_k = 3, (1, 2, 3)
  ctx, one = opened(config, open_run, tmp_path / 'run')
  ctx.__dict__['sampler'] = watched = Watched(ctx.sampler)
  # The random model is never right: a rule that it satisfies now and then.
  one._grade = lambda s: grades.Grade(s.text[:1] or None, len(s.text) % 2 == 0)
  found = one(ctx.base, 'base', 0)
  assert set(watched.calls) == {(2, 1), (2, 3)}  # two prompts, never repeated
  rows = log.read_rows(tmp_path / 'run' / 'eval' / 'base_0.jsonl')
  sampled = [row for row in rows if row['decoding'] == 'sampled']
  assert len(rows) == 6 + 18 and found['eval/n'] == 6
  assert [row['sample'] for row in sampled] == [0, 1, 2] * 6
  # The first of three is the only one of one: noise follows uid and sample.
  single = log.read_rows(tmp_path / 'single' / 'eval' / 'base_0.jsonl')
  assert [row['text'] for row in sampled if not row['sample']] == [
      row['text'] for row in single if row['decoding'] == 'sampled']
  assert len({row['text'] for row in sampled}) > 6
  right = np.asarray([row['correct'] for row in sampled]).reshape(6, 3)
  assert 0 < right.mean() < 1
  assert found['eval/accuracy_sampled'] == pytest.approx(right.mean())
  assert found['eval/mean_at_3'] == pytest.approx(right.mean())
  assert found['eval/pass_at_3'] == right.any(1).mean()
  assert found['eval/pass_at_1'] == pytest.approx(right.mean())
  assert found['eval/mean_at_1'] == found['eval/maj_at_1'] == right[:, 0].mean()
  for k in (1, 2, 3):
    for name in ('pass', 'maj', 'mean'):
      key = f'eval/{name}_at_{k}'
      assert found[f'{key}_low'] <= found[key] <= found[f'{key}_high']
  card = json.loads((tmp_path / 'run' / 'eval' / 'base_0.json').read_text())
  assert card['ks'] == [1, 2, 3] and card['samples_per_problem'] == 3
  for row in rows:  # what a browser of records shows
    assert row['prompt'] and len(row['images']) == 1
    assert (tmp_path / 'run' / 'samples' / 'images' / row['images'][0]).exists()


def test_strict_and_lenient(config, open_run, tmp_path):
  graded = {}
  for parser in grades.PARSERS:
    config.evaluation.parser = parser
    _, one = opened(config, open_run, tmp_path / parser)
    example = records.Example(uid=0, question='?', answer='7')
    graded[parser] = [
        one._grade(records.Sample(
            text=said, tokens=(), kinds=(), length=1, truncated=False,
            example=example, uid=0, group=0, slot=0))
        for said in ('<answer>7</answer>', 'so the answer is 7', '<think>7',
                     'I like long walks on the beach and 7 of them')]
  assert graded['strict'] == [
      ('7', True, ''), (None, False, ''), (None, False, ''), (None, False, '')]
  assert graded['lenient'] == [
      ('7', True, ''), ('7', True, ''), (None, False, ''), (None, False, '')]


def test_m6_a_file_of_text_alone(config, open_run, tmp_path):
  lines = [json.dumps(dict(problem=f'{i}+1=?', answer=i + 1))
           for i in range(40)]
  lines[3] = '{"problem": "no answer"}'
  lines[5] = '{half'
  (tmp_path / 'text.jsonl').write_text('\n'.join(lines))
  config.data.path = str(tmp_path / 'text.jsonl')
  config.data.eval_path = str(tmp_path / 'text.jsonl')
  config.evaluation.examples = 100
  ctx, one = opened(config, open_run, tmp_path / 'run')
  result = one(ctx.base, 'base', 0)
  assert result['eval/n'] == 38
  assert np.isfinite(list(result.values())).all()
  card = json.loads((tmp_path / 'run' / 'eval' / 'base_0.json').read_text())
  assert card['broken'] == 2
  rows = log.read_rows(tmp_path / 'run' / 'eval' / 'base_0.jsonl')
  assert rows[3]['source'].endswith('text.jsonl:5')  # line 4 is broken


def conversations(path, ask, **columns):
  path.write_text('\n'.join(json.dumps(dict(
      messages=[{'role': 'user', 'content': f'{ask} {i}'}], answer=i,
      **columns)) for i in range(4)))
  return str(path)


def test_m19_the_hash_covers_what_was_asked(config, open_run, tmp_path):
  """Conversations have no question; an instruction changes the prompt."""
  hashes = []
  for name, ask, instruction in (
      ('a', 'plus', ''), ('b', 'plus', ''), ('c', 'minus', ''),
      ('d', 'plus', 'Be brief.')):
    config.data.path = conversations(tmp_path / f'{name}.jsonl', ask)
    config.data.eval_path = config.data.path
    config.data.instruction = instruction
    ctx, one = opened(config, open_run, tmp_path / name)
    one(ctx.base, 'base', 0)
    card = json.loads((tmp_path / name / 'eval' / 'base_0.json').read_text())
    assert card['subset'] == {'file': config.data.path}
    hashes.append(card['prompt_hash'])
  assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_m26_a_bad_gold_answer_is_skipped_named_and_counted(
    config, open_run, tmp_path):
  path = tmp_path / 'data.jsonl'
  rows = [dict(problem=f'{i}+1=?', answer=i + 1) for i in range(4)]
  rows[1] |= dict(answer='blue', answer_type='number')
  rows[2] |= dict(answer='purple', choices=['red', 'green'])
  path.write_text('\n'.join(map(json.dumps, rows)))
  config.data.path = config.data.eval_path = str(path)
  ctx, one = opened(config, open_run, tmp_path / 'run')
  warned = []
  ctx.logger.warn = warned.append
  assert one(ctx.base, 'base', 0)['eval/n'] == 2
  card = json.loads((tmp_path / 'run' / 'eval' / 'base_0.json').read_text())
  assert card['broken'] == 2
  assert 'data.jsonl:2' in warned[0] and 'blue' in warned[0]
  assert 'data.jsonl:3' in warned[1] and 'purple' in warned[1]
  # As many as were asked for, where there are enough.
  config.evaluation.examples = 2
  path.write_text('\n'.join(map(json.dumps, [*rows, rows[0]])))
  ctx, one = opened(config, open_run, tmp_path / 'two')
  assert one(ctx.base, 'base', 0)['eval/n'] == 2
  # Nearly none is no evaluation.
  for left in ([], rows[:1]):
    path.write_text('\n'.join(map(json.dumps, [rows[1]] * 3 + left)))
    ctx, one = opened(config, open_run, tmp_path / f'none_{len(left)}')
    with pytest.raises(ValueError, match='(?s)3 of the .* cannot be used.*blue'):
      one(ctx.base, 'base', 0)


@pytest.mark.parametrize('failure', [
    pool.TimedOut, pool.WorkerDied, pool.RemoteError])
def test_m10_answers_that_cannot_be_checked_are_wrong_counted_and_shown(
    failure, config, open_run, tmp_path, monkeypatch):
  ctx, one = opened(config, open_run, tmp_path / 'run')
  warned = []
  ctx.logger.warn = warned.append
  def fail(*args):
    raise failure('on purpose')
  monkeypatch.setattr(evaluate.answer, 'match', fail)
  result = one(ctx.base, 'base', 0)
  assert result['eval/accuracy'] == 0.0
  assert result['eval/unchecked_frac'] == 1.0
  assert result['eval/unchecked_frac_sampled'] == 1.0
  assert '12 answers' in warned[0] and 'on purpose' in warned[0]
  rows = log.read_rows(tmp_path / 'run' / 'eval' / 'base_0.jsonl')
  assert all(row['error'] == 'on purpose' for row in rows)


@pytest.mark.parametrize('changes, message', [
    (dict(parser='loose'), r"evaluation.parser: got 'loose'"),
    (dict(examples=0), r'evaluation.examples: got 0'),
    (dict(prompts_per_batch=-1), r'evaluation.prompts_per_batch: got -1'),
    (dict(max_new_tokens=0), r'evaluation.max_new_tokens: got 0'),
    (dict(temperature=0.0), r'evaluation.temperature: got 0.0'),
    (dict(top_p=1.5), r'evaluation: .*top_p=1.5'),
    (dict(top_k=-2), r'evaluation: .*top_k=-2'),
    (dict(samples_per_problem=0), r'samples_per_problem: got 0'),
    (dict(samples_per_problem=2, at_k=(1, 3)), r'at_k: got \(1, 3\) with'),
    (dict(at_k=(1,)), r'at_k: got \(1,\) with samples_per_problem=1'),
    (dict(benchmark='mmmu', benchmark_path='gone.parquet', parser='strict'),
     r'gone.parquet: no such file'),
])
def test_m22_settings_that_cannot_work(config, changes, message):
  config.evaluation.update(changes)
  with pytest.raises(ValueError, match=message):
    evaluate.check(resolve.finalise(config).evaluation)


def test_the_stage_evaluates_the_model_it_names(config, open_run, tmp_path):
  config.check = common.overlay(
      config.evaluate, init='base', examples=4, prompts_per_batch=4,
      max_new_tokens=8)
  config.stages = ('check',)
  ctx, plans = open_run(config, tmp_path / 'run')
  evaluate.run(ctx, 'check', ctx.config.check, plans['check'])
  done = ctx.checkpoints.done('check')['eval']
  assert done['eval/n'] == 4
  (row,) = log.read_rows(tmp_path / 'run' / 'metrics.jsonl')
  assert row['stage'] == 'check' and row['eval/accuracy'] == (
      done['eval/accuracy'])
  # It makes no model: the next stage starts from what was there before.
  assert 'evaluate' not in context.TRAINS


def test_m19_a_benchmark_beside_the_runs_own_problems(
    config, open_run, tmp_path):
  """Official rules with what chance gave counted, and the strict mode."""
  from PIL import Image
  Image.new('RGB', (56, 28)).save(tmp_path / 'a.png')
  path = tmp_path / 'star.jsonl'
  path.write_text('\n'.join(json.dumps(dict(
      id=f'v_{i}', question='<image 1> ?', options="['p', 'q']", answer='B',
      image_1='a.png', question_type='multiple-choice')) for i in range(4)))
  config.evaluations.mmmu = dict(
      benchmark='mmmu', benchmark_path=str(path), parser='official')
  config.evaluations.mmmu_strict = dict(
      benchmark='mmmu', benchmark_path=str(path), parser='strict')
  config.evaluation.also = ('mmmu', 'mmmu_strict')
  ctx, one = opened(config, open_run, tmp_path / 'run')
  result = one(ctx.base, 'base', 0)
  assert result['eval/n'] == 6 and result['eval/mmmu/n'] == 4
  # The random model names no choice: the official rule draws, strict does not.
  assert result['eval/mmmu/chance_frac'] == 1.0
  assert result['eval/mmmu_strict/accuracy'] == 0.0
  assert result['eval/mmmu_strict/chance_frac'] == 0.0
  rows = log.read_rows(tmp_path / 'run' / 'eval' / 'base_0_mmmu.jsonl')
  assert {row['by'] for row in rows} == {'chance'}
  assert np.mean([row['score'] for row in rows if row['decoding'] == 'greedy']
                 ) == result['eval/mmmu/accuracy']
  card = json.loads(
      (tmp_path / 'run' / 'eval' / 'base_0_mmmu.json').read_text())
  assert card['matcher'].startswith('mmr1.rewards.official.official')
  assert card['subset'] == {'benchmark': 'mmmu', 'file': str(path)}
  config.evaluations.mmmu.parser = 'lenient'
  with pytest.raises(ValueError, match="got 'lenient' with benchmark='mmmu'"):
    opened(config, open_run, tmp_path / 'other')
