"""Numbers on the page: what is whole stays whole, and what differs differs."""

from etils import epath
import pytest

from mmr1.reporting import audit
from mmr1.reporting import entries
from mmr1.reporting import reading
from mmr1.reporting import samples
from mmr1.reporting import scores


def sample(group, slot, reward):
  return {'stage': 'grpo', 'step': 1, 'group': group, 'slot': slot,
          'rewards': {'r': reward}, 'completion': f'{slot}', 'length': 131_072,
          'advantage': slot - 1.5}


def audited(rows):
  return audit.audit(reading.Run('run', epath.Path('run')), rows)


@pytest.mark.parametrize('value, shown', [
    (131_072, 131_072), (131_072.0, 131_072), (0.123456, 0.12346),
    (-3, -3), (1000.03, 1000.0), (1e300, 1e300), (True, None), ('nan', None)])
def test_whole_numbers_stay_whole(value, shown):
  assert entries.number(value) == shown


def test_lengths_of_samples_and_counts_of_evaluations_have_all_digits():
  run = reading.Run('run', epath.Path('run'))
  run.samples = [sample(0, 0, 1.0)]
  assert samples.collect([run], 10_000).index['length'] == [131_072]
  run.rows = [{'stage': 'grpo', 'step': 1, 'eval/accuracy': 0.51234,
               'eval/n': 12_345.0, 'eval/mmmu/n': 12_345.0,
               'eval/response_length': 23_456.7, 'eval/few/n': 64.0}]
  (table,) = scores.tables([run])
  assert dict(zip(table.columns, table.rows[0][3])) == {
      'accuracy': '0.5123', 'n': '12345', 'mmmu/n': '12345',
      'response_length': '23457', 'few/n': '64'}


def test_the_audit_sees_small_differences_of_large_rewards():
  made = audited([sample(group, slot, 1000 + 0.01 * slot)
                  for group in range(10) for slot in range(4)])
  (line,) = made.lines
  assert line.flat == 0 and line.high == 1000.03 and line.top == 0.25
  assert line.with_advantage == pytest.approx(1)
  assert not any('teaches nothing' in said for said in made.advice)


def test_the_audit_sees_no_difference_in_rounding():
  """.1 + .2 is not .3: such a reward is the same everywhere."""
  made = audited([sample(group, slot, 0.3 if slot else 0.1 + 0.2)
                  for group in range(10) for slot in range(4)])
  assert made.lines[0].flat == 1 and made.lines[0].with_advantage is None
  assert any('is 0.3 in all 40 samples' in said for said in made.advice)


def test_nothing_is_suspected_of_few_samples():
  assert not audited([sample(0, slot, None) for slot in range(2)]).advice
  made = audited([sample(0, slot, None) for slot in range(20)])
  assert made.advice == ['grpo, r: has no value in any sample.']
