"""The processor of a checkpoint: tokenizer, special ids, and a media codec.

Opened from a Hugging Face folder (local or remote). Tokens and the chat
template come from `transformers.AutoTokenizer`, pixels from its PIL image
processors; neither needs torch. What a family makes of images and videos is
its codec (`mmr1.data.codecs`). A text-only checkpoint has a tokenizer alone.
"""

import dataclasses
import tempfile
from typing import Any

from etils import epath

from mmr1 import pixels as pixels_lib
from mmr1 import positions
from mmr1.data import checks
from mmr1.data import template
from mmr1.data.codecs import base
from mmr1.data.codecs import gemma
from mmr1.data.codecs import internvl
from mmr1.data.codecs import llava_onevision
from mmr1.data.codecs import qwen
from mmr1.data.codecs import qwen3

TEXT_FAMILIES = (
    'gemma', 'gemma2', 'gemma3_text', 'llama', 'qwen2', 'qwen3')
_CODECS = {'gemma3': gemma, 'internvl': internvl,
           'llava_onevision': llava_onevision, 'paligemma': gemma,
           'qwen2_vl': qwen, 'qwen2_5_vl': qwen, 'qwen3_vl': qwen3}
FAMILIES = (*_CODECS, *TEXT_FAMILIES)
# Of families whose folders have none.
_CHAT_TEMPLATES = {'paligemma': gemma.PALIGEMMA_CHAT}
# What transformers assumes where config.json is silent, as Gemma 3's are.
_VOCAB_SIZES = {'gemma3': 262208}
# Tokens of media that released tokenizers know and their models have no row
# for: InternVL reads a video as images, Gemma 3 1B reads text only.
_ROWLESS = ('<video>', '<image_soft_token>')
# Tokens made for padding in families whose tokenizer may not say so.
_PADDING = ('<|finetune_right_pad_id|>',)  # Llama 3.1
_WEIGHTS = ('.safetensors', '.bin', '.pt', '.pth', '.gguf', '.msgpack', '.h5')


@dataclasses.dataclass(frozen=True, eq=False)
class Processor:
  """Everything that turns an Example into arrays. Pickles; never changes.

  Fields:
    path: the folder it was opened from.
    family: `model_type` of the checkpoint.
    tokenizer: a `transformers` tokenizer with a chat template.
    codec: images and videos of the family; None: the model reads text only.
    pad_id, eos_id: padding; end of an assistant turn.
    vocab_size: rows of the embedding; the tokenizer may know fewer, and of the
      tokens of media more.
  """
  path: str
  family: str
  tokenizer: Any = dataclasses.field(repr=False)
  codec: base.Codec | None
  pad_id: int
  eos_id: int
  vocab_size: int

  @property
  def reads_media(self) -> bool:
    """Whether the model reads images and videos, or text only."""
    return self.codec is not None

  @property
  def banned(self) -> tuple[int, ...]:
    """Every placeholder id of media; can never be sampled (M2)."""
    return self.codec.banned if self.codec else ()

  @property
  def channels(self) -> int:
    """Values per patch, C; 0 without media."""
    return self.codec.channels if self.codec else 0

  @property
  def window_patches(self) -> int:
    """Patches per padded window; S is a multiple of it."""
    return self.codec.window_patches if self.codec else 1

  @property
  def pixels(self) -> tuple[int, int] | None:
    """Area (least, most) that an image is resized into."""
    return (self.codec.min_pixels, self.codec.max_pixels) if self.codec else (
        None)

  @property
  def patch_pixels(self) -> pixels_lib.Pixels | None:
    """How patches are made of pixels; None without media."""
    return self.codec.pixels_of_patch if self.codec else None

  @classmethod
  def open(
      cls,
      path: str,
      *,
      min_pixels: int | None = None,
      max_pixels: int | None = None,
      video_fps: float | None = None,
      video_max_frames: int | None = None,
      position_rule: str = 'legacy',
  ) -> 'Processor':
    """Opens a checkpoint folder.

    Args:
      path: folder with config.json, tokenizer files, a chat template and,
        unless it is a text-only model, preprocessor_config.json (or its
        contents in processor_config.json); any path etils.epath can read.
      min_pixels, max_pixels: replace the image area of the checkpoint.
      video_fps, video_max_frames: replace how it samples clips. These four
        are idle for a text-only model.
      position_rule: 'legacy' (released checkpoints) or 'v5'.

    Raises:
      ValueError: something is missing, contradictory or not supported.
    """
    folder = epath.Path(path)
    checks.file(folder / 'config.json')
    options = base.Options(
        min_pixels, max_pixels, video_fps, video_max_frames, position_rule)
    if '://' in str(path):
      with tempfile.TemporaryDirectory() as copy:
        _copy_small(folder, epath.Path(copy))
        return _open(copy, str(path), options)
    return _open(str(folder), str(path), options)


