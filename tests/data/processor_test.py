"""Opening a checkpoint folder: what is read, and what is refused."""

import json
import pickle

import pytest

from mmr1.data import processor as processor_lib

open_folder = processor_lib.Processor.open


@pytest.fixture
def copy(folder, tmp_path):
  """A copy of the folder, and a function that edits one of its JSON files."""
  for file in folder.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())

  def edit(name, **changes):
    path = tmp_path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(tmp_path)

  return edit


def test_reads_the_folder(proc):
  # Special ids follow the 256 bytes in the order of the fixture.
  assert (proc.pad_id, proc.eos_id) == (256, 258)
  assert proc.banned == (259, 260, 261, 262, 263)
  assert (proc.codec.image_id, proc.codec.video_id) == (262, 263)
  codec = proc.codec
  assert (codec.patch, codec.merge, codec.temporal) == (8, 2, 2)
  # Window of 32 pixels: 4 patches, 2 cells; 16 patches a window.
  assert (codec.window_cells, proc.window_patches) == (2, 16)
  assert proc.channels == 3 * 2 * 64 and proc.vocab_size == 320
  assert proc.pixels == (codec.min_pixels, codec.max_pixels) == (256, 4096)
  assert codec.video.max_pixels == 48 * 48 and codec.video.max_frames == 16


def test_overrides_and_pickling(folder):
  opened = open_folder(
      str(folder), min_pixels=512, max_pixels=1024, video_fps=1.0,
      video_max_frames=8, position_rule='v5')
  again = pickle.loads(pickle.dumps(opened))
  for p in (opened, again):
    assert (p.pixels, p.codec.position_rule) == ((512, 1024), 'v5')
    assert (p.codec.video.fps, p.codec.video.max_frames) == (1.0, 8)
    # 64x64 is four times too large: halved, 4 patches a side.
    assert p.codec.image_grid(64, 64) == (1, 4, 4)


def test_defaults_of_a_folder_without_video_settings(copy, tmp_path):
  (tmp_path / 'video_preprocessor_config.json').unlink()
  opened = open_folder(copy('config.json'))
  clips = opened.codec.video
  assert clips.min_pixels == 128 * 16 ** 2
  assert clips.max_pixels == 768 * 16 ** 2
  assert clips.fps == 2.0


def test_null_in_the_video_settings_is_the_default(copy):
  opened = open_folder(copy(
      'video_preprocessor_config.json', fps=None, max_frames=None,
      min_frames=None, max_pixels=None, image_mean=None,
      size=dict(longest_edge=1024)))
  clips = opened.codec.video
  assert (clips.fps, clips.max_frames) == (2.0, 768)
  assert (clips.min_frames, clips.max_pixels) == (4, 1024)
  assert clips.mean == tuple(opened.codec.image_processor.image_mean)


def test_old_chat_template_file(copy, tmp_path, proc):
  path = copy('tokenizer_config.json', chat_template=None)
  with pytest.raises(ValueError, match='chat template'):
    open_folder(path)
  (tmp_path / 'chat_template.json').write_text(
      json.dumps({'chat_template': proc.tokenizer.chat_template}))
  assert open_folder(path).tokenizer.chat_template == (
      proc.tokenizer.chat_template)


@pytest.mark.parametrize('name', [
    'chat_template.json', 'processor_config.json'])
def test_the_chat_template_of_the_processor_goes_first(
    copy, tmp_path, text_folder, proc, name):
  """LLaVA-OneVision's tokenizers keep that of the text model they were."""
  own = json.loads((text_folder / 'tokenizer_config.json').read_text())
  path = copy('tokenizer_config.json', chat_template=own['chat_template'])
  (tmp_path / name).write_text(
      json.dumps({'chat_template': proc.tokenizer.chat_template}))
  opened = open_folder(path)
  assert opened.tokenizer.chat_template == proc.tokenizer.chat_template
  assert opened.eos_id == proc.eos_id
  # A text-only model's is its tokenizer's, as ever.
  copy('config.json', model_type='qwen3')
  assert open_folder(path).tokenizer.chat_template == own['chat_template']


def test_a_chat_template_of_a_text_model_for_one_that_reads_images(
    copy, text_folder):
  own = json.loads((text_folder / 'tokenizer_config.json').read_text())
  path = copy('tokenizer_config.json', chat_template=own['chat_template'])
  with pytest.raises(ValueError, match=f'{path}: the chat template.*list'):
    open_folder(path)


def test_pixels_as_transformers_5_saves_them(copy, tmp_path, proc):
  """Everything in processor_config.json, and nothing beside it."""
  path, nested = copy('config.json'), {}
  for kind, name in (('image_processor', 'preprocessor_config.json'),
                     ('video_processor', 'video_preprocessor_config.json')):
    nested[kind] = json.loads((tmp_path / name).read_text())
    (tmp_path / name).unlink()
  (tmp_path / 'processor_config.json').write_text(json.dumps(nested))
  opened = open_folder(path)
  assert opened.pixels == proc.pixels
  assert opened.codec.video == proc.codec.video


