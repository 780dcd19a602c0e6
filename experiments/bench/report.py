"""Size and opening time of a long run's report.

  python -m experiments.bench.report --out=/tmp/long [--steps=2000]

Writes a synthetic run (a row of metrics a step, groups of 8 samples with
pictures, 20,000 samples for 2,000 steps), makes its page and says how large it
is and how long that took. With --chromium=<path> and playwright it opens the
page, headless, and says when all of it was ready.
"""

import json
import pathlib
import sys
import time

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
              'slot': slot, 'advantage': float(rng.normal()),
              'rewards': {'result': value, 'format': 1.0}}) + '\n')


def opened(file: pathlib.Path, chromium: str) -> float:
  """Seconds until curves and samples are there."""
  from playwright import sync_api  # only of those who measure this
  with sync_api.sync_playwright() as play:
    browser = play.chromium.launch(
        executable_path=chromium, args=['--no-sandbox'])
    tab, began = browser.new_page(), time.perf_counter()
    tab.goto(f'file://{file.resolve()}')
    tab.wait_for_selector('body[data-ready=yes]')
    seconds = time.perf_counter() - began
    browser.close()
  return seconds


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
    print('ready after ' + ', '.join(f'{x:.2f}' for x in times) + ' s')


if __name__ == '__main__':
  app.run(main)
