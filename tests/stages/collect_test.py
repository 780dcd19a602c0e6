"""Stage collect: what it writes is what sft reads."""

import json
import pathlib
import runpy
import types

from etils import epath
import numpy as np
from PIL import Image
import pytest

from mmr1 import records
from mmr1 import resolve
from mmr1.data import datasets
from mmr1.data import files
from mmr1.data import pipeline
from mmr1.data import processor as processor_lib
from mmr1.data import rows
from mmr1.data import sources
from mmr1.data import template
from mmr1.rewards import answer
from mmr1.stages import collect

write_folder = runpy.run_path(str(
    pathlib.Path(__file__).parent.parent / 'data' / 'conftest.py')
)['write_folder']
FORM = rows.RowFormat(require_answer=False, require_completion=True)


def picture(seed, mode='RGB', size=(20, 24)):
  rng = np.random.default_rng(seed)
  return Image.fromarray(
      rng.integers(0, 256, (*size, 3), np.uint8)).convert(mode)


def example(uid, **changes):
  return records.Example(**{
      **dict(uid=uid, question=f'<image>What is {uid}?', answer=str(uid),
             images=(picture(uid),), source='world',
             completions=(f'<think>Hm\u00b2 "{uid}"\n\U0001f600</think>'
                          f'<answer> Final Answer:{uid} </answer>',)),
      **changes})


def written(tmp_path, made):
  folder = epath.Path(tmp_path) / 'data' / 'bridge'
  collect.write(folder, made)
  path = collect.path_of(epath.Path(tmp_path), 'bridge')
  return files.JsonlSource(path, form=FORM), folder


def test_text_and_pixels_come_back(tmp_path):
  made = [
      example(1), example(2, images=(), question='No picture?'),
      example(3, images=(picture(1), picture(5)),
              question='<image>and <image>?'),
      *(example(4 + i, images=(picture(9, mode),))
        for i, mode in enumerate(('L', 'P', 'RGBA')))]
  source, folder = written(tmp_path, made)
  assert len(source) == len(made)
  for one, back in zip(made, [source[i] for i in range(len(made))]):
    assert (back.question, back.answer, back.completions) == (
        one.question, one.answer, one.completions)
    assert back.meta['uid'] == one.uid and back.meta['source'] == 'world'
    assert len(back.images) == len(one.images)
    for a, b in zip(one.images, back.images):
      assert a.mode == b.mode
      np.testing.assert_array_equal(a.convert('RGBA'), b.convert('RGBA'))
  # One file per content: example 3 shows the picture of example 1 again.
  assert len(list((folder / 'images').iterdir())) == 5


def test_modes_that_png_lacks_are_written_as_rgb(tmp_path):
  image = picture(0, 'CMYK')
  source, _ = written(tmp_path, [example(1, images=(image,))])
  np.testing.assert_array_equal(
      source[0].images[0], np.asarray(image.convert('RGB')))


def test_conversations_and_given_texts_come_back(tmp_path):
  talk = ({'role': 'system', 'content': 'Be brief.'},
          {'role': 'user', 'content': 'See <image>'})
  source, _ = written(tmp_path, [example(1, question='', messages=talk)])
  assert tuple(source[0].messages) == talk
  assert source[0].completions == example(1).completions
  assert source[0].given == ()
  source, _ = written(tmp_path / 'more', [example(3, given=('s', '\nt: '))])
  assert source[0].given == ('s', '\nt: ')


def test_choices_come_back(tmp_path):
  source, _ = written(tmp_path, [
      example(1), example(2, answer='B', meta=dict(
          answer_type='choice', choices=('3', '4'), facts=('many',)))])
  # A matcher that reads the file judges as it did before.
  assert answer.match('4', source[1]) and not answer.match('3', source[1])


def test_a_torn_image_of_a_killed_run_is_not_kept(tmp_path, monkeypatch):
  folder = epath.Path(tmp_path)
  def die(self, target):
    raise KeyboardInterrupt
  with monkeypatch.context() as patch:
    patch.setattr(type(folder), 'replace', die)
    with pytest.raises(KeyboardInterrupt):
      collect._put(folder, picture(0))
  assert not list(folder.glob('*.png'))
  name = collect._put(folder, picture(0))
  np.testing.assert_array_equal(Image.open(folder / name), picture(0))


# The whole stage, with the few fields of a context that it uses.


@pytest.fixture(scope='module')
def processor(tmp_path_factory):
  return processor_lib.Processor.open(
      str(write_folder(tmp_path_factory.mktemp('checkpoint'))))


class Log:

  def __init__(self):
    self.calls = []

  def __getattr__(self, name):
    return lambda *args: self.calls.append((name, *args))

  def of(self, name):
    return [call[1:] for call in self.calls if call[0] == name]


class Listed(list):
  """A source."""


