"""The sizes of a language decoder, read from a Hugging Face config.json."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from mmr1.models import attention as attention_lib
from mmr1.models import layers as layer_lib
from mmr1.models import partition as partition_lib
from mmr1.models import scalar_heads


# Heads of one number: of a token (a critic), of a completion (a reward model).
SCALARS = scalar_heads.NAMES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """A decoder and how to run it; families add to it.

  Fields:
    vocab, width, mlp_width, depth, heads, kv_heads, head_width: sizes; the
      heads together may be wider or narrower than `width`.
    eps: of the norms.
    theta: base of the rotary frequencies.
    sections: frequencies that turn with time, height and width; they sum to
      half of `head_width`. (d / 2, 0, 0) is ordinary rotary: for text the time
      counts tokens.
    section_order: 'contiguous' or 'interleaved', see `layers.axes`.
    scaling: how the frequencies are stretched, or None.
    qkv_bias: whether the q, k and v projections have a bias.
    qk_norm: whether q and k are normalised over the head before they turn.
    tied: the head is the embedding.
    activation: of the gated MLP, 'silu' or 'gelu' (its tanh approximation).
    norm_offset: norms multiply by 1 + weight, see `layers.RMSNorm`.
    out_norms: what attention and the MLP give is normalised before it is
      added, as what they read is.
    embed_scale: factor of the embeddings, in the compute dtype.
    query_scale: factor of the scores; None: head_width ** -0.5.
    score_cap, logit_cap: see `products.soft_cap`; None: no cap.
    sliding: for each layer, whether a token sees itself and the window - 1
      before it only; (): no layer is so.
    window: of the sliding layers.
    sliding_theta: `theta` of the sliding layers, which are not stretched;
      None: they turn as the others do.
    max_positions: the context it was made for.
    hf: the config.json it came from, as a JSON string (hashable).
    scalars: heads that give one number per token, of SCALARS.
    reward_head: the form of the one called 'reward'.
    compute_dtype: of activations, 'float32', 'bfloat16' or 'float16'.
    layers: 'unrolled' or 'scan'.
    remat: 'none', 'layer' or 'dots', see `layers.fold`.
    precision: of matrix products, jax's 'default', 'high' or 'highest'.
    query_chunk: queries of one attention block.
    attention: what computes it, of `attention.BACKENDS`.
    partition: how the model lies over devices; None: it is not told.

  Raises:
    ValueError: a run-time choice that is not allowed, or sections that do not
      fit the head.
  """
  vocab: int
  width: int
  mlp_width: int
  depth: int
  heads: int
  kv_heads: int
  head_width: int
  eps: float
  theta: float
  sections: tuple[int, ...]
  section_order: str = 'contiguous'
  scaling: layer_lib.Llama3 | layer_lib.Linear | None = None
  qkv_bias: bool
  qk_norm: bool
  tied: bool
  activation: str = 'silu'
  norm_offset: bool = False
  out_norms: bool = False
  embed_scale: float = 1.0
  query_scale: float | None = None
  score_cap: float | None = None
  logit_cap: float | None = None
  sliding: tuple[bool, ...] = ()
  window: int = 0
  sliding_theta: float | None = None
  max_positions: int
  hf: str
  scalars: tuple[str, ...] = ()
  reward_head: scalar_heads.Head = scalar_heads.Head()
  compute_dtype: str = 'float32'
  layers: str = 'unrolled'
  remat: str = 'none'
  precision: str = 'default'
  query_chunk: int = 1024
  attention: str = 'auto'
  partition: partition_lib.Partition | None = None

  def __post_init__(self):
    for name, allowed in (
        ('layers', ('unrolled', 'scan')), ('remat', layer_lib.REMAT),
        ('precision', ('default', 'high', 'highest')),
        ('attention', attention_lib.BACKENDS),
        ('section_order', ('contiguous', 'interleaved')),
        ('compute_dtype', ('float32', 'bfloat16', 'float16'))):
      if getattr(self, name) not in allowed:
        raise ValueError(
            f'{name}={getattr(self, name)!r}: allowed are {allowed}.')
    if not set(self.scalars) <= set(SCALARS):
      raise ValueError(
          f'scalars={self.scalars!r}: allowed are some of {SCALARS}.')
    scalar_heads.check(self.reward_head)
    if self.query_chunk < 1:
      raise ValueError(f'query_chunk={self.query_chunk}: must be positive.')
    if 2 * sum(self.sections) != self.head_width:
      raise ValueError(
          f'config.json: mrope_section {self.sections} must sum to half the '
          f'head width {self.head_width}.')

  @property
  def attending(self) -> dict[str, Any]:
    """How attention is run: keywords of `attention.attend`."""
    return dict(precision=self.precision, chunk=self.query_chunk,
                backend=self.attention, partition=self.partition)

  @property
  def attending_images(self) -> dict[str, Any]:
    """The same inside a tower."""
    towers = None if self.partition is None else self.partition.towers
    return {**self.attending, 'partition': towers}


def fields(
    hf: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    rotary: Sequence[str],
    activations: Sequence[str] = ('silu',),
) -> dict[str, Any]:
  """What config.json says of the decoder, as keywords of `Config`.

  Its fields are at the top level or in `text_config`, rotary in `rope_scaling`
  or `rope_parameters` with `rope_theta` inside or beside.

  Args:
    hf: the parsed config.json.
    defaults: what transformers assumes of the family where it is silent.
    rotary: values of `rope_type` that the family knows.
    activations: values of `hidden_act` that it knows.

  Returns:
    All but `sections`, `qkv_bias`, `qk_norm`, `hf`, what has a default and
    the run-time choices.

  Raises:
    ValueError: a field is inconsistent or asks for what is not supported.
  """
  given = hf.get('text_config') or hf
  text = {**defaults, **{k: x for k, x in given.items() if x is not None}}
  text.setdefault('num_key_value_heads', text['num_attention_heads'])
  rope = rope_of(hf)
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind not in rotary:
    raise ValueError(
        f'config.json: rotary type {kind!r} is not supported for '
        f"model_type {hf.get('model_type')!r}, only {tuple(rotary)}.")
  _check(text, activations)
  width, heads = text['hidden_size'], text['num_attention_heads']
  return dict(
      vocab=text['vocab_size'], width=width,
      mlp_width=text['intermediate_size'], depth=text['num_hidden_layers'],
      heads=heads, kv_heads=text['num_key_value_heads'],
      head_width=text.get('head_dim', width // heads),
      eps=text['rms_norm_eps'],
      theta=float(rope.get('rope_theta', text['rope_theta'])),
      scaling=_SCALINGS[kind](rope) if kind in _SCALINGS else None,
      tied=_tied(hf, given, defaults),
      max_positions=text['max_position_embeddings'])


def rope_of(hf: Mapping[str, Any]) -> Mapping[str, Any]:
  """The rotary section of config.json, empty if it has none."""
  text = hf.get('text_config') or hf
  return text.get('rope_parameters') or text.get('rope_scaling') or {}


def _tied(*sections: Mapping[str, Any]) -> bool:
  """config.json or its text section may say it, else the last: defaults."""
  *said, default = [x.get('tie_word_embeddings') for x in sections]
  said = [x for x in said if x is not None]
  return any(said) if said else bool(default)


def _linear(rope: Mapping[str, Any]) -> layer_lib.Linear:
  if not rope.get('factor', 0) > 0:
    raise ValueError(
        f"config.json: rotary type 'linear' with factor "
        f"{rope.get('factor')!r}; needed is a positive number.")
  return layer_lib.Linear(float(rope['factor']))


def _llama3(rope: Mapping[str, Any]) -> layer_lib.Llama3:
  names = {
      'factor': 'factor', 'low': 'low_freq_factor', 'high': 'high_freq_factor',
      'context': 'original_max_position_embeddings'}
  missing = sorted(set(names.values()) - set(rope))
  if missing:
    raise ValueError(
        f"config.json: rotary type 'llama3' without {missing}; needed are "
        f'{sorted(names.values())}.')
  result = layer_lib.Llama3(
      **{ours: float(rope[theirs]) for ours, theirs in names.items()})
  if not 0 < result.low < result.high:
    raise ValueError(
        f"config.json: low_freq_factor {rope['low_freq_factor']} must be "
        f"positive and below high_freq_factor {rope['high_freq_factor']}.")
  return result


_SCALINGS = {'llama3': _llama3, 'linear': _linear}


def _check(text: Mapping[str, Any], activations: Sequence[str]) -> None:
  heads, kv_heads = text['num_attention_heads'], text['num_key_value_heads']
  free = 'head_dim' in text  # then the heads need not divide the width
  if (not free and text['hidden_size'] % heads) or heads % kv_heads:
    raise ValueError(
        f"config.json: hidden_size {text['hidden_size']} must be a multiple "
        f'of num_attention_heads {heads}, and that of num_key_value_heads '
        f'{kv_heads}.')
  if free and text['head_dim'] % 2:
    raise ValueError(f"config.json: head_dim {text['head_dim']} must be even.")
  sliding = text.get('use_sliding_window', False) or any(
      kind != 'full_attention' for kind in text.get('layer_types', ()))
  if text['hidden_act'] not in activations or sliding:
    raise ValueError(
        f"config.json: hidden_act {text['hidden_act']!r}, use_sliding_window "
        f"{text.get('use_sliding_window', False)}, layer_types "
        f"{sorted(set(text.get('layer_types', ())))}: only "
        f'{tuple(activations)} without sliding window is supported.')
