"""Plans of stages that make pictures, and what is said of those without."""

import io

import pytest
from rich import console as rich_console

from configs import dino_r1
from configs import uniworld_v2
from mmr1 import plan
from mmr1 import resolve
from mmr1.planning import chips
from mmr1.planning import estimate
from mmr1.planning import flow


def planned(arg=None, **changes):
  c = uniworld_v2.get_config(arg)
  c.update_from_flattened_dict(changes)
  return estimate.plan(resolve.finalise(c), chips.topology('h100:2'))


@pytest.mark.parametrize('arg, changes', [
    (None, {}), ('paper', {}), ('flow_grpo', {}), ('dpo', {}),
    ('paper', {'nft.minibatches_per_step': 2, 'nft.chunks_per_minibatch': 3})])
def test_what_a_round_computes(arg, changes):
  """Counted in what jax traced as by the formula, and the update not counted
  more often than it is run."""
  stages = planned(arg, **changes)['stages']
  assert set(stages['pretrain']['programs']) == {'update'}
  assert set(stages['nft']['programs']) == {'sample', 'update'}
  for stage in stages.values():
    assert stage['kind'] == 'flow'
    for name, row in stage['programs'].items():
      # Adapters, and what XLA traces of norms and sums, are in no formula.
      assert row['flops'] == pytest.approx(row['flops_by_formula'], rel=.1), (
          name)
  assert stages['nft']['programs']['update']['runs'] == (
      changes.get('nft.minibatches_per_step', 1))


def test_what_a_round_holds():
  """All of the tiny one trains in float32: parameters, two moments, the average
  and the old ones, and the reference beside; of the paper's, adapters alone."""
  stages = planned()['stages']
  one = stages['nft']['held']
  assert one['state'] == pytest.approx(5 * one['reference'], rel=.01)
  assert stages['pretrain']['held']['reference'] == 0  # nothing reads it
  paper = planned('paper')['stages']['nft']['held']
  assert paper['reference'] < paper['state'] / 20


def test_a_velocity_by_hand():
  # Two pictures, of one prompt, of 2 x 2 patches of 1 pixel of 1 channel, D =
  # 2, one layer, 3 tokens. Products of a layer 2 * 4 * 14 = 112 a patch, in and
  # out 4 * 2 = 8: 2 * 4 * 120 = 960, and the source's 4 * 2 * 2 = 16.
  # Modulation 2 * 4 * (2 * (6 + 4) + 1) = 168; the condition's k and v 4 * 3 *
  # 4 = 48; scores 4 * 2 * 4 * (4 + 3) * 2 = 448.
  c = flow.dit.Config(size=2, patch=1, channels=1, source=True, width=2,
                      layers=1, heads=1, vocabulary=9, tokens=3)
  assert flow.forward(c, 1, 2) == {
      'pictures': 976, 'modulation': 168, 'condition': 48, 'scores': 448}


def shown(made):
  out = io.StringIO()
  plan.show(made, rich_console.Console(file=out, width=160))
  return out.getvalue()


def test_what_is_not_planned_is_said():
  made = planned('judge')
  assert list(made['unplanned']) == ['nft']
  text = shown(made)
  assert 'nft: flow: judges.editor is not planned' in text
  assert 'sample' in text and 'update' in text
  assert planned()['unplanned'] == {}


def test_a_detector_is_refused_by_its_kind():
  with pytest.raises(ValueError, match="nothing to plan.*dino_r1.*: detect: not "
                     "planned: a plan knows no programs of a detector"):
    estimate.plan(resolve.finalise(dino_r1.get_config()),
                  chips.topology('h100:1'))
