"""The summary of Vision-R1's seeds: signs, and the machine of the runs."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent


def kept(folder, seed, start, end, **more):
  """The record of a seed, which is not run again; (greedy, sampled)."""
  stages = {'cold_start': start, 'think_long': end}
  (folder / f'seed{seed}_ci.json').write_text(json.dumps({
      'seed': seed, 'seconds': 9, 'jax': '1.2', 'curves': {}, **more,
      'evaluations': {
          stage: {'eval/accuracy': greedy, 'eval/accuracy_sampled': sampled,
                  'eval/response_length_sampled': 30.}
          for stage, (greedy, sampled) in stages.items()}}))


def test_the_summary_of_kept_records(tmp_path):
  """A loss has one sign. The machine is that of the runs; older records do not
  know its cores."""
  kept(tmp_path, 0, (.5, .5), (.45, .6), cores=77)
  kept(tmp_path, 1, (.5, .5), (.4, .7))
  done = subprocess.run(
      [sys.executable, '-m', 'experiments.vision_r1_seeds', '--seeds=0,1',
       '--arg=ci', f'--out={tmp_path}'], cwd=ROOT, capture_output=True,
      text=True)
  assert done.returncode == 0, done.stderr
  text = (tmp_path / 'summary_ci.md').read_text()
  assert ' --arg=ci`, jax 1.2; jax 1.2, 77 CPU cores.' in text
  assert ('greedy -7.5 points (least -10.0), sampled +15.0 (least +10.0).'
          in text)
