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
from mmr1.reporting import entries
from mmr1.reporting import live
from mmr1.reporting import page
from mmr1.reporting import problems
from mmr1.reporting import reading
from mmr1.reporting import samples
from mmr1.reporting import settings
from mmr1.reporting import tokens

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


def record(uid, correct, **changes):
  """Of an evaluation."""
  text = f'<answer>{uid if correct else uid + 1}</answer>'
  return {'uid': uid, 'prompt': '<image>How many?', 'images': [IMAGE],
          'source': 'digits:1', 'decoding': 'greedy', 'sample': 0,
          'text': text, 'extracted': text[8:-9], 'gold': str(uid),
          'correct': correct, 'error': '', 'length': 9, 'truncated': False,
          **changes}


def evaluate(path, name, rows):
  """Leaves the records of an evaluation."""
  (path / 'eval').mkdir(exist_ok=True)
  (path / 'eval' / f'{name}.jsonl').write_text(lines(rows))


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
  assert settings.differing([{'a': {}}, {'a': {'b': 1}}]) == [
      settings.Row('a.b', ('(absent)', '1'))]
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


def test_evaluations_are_problem_by_problem(run):
  evaluate(run, 'base_0', [record(uid, uid == 1) for uid in (1, 2, 3)])
  evaluate(run, 'grpo_3', [record(2, True), record(1, True), record(3, False)] + [
      record(2, k < 2, decoding='sampled', sample=k) for k in (2, 1, 0)])
  evaluate(run, 'grpo_3_hard_ones', [record(1, True, score=0.75, by='chance')])
  evaluate(run, 'grpo_3_other', [])  # says nothing
  own, hard = problems.collect([reading.read(run)], 1_000_000)
  assert own.name == '' and hard.name == 'hard_ones'
  assert own.evaluations == [{'run': 0, 'stage': 'base', 'step': 0},
                             {'run': 0, 'stage': 'grpo', 'step': 3}]
  # By problem, then evaluation, greedy first, samples in order.
  index = own.index
  assert index['problem'] == [0, 0, 1, 1, 1, 1, 1, 2, 2]
  assert index['evaluation'] == [0, 1, 0, 1, 1, 1, 1, 0, 1]
  assert index['sampled'] == [0, 0, 0, 0, 1, 1, 1, 0, 0]
  assert index['sample'][4:7] == [0, 1, 2]
  assert index['correct'] == [1, 1, 0, 1, 1, 1, 0, 0, 0]
  assert hard.index['score'] == [0.75] and hard.index['by'] == [1]
  html = page.build([reading.read(run)])
  head = unpacked(html, 'head')
  assert [one['count'] for one in head['problems']] == [9, 1]
  shown = unpacked(html, 'problems-0-chunk-0')[0]
  assert shown['prompt'] == '<image>How many?' and shown['answer'] == '1'
  assert shown['images'] == [IMAGE]


def test_records_of_before_and_of_loops(run):
  old = {'uid': 1, 'decoding': 'greedy', 'text': 'no', 'extracted': None,
         'gold': '1', 'correct': False, 'error': 'timed out', 'length': 3,
         'truncated': True}
  loop = {'uid': 1, 'gold': '2', 'correct': [False, True],
          'extracted': ['1', '2'], 'errors': [], 'turns': [
              {'asked': 'q', 'answer': 'one', 'critique': 'look'},
              {'asked': 'q', 'answer': 'two', 'critique': None}]}
  evaluate(run, 'cold_2', [old])
  evaluate(run, 'fix_0', [loop])
  (own,) = problems.collect([reading.read(run)], 1_000_000)
  # Two problems: their gold answers differ. What no config knows comes last.
  assert own.index['problem'] == [0, 1] and own.index['correct'] == [0, 1]
  assert own.index['unparsed'] == [1, 0] and own.index['error'] == [1, 0]
  first, second = (entries.entry(row) for row in own.rows)
  assert first['more']['error'] == 'timed out' and 'prompt' not in first
  assert second['completion'] == 'two'
  assert [(turn['role'], turn['text']) for turn in second['turns']] == [
      ('assistant', 'one'), ('critic', 'look'), ('assistant', 'two')]


def test_whole_problems_are_left_out(run):
  rng = np.random.default_rng(0)
  for name in ('base_0', 'grpo_3'):
    evaluate(run, name, [record(uid, True, text=rng.bytes(500).hex())
                         for uid in range(400)])
  read = reading.read(run)
  (made,) = problems.collect([read], 200_000)
  assert sum(map(len, made.chunks)) <= 200_000
  count = len({*made.index['problem']})
  assert 50 < count < 400 and len(made.index['problem']) == 2 * count
  assert f'{count} of 400 problems' in read.notes[-1]


