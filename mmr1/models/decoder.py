"""A language decoder as two passes, in linen; every family has this one.

`prompt_pass` reads a prompt once and leaves keys and values; `completion_pass`
reads any number of completions of that prompt against them; `decode` is
`completion_pass` one token at a time. All three run the same layer
(`DecoderBlock`), so the sampler and the trainer are one model.

Parameters of the layers are stacked, leaves [L, ...], whether the loop over
them is scanned or unrolled:

  language/  embed [V, D], layers, norm, head [V, D] (absent if tied)
  scalars/   a head of one number for each of `Config.scalars`
"""

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmr1 import types
from mmr1.models import attention
from mmr1.models import cache as cache_lib
from mmr1.models import decoder_config
from mmr1.models import layers
from mmr1.models import partition
from mmr1.models import products
from mmr1.models import scalar_heads
from mmr1.models import sight as sight_lib

Array = jax.Array
Config = decoder_config.Config
Sight = sight_lib.Sight

_COLUMNS = 'head_columns'  # [D, V]
_ATTENDING = ('q', 'k', 'v')  # layers of one input in `DecoderBlock`
_MLPS = {'silu': layers.SwiGLU, 'gelu': layers.GeGLU}


class DecoderBlock(nn.Module):
  """One layer of the language model, for all three passes.

  With `measure` it hands out, in place of keys and values, what that makes of
  queries and sources; see `attention_share`.
  """
  config: Config
  measure: Callable[..., Any] | None = None

  def _norm(self, name):
    c = self.config
    return layers.RMSNorm(c.eps, c.compute_dtype, c.norm_offset, name=name)

  @nn.compact
  def __call__(
      self, x: Array, cos: Array, sin: Array, sight: Sight,
      prefix: attention.Source | None = None,
      cache: tuple[cache_lib.Cache, Array] | None = None,
      earlier: attention.Source | None = None,
  ) -> tuple[Array, Any]:
    """Runs the layer on T tokens of every row.

    Args:
      x: [N, G, T, D].
      cos, sin: [N, G, T, d].
      sight: which own keys each query sees.
      prefix: the prompt's keys and values [N, K, P, d] and who sees them.
      cache: own keys and values of earlier tokens and the index at which these
        T are written; None: U = T, only these.
      earlier: own keys and values of earlier tokens that are only read.

    Returns:
      x and the own keys and values [N, G, K, T, d], or the cache with them.
    """
    c = self.config
    kw = dict(dtype=c.compute_dtype, precision=c.precision)
    n, g, t, _ = x.shape
    hidden = self._norm('input_norm')(x)
    counts = (c.heads, c.kv_heads, c.kv_heads)
    qkv = layers.together(
        self, hidden, {name: heads * c.head_width
                       for name, heads in zip(_ATTENDING, counts)},
        bias=c.qkv_bias, **kw)
    q, k, v = (x.reshape(n, g, t, heads, c.head_width)
               for x, heads in zip(qkv, counts))
    if c.qk_norm:
      q, k = self._norm('q_norm')(q), self._norm('k_norm')(k)
    q, k = layers.rotate(q, cos, sin), layers.rotate(k, cos, sin)
    lie = functools.partial(partition.constrain, c.partition)
    q = lie(q, 'rows', None, None, 'heads')
    k, v = (lie(jnp.swapaxes(x, 2, 3), 'rows', None, 'kv_heads')
            for x in (k, v))
    own = (k, v)
    if cache is not None:
      own = cache[0].written(k, v, cache[1])
      k, v = own.read()
    sources = [attention.Source(k, v, sight)]
    sources += [more for more in (earlier, prefix) if more is not None]
    how = dict(scale=c.query_scale, cap=c.score_cap, **c.attending)
    hidden = attention.attend(q, sources, **how)
    if self.measure is not None:
      own = self.measure(q, sources, **how)
    hidden = layers.dense(c.width, 'o', bias=False, **kw)(
        hidden.reshape(n, g, t, c.heads * c.head_width))
    x = lie(x + (self._norm('attention_out_norm')(hidden) if c.out_norms
                 else hidden), 'rows', None, 'tokens')
    hidden = _MLPS[c.activation](
        c.mlp_width, bias=False, name='mlp', **kw)(self._norm('post_norm')(x))
    x = lie(x + (self._norm('mlp_out_norm')(hidden) if c.out_norms
                 else hidden), 'rows', None, 'tokens')
    return x, own


