"""Images of Gemma 3 and PaliGemma as text and pixels; what is refused.

Equality with transformers is shown in tests/models/gemma_vl_test.py.
"""

import functools
import json
import pickle

import numpy as np
from PIL import Image
import pytest
import transformers

from mmr1 import records
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import template
from mmr1.models import checkpoints
from tests import gemma

open_folder = processor_lib.Processor.open


@pytest.fixture(scope='module')
def procs(tmp_path_factory):
  return {family: open_folder(str(gemma.write(
      tmp_path_factory.mktemp(family), family)))
          for family in ('gemma3', 'paligemma')}


def encoded(proc, *images, text='fox', **more):
  return encode.encode(
      records.Example(uid=0, question=text, images=images, **more), proc,
      template=template.plain)


def written(proc, tokens):
  """The text of tokens, runs of a cell's token written once."""
  kept = [x for i, x in enumerate(tokens)
          if x != proc.codec.image_id or x != tokens[i - 1]]
  return proc.tokenizer.decode(kept)


def test_reads_the_folders(procs):
  ids = gemma.ids()
  p = pickle.loads(pickle.dumps(procs['gemma3']))
  assert p.banned == tuple(sorted(ids[x] for x in gemma.IMAGES[:3]))
  assert p.codec.image_id == ids['<image_soft_token>'] and p.eos_id == (
      gemma.END)
  # 8 x 8 patches of 4 pixels; cells of 2 x 2.
  assert (p.window_patches, p.codec.unit, p.channels) == (64, 4, 48)
  assert p.pixels == (32**2, 32**2) and not p.codec.video_mark
  p = procs['paligemma']
  assert p.banned == (ids['<image>'],) == (p.codec.image_id,)
  assert (p.window_patches, p.codec.unit, p.eos_id) == (64, 1, gemma.EOS)


def test_a_patch_is_where_its_position_says_and_cells_are_whole(procs):
  """A picture of which every pixel is its own number, unchanged by a resize
  to its own size; the scale is that of means and deviations of one half."""
  numbers = np.arange(32 * 32) // 4
  picture = np.stack([numbers.reshape(32, 32)] * 3, -1).astype(np.uint8)
  for proc in procs.values():
    got = encoded(proc, Image.fromarray(picture))
    for patch, (y, x) in zip(got.patches, 4 * got.patch_position):
      expected = picture[y:y + 4, x:x + 4].transpose(2, 0, 1) / 127.5 - 1
      np.testing.assert_allclose(patch.reshape(3, 4, 4), expected, atol=1e-6)
    cells = got.patch_position.reshape(-1, proc.codec.unit, 2)
    side = int(proc.codec.unit**0.5)
    assert np.all(cells // side == cells[:, :1] // side)
    assert len(np.unique(cells.reshape(-1, 2), axis=0)) == 64
    # Cells go row by row.
    order = cells[:, 0] @ [100, 1]
    assert np.all(np.diff(order) > 0)


def test_layout_of_prompts(procs):
  image = Image.new('RGB', (5, 9))
  p = procs['gemma3']
  got = encoded(p, image, image, text='<image>fox<image>')
  assert np.sum(got.slot >= 0) == 32 and got.slot.max() == 31
  part = '\n\n<start_of_image><image_soft_token><end_of_image>\n\n'
  assert written(p, got.tokens) == (
      f'<bos><start_of_turn>user\n{part}fox{part}<end_of_turn>\n'
      '<start_of_turn>model\n')
  p = procs['paligemma']
  got = encoded(p, image, image, text='fox<image><image>')
  assert np.sum(got.slot >= 0) == 128
  # Both images stand in front: one run of their tokens.
  assert written(p, got.tokens) == '<image><bos>fox\n'


def test_a_dialogue_of_paligemma_repeats_text_and_answer(procs):
  proc = procs['paligemma']
  turns = tuple(dict(role=role, content=text) for role, text in (
      ('user', '<image>fox'), ('assistant', 'dog'), ('user', 'brown')))
  got = encoded(proc, Image.new('RGB', (9, 9)), messages=turns)
  assert written(proc, got.tokens) == '<image><bos>fox\ndog<eos>brown\n'


def test_alpha_palettes_and_greys_are_colours(procs):
  """The folders' null for do_convert_rgb means that they are."""
  red = Image.new('RGB', (8, 8), (255, 0, 0))
  for proc in procs.values():
    expected = encoded(proc, red).patches
    for mode in ('RGBA', 'P'):
      np.testing.assert_array_equal(
          encoded(proc, red.convert(mode)).patches, expected)
    grey = encoded(proc, red.convert('L')).patches.reshape(-1, 3, 16)
    np.testing.assert_array_equal(grey[:, 0], grey[:, 2])


def test_videos_are_refused(procs):
  clip = records.Video(frames=[Image.new('RGB', (8, 8))] * 2, fps=1.0)
  for proc in procs.values():
    with pytest.raises(ValueError, match='1 videos.*reads images only'):
      encode.encode(records.Example(uid=0, question='x', videos=(clip,)),
                    proc, template=template.plain)


def test_m2_text_holds_no_placeholder(procs):
  with pytest.raises(ValueError, match='special token <image_soft_token>'):
    encoded(procs['gemma3'], text='a <image_soft_token>')
  with pytest.raises(ValueError, match='special token <start_of_image>'):
    encode.encode_completion('<start_of_image>', procs['gemma3'])


@pytest.mark.parametrize('name, changes, words', [
    ('config.json', dict(boi_token_index=7), 'start_of_image> is .* in the '
     'tokenizer but boi_token_index=7'),
    ('config.json', dict(vision_config=dict(gemma.VISION, image_size=64)),
     'size .*32.*image_size 64'),
    ('preprocessor_config.json', dict(do_pan_and_scan=True),
     'do_pan_and_scan true')])
def test_refuses_contradictions(tmp_path, name, changes, words):
  path = gemma.write(tmp_path, 'gemma3') / name
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  with pytest.raises(ValueError, match=words):
    open_folder(str(tmp_path))


def test_gemma_3_does_not_say_how_many_tokens_it_has(tmp_path):
  """config.json of the 4B and 12B has no vocab_size."""
  path = gemma.write(tmp_path, 'gemma3') / 'config.json'
  config = json.loads(path.read_text())
  del config['text_config']['vocab_size']
  path.write_text(json.dumps(config))
  assert open_folder(str(tmp_path)).vocab_size == checkpoints.read_config(
      tmp_path).vocab == transformers.Gemma3TextConfig().vocab_size


def test_instructions_are_not_lost_on_a_template_that_trims(procs):
  """Gemma 3's trims every part, and reads the first of a system message."""
  got = encode.encode(
      records.Example(uid=0, question='fox'), procs['gemma3'],
      template=functools.partial(template.think_answer, instruction='brown'))
  assert 'user\nfox\nbrown<' in written(procs['gemma3'], got.tokens)


def test_m22_a_budget_of_pixels_would_do_nothing(tmp_path):
  gemma.write(tmp_path, 'paligemma')
  with pytest.raises(ValueError, match='max_pixels=500.*32 x 32 pixels'):
    open_folder(str(tmp_path), max_pixels=500)


def test_a_chat_template_of_its_own_goes_first(tmp_path):
  gemma.write(tmp_path, 'paligemma')
  (tmp_path / 'chat_template.jinja').write_text(
      "{% for m in messages %}{% for x in m['content'] %}"
      "{{ x.get('text', '<image>') }}{% endfor %}{% endfor %}!")
  proc = open_folder(str(tmp_path))
  assert written(proc, encoded(proc).tokens) == 'fox!'