def _copy_small(source: epath.Path, target: epath.Path):
  """Copies the files beside the weights: transformers reads local folders."""
  for file in source.iterdir():
    if file.is_file() and not file.name.endswith(_WEIGHTS):
      (target / file.name).write_bytes(file.read_bytes())


def _open(folder: str, path: str, options: base.Options) -> Processor:
  config = checks.read(folder, 'config.json')
  family = config.get('model_type')
  if family not in FAMILIES:
    raise ValueError(
        f'{path}/config.json: model_type={family!r}; the families known here '
        f'are {FAMILIES}.')
  if options.position_rule not in positions.RULES:
    raise ValueError(
        f'position_rule={options.position_rule!r}: allowed are '
        f'{positions.RULES}.')
  tokenizer = _tokenizer(folder, path, family)
  vocab_size = _vocab_size(tokenizer, config, path)
  codec, pad_id = None, tokenizer.pad_token_id
  if family in TEXT_FAMILIES:
    if pad_id is None:
      known = tokenizer.get_vocab()
      pad_id = next((known[x] for x in _PADDING if x in known), None)
  else:
    if not checks.settings(folder, 'image_processor'):
      checks.file(epath.Path(path) / 'preprocessor_config.json')
    codec = _CODECS[family].open_codec(
        folder, path, config, tokenizer, options)
  try:
    eos_id = _turn_end(tokenizer, parts=codec is not None)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  placeholders = codec.banned if codec else ()
  checks.distinct(
      {'pad_id': pad_id, 'eos_id': eos_id}
      | {tokenizer.convert_ids_to_tokens(i): i for i in placeholders}, path)
  return Processor(
      path=path, family=family, tokenizer=tokenizer, codec=codec,
      pad_id=pad_id, eos_id=eos_id, vocab_size=vocab_size)


def _vocab_size(tokenizer, config, path) -> int:
  """Rows of the embedding, of which every token has one."""
  sections = (config.get('text_config') or {}, config)
  size = next((x['vocab_size'] for x in sections if x.get('vocab_size')),
              _VOCAB_SIZES.get(config['model_type']))
  if size is None or any(
      i >= size for token, i in tokenizer.get_vocab().items()
      if token not in _ROWLESS):
    raise ValueError(
        f'{path}: the tokenizer has {len(tokenizer)} tokens but config.json '
        f'says vocab_size={size}; they belong to different models.')
  return size


def _turn_end(tokenizer: Any, *, parts: bool) -> int | None:
  """The token that ends an assistant's turn, what sampling stops at.

  It is what the chat template writes after the words, if that is a token of
  its own (Gemma's <end_of_turn>, while its eos token ends documents), else
  the tokenizer's eos.

  Args:
    tokenizer: with a chat template.
    parts: whether the template wants contents as lists of parts.
  """
  words = 'an answer'
  text = template.written(tokenizer, [
      {'role': role, 'content': (
          [{'type': 'text', 'text': said}] if parts else said)}
      for role, said in (('user', 'a question'), ('assistant', words))],
      answer=False)
  _, found, after = text.rpartition(words)
  added = tokenizer.get_added_vocab()
  ends = [token for token in added
          if token.strip() and after.lstrip().startswith(token)]
  if found and ends:
    return added[max(ends, key=len)]
  return tokenizer.eos_token_id


def _tokenizer(folder, path, family):
  """The folder's tokenizer, with a chat template from wherever it is kept.

  Of a model that reads media it is the processor's, as in transformers: beside
  it some tokenizers keep that of the text model they were taken from.
  """
  import transformers  # costs a second: only when a folder is opened
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  kept = [checks.read(folder, name).get('chat_template')
          for name in ('processor_config.json', 'chat_template.json')]
  kept.insert(0 if family in TEXT_FAMILIES else 2, tokenizer.chat_template)
  kept.append(_CHAT_TEMPLATES.get(family))
  tokenizer.chat_template = next((x for x in kept if x is not None), None)
  if tokenizer.chat_template is None:
    raise ValueError(
        f'{path}: no chat template: neither chat_template.jinja, '
        'chat_template.json nor chat_template in processor_config.json or '
        'tokenizer_config.json.')
  return tokenizer
