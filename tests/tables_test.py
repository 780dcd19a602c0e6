"""The tables at the end of a run: one kind of stage each."""

from mmr1 import tables

POLICY = {
    'eval/accuracy': 0.5, 'eval/accuracy_low': 0.25, 'eval/accuracy_high': 0.75,
    'eval/accuracy_sampled': 0.25, 'eval/accuracy_sampled_low': 0.1,
    'eval/accuracy_sampled_high': 0.5, 'eval/response_length_sampled': 7.25,
    'eval/n': 16}


def test_stages_of_the_policy_have_the_table_they_had():
  table, = tables.of({'base': POLICY, 'think': POLICY})
  assert table.columns == ('stage', 'greedy', 'sampled', 'n', 'length')
  assert table.title == 'accuracy on held-out problems (95% interval)'
  assert table.rows == [
      (name, '0.500 (0.25-0.75)', '0.250 (0.10-0.50)', '16', '7.2')
      for name in ('base', 'think')]


def test_stages_of_other_models_have_their_own():
  reward = {'eval/reward': 0.41, 'eval/n': 64.0}
  ap = {'eval/ap': 0.3, 'eval/ap_low': 0.2, 'eval/ap_high': 0.4}
  first, second, third = tables.of(
      {'base': POLICY, 'pretrain': reward, 'detect': ap, 'nft': reward})
  assert first.rows[0][0] == 'base' and len(first.rows) == 1
  # Stages with the same metrics share a table, in the order of the run.
  assert second.columns == ('stage', 'reward', 'n')
  assert second.rows == [('pretrain', '0.410', '64'), ('nft', '0.410', '64')]
  # Bounds stand beside what they bound.
  assert third.columns == ('stage', 'ap')
  assert third.rows == [('detect', '0.300 (0.20-0.40)')]


def test_a_run_without_evaluations_has_none():
  assert tables.of({}) == []
