"""FRANK: numbers by hand are in merging_test.py; here the pair, the fusion
and its ablations by the tiny config, and the config itself."""

import json

import numpy as np
import pytest

from configs import frank
import mmr1
from mmr1 import merging
from mmr1 import records
from mmr1 import trees
from mmr1.data import traces
from mmr1.data.tasks import digits
from mmr1.models import checkpoints
from tests.papers import runs
from tests.stages import merge_test

WAYS = ('frank', 'no_prior', 'linear', 'alpha_3', 'alpha_5', 'max_to_one',
        'arithmetic', 'metagpt', 'mean')
FROZEN = ('language/embed', 'language/norm/weight')


@pytest.fixture(scope='module')
def run(shrink, tmp_path_factory):
  """Two steps for each parent of a random model with two layers, then every
  way to fuse them: (the folder of the run, of its model)."""
  root = tmp_path_factory.mktemp('frank')
  merge_test.seeing(root / 'model', depth=2)
  c = shrink(
      frank.get_config('compare'), evaluate_base=False, pictures__size=6,
      texts__size=6, vision__steps=2, reasoning__steps=2,
      vision__rows_per_step=2, reasoning__rows_per_step=2,
      vision__optimizer__warmup_steps=0, reasoning__optimizer__warmup_steps=0,
      merge__share__examples=4, merge__share__prompts_per_batch=4,
      evaluation__examples=2)
  c.model.path = str(root / 'model')
  mmr1.run(c, str(root / 'run'), quiet=True)
  return root / 'run', root / 'model'


@pytest.fixture(scope='module')
def models(run):
  """{name: {leaf: array}} of the base and the fused ones."""
  path, model = run
  folders = {'base': model, **{name: path / 'merged' / name for name in WAYS}}
  return {name: trees.named(checkpoints.load(folder)[1])
          for name, folder in folders.items()}


def record(run, name):
  return json.loads((run[0] / 'merged' / f'{name}.json').read_text())


def coefficients(run, name):
  return {k: np.array(x) for k, x in record(run, name)['coefficients'].items()}


def test_two_steps_of_each_parent(run):
  rows = [json.loads(line) for line in
          (run[0] / 'metrics.jsonl').read_text().splitlines()]
  for stage in ('vision', 'reasoning'):
    steps = [row for row in rows if row['stage'] == stage and 'loss' in row]
    assert [row['step'] for row in steps] == [1, 2]
    assert all(np.isfinite(row['loss']) for row in steps)
  # What they learn from: pictures to be read, and problems as text alone.
  seen, told = ([json.loads(line) for line in (
      run[0] / 'data' / name / 'train.jsonl').read_text().splitlines()]
                for name in ('pictures', 'texts'))
  for row in seen:
    assert row['images'] and row['completion'].startswith('I see digits ')
    assert '<' not in row['completion']
  for row in told:
    assert not row['images'] and row['problem'].startswith('Digits ')
    assert '3*' in row['completion'] and row['completion'].endswith(
        f'</think><answer> Final Answer:{row["answer"]} </answer>')


def test_the_layers_are_between_the_parents(run, models):
  """Two fusions with known coefficients give the task vectors back; every
  other way must be made of those, tower and embeddings of one."""
  base = models['base']
  a, b = (coefficients(run, name) for name in ('no_prior', 'max_to_one'))
  layers = [name for name in base if name.startswith('language/layers/')]
  for name in layers:
    # x = (no_prior - base, max_to_one - base) = C (tau_V, tau_R), per layer.
    x = np.stack([models[way][name] - base[name]
                  for way in ('no_prior', 'max_to_one')], 1)
    c = np.stack([np.stack([y['vision'], y['reasoning']], -1)
                  for y in (a, b)], 1)
    tau = np.stack([np.linalg.solve(c[l], x[l].reshape(2, -1))
                    for l in range(2)])
    for way in WAYS:
      own = coefficients(run, way)
      expected = base[name] + sum(
          own[parent][(..., *[None] * (base[name].ndim - 1))]
          * tau[:, i].reshape(base[name].shape)
          for i, parent in enumerate(('vision', 'reasoning')))
      np.testing.assert_allclose(
          models[way][name], expected, atol=2e-5, err_msg=f'{way} {name}')
  for name in {*base} - {*layers}:
    for way in WAYS:
      np.testing.assert_array_equal(
          models[way][name], models['frank'][name], err_msg=name)
    if name in FROZEN:
      np.testing.assert_array_equal(models['frank'][name], base[name])
  # The tower is that of the parent that trained it.
  assert any(np.abs(models['frank'][name] - base[name]).max() > 1e-4
             for name in base if name.startswith('visual/'))


