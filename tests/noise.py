"""A small model of a family that has read a picture of noise."""

import pathlib

from mmr1 import forward
from mmr1 import records
from mmr1 import types
from mmr1.data import collate
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import template
from mmr1.models import checkpoints
from tests import tiles
from tests.stages import families_test


def opened(family: str, folder: pathlib.Path):
  """(policy, parameters, processor, prompts: one, with two tokens to spare)."""
  path = families_test.write(family, folder)
  processor = processor_lib.Processor.open(str(path))
  module, params = checkpoints.load(path)
  policy = forward.Policy(
      module, processor.banned, processor.eos_id, processor.pad_id)
  example = records.Example(
      uid=1, question='<image>?', images=(tiles.noise(32, 32),))
  one = encode.encode(example, processor, template=template.plain)
  prompts: types.Prompts = collate.collate(
      [one], prompt_length=len(one.tokens) + 2, patches=len(one.patches))
  return policy, params, processor, prompts
