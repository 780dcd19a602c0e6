"""The report: what it shows, what it escapes, what it says of broken runs."""

import base64
import gzip
import json
import re
import shutil

import numpy as np
from PIL import Image
import pytest

from mmr1.reporting import audit
from mmr1.reporting import curves
from mmr1.reporting import live
from mmr1.reporting import page
from mmr1.reporting import reading
from mmr1.reporting import samples
from mmr1.reporting import settings

EVIL = '<think>a</think></script><script>alert(1)</script><img src=x onerror=1>'
IMAGE = '0123456789abcdef.png'


def sample(step, slot, **changes):
  return {'stage': 'grpo', 'step': step, 'prompt': '<image>How many?',
          'images': [IMAGE], 'answer': '3',
          'completion': '<think>one</think><answer>3</answer>', 'length': 5,
          'truncated': False, 'uid': 7, 'group': 0, 'slot': slot,
          'rewards': {'result': float(slot), 'format': 1.0 - slot},
          'advantage': slot - 0.5, **changes}


def lines(rows):
  return ''.join(json.dumps(row) + '\n' for row in rows)


@pytest.fixture
def run(tmp_path):
  """A run of two stages."""
  path = tmp_path / 'run'
  (path / 'samples' / 'images').mkdir(parents=True)
  (path / 'config.json').write_text(json.dumps({
      'name': EVIL, 'scale': 'tiny', 'seed': 1, 'stages': ['cold', 'grpo'],
      'cold': {'kind': 'sft', 'steps': 2}, 'grpo': {'kind': 'rl', 'steps': 3}}))
  rows = [{'stage': 'cold', 'step': k, 'time': 100.0 + k, 'loss': 1.0 / k}
          for k in (1, 2)]
  rows += [{'stage': 'grpo', 'step': k, 'time': 110.0 + k, 'kl': 'nan',
            'reward/mean': k / 4, 'reward/result/mean': k / 4,
            'time/sample_s': 1.0, 'time/step_s': 2.0} for k in (1, 2, 3)]
  rows.append({'stage': 'grpo', 'step': 3, 'time': 120.0, 'eval/accuracy': 0.5,
               'eval/accuracy_low': 0.4, 'eval/accuracy_high': 0.6,
               'eval/n': 64.0})
  (path / 'metrics.jsonl').write_text(lines(rows))
  (path / 'samples' / 'grpo.jsonl').write_text(lines(
      [sample(k, slot) for k in (1, 3) for slot in (0, 1)]
      + [sample(3, 2, completion=EVIL, prompt=EVIL)]))
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(
      path / 'samples' / 'images' / IMAGE)
  return path


def unpacked(html, name):
  found = re.search(f'id="data-{name}">([^<]*)<', html)[1]
  return json.loads(gzip.decompress(base64.b64decode(found)))


def test_stages_follow_each_other_on_one_axis(run):
  made = curves.series(reading.read(run))
  # cold has 2 steps, so step 1 of grpo is the third of the run.
  assert made.x == [1, 2, 3, 4, 5]
  assert [s['begin'] for s in made.stages] == [0, 2]
  assert made.columns['reward/mean'] == [None, None, 0.25, 0.5, 0.75]
  # The evaluation's row is that of step 3.
  assert made.columns['eval/accuracy'] == [None] * 4 + [0.5]


def test_charts_take_what_there_is(run):
  made = {one['title']: one['metrics'] for one in curves.charts(
      [curves.series(reading.read(run)).columns])}
  assert made['Reward components'] == ['reward/result/mean']
  assert made['Time by phase, s'] == ['time/sample_s']
  assert 'KL' not in made  # its values are all nan


def test_the_page_holds_its_samples(run):
  html = page.build([reading.read(run)])
  data = unpacked(html, 'samples')
  assert len(data['index']['run']) == unpacked(html, 'head')['samples'] == 5
  assert data['rewards']['result'] == [0, 1, 0, 1, 2]
  assert unpacked(html, 'samples-chunk-0')[-1]['completion'] == EVIL
  assert unpacked(html, 'pictures-chunk-0')[IMAGE].startswith('data:image/png')
  assert '0.500 (0.40-0.60)' in html
  assert '3 values of kl are no finite numbers' in html


def test_nothing_of_a_run_is_markup(run):
  html = page.build([reading.read(run)])
  assert 'alert(1)</script>' not in html and '<img src=x' not in html
  assert '&lt;script&gt;alert(1)' in html  # the config's name, as text
  assert "default-src 'none'" in html
  assert not re.search(r'(src|href)="(https?:)?//', html)
  # Those with a type are data.
  assert html.count('<script>') == 1


def test_broken_runs_say_what_is_missing(run):
  with open(run / 'metrics.jsonl', 'a') as file:
    file.write('not json\n[1]\n{"stage": "lost", "step": 1, "loss": 2.0}\n'
               '{"step": 3}\n{"stage": "gr')
  (run / 'samples' / 'images' / IMAGE).unlink()
  (run / 'config.json').write_text('{')
  html = page.build([reading.read(run)])
  for said in ('no JSON object in line 7, 8;', 'the last line is half-written',
               '1 rows without stage or step', 'config.json could not be read',
               '1 of 1 images are missing'):
    assert said in html, said
  shutil.rmtree(run / 'samples')
  (run / 'metrics.jsonl').unlink()
  html = page.build([reading.read(run)])
  assert 'There is no metrics.jsonl' in html and 'No samples were' in html


