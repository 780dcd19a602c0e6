"""Curves on the axis of minutes."""

from etils import epath

from mmr1.reporting import curves
from mmr1.reporting import reading


def test_every_row_has_minutes_of_its_own(tmp_path):
  """Steps of .3 s three days after the first row: areas are sums of what is at
  the same place, so that two rows there would be one of twice the height."""
  run = reading.Run('run', epath.Path(tmp_path))
  run.rows = [{'stage': 'grpo', 'step': k, 'time': (k > 1) * 259_200 + k * 0.3,
               'time/sample_s': 0.3, 'loss': 1 / 3} for k in range(1, 301)]
  made = curves.series(run)
  assert len({*made.minutes}) == 300
  assert made.minutes[0] == 0 and abs(made.minutes[-1] - 4321.495) < 1e-3
  assert made.columns['loss'][0] == 0.333333  # what a screen shows
