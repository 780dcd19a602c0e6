"""The runs of a paper's figure: which are started, kept, named when lost."""

import pathlib
import sys

from absl.testing import flagsaver
import pytest

from experiments import launch
from experiments import papers

ROWS = ('{"stage": "grpo_care", "step": %d, "grad_norm": 1.0, '
        '"reward/consistent/mean": 0.5, "reward/likelihood/mean": 0.25, '
        '"reward/result/mean": 0.125}\n')


@pytest.fixture
def out(tmp_path, monkeypatch):
  """Runs that are a line of Python: all end well but that of seed 1's GRPO."""
  monkeypatch.setattr(papers, 'ROOT', tmp_path / 'results')

  def command(paper, arm, seed, workdir):
    workdir.mkdir(parents=True)
    (workdir / 'metrics.jsonl').write_text(
        ROWS % 1 + ROWS % 2 + '{"stage": "grpo_care", "step": 2, '
        '"eval/accuracy": 0.5, "eval/accuracy_sampled": 0.25}\n')
    (workdir / 'FINISHED').write_text('{}')
    return [sys.executable, '-c', f'raise SystemExit({int(arm == "grpo")} * '
            f'{seed})']
  monkeypatch.setattr(papers, 'command', command)
  monkeypatch.setattr(launch, 'machine', lambda: launch.Machine(
      'cpu', 1, (0,), 8))
  papers.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(paper='grpo_care', seeds=['0', '1'],
                           work=str(tmp_path / 'work')):
    yield tmp_path / 'results' / 'grpo_care'


def test_what_ended_is_kept_and_what_did_not_is_run_again(out):
  with pytest.raises(SystemExit, match='grpo_care_grpo_1.log'):
    papers.main([])
  assert sorted(path.name for path in out.iterdir()) == [
      'grpo_0.json', 'grpo_care_0.json', 'grpo_care_1.json']
  papers.FLAGS.seeds = ['0']  # all of it is there: nothing is run
  papers.main([])
  lines = (out / 'summary.md').read_text().splitlines()
  assert lines[4].startswith('| grpo | 0 | 0.500 | 0.250 | 0.500, 0.500 |')
  assert (out / 'curves.png').exists()
  log = pathlib.Path(papers.FLAGS.work) / 'logs' / 'grpo_care_grpo_0.log'
  assert log.read_text().startswith('$ ')
