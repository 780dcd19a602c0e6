"""The processor of a checkpoint: tokenizer, pixels, special ids, geometry.

Opened from a Hugging Face folder (local or remote). Tokens and the chat
template come from `transformers.AutoTokenizer`, pixels from its PIL image
processors; neither needs torch. The geometry comes from `config.json`. A
text-only checkpoint has a tokenizer alone.
"""

import dataclasses
import itertools
import json
import tempfile
from typing import Any

from etils import epath

from mmr1 import positions
from mmr1.data import video

TEXT_FAMILIES = ('llama', 'qwen2', 'qwen3')
FAMILIES = ('qwen2_5_vl', 'qwen2_vl', *TEXT_FAMILIES)
# Tokens made for padding in families whose tokenizer may not say so.
_PADDING = ('<|finetune_right_pad_id|>',)  # Llama 3.1
# What transformers assumes where `vision_config` is silent.
_VISION_DEFAULTS = {
    'patch_size': 14,
    'spatial_merge_size': 2,
    'temporal_patch_size': 2,
    'window_size': 112,
    'tokens_per_second': 4,
}
_WEIGHTS = ('.safetensors', '.bin', '.pt', '.pth', '.gguf', '.msgpack', '.h5')


@dataclasses.dataclass(frozen=True, eq=False)
class Processor:
  """Everything that turns an Example into arrays. Pickles; never changes.

  Fields:
    path: the folder it was opened from.
    family: `model_type` of the checkpoint.
    tokenizer: a `transformers` tokenizer with a chat template.
    image_processor: a `transformers` PIL image processor; None: the model
      reads text only.
    video: how clips are sampled, resized and normalised; None with it.
    patch, merge, temporal: pixels per patch side, patches per cell side,
      frames per patch.
    window_cells: cells per attention window side; 1 where the family has no
      windows (then no window is ever padded).
    tokens_per_second: temporal positions per second of video; None where
      frames count 1 whatever their rate (Qwen2-VL).
    position_rule: 'legacy' or 'v5', see `positions.rope_index`.
    min_pixels, max_pixels: area an image is resized into.
    pad_id, eos_id: padding; end of an assistant turn.
    image_id, video_id, vision_start_id, vision_end_id: placeholders; -1, the
      id of no token, where the model reads text only.
    banned: every vision placeholder id; can never be sampled (M2).
    vocab_size: rows of the embedding; the tokenizer may know fewer.
  """
  path: str
  family: str
  tokenizer: Any = dataclasses.field(repr=False)
  image_processor: Any = dataclasses.field(repr=False)
  video: video.VideoConfig | None
  patch: int
  merge: int
  temporal: int
  window_cells: int
  tokens_per_second: float | None
  position_rule: str
  min_pixels: int
  max_pixels: int
  pad_id: int
  eos_id: int
  image_id: int
  video_id: int
  vision_start_id: int
  vision_end_id: int
  banned: tuple[int, ...]
  vocab_size: int

  @property
  def reads_media(self) -> bool:
    """Whether the model reads images and videos, or text only."""
    return self.image_processor is not None

  @property
  def channels(self) -> int:
    """Values per patch, C: RGB x frames x pixels."""
    return 3 * self.temporal * self.patch ** 2

  @property
  def window_patches(self) -> int:
    """Patches per padded window; S is a multiple of it."""
    return (self.window_cells * self.merge) ** 2

  def image_grid(self, height: int, width: int) -> positions.Grid:
    """Grid (1, h, w) of an image of this size, without its pixels."""
    rows, columns = positions.smart_resize(
        height, width, factor=self.patch * self.merge,
        min_pixels=self.min_pixels, max_pixels=self.max_pixels)
    return 1, rows // self.patch, columns // self.patch

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
        unless it is a text-only model, preprocessor_config.json; any path
        etils.epath can read.
      min_pixels, max_pixels: replace the image area of the checkpoint.
      video_fps, video_max_frames: replace how it samples clips. These four
        are idle for a text-only model.
      position_rule: 'legacy' (released checkpoints) or 'v5'.

    Raises:
      ValueError: something is missing, contradictory or not supported.
    """
    folder = epath.Path(path)
    _check_file(folder / 'config.json')
    if '://' in str(path):
      with tempfile.TemporaryDirectory() as copy:
        _copy_small(folder, epath.Path(copy))
        return _open(copy, str(path), min_pixels, max_pixels, video_fps,
                     video_max_frames, position_rule)
    return _open(str(folder), str(path), min_pixels, max_pixels, video_fps,
                 video_max_frames, position_rule)


def _check_file(file: epath.Path):
  if not file.exists():
    raise ValueError(
        f'{file}: no such file. The path of the model must be a folder in '
        'Hugging Face format with config.json, tokenizer files, a chat '
        'template and, if the model reads images, preprocessor_config.json.')


def _copy_small(source: epath.Path, target: epath.Path):
  """Copies the files beside the weights: transformers reads local folders."""
  for file in source.iterdir():
    if file.is_file() and not file.name.endswith(_WEIGHTS):
      (target / file.name).write_bytes(file.read_bytes())


def _open(folder, path, min_pixels, max_pixels, video_fps, video_max_frames,
          position_rule) -> Processor:
  config = json.loads((epath.Path(folder) / 'config.json').read_text())
  family = config.get('model_type')
  if family not in FAMILIES:
    raise ValueError(
        f'{path}/config.json: model_type={family!r}; the families known here '
        f'are {FAMILIES}.')
  if position_rule not in positions.RULES:
    raise ValueError(
        f'position_rule={position_rule!r}: allowed are {positions.RULES}.')
  tokenizer = _tokenizer(folder, path)
  vocab_size = config.get('text_config', config).get(
      'vocab_size', config.get('vocab_size'))
  if vocab_size is None or len(tokenizer) > vocab_size:
    raise ValueError(
        f'{path}: the tokenizer has {len(tokenizer)} tokens but config.json '
        f'says vocab_size={vocab_size}; they belong to different models.')
  common = dict(
      path=path, family=family, tokenizer=tokenizer, vocab_size=vocab_size,
      position_rule=position_rule)
  if family in TEXT_FAMILIES:
    return Processor(**common, **_text_only(tokenizer, path))
  _check_file(epath.Path(path) / 'preprocessor_config.json')
  vision = {**_VISION_DEFAULTS, **config.get('vision_config', {})}
  patch, merge = vision['patch_size'], vision['spatial_merge_size']
  windows = family == 'qwen2_5_vl'
  image_processor = _image_processor(
      folder, path, vision, min_pixels, max_pixels)
  size = image_processor.size
  return Processor(
      **common, **_special_ids(tokenizer, config, path),
      image_processor=image_processor,
      video=video.from_folder(
          folder, path, image_processor, video_fps, video_max_frames),
      patch=patch, merge=merge, temporal=vision['temporal_patch_size'],
      window_cells=(
          vision['window_size'] // patch // merge if windows else 1),
      tokens_per_second=(
          float(vision['tokens_per_second']) if windows else None),
      min_pixels=size['shortest_edge'], max_pixels=size['longest_edge'])


def _text_only(tokenizer, path) -> dict[str, Any]:
  """The fields of a model without vision: no pixels, nothing banned."""
  ids = {'pad_id': tokenizer.pad_token_id, 'eos_id': tokenizer.eos_token_id}
  if ids['pad_id'] is None:
    known = tokenizer.get_vocab()
    ids['pad_id'] = next((known[x] for x in _PADDING if x in known), None)
  _check_distinct(ids, path)
  return dict(
      **ids, image_processor=None, video=None, patch=0, merge=1, temporal=0,
      window_cells=1, tokens_per_second=None, min_pixels=0, max_pixels=0,
      image_id=-1, video_id=-1, vision_start_id=-1, vision_end_id=-1,
      banned=())


def _tokenizer(folder, path):
  """The folder's tokenizer, with a chat template from wherever it is kept."""
  import transformers  # costs a second: only when a folder is opened
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  if tokenizer.chat_template is None:
    legacy = epath.Path(folder) / 'chat_template.json'
    if not legacy.exists():
      raise ValueError(
          f'{path}: no chat template: neither chat_template.jinja, '
          'chat_template.json nor chat_template in tokenizer_config.json.')
    tokenizer.chat_template = json.loads(legacy.read_text())['chat_template']
  return tokenizer


