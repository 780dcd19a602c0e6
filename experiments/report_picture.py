"""The picture of a report in the README: curves, and the browser of samples.

  python -m experiments.report_picture --workdir=runs/vision_r1

docs/report.md says of which run the one that is kept is. Makes the run's page,
opens it in headless Chromium (playwright; --chromium is the browser's path) and
writes experiments/results/report/report.png.
"""

import io
import pathlib
import sys

from absl import app
from absl import flags
from PIL import Image

from mmr1.reporting import page

_WORKDIR = flags.DEFINE_string('workdir', None, 'Of a run.', required=True)
_OUT = flags.DEFINE_string(
    'out', 'experiments/results/report/report.png', 'The picture.')
_CHROMIUM = flags.DEFINE_string(
    'chromium', '/usr/bin/chromium', 'The browser.')

_WIDTH = 1400
_COLOURS = 256  # of the picture: a page has few


def shots(file: pathlib.Path, chromium: str) -> list[Image.Image]:
  """A row of charts, and a sample with its tokens."""
  from playwright import sync_api  # only of those who make the picture
  found = []
  with sync_api.sync_playwright() as play:
    browser = play.chromium.launch(
        executable_path=chromium, args=['--no-sandbox'])
    tab = browser.new_page(viewport={'width': _WIDTH, 'height': 800})
    tab.goto(f'file://{file.resolve()}')
    tab.wait_for_selector('body[data-ready=yes]')
    chart = tab.locator('.chart').first.bounding_box()
    title = tab.locator('#curves').bounding_box()
    found.append(tab.screenshot(clip={
        'x': 0, 'y': title['y'], 'width': _WIDTH,
        'height': chart['y'] + chart['height'] - title['y'] + 8}))
    # So high that a sample and its group are seen whole.
    tab.add_style_tag(content='.browser { height: 560px; }')
    if tab.locator('#filter option[value=tokens]').count():
      tab.select_option('#filter', 'tokens')
      tab.select_option('#sort', 'late')
    tab.wait_for_selector('.token')
    found.append(tab.locator('#samples').screenshot())
    browser.close()
  return [Image.open(io.BytesIO(one)).convert('RGB') for one in found]


def main(argv):
  if len(argv) > 1:
    sys.exit(f'unknown argument {argv[1]!r}')
  parts = shots(pathlib.Path(page.write([_WORKDIR.value])), _CHROMIUM.value)
  whole = Image.new('RGB', (_WIDTH, sum(part.height for part in parts)),
                    parts[0].getpixel((0, 0)))
  y = 0
  for part in parts:
    whole.paste(part, ((_WIDTH - part.width) // 2, y))
    y += part.height
  out = pathlib.Path(_OUT.value)
  out.parent.mkdir(parents=True, exist_ok=True)
  whole.quantize(_COLOURS).save(out, optimize=True)
  print(f'{out}: {whole.width} x {whole.height}, '
        f'{out.stat().st_size / 1e3:.0f} kB')


if __name__ == '__main__':
  app.run(main)