@pytest.fixture
def ctx(tmp_path, processor, monkeypatch):
  data = Listed(example(i, completions=(), images=(picture(i),))
                for i in range(5))
  monkeypatch.setattr(
      datasets, 'open_split', lambda config, split: sources.Mixture(
          [data], seed=0))
  logger = Log()
  return types.SimpleNamespace(
      path=epath.Path(tmp_path), logger=logger, checkpoints=Log(),
      processor=processor, data=data, shape=lambda: pipeline.Shape(
          processor, template.plain, prompt_length=200, patches=64),
      config=types.SimpleNamespace(data=types.SimpleNamespace(
          max_broken_frac=0.5, worker_count=0)))


def run(ctx, engine, size=4):
  section = types.SimpleNamespace(size=size, init='base')
  collect.run(ctx, 'bridge', section, {'engine': engine})
  return files.JsonlSource(
      collect.path_of(ctx.path, 'bridge'), form=FORM)


def imitate(examples, ctx, init, *, keep=99, completion=None):
  """An engine that keeps the first few."""
  assert init == 'base' and ctx.path
  made = [example(e.uid, images=e.images, question=e.question, **(
      dict(completions=(completion,)) if completion and not i else {}))
      for i, e in enumerate(examples)][:keep]
  return made, {'examples': len(examples), 'lost': len(examples) - len(made)}


def test_run_writes_counts_and_finishes(ctx):
  source = run(ctx, lambda *args: imitate(*args, keep=3))
  back = [source[i] for i in range(len(source))]
  assert len(back) == 3 and len({e.meta['uid'] for e in back}) == 3
  for e in back:
    uid = e.meta['uid']
    assert e.completions == example(uid).completions
    np.testing.assert_array_equal(e.images[0], picture(uid))
  ((stage, step, metrics),) = ctx.logger.of('write')
  assert (stage, step) == ('bridge', 0)
  assert metrics == {
      'collect/examples': 4, 'collect/lost': 1, 'collect/refused': 0,
      'collect/kept': 3, 'collect/broken': 0}
  assert ctx.checkpoints.of('finish') == [('bridge', {
      'counts': {'examples': 4, 'lost': 1, 'refused': 0}, 'kept': 3})]
  ((_, _, shown),) = ctx.logger.of('samples')
  assert [row['completion'] for row in shown] == [
      e.completions[0] for e in back]


def test_a_small_file_is_collected_once(ctx):
  """5 records and size 100: nothing comes twice, the broken one is counted."""
  ctx.data[2] = records.Broken('file:3', 'bad json')
  assert len(run(ctx, imitate, size=100)) == 4
  ((_, _, metrics),) = ctx.logger.of('write')
  assert metrics['collect/examples'] == 4 and metrics['collect/broken'] == 1


@pytest.mark.parametrize('bad', ['<|image_pad|>', 'a<|im_end|>b'])
def test_m12_completions_that_sft_cannot_read_are_dropped(ctx, bad):
  source = run(ctx, lambda *args: imitate(*args, completion=bad))
  assert len(source) == 3
  ((_, _, metrics),) = ctx.logger.of('write')
  assert metrics['collect/refused'] == 1 and metrics['collect/kept'] == 3
  assert ctx.logger.of('warn')
  with pytest.raises(ValueError, match='kept none of 4.*special token'):
    run(ctx, lambda *args: imitate(*args, completion=bad, keep=1))


def test_an_engine_that_keeps_nothing_is_an_error(ctx):
  with pytest.raises(ValueError, match="kept none of 4 .*'lost': 4"):
    run(ctx, lambda *args: imitate(*args, keep=0))
  assert not ctx.checkpoints.calls


def test_videos_are_refused_before_the_engine_works(ctx):
  frames = tuple(picture(i) for i in range(4))
  ctx.data[:] = [example(0, images=(), question='<video>What?',
                         videos=(records.Video(frames),))]
  with pytest.raises(ValueError, match='has videos'):
    run(ctx, None)


def section(**changes):
  kwargs = changes.pop('kwargs', {})
  return types.SimpleNamespace(**dict(
      dict(size=4, data='train', init='base',
           engine='vision_r1_bridge.bridge',
           kwargs=types.SimpleNamespace(as_dict=lambda: kwargs)), **changes))


def test_setup_binds_the_engine():
  config = resolve.Section({
      'stages': ('bridge', 'later'), 'bridge': {'kind': 'collect'},
      'later': {'kind': 'sft'}})
  plan = collect.setup(section(kwargs=dict(overlong=0.25)), 'bridge', config)
  assert plan['engine'].keywords == {'overlong': 0.25}
  for changes, message in (
      (dict(size=0), 'bridge.size: got 0'),
      (dict(data='eval'), "bridge.data: got 'eval'"),
      (dict(init='later'), 'does not come before'),
      (dict(engine='vision_r1_bridge.bride'), 'bride'),
      (dict(kwargs=dict(overlog=1)), 'overlog')):
    with pytest.raises(ValueError, match=message):
      collect.setup(section(**changes), 'bridge', config)


def test_the_file_is_plain_json_lines(tmp_path):
  _, folder = written(tmp_path, [example(1)])
  (line,) = (folder / 'train.jsonl').read_text().splitlines()
  row = json.loads(line)
  assert set(row) == {
      'images', 'problem', 'answer', 'completion', 'uid', 'source'}
  assert (folder / row['images'][0]).exists()
