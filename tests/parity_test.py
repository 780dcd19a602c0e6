"""The embedded model opens in transformers and says the same there."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mmr1 import forward
from mmr1 import trees
from mmr1 import types
from mmr1.data import collate
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import template
from mmr1.data.tasks import digits
from mmr1.models import checkpoints
from mmr1.sampling import keys
from mmr1.sampling import sample
from tests import small

FOLDER = pathlib.Path(forward.__file__).parent / 'assets' / 'tiny'
T = 16


@pytest.fixture(scope='module')
def ours():
  module, params = checkpoints.load(FOLDER)
  processor = processor_lib.Processor.open(str(FOLDER))
  return processor, forward.Policy(
      module, processor.banned, processor.eos_id, processor.pad_id), params


@pytest.fixture(scope='module')
def theirs():
  torch.set_num_threads(1)
  model = transformers.AutoModelForImageTextToText.from_pretrained(
      FOLDER, dtype=torch.float32).eval()
  # Greedy, and on after eos, as here.
  model.generation_config = transformers.GenerationConfig(
      do_sample=False, max_new_tokens=T, eos_token_id=None, pad_token_id=0)
  return model


@pytest.fixture(scope='module')
def example():
  return digits.digits(0, 'eval', 3)


@pytest.fixture(scope='module')
def prompts(ours, example):
  one = encode.encode(example, ours[0], template=template.think_answer)
  return collate.collate([one], prompt_length=len(one.tokens) + 5, patches=64,
                         pad_id=ours[0].pad_id)


@pytest.fixture(scope='module')
def greedy(ours, prompts):
  """Greedy tokens that go on after eos, so that there are 16."""
  _, policy, params = ours
  policy = forward.Policy(policy.module, policy.banned, -1, policy.pad_id)
  rollout = sample.sample(
      policy, params, prompts, keys.step_key(0, 0, 0),
      sample.knobs(temperature=0.0, max_new_tokens=T), jnp.int32(0), group=1,
      length=T)
  return np.asarray(rollout.completions.tokens)[0, 0]


@pytest.fixture(scope='module')
def inputs(ours, theirs, example):
  """The same example through the processor of transformers."""
  processor = ours[0]
  made = template.think_answer(example)
  text = processor.tokenizer.apply_chat_template(
      made, tokenize=False, add_generation_prompt=True)
  images = transformers.AutoImageProcessor.from_pretrained(
      FOLDER, backend='pil')(
          list(example.images), return_tensors='pt')
  grid = images['image_grid_thw'][0].tolist()
  image = processor.tokenizer.convert_ids_to_tokens(processor.codec.image_id)
  text = text.replace(image, image * (grid[1] * grid[2] // 4))
  ids = processor.tokenizer(text, add_special_tokens=False)['input_ids']
  return dict(
      input_ids=torch.tensor([ids]),
      mm_token_type_ids=torch.tensor([[
          int(i == processor.codec.image_id) for i in ids]]),
      pixel_values=images['pixel_values'],
      image_grid_thw=images['image_grid_thw'])


def test_m20_prompts_are_those_of_transformers(prompts, inputs):
  mask = prompts.mask[0]
  np.testing.assert_array_equal(
      prompts.tokens[0][mask], inputs['input_ids'][0].numpy())
  assert (prompts.media['vision'].slot[0] >= 0).sum() > 0


def test_m1_m20_logits_equal_transformers(
    ours, theirs, prompts, inputs, greedy):
  """fp32, the prompt's last state and 15 tokens after it."""
  _, policy, params = ours
  shape = (1, 1, T)
  completions = types.Completions(
      tokens=greedy.reshape(shape), kind=np.ones(shape, np.int8),
      positions=sample.text_positions(
          jnp.asarray(prompts.next_position), shape))
  plain = forward.Policy(policy.module, (), policy.eos_id, policy.pad_id)
  logits = np.asarray(small.logits(
      plain, params, prompts, completions, 1.0))[0, 0]
  more = {**inputs, 'input_ids': torch.cat(
      [inputs['input_ids'], torch.tensor(greedy[None, :-1])], 1)}
  more['mm_token_type_ids'] = torch.nn.functional.pad(
      inputs['mm_token_type_ids'], (0, T - 1))
  with torch.no_grad():
    expected = theirs(**more).logits[0, -T:].numpy()
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_m20_greedy_tokens_equal_transformers(ours, theirs, inputs, greedy):
  """16 of them, end of turn or not; placeholders cannot be written here."""
  with torch.no_grad():
    out = theirs.generate(**inputs, suppress_tokens=list(ours[0].banned))
  np.testing.assert_array_equal(
      out[0, inputs['input_ids'].shape[1]:].numpy(), greedy)


def test_the_folder_is_small(ours):
  size = sum(f.stat().st_size for f in FOLDER.rglob('*') if f.is_file())
  assert size <= 8 * 2**20
  assert trees.count(ours[2]) <= 3_000_000


def test_special_ids_are_distinct(ours):
  processor = ours[0]
  ids = (processor.pad_id, processor.eos_id, *processor.banned)
  assert len(set(ids)) == len(ids) >= 4
  codec = processor.codec
  assert {codec.image_id, codec.video_id} <= set(processor.banned)