def _special_ids(tokenizer, config, path) -> dict[str, Any]:
  """Special ids, checked to exist, to agree and to be pairwise distinct."""
  known = tokenizer.get_vocab()
  ids = {'pad_id': tokenizer.pad_token_id, 'eos_id': tokenizer.eos_token_id}
  for field, token, key in (
      ('image_id', '<|image_pad|>', 'image_token_id'),
      ('video_id', '<|video_pad|>', 'video_token_id'),
      ('vision_start_id', '<|vision_start|>', 'vision_start_token_id'),
      ('vision_end_id', '<|vision_end|>', 'vision_end_token_id')):
    ids[field] = known.get(token)
    if ids[field] is not None and config.get(key, ids[field]) != ids[field]:
      raise ValueError(
          f'{path}: {token} is {ids[field]} in the tokenizer but {key}='
          f'{config[key]} in config.json; they belong to different models.')
  _check_distinct(ids, path)
  banned = [ids[k] for k in (
      'image_id', 'video_id', 'vision_start_id', 'vision_end_id')]
  if '<|vision_pad|>' in known:
    banned.append(known['<|vision_pad|>'])
  return {**ids, 'banned': tuple(sorted(banned))}


def _check_distinct(ids, path):
  """Refuses special ids that are missing or the same."""
  for field, value in ids.items():
    if value is None:
      raise ValueError(
          f'{path}: the tokenizer has no {field.removesuffix("_id")} token; '
          'check special tokens in tokenizer_config.json.')
  for (a, x), (b, y) in itertools.combinations(ids.items(), 2):
    if x == y:
      raise ValueError(
          f'{path}: {a} and {b} are both {x}; pad, eos and the vision '
          'placeholders must be pairwise distinct. Give the tokenizer a '
          'separate token, for example <|endoftext|> for padding.')


def _image_processor(folder, path, vision, min_pixels, max_pixels):
  import transformers
  kwargs = {}
  if min_pixels is not None:
    kwargs['min_pixels'] = min_pixels
  if max_pixels is not None:
    kwargs['max_pixels'] = max_pixels
  result = transformers.AutoImageProcessor.from_pretrained(
      folder, backend='pil', **kwargs)
  size = result.size
  if not 1 <= size['shortest_edge'] <= size['longest_edge']:
    raise ValueError(
        f'{path}: min_pixels={size["shortest_edge"]}, max_pixels='
        f'{size["longest_edge"]}: needed is 1 <= min_pixels <= max_pixels.')
  for key, name in (('patch_size', 'patch_size'),
                    ('spatial_merge_size', 'merge_size'),
                    ('temporal_patch_size', 'temporal_patch_size')):
    if vision[key] != vars(result).get(name, vision[key]):
      raise ValueError(
          f'{path}: {name}={vars(result)[name]} in preprocessor_config.json '
          f'but {key}={vision[key]} in config.json.')
  return result