def test_parts_of_benchmarks_have_a_table(run):
  (run / 'eval').mkdir()
  (run / 'eval' / 'grpo_3_verse.json').write_text(json.dumps({
      'stage': 'grpo', 'step': 3, 'samples_per_problem': 4, 'groups': {
          'version': {'Text': {'n': 12, 'accuracy': 0.5, 'low': 0.3,
                               'high': 0.7}, 'Odd': 'x'}}}))
  html = page.build([reading.read(run)])
  assert '<h3>Accuracy by version</h3>' in html
  assert '<td>0.500 (0.30-0.70), n 12</td><td></td>' in html
  assert '<dt>samples_per_problem</dt><dd>4</dd>' in html


def test_a_stage_may_end_with_a_number(run):
  config = json.loads((run / 'config.json').read_text())
  config['stages'] = ['cold', 'cold_2']
  (run / 'config.json').write_text(json.dumps(config))
  evaluate(run, 'cold_2_7', [record(1, True)])
  evaluate(run, 'cold_2_7_more', [record(1, True)])
  assert [one[:3] for one in reading.read(run).evaluations] == [
      ('cold_2', 7, ''), ('cold_2', 7, 'more')]


def test_tokens_fit_or_are_counted(run):
  said = {'text': ['a', 'b'], 'kind': 'so', 'entropy': [0.5, None],
          'logp': [-1, 'nan'], 'odd': [1]}
  rows = [sample(k, 0, tokens=said) for k in range(1, 101)]
  (run / 'samples' / 'grpo.jsonl').write_text(lines(rows + [
      sample(101, 0), sample(101, 1, tokens={'text': 3})]))
  made = samples.collect([reading.read(run)], 1_000_000)
  assert made.index['tokens'] == [*range(100), None, None]
  assert json.loads(gzip.decompress(base64.b64decode(made.tokens[0])))[0] == {
      'text': ['a', 'b'], 'kind': 'so',
      'numbers': {'entropy': [0.5, None], 'logp': [-1.0, None]}}
  notes = []
  places, chunks = tokens.collect(rows, 500, notes)
  kept = [x for x in places if x is not None]
  assert 0 < len(kept) < 100 and kept == [*range(len(kept))]
  assert sum(map(len, chunks)) <= 500
  assert f'{len(kept)} of 100 samples have their tokens' in notes[0]


def test_pictures_that_were_made_are_a_row_of_their_group(run):
  """Of flows: no words, so no length; each picture has its caption, also one
  that is the same as another, and the prompt stays beside the rewards."""
  row = {'stage': 'grpo', 'step': 1, 'prompt': 'Remove it.',
         'images': [IMAGE, IMAGE, IMAGE],
         'captions': ['given', 'reward 1', 'target'], 'rewards': {'reward': .5}}
  assert entries.entry(row)['images'] == [IMAGE] * 3
  (run / 'samples' / 'grpo.jsonl').write_text(lines([row, sample(2, 0)]))
  made = samples.collect([reading.read(run)], 1_000_000)
  assert made.index['length'][0] is None and made.index['length'][1] > 0
  assert made.index['tag'] == ['Remove it.', '']
  assert made.index['reward'][0] == .5 and made.rewards['reward'][0] == .5


def test_the_combined_reward_comes_first():
  # The mean of the two is .5; what was used was a number of its own.
  assert samples.total_of(sample(1, 1)) == 0.5
  assert samples.total_of(sample(1, 1, reward=0.25)) == 0.25
  assert samples.total_of(sample(1, 1, reward='nan')) is None


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


class Opened:
  """A page in headless Chromium; `errors` and `asked` of the network."""

  def __init__(self, play, path, **kwargs):
    chromium = shutil.which('chromium')
    if chromium is None:
      pytest.skip('no chromium')
    self.browser = play.chromium.launch(
        executable_path=chromium, args=['--no-sandbox'])
    self.tab, self.errors, self.asked = self.browser.new_page(**kwargs), [], []
    self.tab.on('console', lambda m: self.errors.append(m.text)
                if m.type in ('error', 'warning') else None)
    self.tab.on('pageerror', lambda error: self.errors.append(str(error)))
    self.tab.on('request', lambda r: self.asked.append(r.url)
                if r.url.startswith('http') else None)
    self.tab.goto(f'file://{path}')
    self.tab.wait_for_selector('body[data-ready=yes]')

  def texts(self, where):
    return self.tab.locator(where).all_text_contents()

  def close(self):
    self.browser.close()
    assert not self.errors and not self.asked


@pytest.fixture
def playwright():
  sync_api = pytest.importorskip('playwright.sync_api')
  sync_api.expect.set_options(timeout=60_000)  # of a machine with other work
  with sync_api.sync_playwright() as play:
    yield play, sync_api.expect