def test_a_stage_the_config_does_not_know(run):
  with open(run / 'metrics.jsonl', 'a') as file:
    file.write('{"stage": "lost", "step": 1, "loss": 2.0}\n')
  read = reading.read(run)
  assert read.stages == ['cold', 'grpo', 'lost']
  assert 'Not among the stages of config.json: lost' in read.notes[0]


def test_no_run_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='is no folder'):
    page.write([tmp_path / 'nowhere'])
  with pytest.raises(ValueError, match='not the folder of a run'):
    page.write([tmp_path])


def test_what_does_not_fit_is_counted(run):
  rng = np.random.default_rng(0)
  rows = [sample(k, slot, completion=rng.bytes(500).hex())
          for k in range(1, 501) for slot in (0, 1)]
  (run / 'samples' / 'grpo.jsonl').write_text(lines(rows))
  read = reading.read(run)
  made = samples.collect([read], 200_000)
  assert sum(map(len, made.chunks)) <= 200_000
  kept = {row['step'] for row in made.rows[0]}
  assert 50 < len(kept) < 500 and {1, 500} <= kept  # whole steps, both ends
  assert len(made.rows[0]) == 2 * len(kept)
  assert made.left_out == [1000 - 2 * len(kept)]
  assert f'{len(made.rows[0])} of 1000 samples' in ' '.join(read.notes)


def test_disagreement_and_unparsed():
  rows = [sample(1, 0), sample(1, 1, completion='so many words and never an '
                              'end of them or an answer')]
  # result and format are 0 and 1, then 1 and 0: as far as can be.
  assert samples.spreads(rows) == [1.0, 1.0]
  assert [samples.unparsed(row) for row in rows] == [False, True]


def test_the_audit_suspects_length_and_spam(run):
  read = reading.read(run)
  rows = [sample(k, slot, length=slot, answer=str(k), completion='always 3',
                 rewards={'long': slot / 2, 'same': 1.0})
          for k in range(1, 21) for slot in range(4)]
  made = audit.audit(read, rows)
  long = {line.name: line for line in made.lines}['long']
  assert long.with_length == pytest.approx(1.0)
  assert long.mean == pytest.approx(0.75)  # of 0, .5, 1, 1.5
  assert long.top == 0.25 and long.flat == 0.0
  said = ' '.join(made.advice)
  assert 'is it paying for longer answers?' in said
  assert 'same: is 1 in all 80 samples' in said
  assert 'same text with 20 different gold answers' in said


def test_the_parent_of_a_stage_is_its_family(run):
  rows = {row.key: row.values for row in settings.against_parent(
      reading.read(run))}
  assert rows['seed'] == ('0', '1')
  assert rows['grpo.steps'][1] == '3' and rows['grpo.steps'][0] != '(absent)'


def test_runs_are_compared(run, tmp_path):
  other = tmp_path / 'other'
  shutil.copytree(run, other)
  config = json.loads((other / 'config.json').read_text())
  (other / 'config.json').write_text(json.dumps({**config, 'seed': 2}))
  path = page.write([run, other], tmp_path / 'both.html')
  html = path.read_text()
  head = unpacked(html, 'head')
  assert [one['name'] for one in head['runs']] == ['run', 'other']
  assert head['samples'] == 10
  assert '<td>seed</td><td>1</td><td>2</td>' in html
  assert len(head['images']) == 1  # one picture of both


def test_a_run_survives_its_report(run, tmp_path):
  warnings = []
  one = live.Live(tmp_path / 'nowhere', warnings.append)
  one.finish()
  assert 'no report: ValueError' in warnings[0]
  one = live.Live(run, warnings.append)
  one.refresh()  # too soon: nothing is started
  assert one._process is None
  one.finish()
  assert (run / 'report.html').exists() and len(warnings) == 1


def test_the_other_process_makes_it(run):
  warnings = []
  one = live.Live(run, warnings.append)
  one._due = 0.0
  one.refresh()
  assert one._process.wait(60) == 0
  assert (run / 'report.html').exists()
  one.refresh()
  assert not warnings


@pytest.mark.slow
def test_in_a_browser(run):
  """No error, no network; filters and keys work; text stays text."""
  sync_api = pytest.importorskip('playwright.sync_api')
  chromium = shutil.which('chromium')
  if chromium is None:
    pytest.skip('no chromium')
  path = page.write([run])
  with sync_api.sync_playwright() as play:
    browser = play.chromium.launch(
        executable_path=chromium, args=['--no-sandbox'])
    tab, errors, asked = browser.new_page(), [], []
    tab.on('console', lambda m: errors.append(m.text)
           if m.type in ('error', 'warning') else None)
    tab.on('pageerror', lambda error: errors.append(str(error)))
    tab.on('request', lambda r: asked.append(r.url)
           if r.url.startswith('http') else None)
    tab.goto(f'file://{path}')
    tab.wait_for_selector('body[data-ready=yes]')
    assert tab.locator('.js-plotly-plot').count()
    tab.keyboard.press('G')  # the last sample
    said = tab.locator('[data-part=completion]')
    sync_api.expect(said).to_have_text(EVIL)
    tab.select_option('#filter', 'pair result format')
    sync_api.expect(tab.locator('#count')).to_have_text('1 of 5')
    tab.select_option('#filter', 'all')
    tab.locator('#list').focus()
    tab.keyboard.press('/')
    tab.keyboard.type('alert')
    sync_api.expect(tab.locator('#count')).to_have_text('1 of 5')
    tab.click('#theme')
    browser.close()
  assert not errors and not asked
