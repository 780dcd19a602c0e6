"""The tables of plans are those of the files."""

import json
import pathlib

import pytest

from experiments import plans

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'pods.md'


def test_the_page_has_the_table():
  inside = PAGE.read_text().split('<!-- PLANS -->')[1].split('<!-- /PLANS')[0]
  assert inside.strip() == plans.table()


def test_the_page_has_the_papers_table():
  inside = PAGE.read_text().split('<!-- PAPERS -->')[1].split('<!-- /PAPERS')[0]
  assert inside.strip() == plans.papers_table()


@pytest.mark.parametrize(
    'path', sorted(plans.PAPERS.glob('*.json')), ids=lambda path: path.stem)
def test_papers_fit_at_their_own_scale(path):
  plan = json.loads(path.read_text())
  # A config may have several, each with a name behind its own.
  assert f'/{path.name}' in plan['command']
  assert path.stem.startswith(plan['config'])
  assert f'configs/{plan["config"]}.py:{plan["scale"]}' in plan['command']
  for stage in plan['stages'].values():
    assert stage['complete']
    for row in stage['programs'].values():
      assert row['compiled'] and row['spare'] > .1


@pytest.mark.parametrize(
    'path', sorted(plans.PLANS.glob('*.json')), ids=lambda path: path.stem)
def test_plans_hold_what_they_promise(path):
  """Bytes of arguments within 2% of the formula, operations within 5%; caches
  and state are updated in place, and nobody gathers keys and values."""
  plan = json.loads(path.read_text())
  assert plan['command'].startswith('python -m mmr1.plan --config=configs/')
  for stage in plan.get('stages', {}).values():
    assert stage['complete']
    for name, row in stage['programs'].items():
      formula = row['arguments_by_formula']
      if row['compiled']:
        assert row['arguments'] == pytest.approx(
            sum(formula.values()), rel=.02)
        assert row['flops'] == pytest.approx(row['flops_by_formula'], rel=.05)
      if name == 'decode':
        assert row['aliased'] >= formula['cache']
        assert row['sent'] < formula['cache'] / 20  # of a token
      if name == 'update' and row['compiled']:
        assert row['aliased'] >= .98 * formula['state']
