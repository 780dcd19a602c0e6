"""Sizes of the card benchmark, and what they cost by formula.

Bytes that a decoded token must read, and floating point operations of an
update: of the model, so that what is computed twice (checkpoints) or for
nothing (masked scores) does not count. Imports neither jax nor torch.
"""

import dataclasses
from typing import NamedTuple


class Work(NamedTuple):
  """N prompts with an image each, and G completions of T tokens of each.

  Fields:
    prompts, group, length: N, G, T.
    side: of the square image, in patches.
    text: prompt tokens beside those of the image, its two marks among them.
  """
  prompts: int
  group: int
  length: int
  side: int
  text: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """A Qwen2.5-VL and the work it is measured on.

  Fields:
    vocab, width, mlp_width, depth, heads, kv_heads: of the decoder.
    sections: of its rotary frequencies.
    tower_depth, tower_width, tower_mlp_width, tower_heads: of the tower.
    full_layers: of the tower, those that see whole frames.
    window: side of the tower's attention windows, in patches.
    patch: side of a patch in pixels.
    words: ids below this are text.
    vision_start, vision_end, image, video: ids of the marks.
    eos, pad: ids.
    dtype: of parameters, activations and gradients.
    decode, update: the work of these parts.
    attention: N, G, T and the prompt's length of that part.
    copy_bytes, product: of the ceilings, the latter the side of a matrix.
  """
  vocab: int
  width: int
  mlp_width: int
  depth: int
  heads: int
  kv_heads: int
  sections: tuple[int, int, int]
  tower_depth: int
  tower_width: int
  tower_mlp_width: int
  tower_heads: int
  full_layers: tuple[int, ...]
  window: int
  patch: int
  words: int
  vision_start: int
  vision_end: int
  image: int
  video: int
  eos: int
  pad: int
  dtype: str
  decode: Work
  update: Work
  attention: tuple[int, int, int, int]
  copy_bytes: int
  product: int

  merge = 2  # patches along the side of a cell
  frames = 2  # of a patch

  @property
  def head_width(self) -> int:
    return self.width // self.heads

  @property
  def patch_values(self) -> int:
    return 3 * self.frames * self.patch**2

  @property
  def banned(self) -> tuple[int, ...]:
    """Ids that cannot be drawn, eos apart."""
    return self.vision_start, self.vision_end, self.image, self.video

  def prompt_tokens(self, work: Work) -> int:
    return work.text + (work.side // self.merge)**2

  def config(self) -> dict:
    """config.json, as both engines read it."""
    ids = dict(eos_token_id=self.eos, pad_token_id=self.pad)
    return dict(
        model_type='qwen2_5_vl', tie_word_embeddings=True, **ids,
        image_token_id=self.image, video_token_id=self.video,
        vision_start_token_id=self.vision_start,
        vision_end_token_id=self.vision_end,
        text_config=dict(
            model_type='qwen2_5_vl_text', vocab_size=self.vocab,
            hidden_size=self.width, intermediate_size=self.mlp_width,
            num_hidden_layers=self.depth, num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads, hidden_act='silu',
            max_position_embeddings=128000, rms_norm_eps=1e-6,
            tie_word_embeddings=True, use_sliding_window=False,
            bos_token_id=self.pad, **ids, rope_parameters=dict(
                rope_type='default', rope_theta=1e6,
                mrope_section=list(self.sections))),
        vision_config=dict(
            model_type='qwen2_5_vl', depth=self.tower_depth,
            hidden_size=self.tower_width,
            intermediate_size=self.tower_mlp_width,
            num_heads=self.tower_heads, in_channels=3, hidden_act='silu',
            patch_size=self.patch, temporal_patch_size=self.frames,
            spatial_merge_size=self.merge, out_hidden_size=self.width,
            window_size=self.window * self.patch, tokens_per_second=2,
            fullatt_block_indexes=list(self.full_layers)))


SHAPES = {
    # https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct, config.json
    '3b': Shape(
        vocab=151936, width=2048, mlp_width=11008, depth=36, heads=16,
        kv_heads=2, sections=(16, 24, 24), tower_depth=32, tower_width=1280,
        tower_mlp_width=3420, tower_heads=16, full_layers=(7, 15, 23, 31),
        window=8, patch=14, words=151643, vision_start=151652,
        vision_end=151653, image=151655, video=151656, eos=151645, pad=151643,
        dtype='bfloat16',
        decode=Work(prompts=8, group=8, length=256, side=32, text=64),
        update=Work(prompts=4, group=8, length=512, side=64, text=64),
        attention=(8, 8, 512, 1024), copy_bytes=4 << 30, product=8192),
    'tiny': Shape(
        vocab=64, width=32, mlp_width=48, depth=2, heads=4, kv_heads=2,
        sections=(2, 1, 1), tower_depth=2, tower_width=16, tower_mlp_width=24,
        tower_heads=2, full_layers=(1,), window=4, patch=4, words=58,
        vision_start=60, vision_end=61, image=62, video=63, eos=59, pad=58,
        dtype='float32',
        decode=Work(prompts=2, group=2, length=8, side=4, text=4),
        update=Work(prompts=2, group=4, length=6, side=8, text=4),
        attention=(2, 2, 8, 16), copy_bytes=1 << 20, product=128)}


def weights(shape: Shape) -> dict[str, int]:
  """{part: numbers}: the decoder's layers with the final norm, and its head."""
  s = shape
  heads, kv = s.heads * s.head_width, s.kv_heads * s.head_width
  layer = (_layer_kernels(s) + heads + 2 * kv  # biases of q, k and v
           + 2 * s.width)  # norms
  return {'layers': s.depth * layer + s.width, 'head': s.vocab * s.width}


def _layer_kernels(s: Shape) -> int:
  """Numbers in the matrices of a decoder layer."""
  heads, kv = s.heads * s.head_width, s.kv_heads * s.head_width
  return s.width * (2 * heads + 2 * kv) + 3 * s.width * s.mlp_width


def token_bytes(shape: Shape, itemsize: int, tokens: float) -> dict[str, float]:
  """What decoding one token of every row must read, by pieces.

  Weights are read once, keys and values of a prompt once for its group. Not
  counted: what is written, activations, logits.

  Args:
    shape: its `decode` work.
    itemsize: bytes of a number.
    tokens: own tokens in the cache.
  """
  w = shape.decode
  per_token = 2 * shape.depth * shape.kv_heads * shape.head_width * itemsize
  return {
      **{part: n * itemsize for part, n in weights(shape).items()},
      'prompt cache': per_token * w.prompts * shape.prompt_tokens(w),
      'own cache': per_token * w.prompts * w.group * tokens}


def update_flops(shape: Shape, *, repeated: bool) -> dict[str, float]:
  """Operations of forward and backward of `shape.update`, by pieces.

  A product of [a, b] and [b, c] has 2 a b c, its backward pass twice as many;
  the embedding of patches has no gradient to its input. Causal attention counts
  the pairs that are seen. Element-wise work does not count.

  Args:
    shape: its `update` work.
    repeated: the prompt runs once per completion, not once per prompt.
  """
  s, w = shape, shape.update
  p, rows = s.prompt_tokens(w), w.prompts * w.group
  prompts = rows if repeated else w.prompts
  pairs = prompts * p * (p + 1) / 2 + rows * (
      w.length * p + w.length * (w.length + 1) / 2)
  patches = prompts * w.side**2
  width = s.tower_width
  tower = s.tower_depth * (4 * width**2 + 3 * width * s.tower_mlp_width)
  cell = s.merge**2 * width
  seen = len(s.full_layers) * w.side**2 + (
      s.tower_depth - len(s.full_layers)) * s.window**2
  return {
      'prompts': 6.0 * s.depth * _layer_kernels(s) * prompts * p,
      'completions': 6.0 * s.depth * _layer_kernels(s) * rows * w.length,
      'attention': 12.0 * s.depth * s.heads * s.head_width * pairs,
      'head': 6.0 * s.vocab * s.width * rows * w.length,
      'tower': (6.0 * tower * patches
                + 4.0 * s.patch_values * width * patches
                + 6.0 * (cell**2 + cell * s.width) * patches / s.merge**2),
      'tower attention': 12.0 * width * patches * seen}