class Decoder(nn.Module):
  """Embeddings, layers, final norm, head."""
  config: Config

  def setup(self):
    c = self.config
    normal = nn.initializers.normal(0.02)
    self.embed = self.param('embed', normal, (c.vocab, c.width))
    self.norm = layers.RMSNorm(c.eps, c.compute_dtype, c.norm_offset)
    if not c.tied:
      self.head = self.param('head', normal, (c.vocab, c.width))
    angle = jnp.zeros((1, 1, 1, c.head_width))
    self.layers = layers.stacked(
        self, 'layers', DecoderBlock(c, parent=None), c.depth,
        jnp.zeros((1, 1, 1, c.width)), angle, angle, Sight())

  def embedded(self, tokens: Array) -> Array:
    table = jnp.asarray(self.embed)  # parameters may be host arrays
    x = table[tokens].astype(self.config.compute_dtype)
    x = partition.constrain(self.config.partition, x, 'rows')
    scale = self.config.embed_scale
    return x if scale == 1 else x * jnp.asarray(scale, x.dtype)

  def __call__(self, x: Array, positions: Array, sight: Sight,
               extras: Any, *, prefix_mask: Array | None = None,
               packed: tuple[Array, Array] | None = None,
               seats: attention.Seats | None = None,
               t: Array | None = None, among: Sight = Sight(),
               add: Array | None = None,
               measure: Callable[..., Any] | None = None) -> tuple[Array, Any]:
    """x [N, G, T, D] through all layers; extras per layer: (keys, values of
    the prefix | None, cache | None), the prefix in `seats` if given; a cache is
    written to at index t, or only read if layers are scanned, where `among` is
    what x sees of itself; packed: segments i32[N, G, T] of x and i32[N, P] of
    the prefix; add: see `layers.fold`; measure: see `DecoderBlock`. Returns x
    (no final norm), own KV."""
    c = self.config
    turn = functools.partial(
        layers.mrope, positions, sections=c.sections, order=c.section_order,
        dtype=c.compute_dtype)
    turns = turn(theta=c.theta, scaling=c.scaling)
    near = turns if c.sliding_theta is None else turn(theta=c.sliding_theta)
    block = DecoderBlock(c, measure, parent=None)

    prompt = None if prefix_mask is None else self._prompt(
        prefix_mask, positions, seats, packed)

    def step(params, x, extra, flag):
      prefix, cache = extra
      if cache is None:  # else they have been published, see `for_decode`
        params = partition.gathered(
            c.partition, params, 'language/layers', c.compute_dtype)
      see = functools.partial(self._see, sliding=flag)
      prefix = None if prefix is None else attention.Source(
          *prefix, see(prompt), seats)
      run = functools.partial(
          block.apply, {'params': params}, x, *_choose(flag, near, turns))
      if cache is None:
        return run(see(sight), prefix)
      if c.layers == 'scan':  # a scan would copy a cache that it writes to
        return run(see(among), prefix, earlier=attention.Source(
            *cache.read(), see(sight)))
      return run(see(sight), prefix, (cache, t))

    return layers.fold(
        step, self.layers, x, extras, c.sliding or [False] * c.depth,
        scan=c.layers == 'scan', remat=c.remat, add=add)

  def _prompt(self, mask: Array, positions: Array,
              seats: attention.Seats | None,
              packed: tuple[Array, Array] | None) -> Sight:
    """What completions see of their prompt, `mask` bool[N, P]."""
    seen, segment = Sight(keys=mask[:, None]), None
    if packed is not None:
      segment = packed[1]
      # The very numbers of the completions: splash has one for both.
      seen = seen.replace(segments=(packed[0], segment[:, None]))
    if not any(self.config.sliding):
      return seen
    if seats is not None:
      positions = seats.to_seats(positions, seats.row.size // len(mask))
    # Positions of text count tokens, whatever is padded in between.
    return seen.replace(
        places=(positions[..., 0], sight_lib.places(mask, segment)[:, None]))

  def _see(self, sight: Sight, sliding: bool | Array) -> Sight:
    """In one layer, whose flag in `layers.fold` is `sliding`."""
    if not any(self.config.sliding):
      return sight
    return sight.replace(window=self.config.window, sliding=sliding)

  def logits(self, hidden: Array) -> Array:
    c = self.config
    kw = dict(precision=c.precision, preferred_element_type=jnp.float32)
    hidden = hidden.astype(c.compute_dtype)
    if self.has_variable('params', _COLUMNS):  # of `LanguageModel.for_decode`
      weight = self.get_variable('params', _COLUMNS).astype(c.compute_dtype)
      logits = jnp.einsum('...d,dv->...v', hidden, weight, **kw)
    else:
      weight = (self.embed if c.tied else self.head).astype(c.compute_dtype)
      logits = jnp.einsum('...d,vd->...v', hidden, weight, **kw)
    return products.soft_cap(logits, c.logit_cap)


def _choose(flag: bool | Array, yes: Any, no: Any) -> Any:
  """`yes if flag else no` of two trees, whose flag may be traced."""
  if yes is no or isinstance(flag, bool):
    return yes if flag is True else no
  return jax.tree.map(lambda a, b: jnp.where(flag, a, b), yes, no)


class LanguageModel(nn.Module):
  """The model; use `module.apply({'params': params}, ..., method='...')`.

  A family with other inputs than text extends `setup` and `inputs`, one whose
  prompts are not read causally `blocks`.
  """
  config: Config

  def setup(self):
    self.language = Decoder(self.config)
    if self.config.scalars:
      self.scalars = self.param('scalars', self._init_scalars)

  def _init_scalars(self, rng: Array) -> Any:
    """Zeros, so that a new head says 0."""
    del rng
    c = self.config
    return {name: scalar_heads.zeros(
        c.width, scalar_heads.form(name, c.reward_head)) for name in c.scalars}

  def __call__(self, prompts: types.Prompts) -> Array:
    """Logits f32[N, V] of the first completion token."""
    return self.head(self.prompt_pass(prompts).last)

  def inputs(self, prompts: types.Prompts) -> tuple[Array, Array | None]:
    """What the layers read of the prompts.

    Returns:
      what the first one reads [N, P, D], and what is added after each of the
      first K [K, N, P, D], or None.

    Raises:
      ValueError: media of a tower that this family does not have.
    """
    if prompts.media:
      raise ValueError(
          f'media of towers {sorted(prompts.media)}: this family reads text '
          'only.')
    return self.language.embedded(prompts.tokens), None

  def inserted(self, tokens: Array, media: Any) -> tuple[Array, Array | None]:
    """As `inputs`, of completion tokens i32[N, G, T] with their own media."""
    if media:
      raise ValueError(f'media of towers {sorted(media)} inside completions: '
                       'this family does not read them there.')
    return self.language.embedded(tokens), None

  def blocks(self, prompts: types.Prompts) -> tuple[Array, bool] | None:
    """Prompt tokens that see what comes after them; None: there are none.

    Returns:
      i32[N, P], tokens of one number above 0 see each other both ways; and
      whether in a sliding layer they do so inside its window only.
    """
    del prompts
    return None

  def prompt_pass(self, prompts: types.Prompts) -> types.Prefix:
    """Reads N prompts, their media included, once.

    Returns:
      keys and values of every layer and the last token's hidden state (zeros
      if P = 0), or those of the last tokens of packed prompts.

    Raises:
      ValueError: media of a tower that this family does not have.
    """
    c = self.config
    x, (keys, values) = self._read(prompts)
    p = x.shape[2]
    keys, values = keys[:, :, 0], values[:, :, 0]
    if prompts.ends is not None:
      last = self.language.norm(
          jnp.take_along_axis(x[:, 0], prompts.ends[..., None], 1))
    else:
      last = (self.language.norm(x[:, 0, -1]) if p else
              jnp.zeros((x.shape[0], c.width), x.dtype))
    return types.Prefix(keys=keys, values=values, last=last)

  def _read(self, prompts, measure=None):
    """Prompts through all layers: x [N, 1, P, D], and what each hands out."""
    x, add = self.inputs(prompts)
    return self._run(
        x[:, None], prompts.positions[:, None],
        sight_lib.causal(
            prompts.mask[:, None],
            None if prompts.segment is None else prompts.segment[:, None],
            self.blocks(prompts)),
        None if add is None else add[:, :, None], measure)

  def _run(self, x, positions, sight, add, measure=None):
    c = self.config
    extras = ((None, None) if c.layers == 'scan' else
              [(None, None)] * c.depth)
    x, kv = self.language(
        x, positions, sight, extras, add=add, measure=measure)
    if c.layers == 'unrolled':
      kv = jax.tree.map(lambda *a: jnp.stack(a), *kv)
    return x, kv

  def completion_pass(
      self, prefix: types.Prefix, prompt_mask: Array, tokens: Array,
      positions: Array, mask: Array, segment: Array | None = None,
      prompt_segment: Array | None = None, media: Any = None,
  ) -> Array:
    """Reads G completions of every prompt.

    Args:
      prefix: what `prompt_pass` left.
      prompt_mask: bool[N, P].
      tokens: i32[N, G, T], right-padded.
      positions: i32[N, G, T, 3].
      mask: bool[N, G, T], True on real tokens.
      segment: i32[N, G, T] | None, documents packed into a row: a token sees
        only its own, and the prompt.
      prompt_segment: i32[N, P] | None, prompts packed into a row: a token sees
        only the one with the number of its document.
      media: images inside them, see `types.Completions`.

    Returns:
      [N, G, T, D], hidden state after the final norm AT each token; the one
      that predicts completion token t is at t - 1, in `prefix.last` for the
      first of a document.
    """
    x, add = self.inserted(tokens, media)
    x, _ = self.language(
        x, positions, sight_lib.causal(mask, segment), self._extras(prefix, None),
        prefix_mask=prompt_mask, packed=(
            None if prompt_segment is None else (segment, prompt_segment)),
        add=add)
    return self.language.norm(x)

  def decode(
      self, prefix: types.Prefix, prompt_mask: Array, cache: Any,
      tokens: Array, positions: Array, t: Array, start: Array | None = None,
      seats: attention.Seats | None = None) -> tuple[Array, Any]:
    """Reads one completion token of every row.

    Args:
      prefix: what `prompt_pass` left.
      prompt_mask: bool[N, P].
      cache: from `init_cache` or the step before.
      tokens: i32[N, G].
      positions: i32[N, G, 3].
      t: i32[], index in the cache that these tokens are written to.
      start: i32[N, G], index in the cache of each row's first token; what is
        before it is not seen. None: 0.
      seats: None: row g of prompt n is a completion of it. Else N are shards
        and G their rows, and the prefix has N * A prompts.

    Returns:
      hidden [N, G, D] after the final norm, and the cache with these tokens.
    """
    index = jnp.arange(cache.size)
    keys = (jnp.ones((1, 1, len(index)), bool) if start is None else
            index >= start[..., None])
    scanned = self.config.layers == 'scan'
    if scanned:  # the token's own keys are not in there yet
      keys = keys & (index < t)
    sight = Sight(keys=keys, causal=True, at=t)
    x = self.language.embedded(tokens)[:, :, None]
    x, kv = self.language(
        x, positions[:, :, None], sight, self._extras(prefix, cache),
        prefix_mask=prompt_mask, seats=seats, t=t)
    # Of scanned layers all at once, in place.
    cache = cache.written(*kv, t) if scanned else cache_lib.stacked(kv)
    return self.language.norm(x)[:, :, 0], cache

  def extend(
      self, prefix: types.Prefix, prompt_mask: Array, cache: Any,
      tokens: Array, positions: Array, mask: Array, t: Array, keys: Array,
      seats: attention.Seats | None = None, media: Any = None,
  ) -> tuple[Array, Any]:
    """Reads several completion tokens of every row, images included.

    Args: as of `decode`, and
      tokens, positions: i32[N, G, T], right-padded, and i32[N, G, T, 3].
      mask: bool[N, G, T], True on real tokens.
      t: i32[], index in the cache that the first of them is written to.
      keys: bool[N, G, U], what is in the cache of the row's earlier tokens.
      media: of the rows, with `slot` i32[N, G, T].

    Returns: as `decode`, [N, G, T, D].
    """
    scanned, places = self.config.layers == 'scan', None
    if any(self.config.sliding):
      places = sight_lib.behind(keys, mask.shape[-1], t)
    if not scanned:  # their own keys are in there by then
      keys = jax.lax.dynamic_update_slice_in_dim(keys, mask, t, 2)
    x, add = self.inserted(tokens, media)
    x, kv = self.language(
        x, positions, Sight(keys=keys, causal=True, at=t, places=places),
        self._extras(prefix, cache), prefix_mask=prompt_mask, seats=seats, t=t,
        among=sight_lib.causal(mask), add=add)
    cache = cache.written(*kv, t) if scanned else cache_lib.stacked(kv)
    return self.language.norm(x), cache

  def for_decode(self, params: Any) -> Any:
    """Parameters of unrolled layers as `decode` reads them best.

    Their stack is cut, since inside a loop XLA would copy every layer out of
    it for every token, and the head is turned, which it would do on a CPU.
    Products of one input become one: they are thin. In a program of its own:
    inside another one XLA only notes that the head is turned.
    """
    language = params['language']
    head = language['embed' if self.config.tied else 'head']

    def joined(layer):
      layer = layers.side_by_side(layer, _ATTENDING)
      return {**layer, 'mlp': layers.side_by_side(layer['mlp'], layers.GATED)}
    return {**params, 'language': {
        **language, _COLUMNS: jnp.transpose(head),
        'layers': tuple(map(joined, layers.unstack(
            language['layers'], self.config.depth)))}}

  def per_layer(self, prefix: types.Prefix) -> types.Prefix:
    """A prefix as `decode` reads it best, for the same reason."""
    if self.config.layers == 'scan':
      return prefix
    return prefix.replace(
        keys=tuple(layers.unstack(prefix.keys, self.config.depth)),
        values=tuple(layers.unstack(prefix.values, self.config.depth)))

  def _extras(self, prefix, cache):
    """(prefix KV, cache KV) of every layer, as `layers.fold` wants them."""
    kv, depth = (prefix.keys, prefix.values), self.config.depth
    if self.config.layers == 'scan':
      return kv, cache
    kv = (zip(*kv) if isinstance(prefix.keys, tuple) else
          layers.unstack(kv, depth))
    return list(zip(kv, cache.layers() if cache else [None] * depth))

  def head(self, hidden: Array) -> Array:
    """Logits f32[..., V] of hidden states [..., D]."""
    return self.language.logits(hidden)

  def scalar(self, hidden: Array, name: str) -> Array:
    """f32[...], the number that head `name` gives hidden states [..., D]."""
    c = self.config
    return scalar_heads.apply(
        self.scalars[name], hidden, scalar_heads.form(name, c.reward_head),
        c.precision)

  def init_cache(self, n: int, g: int, t: int) -> cache_lib.Cache:
    """An empty cache in the compute dtype; see `init_cache` below."""
    return init_cache(self.config, n, g, t, self.config.compute_dtype)


def init_cache(
    config: Config, n: int, g: int, t: int, dtype: Any) -> cache_lib.Cache:
  """An empty cache for completions of up to `t` tokens."""
  return cache_lib.empty(
      config.depth, config.layers == 'scan', n, g, config.kv_heads, t,
      config.head_width, dtype)


def init_params(module: LanguageModel, rng: Array,
                media: dict[str, types.Media] | None = None) -> Any:
  """Random parameters, as transformers draws them: kernels and embeddings
  N(0, 0.02), biases 0, norms 1. float32.

  Args:
    module: the model.
    rng: key.
    media: of one prompt of one token, one row for every tower.
  """
  prompts = types.Prompts(
      tokens=jnp.zeros((1, 1), jnp.int32), mask=jnp.ones((1, 1), bool),
      positions=jnp.zeros((1, 1, 3), jnp.int32),
      next_position=jnp.ones((1,), jnp.int32), uid=jnp.zeros((1,), jnp.int32),
      media=media or {})
  return jax.jit(module.init)(rng, prompts)['params']