def test_in_a_browser(run, playwright):
  """No error, no network; filters and keys work; text stays text."""
  play, expect = playwright
  opened = Opened(play, page.write([run]))
  tab = opened.tab
  # Sketched at once; the library comes when a chart has the focus.
  assert tab.locator('svg.sketch').count() > 3
  assert not tab.locator('.js-plotly-plot').count()
  tab.locator('.chart').first.focus()
  expect(tab.locator('.js-plotly-plot')).to_have_count(1)
  assert 'reward/mean 0.75' in tab.locator('.chart').first.get_attribute(
      'aria-label')
  tab.keyboard.press('G')  # the last sample
  said = tab.locator('[data-part=completion]')
  expect(said).to_have_text(EVIL)
  tab.select_option('#filter', 'pair result format')
  expect(tab.locator('#count')).to_have_text('1 of 5')
  tab.select_option('#filter', 'all')
  tab.locator('#list').focus()
  tab.keyboard.press('/')
  tab.keyboard.type('alert')
  expect(tab.locator('#count')).to_have_text('1 of 5')
  tab.click('#theme')
  opened.close()


def test_evaluations_in_a_browser(run, playwright):
  """Two of them beside each other, and every answer to a problem."""
  play, expect = playwright
  evaluate(run, 'base_0', [record(uid, uid == 1) for uid in (1, 2, 3)])
  evaluate(run, 'grpo_3', [record(uid, uid == 2) for uid in (1, 2, 3)] + [
      record(2, k == 0, decoding='sampled', sample=k) for k in (0, 1)])
  opened = Opened(play, page.write([run]), color_scheme='dark')
  tab, count = opened.tab, opened.tab.locator('#count')
  tab.select_option('#source', 'problems-0')
  expect(count).to_have_text('3 of 8')  # the last evaluation, greedy
  tab.select_option('#filter', 'right')
  expect(count).to_have_text('1 of 8')
  tab.select_option('#beside', '0')
  # 2 became right, 1 became wrong, 3 is wrong in both.
  expect(tab.locator('#between')).to_have_text(
      'From base 0 to grpo 3, greedy: 1 became right, 1 became wrong, 0 right '
      'in both, 1 wrong in both.')
  tab.select_option('#filter', 'lost')
  expect(tab.locator('#rows .row')).to_contain_text('problem 1, greedy')
  assert len(opened.texts('.sides [data-part=completion]')) == 2
  tab.select_option('#filter', 'became')
  expect(tab.locator('#rows .row')).to_contain_text('problem 2, greedy')
  answers = tab.locator('table.answers button')
  expect(answers).to_have_count(4)  # two greedy ones and two samples
  answers.nth(3).click()
  expect(tab.locator('#detail .meta').first).to_contain_text('sampled 2')
  tab.select_option('#decoding', '1')
  tab.select_option('#beside', '')
  tab.select_option('#filter', 'mixed')
  expect(count).to_have_text('2 of 8')
  opened.close()


def test_tokens_and_turns_in_a_browser(run, playwright):
  play, expect = playwright
  (run / 'samples' / 'grpo.jsonl').write_text(lines([sample(
      1, 0, tokens={'text': ['so', ' 3', 'seen'], 'kind': 'sso',
                    'entropy': [0.1, 1.25, None]}, turns=[
                        {'role': 'assistant', 'text': 'look', 'images': []},
                        {'role': 'tool', 'text': 'here', 'images': [IMAGE]}])]))
  opened = Opened(play, page.write([run]))
  tab, tokens_ = opened.tab, opened.tab.locator('.token')
  expect(tokens_).to_have_count(3)
  tokens_.nth(1).hover()
  about = tab.locator('#detail [role=status]')
  expect(about).to_have_text('" 3" 2: entropy 1.25')
  tab.locator('[aria-label^="Tokens;"]').focus()
  for _ in range(3):
    tab.keyboard.press('ArrowRight')
  expect(about).to_have_text('"seen" 3: of the environment')
  expect(tab.locator('.turn')).to_have_count(2)
  expect(tab.locator('.turn img')).to_have_count(1)
  opened.close()


def test_runs_compared_in_a_browser(run, tmp_path, playwright):
  play, expect = playwright
  other = tmp_path / 'other'
  shutil.copytree(run, other)
  for path, right in ((run, 1), (other, 2)):
    evaluate(path, 'grpo_3', [record(uid, uid == right) for uid in (1, 2)])
  opened = Opened(play, page.write([run, other], tmp_path / 'both.html'))
  tab = opened.tab
  assert 'run reward/mean 0.75, other reward/mean 0.75' in tab.locator(
      '.chart').first.get_attribute('aria-label')
  tab.select_option('#run', '1')
  expect(tab.locator('#count')).to_have_text('5 of 10')
  tab.select_option('#source', 'problems-0')
  tab.select_option('#evaluation', '0')
  tab.select_option('#beside', '1')
  expect(tab.locator('#between')).to_contain_text(
      'From run: grpo 3 to other: grpo 3, greedy: 1 became right, 1 became')
  opened.close()
