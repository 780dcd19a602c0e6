"""Size and opening time of a long run's report.

  python -m experiments.bench.report --out=runs/long [--steps=2000]

Writes a synthetic run (a row of metrics a step, groups of 5 samples with
pictures, 20,000 samples for 2,000 steps, of every tenth step 4 with numbers of
tokens, three evaluations of 500 problems with 5 answers each), makes its page
and says how large it is and how long that took. With --chromium=<path> and
playwright it opens the page, headless, and says when the samples could be used,
and when the curves in sight were drawn too.
"""

import json
import pathlib
import sys
import time
from typing import Any

from absl import app
from absl import flags
import numpy as np
from PIL import Image

from mmr1.reporting import page

_OUT = flags.DEFINE_string('out', None, 'Folder to write.', required=True)
_STEPS = flags.DEFINE_integer('steps', 2000, 'Of the stage.', lower_bound=8)
_CHROMIUM = flags.DEFINE_string('chromium', None, 'The browser.')

_WORDS = ('the', 'picture', 'shows', 'a', 'triangle', 'with', 'sides', 'angle',
          'so', 'we', 'add', 'both', 'and', 'get', 'wait', 'check', 'again')
_METRICS = 60
_PROBLEMS = 500


def write(path: pathlib.Path, steps: int, rng: np.random.Generator) -> None:
  """A run of one RL stage, 10 samples a step in groups of 5."""
  images = path / 'samples' / 'images'
  images.mkdir(parents=True, exist_ok=True)
  (path / 'config.json').write_text(json.dumps(
      {'name': 'long', 'scale': 'tiny', 'stages': ['grpo'],
       'grpo': {'kind': 'rl', 'steps': steps}}))
  names = ['reward/mean', 'kl', 'entropy', 'grad_norm', 'time/sample_s'] + [
      f'reward/part{i}/mean' for i in range(_METRICS - 5)]
  with open(path / 'metrics.jsonl', 'w') as file:
    for k in range(1, steps + 1):
      row = {'stage': 'grpo', 'step': k, 'time': 1e9 + 30 * k}
      row |= dict(zip(names, rng.random(len(names)).tolist()))
      file.write(json.dumps(row) + '\n')
  with open(path / 'samples' / 'grpo.jsonl', 'w') as file:
    for k in range(1, steps + 1):
      for group in range(2):
        name = f'{2 * k + group:016x}.png'
        small = rng.integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(small).resize((160, 160), 3).save(images / name)
        for slot in range(5):
          said = ' '.join(rng.choice(_WORDS, 150))
          value = float(rng.random() < 0.5)
          file.write(json.dumps({
              'stage': 'grpo', 'step': k, 'prompt': '<image>How large is it?',
              'images': [name], 'answer': '7', 'length': 160,
              'completion': f'<think>{said}</think><answer>7</answer>',
              'truncated': False, 'uid': 2 * k + group, 'group': group,
              'slot': slot, 'advantage': float(rng.normal()), 'reward': value,
              'rewards': {'result': value, 'format': 1.0},
              **({'tokens': tokens(said.split(), rng)}
                 if slot < 2 and k % 10 == 0 else {})}) + '\n')
  (path / 'eval').mkdir(exist_ok=True)
  for k in (0, steps // 2, steps):
    (path / 'eval' / f'grpo_{k}.jsonl').write_text(''.join(
        json.dumps(record(uid, sample, rng)) + '\n'
        for uid in range(_PROBLEMS) for sample in range(-1, 4)))


def tokens(said: list[str], rng: np.random.Generator) -> dict[str, Any]:
  """Numbers of each, of three digits."""
  def numbers():
    return [float(f'{x:.3g}') for x in rng.exponential(size=len(said))]
  return {'text': [f' {x}' for x in said], 'kind': 's' * len(said),
          'entropy': numbers(), 'logp': numbers()}


def record(uid: int, sample: int, rng: np.random.Generator) -> dict[str, Any]:
  """Of an evaluation; sample -1: greedy."""
  right = bool(rng.random() < 0.5)
  return {
      'uid': uid, 'prompt': '<image>How large is it?',
      'images': [f'{uid + 2:016x}.png'], 'source': f'file:{uid}',
      'decoding': 'greedy' if sample < 0 else 'sampled',
      'sample': max(0, sample), 'text': ' '.join(rng.choice(_WORDS, 150)),
      'extracted': '7', 'gold': '7' if right else '8', 'correct': right,
      'error': '', 'length': 150, 'truncated': False}


def opened(file: pathlib.Path, chromium: str) -> tuple[float, float, float]:
  """Seconds until the samples are there, until the curves are too, and those
  that the page's thread computed by then, however busy the machine is."""
  from playwright import sync_api  # only of those who measure this
  with sync_api.sync_playwright() as play:
    browser = play.chromium.launch(
        executable_path=chromium, args=['--no-sandbox'])
    tab = browser.new_page()
    session = tab.context.new_cdp_session(tab)
    session.send('Performance.enable', {'timeDomain': 'threadTicks'})
    began = time.perf_counter()
    tab.goto(f'file://{file.resolve()}')
    tab.wait_for_selector('body[data-ready=yes]')
    seconds = time.perf_counter() - began
    samples = tab.evaluate('performance.getEntriesByName("samples")[0].startTime')
    spent = {one['name']: one['value'] for one in session.send(
        'Performance.getMetrics')['metrics']}
    browser.close()
  return samples / 1000, seconds, spent['TaskDuration']


def main(argv):
  if len(argv) > 1:
    sys.exit(f'unknown argument {argv[1]!r}')
  path = pathlib.Path(_OUT.value)
  write(path, _STEPS.value, np.random.default_rng(0))
  began = time.perf_counter()
  file = pathlib.Path(page.write([path]))
  print(f'{file}: {file.stat().st_size / 1e6:.1f} MB, made in '
        f'{time.perf_counter() - began:.1f} s')
  if _CHROMIUM.value:
    times = [opened(file, _CHROMIUM.value) for _ in range(3)]
    for name, seconds in zip(
        ('samples after', 'all in sight after', 'computed'), zip(*times)):
      print(f'{name} ' + ', '.join(f'{x:.2f}' for x in seconds) + ' s')


if __name__ == '__main__':
  app.run(main)
