"""What the benchmarks run: models of random weights, prompts and lengths.

Every engine opens the same folder: a Hugging Face model (sizes of the
workload, tokenizer and processor of the embedded model) and `data.jsonl`.
"""

import dataclasses
import json
import math
import pathlib
import shutil

import jax
import numpy as np
from PIL import Image
import transformers

from mmr1.models import checkpoints

TINY = pathlib.Path(__file__).parents[2] / 'mmr1' / 'assets' / 'tiny'
_PATCH, _MERGE, _WINDOW = 14, 2, 4
_WORDS = ('how', 'many', 'red', 'and', 'blue', 'is', 'the', 'sum', 'of', 'a')


@dataclasses.dataclass(frozen=True)
class Workload:
  """One row of the tables.

  Fields:
    about: in words.
    width, mlp_width, depth, heads, kv_heads: of the decoder.
    image: pixels along each side of the prompt's picture; 0: text only.
    text: prompt tokens that are not image tokens.
    prompts, group, length: N, G, T of a step.
    rows: N, G of a measurement of generation; None: those of a step.
    sampler, update: (key, value) of mmr1's sections `sampler` and `rl` that a
      user would set for such lengths; the defaults else.
    mean: of geometric lengths, a fraction of T; 0: every row runs to T.
    limit: tokens that are drawn, where that is less than T; 0: T.
  """
  about: str
  width: int
  mlp_width: int
  depth: int
  heads: int
  kv_heads: int
  image: int
  text: int
  prompts: int
  group: int
  length: int
  mean: float = 0.0
  limit: int = 0
  rows: tuple[int, int] | None = None
  sampler: tuple[tuple[str, int | bool], ...] = ()
  update: tuple[tuple[str, int | tuple[int, ...]], ...] = ()

  @property
  def image_tokens(self) -> int:
    return (self.image // (_PATCH * _MERGE))**2

  @property
  def patches(self) -> int:
    """Patch slots, in whole attention windows."""
    window = _PATCH * _MERGE * _WINDOW
    return (-(-self.image // window) * _WINDOW * _MERGE)**2

  @property
  def prompt_tokens(self) -> int:
    return self.text + self.image_tokens

  @property
  def drawn(self) -> int:
    """Tokens that a row which never ends has."""
    return self.limit or self.length

  @property
  def hazard(self) -> float:
    """Chance that a row ends at a token, so that the mean length is
    `mean * T` where rows are cut at T; 0: rows never end."""
    if not self.mean:
      return 0.0
    low, high = 1e-6, 1.0
    for _ in range(60):
      middle = (low + high) / 2
      mean = (1 - (1 - middle)**self.length) / middle
      low, high = ((middle, high) if mean > self.mean * self.length else
                   (low, middle))
    return low

  def eos_bias(self, choices: int) -> float:
    """Added to the logit of eos among so many about equal ones."""
    return math.log(self.hazard / (1 - self.hazard) * (choices - 1))


# Lengths differ: most of the completions wait for a row that ends, and the
# update takes short ones apart from long ones.
_RAGGED = dict(
    sampler=(('rows', 32), ('cache_chunk', 64), ('shrink', True)),
    update=(('length_buckets', (48, 96)), ('chunks_per_minibatch', 4)))
_SMALL = dict(width=128, mlp_width=384, depth=4, heads=4, kv_heads=2, text=32)
WORKLOADS = {
    'w1': Workload(
        'VLM 1.2M, 224 x 224', image=224, prompts=4, group=8, length=128,
        **_SMALL),
    'w2': Workload(
        'VLM 1.2M, 896 x 896', image=896, prompts=2, group=16, length=64,
        **_SMALL),
    'w3': Workload(
        'text 4.1M', width=256, mlp_width=1024, depth=4, heads=4, kv_heads=2,
        image=0, text=64, prompts=4, group=8, length=128, rows=(16, 1)),
    'w4': Workload(
        'VLM 24M, 448 x 448', width=512, mlp_width=1536, depth=8, heads=16,
        kv_heads=2, image=448, text=32, prompts=4, group=8, length=64),
    'w5': Workload(
        'VLM 1.2M, ragged lengths; 32 prompts where generation alone is timed',
        image=224, prompts=16, group=8, length=192, rows=(32, 8), mean=1 / 3,
        **_RAGGED, **_SMALL),
    # What w5 is compared with: the same rows, all of them to the cap.
    'w5full': Workload(
        'VLM 1.2M, the rows of w5 to the cap', image=224, prompts=16, group=8,
        length=192, rows=(32, 8), **_RAGGED, **_SMALL),
    # Does a cap that is not reached cost anything?
    'cap1024': Workload(
        'w1 under a cap of 1,024', image=224, prompts=4, group=8, length=1024,
        limit=128, sampler=(('cache_chunk', 128),), **_SMALL),
}


def named(name: str) -> Workload:
  """The workload of that name.

  Raises:
    ValueError: with the names there are.
  """
  if name not in WORKLOADS:
    raise ValueError(f'workload {name!r}: allowed are {tuple(WORKLOADS)}.')
  return WORKLOADS[name]


def config(w: Workload) -> dict:
  """config.json of the workload's model."""
  tiny = json.loads((TINY / 'config.json').read_text())
  head = w.width // w.heads
  text = dict(
      tiny['text_config'], hidden_size=w.width, intermediate_size=w.mlp_width,
      num_hidden_layers=w.depth, num_attention_heads=w.heads,
      num_key_value_heads=w.kv_heads, dtype='float32')
  if not w.image:
    text.update(model_type='qwen2', architectures=['Qwen2ForCausalLM'],
                rope_parameters=dict(rope_theta=1e4, rope_type='default'))
    return text
  third = head // 2 // 3
  text['rope_parameters']['mrope_section'] = [
      head // 2 - 2 * third, third, third]
  tiny.update(dtype='float32', text_config=text)
  tiny['vision_config'].update(
      depth=4, hidden_size=64, intermediate_size=128, num_heads=4,
      out_hidden_size=w.width, patch_size=_PATCH,
      window_size=_WINDOW * _PATCH * _MERGE)
  return tiny


def build(w: Workload, folder: pathlib.Path) -> None:
  """Makes the folder: `model/`, `data.jsonl`, pictures, `workload.json`."""
  model = folder / 'model'
  shutil.copytree(
      TINY, model, ignore=shutil.ignore_patterns('*.safetensors'))
  (model / 'config.json').write_text(json.dumps(config(w)))
  if w.image:
    file = model / 'preprocessor_config.json'
    settings = json.loads(file.read_text())
    settings['size'] = dict(
        shortest_edge=w.image**2, longest_edge=w.image**2)
    file.write_text(json.dumps({**settings, 'patch_size': _PATCH}))
  else:
    for name in ('preprocessor_config', 'video_preprocessor_config'):
      (model / f'{name}.json').unlink()
  _weights(model)
  rows = max(w.prompts, w.rows[0] if w.rows else 0)
  texts = questions(w, model, rows)
  rng = np.random.default_rng(0)
  with open(folder / 'data.jsonl', 'w') as f:
    for i, text in enumerate(texts):
      row = dict(problem=text, answer='1')
      if w.image:
        pixels = rng.integers(0, 256, (w.image, w.image, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{i}.png')
        row['images'] = [f'{i}.png']
      f.write(json.dumps(row) + '\n')
  settings = dataclasses.asdict(w)
  tokenizer = transformers.AutoTokenizer.from_pretrained(model)
  settings.update(
      drawn=w.drawn, prompt_tokens=w.prompt_tokens, patches=w.patches,
      eos=tokenizer.eos_token_id,
      bias=w.eos_bias(checkpoints.read_config(model).vocab) if w.mean else None)
  (folder / 'workload.json').write_text(json.dumps(settings))


def _weights(model: pathlib.Path) -> None:
  """Random ones, as transformers draws them: N(0, 0.02)."""
  module, structs = checkpoints.describe(model, param_dtype='float32')
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path)
    if 'norm' in name:
      return np.ones(leaf.shape, np.float32)
    if 'bias' in name:
      return np.zeros(leaf.shape, np.float32)
    return 0.02 * rng.standard_normal(leaf.shape, np.float32)
  checkpoints.save(
      model, module, jax.tree_util.tree_map_with_path(draw, structs))


def questions(w: Workload, model: pathlib.Path, count: int) -> list[str]:
  """Texts whose prompts have exactly `w.text` tokens beside the image's."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(model)
  rng = np.random.default_rng(1)

  def tokens(text):
    content = [{'type': 'image'}] if w.image else []
    content.append({'type': 'text', 'text': text})
    rendered = tokenizer.apply_chat_template(
        [{'role': 'user', 'content': content}], tokenize=False,
        add_generation_prompt=True)
    # One placeholder stands for all the image's tokens.
    return len(tokenizer(rendered)['input_ids']) - bool(w.image)

  found = []
  while len(found) < count:
    text = str(len(found))
    while tokens(text) < w.text:
      text += ' ' + str(rng.choice(_WORDS))
    if tokens(text) == w.text and text not in found:
      found.append(text)
  return found
