"""Token in, token out: prompt + sampled + inserted is the chat (M5, M18)."""

import dataclasses

import numpy as np
from PIL import Image
import pytest

from mmr1 import records
from mmr1 import types
from mmr1.data import encode
from mmr1.data import inserting
from mmr1.data import processor as processor_lib
from mmr1.data import template
from mmr1.data import trajectories

TINY = 'mmr1/assets/tiny'


@pytest.fixture(scope='module', params=['embedded', 'released'])
def processor(request):
  """With the embedded model's chat template, and with Qwen2.5-VL's."""
  from tests.data import conftest
  made = processor_lib.Processor.open(TINY)
  if request.param == 'released':
    made.tokenizer.chat_template = conftest.CHAT
  return made


def picture(height, width, seed=0):
  rng = np.random.default_rng(seed)
  return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def chat(processor, example, said, observations):
  """Ids, positions and grids of the whole, by the chat template at once."""
  messages = template.plain(example)
  images = list(example.images)
  for n, text in enumerate(said):
    messages.append({'role': 'assistant', 'content': [
        {'type': 'text', 'text': text}]})
    if n < len(observations):
      one = observations[n]
      images += one.images
      messages.append({'role': one.role, 'content': template.parts(one.text)})
  text = template.written(
      processor.tokenizer, template.joined(messages, strings=False),
      answer=False)
  whole = dataclasses.replace(example, images=tuple(images))
  text, spans, _ = encode.filled(text, whole, processor.codec)
  tokens = encode.expanded(text, spans, processor)
  return tokens, processor.codec.positions(tokens, spans)[0]


def test_law_4_a_trajectory_is_the_chat(processor):
  example = records.Example(
      uid=1, question='<image>What?', images=(picture(32, 48),))
  observations = [
      records.Observation(text='<image>Go on.', images=(picture(48, 32, 1),)),
      records.Observation(text='Error: 3 < 4'),
      records.Observation(text='two<image> and<image>', role='tool', images=(
          picture(16, 64, 2), picture(64, 16, 3)))]
  said = ['<think>a</think>', 'Which digits?', 'well', 'the sum']
  prompt = encode.encode(example, processor, template=template.plain)
  made = trajectories.Trajectory(prompt.next_position)
  for n, text in enumerate(said):
    made.say(encode.encode_completion(text, processor))
    if n < len(observations):
      made.insert(inserting.encode(observations[n], processor, closed=True))
  tokens, place = chat(processor, example, said, observations)
  ours = np.concatenate([prompt.tokens, made.tokens])
  # The template goes on with a line's end that nobody samples.
  np.testing.assert_array_equal(ours, tokens[:len(ours)])
  np.testing.assert_array_equal(
      np.concatenate([prompt.positions, made.positions()]),
      place[:len(ours)])
  kinds = made.kind
  cells = np.isin(made.tokens, processor.banned)
  assert (kinds[cells] == types.KIND_OBSERVATION).all() and cells.sum() > 12
  completions = trajectories.collate(
      [[made]], 200, 256, processor.pad_id, processor.codec)
  slot = completions.media['vision'].slot[0, 0]
  image = completions.tokens[0, 0] == processor.codec.image_id
  np.testing.assert_array_equal(slot >= 0, image)
  assert len({*slot[image]}) == image.sum()  # each its own cell
  whole = encode.encode(dataclasses.replace(
      example, question='<image>' * 4 + 'What?', images=(
          *example.images, *(i for o in observations for i in o.images))),
                        processor, template=template.plain)
  np.testing.assert_array_equal(
      completions.media['vision'].patches[0, 0, :made.patches],
      whole.patches[len(prompt.patches):])


def test_a_turn_that_was_cut_is_closed(processor):
  said = records.Observation(text='Go on.')
  closed, open_ = (inserting.framed(said, processor, closed=x)
                   for x in (True, False))
  end = processor.tokenizer.convert_ids_to_tokens(processor.eos_id)
  assert open_ == end + closed
  assert closed == '\n<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n'


def test_inside_the_turn_nobody_speaks(processor):
  said = records.Observation(
      text='\n<image>\n', role='', images=(picture(16, 32),))
  assert inserting.framed(said, processor, closed=False) == (
      '\n<|vision_start|><|image_pad|><|vision_end|>\n')
  made = inserting.encode(said, processor, closed=False)
  assert made.positions[0].tolist() == [0, 0, 0]
  assert (made.slot >= 0).sum() == 2


@pytest.mark.parametrize('said, match', [
    (dict(text='a <|im_end|>'), 'special token <.im_end'),
    (dict(text='<|image_pad|>'), 'special token <.image_pad'),
    (dict(text='<image>'), '1 <image> placeholders for 0 images'),
    (dict(text='<image><image>', images=(picture(16, 32),)), '2 <image>'),
    (dict(images=(picture(1, 900),)), 'aspect ratio'),
])
def test_m22_what_cannot_be_inserted(processor, said, match):
  with pytest.raises(ValueError, match=match):
    inserting.encode(records.Observation(**said), processor, closed=True)


def test_a_template_that_rewrites_turns_is_refused(processor):
  made = dataclasses.replace(processor, tokenizer=processor_lib.Processor.open(
      TINY).tokenizer)
  made.tokenizer.chat_template = (
      "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
      "{% if m['role'] == 'assistant' and not loop.last %}forgotten"
      "{% else %}{{ m['content'][0]['text'] }}{% endif %}<|im_end|>\n"
      '{% endfor %}')
  with pytest.raises(ValueError, match="otherwise when a turn of 'user'"):
    inserting.encode(records.Observation(text='x'), made, closed=True)
