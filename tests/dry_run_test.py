"""`--dry_run`: nothing is trained, and the right answer has all full marks."""

import dataclasses
import importlib
import io
import json
import pathlib

from PIL import Image
import pytest
from rich import console as rich_console

from configs import forkme
from configs import vision_r1
from mmr1 import console
from mmr1 import dry_run
from mmr1 import first_samples
from mmr1 import gold
from mmr1 import records
from mmr1 import runner
from mmr1.data import datasets
from mmr1.rewards import answer
from mmr1.rewards import format as format_lib
from mmr1.rewards import grounding
from mmr1.rewards import length
from mmr1.rewards import score

ROOT = pathlib.Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py')
               if 'def get_config' in path.read_text())
# Scales whose weights and data are not there.
ARGUMENTS = [(name, arg) for name in NAMES for arg in (None, 'qwen2_5_vl_7b')]


@pytest.fixture(scope='module')
def processors():
  """Folders that were opened, one for each set of pixels."""
  opened, original = {}, datasets.open_processor

  def once(model, data, path=None):
    key = model.path, path, data.min_pixels, data.max_pixels
    if key not in opened:
      opened[key] = original(model, data, path)
    return opened[key]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(datasets, 'open_processor', once)
    yield


@pytest.mark.parametrize('name, arg', ARGUMENTS)
def test_the_right_answer_has_full_marks_in_every_config(
    name, arg, processors):
  config = importlib.import_module(f'configs.{name}').get_config(arg)
  found = dry_run.look(config, ())
  # Weights and data of real scales are missing, and it is said of which key.
  assert bool(found.missing) == (arg is not None)
  assert all('--config.' in text for text in found.missing)
  wrong, asked = [], 0
  for stage in found.config.stages:
    section = found.config[stage]
    if section.kind not in ('rl', 'flow', 'evaluate', 'refine'):
      continue
    _, plan = runner.plan_stage(found.config, stage) if (
        arg is None) else (None, None)
    for first in first_samples.of(found.config, stage, found.processor):
      scored = gold.of_stage(first, found.config, stage, plan, found.processor)
      rows = scored.rows if isinstance(scored, gold.Scored) else scored or ()
      asked += sum(row.ok is True for row in rows)
      wrong += [(stage, row, scored) for row in rows if row.ok is False]
      # What cannot be asked is not counted as passed, and says why.
      assert all(row.why for row in rows if row.ok is None)
  assert not wrong
  kinds = {found.config[stage].kind for stage in found.config.stages}
  assert asked or 'rl' not in kinds


# What a reward is given.


def example(**fields):
  return records.Example(uid=7, question='How many?', answer='12', **fields)


def test_a_completion_is_written_as_the_rewards_ask():
  solved = example(meta={'facts': ('digits 7,5',), 'steps': ('7+5=12',)})
  forms = dict(gold.written(solved, prefilled=False, boxed=False))
  assert forms['think and answer tags'] == (
      '<think>I see digits 7,5. 7+5=12.</think><answer>12</answer>')
  assert forms['a box'].endswith('\\boxed{12}')
  # The prompt has opened the think block.
  prefilled = dict(gold.written(solved, prefilled=True, boxed=False))
  assert prefilled['think and answer tags'].startswith('I see')
  # Where a box is asked for, no other form will do.
  assert [form for form, _ in gold.written(
      solved, prefilled=False, boxed=True)] == ['think tags and a box', 'a box']
  assert list(gold.written(
      dataclasses.replace(solved, answer=None), prefilled=False,
      boxed=False)) == []


def rewards(**fns):
  return {name: score.Reward(fn) for name, fn in fns.items()}


@pytest.mark.parametrize('fns, form', [
    (dict(a=answer.correct, b=format_lib.think_answer),
     'think and answer tags'),
    (dict(a=answer.correct, b=format_lib.answer_alone), 'answer tags alone'),
    (dict(b=format_lib.think_boxed), 'think tags and a box')])
def test_the_form_is_the_first_with_all_full_marks(fns, form):
  found = gold.best(example(), rewards(**fns), {}, prefilled=False,
                    boxed=False, processor=None)
  assert found.form == form and not found.wrong
  assert all(row == gold.Row(row.name, 1.0, 1.0, True) for row in found.rows)


def test_a_reward_that_reads_no_box_where_one_is_asked_for_is_wrong():
  for kwargs, wrong in (
      ({}, 1), (dict(strict=False), 0), (dict(boxed=True), 0)):
    found = gold.best(
        example(), {'a': score.Reward(answer.correct, kwargs)}, {},
        prefilled=False, boxed=True, processor=None)
    assert found.wrong == wrong, kwargs