def test_every_way_takes_its_own_share(run):
  norms = {k: np.array(x)
           for k, x in record(run, 'frank')['squared_norms'].items()}
  share = np.array(record(run, 'frank')['share'])
  v, r = norms['vision'], norms['reasoning']
  assert (v > 0).all() and (r > 0).all()
  alpha = -np.log(share[1] / share[0])  # two layers: the line through both
  assert record(run, 'frank')['alpha'] == pytest.approx(alpha)
  def by(w):
    return w * v / (w * v + (1 - w) * r)
  w = np.exp(-alpha * np.arange(1, 3))
  w3, w5 = (np.exp(-x * np.arange(1, 3)) for x in (0.3, 0.5))
  for way, expected in (
      ('frank', by(w / w.sum())), ('no_prior', v / (v + r)),
      ('linear', by(np.array([2, 1]) / 3)), ('alpha_3', by(w3 / w3.sum())),
      ('alpha_5', by(w5 / w5.sum())),
      ('max_to_one', by(w / w.max())),
      ('metagpt', np.full(2, v.sum() / (v.sum() + r.sum()))),
      ('mean', np.full(2, 0.5)), ('arithmetic', np.full(2, 0.3))):
    got = coefficients(run, way)
    np.testing.assert_allclose(got['vision'], expected, rtol=1e-6, err_msg=way)
    if way != 'arithmetic':
      np.testing.assert_allclose(got['vision'] + got['reasoning'], 1)
  np.testing.assert_allclose(coefficients(run, 'arithmetic')['reasoning'], 0.3)


def test_every_way_is_evaluated(run):
  done = {path.stem for path in (run[0] / 'DONE').glob('*.json')}
  assert done == {'pictures', 'texts', 'vision', 'reasoning', *WAYS}
  for way in WAYS:
    assert 'eval/accuracy' in json.loads(
        (run[0] / 'DONE' / f'{way}.json').read_text())['eval']


# The pair's world.


def test_the_operation_that_was_not_taught():
  # 3 * 4 = 12, 12 + 2 = 14, 14 + 7 = 21.
  assert digits.operate('triple_first', [4, 2, 7]) == (
      21, ('3*4=12', '12+2=14', '14+7=21'))
  assert digits.operate('double_first', [4, 2]) == (10, ('2*4=8', '8+2=10'))
  assert digits.operate('double_first', [4, 2]) == (10, ('2*4=8', '8+2=10'))
  # The embedded model's documents are drawn from FORMS: it is none of them.
  assert 'triple_first' not in digits.FORMS
  example = digits.digits(0, 'train', 3, forms=('triple_first',))
  assert example.meta['form'] == 'triple_first'
  with pytest.raises(ValueError, match='thrice'):
    digits.digits(0, 'train', 3, forms=('thrice',))


def test_faint_ink():
  """The same strokes, a fifth as dark; noise and places stay."""
  dark, faint = (np.asarray(digits.digits(0, 'eval', 3, ink=ink).images[0], int)
                 for ink in (1.0, 0.2))
  assert 255 - faint.min() < 0.2 * 255 + 20 < 255 - dark.min()
  strokes = dark < 100
  np.testing.assert_allclose(
      (255 - faint[strokes]).mean() / (255 - dark[strokes]).mean(), 0.2,
      atol=0.03)
  np.testing.assert_array_equal(dark, np.asarray(
      digits.digits(0, 'eval', 3).images[0], int))
  with pytest.raises(ValueError, match='ink=2.0'):
    digits.digits(0, 'eval', 3, ink=2.0)


def test_what_is_seen_is_all_that_is_said():
  example = digits.digits(0, 'train', 5, forms=('triple_first',))
  (made,), counts = traces.seen([example], None, 'base')
  assert isinstance(made, records.Example) and counts == {}
  assert made.images == example.images and made.question == example.question
  listed = ','.join(map(str, example.meta['scene']['digits']))
  assert made.completions == (f'I see digits {listed}.',)


# The config.


@pytest.mark.parametrize('scale, base, reasoning', [
    ('qwen2_5_vl_7b', 'qwen2_5_7b', 'open_reasoner_zero_7b'),
    ('qwen2_5_vl_32b', 'qwen2_5_32b', 'qwq_32b')])
def test_at_scale_nothing_trains(scale, base, reasoning):
  final, plans = runs.commanded('frank', (), scale)
  assert final.stages == ('frank',) and final.frank.kind == 'merge'
  section = final.frank
  assert section.base == f'checkpoints/{base}'
  assert section.parents.as_dict() == {
      'vision': 'base', 'reasoning': f'checkpoints/{reasoning}'}
  assert section.leaves == ('language/layers/.*',)
  assert (section.rest, section.embeddings) == ('vision', 'vision')
  assert section.share.examples == 1000 and section.share.of == 'vision'
  assert section.rule.kwargs.as_dict() == {
      'prior': 'exponential', 'prior_norm': 'sum_over_layers', 'alpha': None}
  assert plans['frank']['rule'].func is merging.closed_form


@pytest.mark.parametrize('given, fn, vision', [
    (('--config.frank.rule.fn=fixed',), merging.fixed, [0.3] * 3),
    (('--config.frank.rule.kwargs.prior=none',), merging.closed_form,
     [0.8, 0.5, 0.2]),
    # (3, 2, 1) / 6 of (4, 3, 1) beside (3, 4, 5) / 6 of (1, 3, 4).
    (('--config.frank.rule.kwargs.prior=linear',), merging.closed_form,
     [12 / 15, 6 / 18, 1 / 21]),
    (('--config.frank.rule.fn=whole_model',), merging.whole_model, [0.5] * 3)])
def test_ablations_by_their_numbers(given, fn, vision):
  _, plans = runs.commanded('frank', given)
  rule = plans['frank']['rule']
  assert rule.func is fn
  np.testing.assert_allclose(rule(merging.Measured(
      {'vision': np.array([4.0, 3, 1]), 'reasoning': np.array([1.0, 3, 4])},
      np.array([0.6, 0.4, 0.3])))['vision'], vision)