def test_pad_eos_and_vision_ids_are_distinct(copy, proc):
  turned = proc.tokenizer.chat_template.replace(
      '<|im_end|>', '<|vision_end|>')
  for changes, words in (
      (dict(pad_token='<|im_end|>'), 'pad_id and eos_id'),
      (dict(pad_token='<|image_pad|>'), r'pad_id and <\|image_pad\|>'),
      (dict(pad_token='<|endoftext|>', chat_template=turned),
       r'eos_id and <\|vision_end\|>')):
    with pytest.raises(ValueError, match=words):
      open_folder(copy('tokenizer_config.json', **changes))


def test_what_ends_documents_may_be_padding(copy, proc):
  """InternVL's with InternLM's tokenizer: turns end with another token."""
  opened = open_folder(copy(
      'tokenizer_config.json', eos_token='<|endoftext|>'))
  assert opened.tokenizer.eos_token_id == opened.pad_id == proc.pad_id
  assert opened.eos_id == proc.eos_id


@pytest.mark.parametrize('name, changes, words', [
    ('config.json', dict(model_type='llava'), 'model_type'),
    ('config.json', dict(image_token_id=5), 'image_pad.* is 262'),
    ('config.json', dict(vocab_size=100), 'vocab_size=100'),
    ('config.json', dict(vision_config=dict(patch_size=14)), 'patch_size=8'),
    ('preprocessor_config.json', dict(min_pixels=5000), 'min_pixels=5000'),
])
def test_refuses_contradictions(copy, name, changes, words):
  with pytest.raises(ValueError, match=words):
    open_folder(copy(name, **changes))


@pytest.mark.parametrize('kw', [
    dict(video_fps=0.0), dict(video_fps=-1.0), dict(video_max_frames=0),
    dict(video_max_frames=1)], ids=str)
def test_m22_no_frames_is_not_as_many_as_the_checkpoint_says(folder, kw):
  (key, value), = kw.items()
  with pytest.raises(ValueError, match=f'{key}={value}.*needed'):
    open_folder(str(folder), **kw)


@pytest.mark.parametrize('name', [
    'config.json', 'preprocessor_config.json',
    'video_preprocessor_config.json'])
@pytest.mark.parametrize('text', ['version https://git-lfs', '[]'])
def test_a_damaged_file_is_named(copy, tmp_path, name, text):
  path = copy(name)
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=f'{name}: (not|a) JSON'):
    open_folder(path)


def test_refuses_folders_that_are_none(tmp_path, folder):
  with pytest.raises(ValueError, match='config.json: no such file'):
    open_folder(str(tmp_path))
  with pytest.raises(ValueError, match='position_rule'):
    open_folder(str(folder), position_rule='v6')


def test_family_without_windows(copy):
  path = copy('config.json', model_type='qwen2_vl')
  opened = open_folder(path)
  assert opened.codec.window_cells == 1
  assert opened.codec.tokens_per_second is None


def test_a_text_only_folder_needs_no_pixels(text_proc):
  p = pickle.loads(pickle.dumps(text_proc))
  assert not p.reads_media and p.codec is p.pixels is None
  # The tokenizer knows the placeholders; to this model they are words.
  assert p.banned == ()
  assert (p.pad_id, p.eos_id, p.vocab_size) == (256, 258, 320)
  assert (p.channels, p.window_patches) == (0, 1)


@pytest.mark.parametrize('family', processor_lib.TEXT_FAMILIES)
def test_families_without_vision(text_folder, tmp_path, family):
  for file in text_folder.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  (tmp_path / 'config.json').write_text(json.dumps(
      dict(model_type=family, vocab_size=320)))
  # A pixel budget is idle, not an error: base configs have one.
  opened = open_folder(str(tmp_path), min_pixels=512, video_fps=1.0)
  assert opened.family == family and not opened.reads_media


def test_padding_of_a_tokenizer_that_names_none(text_folder, tmp_path):
  for file in text_folder.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  settings = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  del settings['pad_token']
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
  with pytest.raises(ValueError, match='no pad token'):
    open_folder(str(tmp_path))
  words = json.loads((tmp_path / 'tokenizer.json').read_text())
  words['added_tokens'].append({
      **words['added_tokens'][-1], 'id': 264,
      'content': '<|finetune_right_pad_id|>'})
  (tmp_path / 'tokenizer.json').write_text(json.dumps(words))
  assert open_folder(str(tmp_path)).pad_id == 264


def test_an_image_model_without_its_preprocessor(copy, tmp_path):
  path = copy('config.json')
  (tmp_path / 'preprocessor_config.json').unlink()
  with pytest.raises(ValueError, match='preprocessor_config.json: no such'):
    open_folder(path)