def test_what_cannot_be_had_is_wrong_and_what_cannot_be_asked_is_neither():
  # No text is one answer block alone, and think and answer blocks.
  both = gold.best(
      example(), rewards(a=format_lib.think_answer, b=format_lib.answer_alone),
      {}, prefilled=False, boxed=False, processor=None)
  assert both.wrong == 1
  found = gold.best(example(), {
      'short': score.Reward(length.rising, dict(full=4)),
      'boxed': score.Reward(format_lib.think_boxed)}, {}, prefilled=False,
                    boxed=False, processor=None)
  short, boxed = found.rows
  assert (short.ok, short.full) == (None, None) and 'length' in short.why
  assert boxed.ok


def test_a_reward_that_raises_says_what_it_raised():
  row, = gold.rows(
      gold.sample('12', example(meta={'box': (1, 2)}), None),
      rewards(iou=grounding.iou), {})
  assert row.ok is False and 'left, top, right and bottom' in row.why


def test_a_box_is_written_in_the_frame_of_the_family():
  """Of a picture of 200 x 100 a box at 50, 10, 100, 60 is 250, 100, 500, 600 of
  thousands; and it has all of its reward."""
  one = dataclasses.replace(
      example(images=(Image.new('RGB', (200, 100)),), meta={
          'answer_type': 'box', 'box': (50, 10, 100, 60),
          'box_frame': 'thousand'}), answer='[50,10,100,60]')
  assert gold.answer(one) == '[250.00,100.00,500.00,600.00]'
  found = gold.best(one, rewards(iou=grounding.iou, right=answer.correct), {},
                    prefilled=False, boxed=False, processor=None)
  assert not found.wrong and [row.value for row in found.rows] == [1.0, 1.0]


# The command.


@pytest.fixture
def shown(shrink):
  """(config, workdir) -> (exit code, what was printed)."""
  def show(config, workdir, **kw):
    out = io.StringIO()
    code = dry_run.show(shrink(config), str(workdir), console.Console(
        out=rich_console.Console(file=out, width=100)), **kw)
    return code, out.getvalue()
  return show


def test_every_stage_is_shown_and_nothing_else_is_written(shown, tmp_path):
  code, text = shown(vision_r1.get_config(), tmp_path / 'run')
  assert code == 0 and 'nothing is wrong' in text
  for part in ('data.weights: [1.0] -> [0.4, 0.6]', '[bridge] collect',
               '[cold_start] sft: 32 steps of 32 rows',
               '[think_short] rl: 30 steps of 12 prompts x 16 samples x 48',
               'completions [12, 16, 48]', 'decode', 'update', 'MB',
               '<|im_start|>user', '<|vision_start|><image ', ' tokens>',
               'hard', 'full marks', 'as bridge reads it'):
    assert part in text, part
  folder = tmp_path / 'run'
  assert [path.name for path in folder.iterdir()] == ['dry_run']
  files = sorted((folder / 'dry_run').iterdir())
  assert files and all(path.suffix == '.png' for path in files)
  assert Image.open(files[0]).size > (8, 8)
  # A run may begin there.
  from mmr1 import resolve
  from mmr1 import workdir as workdir_lib
  workdir_lib.Workdir(folder, resolve.finalise(forkme.get_config()))
  assert json.loads((folder / 'config.json').read_text())['name'] == 'forkme'


def test_a_reward_that_the_right_answer_does_not_satisfy_is_an_error(
    shown, tmp_path):
  config = forkme.get_config()
  config.rewards.format.fn = 'format.answer_alone'
  config.rewards.other = dict(config.rewards.format, fn='format.think_answer')
  config.rl.rewards = ('result', 'format', 'other')
  code, text = shown(config, tmp_path / 'run')
  assert code == 1 and 'WRONG' in text and "reward '" in text
  assert 'it read ' in text and '0, not 1' in text


def test_without_model_and_data_what_can_be_said_is(tmp_path):
  out = io.StringIO()
  config = vision_r1.get_config('qwen2_5_vl_7b')
  config.evaluation.max_new_tokens = 4096
  code = dry_run.show(
      config, str(tmp_path / 'run'),
      console.Console(out=rich_console.Console(file=out, width=100)))
  text = out.getvalue()
  first = text.index('WARNING: model.path')
  assert first < text.index('WARNING: data.path') < text.index('keys differ')
  for part in ('--config.model.path=', '--config.data.path=', 'GB',
               'completions [512, 16, 4096]', 'user: <image>', 'hard',
               'is 4096, think_long writes up to 8192', 'answers are cut',
               'What is missing must be there'):
    assert part in text, part
  assert code == 0
