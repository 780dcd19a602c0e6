"""A tiny random Qwen2.5-VL, its prompts and its programs, for many tests.

Programs are kept for the whole session.
"""

import functools
import types as python_types

import jax
from jax.extend import core as extend_core
import jax.numpy as jnp
import numpy as np

from configs import common
from mmr1 import forward
from mmr1 import objective
from mmr1 import positions
from mmr1 import resolve
from mmr1 import sharding
from mmr1 import types
from mmr1 import update
from mmr1.models import qwen_vl
from mmr1.sampling import rows
from mmr1.sampling import sample

PATCH, MERGE, CELLS = 4, 2, 2  # windows of 2 x 2 cells of 8 x 8 pixels
WINDOW = (MERGE * CELLS)**2
VALUES = 3 * 2 * PATCH**2
PAD, EOS, IMAGE, VIDEO, START, END, VOCAB = 0, 1, 60, 61, 62, 63, 64
BANNED = (IMAGE, VIDEO, START, END)
WORDS = (2, 60)  # ids of ordinary text


def config(vocab=VOCAB, depth=2, **run):
  return qwen_vl.Config.from_hf(dict(
      model_type='qwen2_5_vl', vocab_size=vocab, hidden_size=32,
      intermediate_size=48, num_hidden_layers=depth, num_attention_heads=4,
      num_key_value_heads=2, rms_norm_eps=1e-6, max_position_embeddings=512,
      tie_word_embeddings=True, rope_theta=1e4,
      rope_scaling=dict(type='mrope', mrope_section=[2, 1, 1]),
      image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START,
      vision_end_token_id=END, vision_config=dict(
          depth=depth, hidden_size=16, intermediate_size=24, num_heads=2,
          patch_size=PATCH, window_size=CELLS * PATCH * MERGE,
          fullatt_block_indexes=[depth - 1], out_hidden_size=32,
          tokens_per_second=2)), **run)


@functools.cache
def policy(head_chunk=20, cls=forward.Policy, vocab=VOCAB, depth=2, layout=None,
           **run):
  """Of the tiny model; with a layout its module is told of it."""
  partition = layout and layout.partition
  return cls(
      qwen_vl.build(config(vocab, depth, partition=partition, **run)), BANNED,
      EOS, PAD, head_chunk, layout or sharding.default())


@functools.cache
def params(seed=0, depth=2):
  """Of the tiny model, see `drawn`."""
  return drawn(jax.eval_shape(
      lambda: qwen_vl.init_params(config(depth=depth), jax.random.key(0))),
               seed)


def drawn(shapes, seed=0):
  """Random parameters of these shapes, large enough that attention is far from
  uniform and every bias counts."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path)
    noise = rng.normal(size=leaf.shape).astype(np.float32)
    if 'embed' in name and 'patch' not in name:
      return jnp.asarray(0.4 * noise)
    if 'kernel' in name:
      return jnp.asarray(noise * leaf.shape[-2]**-0.5)
    return jnp.asarray(0.2 * noise + ('norm' in name))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def prefer(tree, token, strength=300.0):
  """The same parameters with a head that always (or never) wants `token`.

  Channel 0 of the last hidden state is made positive whatever the input:
  every embedding and image cell has a 1 there and no layer writes to it. The
  head is tied, so `token`'s embedding decides its logit.
  """
  tree = jax.tree.map(np.array, tree)
  language, visual = tree['language'], tree['visual']
  language['embed'][:, 0] = 1.0
  language['layers']['o']['kernel'][..., 0] = 0.0
  language['layers']['mlp']['down']['kernel'][..., 0] = 0.0
  language['norm']['weight'][0] = 1.0
  visual['merger']['fc2']['kernel'][..., 0] = 0.0
  visual['merger']['fc2']['bias'][0] = 1.0
  language['embed'][token, 0] = strength
  return jax.tree.map(jnp.asarray, tree)


def row(*parts, seed=0):
  """Text lengths (int) and grids (frames, rows, columns[, seconds]) in
  patches -> (tokens, [patches], [span])."""
  rng = np.random.default_rng(seed)
  tokens, patches, spans = [], [], []
  for part in parts:
    if isinstance(part, int):
      tokens += rng.integers(*WORDS, part).tolist()
      continue
    span = part if len(part) == 4 else (*part, None)
    spans.append(span)
    patches.append(rng.normal(
        size=(int(np.prod(span[:3])), VALUES)).astype(np.float32))
    count = positions.vision_tokens(span[:3], MERGE)
    tokens += [START] + [IMAGE if span[3] is None else VIDEO] * count + [END]
  return tokens, patches, spans


# Text; one image; two images of two sizes; a video and an image.
MIXED = (
    row(7, seed=1),
    row(2, (1, 4, 4), 3, seed=2),
    row(1, (1, 6, 4), 2, (1, 4, 2), 2, seed=3),
    row(1, (2, 4, 4, 1.5), 1, (1, 2, 2), 3, seed=4))


def prompts(examples=MIXED, *, p=26, s=4 * WINDOW, uid=None, media=True):
  """`types.Prompts` of examples, padded to `p` tokens and `s` patch slots."""
  n = len(examples)
  tokens, mask = np.full((n, p), PAD, np.int32), np.zeros((n, p), bool)
  rope, following = np.zeros((n, p, 3), np.int32), np.zeros(n, np.int32)
  patches = np.zeros((n, s, VALUES), np.float32)
  place, segment = np.zeros((n, s, 2), np.int32), np.zeros((n, s), np.int32)
  slot = np.full((n, p), -1, np.int32)
  for i, (ids, pixels, spans) in enumerate(examples):
    left = p - len(ids)
    tokens[i, left:], mask[i, left:] = ids, True
    rope[i, left:], following[i] = positions.rope_index(
        ids, spans, image_id=IMAGE, video_id=VIDEO, merge=MERGE,
        tokens_per_second=2)
    offset, frames, slots = 0, 0, [np.zeros(0, np.int32)]
    for x, (*grid, _) in zip(pixels, spans):
      kw = dict(merge=MERGE, window_cells=CELLS)
      layout = positions.window_layout(grid, **kw)
      here = offset + np.flatnonzero(layout >= 0)
      source = layout[layout >= 0]
      patches[i, here] = x[source]
      place[i, here] = positions.patch_positions(grid, MERGE)[source]
      segment[i, here] = frames + 1 + source // (grid[1] * grid[2])
      slots.append(offset // MERGE**2 + positions.cell_slots(grid, **kw))
      offset, frames = offset + len(layout), frames + grid[0]
    slot[i, left:][np.isin(ids, (IMAGE, VIDEO))] = np.concatenate(slots)
  vision = types.Media(*map(jnp.asarray, (patches, place, segment, slot)))
  return types.Prompts(
      tokens=jnp.asarray(tokens), mask=jnp.asarray(mask),
      positions=jnp.asarray(rope), next_position=jnp.asarray(following),
      media={'vision': vision} if media else {},
      uid=jnp.asarray(np.arange(n) + 100 if uid is None else uid, jnp.int32))


def block(batch, g=4, t=6, seed=0, *, array_t=None):
  """A block of random completions of ragged lengths; some tokens masked."""
  rng = np.random.default_rng(seed)
  n, array_t = batch.tokens.shape[0], array_t or t
  shape = (n, g, t)
  tokens = rng.integers(*WORDS, shape)
  lengths = rng.integers(1, t + 1, (n, g, 1))
  lengths[:, 0] = t
  real = np.arange(t) < lengths
  mask = real & (rng.random(shape) > 0.2)
  arrays = dict(
      tokens=np.where(real, tokens, PAD), kind=real.astype(np.int8), mask=mask,
      old=-rng.random(shape) * 4, ref=-rng.random(shape) * 4,
      sampler_logp=-rng.random(shape) * 4)
  advantage = rng.normal(size=(n, g, 1))
  pad = ((0, 0), (0, 0), (0, array_t - t))
  a = {k: jnp.asarray(np.pad(x, pad), {
      'tokens': jnp.int32, 'kind': jnp.int8, 'mask': bool}.get(k, jnp.float32))
       for k, x in arrays.items()}
  return types.Block(
      prompts=batch, mask=a['mask'],
      completions=types.Completions(
          tokens=a['tokens'], kind=a['kind'],
          positions=sample.text_positions(
              batch.next_position, (n, g, array_t))),
      advantage=jnp.asarray(advantage, jnp.float32), old=a['old'],
      ref=a['ref'], extra={'sampler_logp': a['sampler_logp']})


def rows_of(tree, index):
  """The rows `index` of every array."""
  index = np.asarray(index)
  return jax.tree.map(lambda x: np.asarray(x)[index] if x.ndim else x, tree)


def section(*, name='rl', **changes):
  """A resolved rl section: common's defaults and `changes`, dots as __."""
  c = common.get_base()
  c.stages = (name,)
  flat = {k.replace('__', '.'): v for k, v in changes.items()}
  kwargs = {k: flat.pop(k) for k in list(flat) if k.endswith('kwargs')}
  for key, value in kwargs.items():
    c.rl[key.rpartition('.')[0]].kwargs.update(value)
  c.rl.update_from_flattened_dict(flat)
  return resolve.finalise(c).rl


@functools.cache
def plan():
  """Clipped policy term, k3 to the reference, entropy: all three terms."""
  return objective.build(section(
      policy__kwargs=dict(eps_low=0.2, eps_high=0.3), kl__coefficient=0.1,
      entropy__coefficient=0.05))


def knobs(**changes):
  """Traced knobs of `plan()`; dots and slashes of names as in the plan."""
  values = {'temperature': 1.0, **plan().knobs, **changes}
  return {name: jnp.float32(value) for name, value in values.items()}


def _gradient(policy_, tree, batch, values, chunks, terms):
  return update.gradient(
      policy_, tree, lambda x: x, batch, terms or plan().terms, values,
      chunks=chunks)


_gradient_jit = jax.jit(
    _gradient, static_argnames=('policy_', 'chunks', 'terms'))


def gradient(tree, batch, values=None, *, chunks=1, policy_=None, terms=None):
  """(gradient, metrics) of `plan()` over a tuple of blocks, as numpy."""
  return jax.device_get(_gradient_jit(
      policy_ or policy(), tree, tuple(batch), values or knobs(),
      chunks=chunks, terms=terms))


def _logits(policy_, tree, batch, completions, temperature):
  prefix = policy_.prompt_pass(tree, batch)
  hidden = forward.hidden_states(policy_, tree, prefix, batch, completions)
  return policy_.logits(tree, hidden, temperature)


# f32[N, G, T, V], every logit at once; what mmr1 itself never builds.
logits = jax.jit(_logits, static_argnums=0)
logp = jax.jit(forward.logp_and_hidden, static_argnums=0)


def sampling(policy_, tree, batch, *, group, length):
  """The device side of one call of the sampler, for tracing; no refills."""
  n = len(batch.tokens)
  knobs_ = sample.knobs(max_new_tokens=length)
  seating = rows.Seating(
      task=jnp.tile(jnp.arange(group), (n, 1)),
      start=jnp.zeros((n, group), jnp.int32), seats=None)
  asked = rows.ask(policy_, tree, batch, jax.random.key(0), group=group)
  state = rows.begin(policy_, n, group, group, length, length)
  state = rows.seat(policy_, tree, asked, seating, state, knobs_,
                    jnp.ones((n, group), bool))
  return rows.decode(
      policy_, tree, asked, asked.prefix, asked.mask, seating, state, knobs_,
      jnp.array([-1]), jnp.int32(0))


class Counting(forward.Policy):
  """Counts the decode steps that are really run, in `counter.steps`."""

  def apply(self, tree, *args, method):
    if method == 'decode':
      jax.debug.callback(_count)
    return super().apply(tree, *args, method=method)


counter = python_types.SimpleNamespace(steps=0)


def _count():
  counter.steps += 1


def rollout(tree, batch, key, *, policy_=None, group=3, length=8,
            decoding=sample.Decoding(), given=None, **values):
  """A rollout on the host, and the decode steps it took."""
  counter.steps = 0
  values = {'max_new_tokens': length, **values}
  result = sample.sample(
      policy_ or policy(cls=Counting), tree, batch, key,
      sample.knobs(**values), jnp.int32(0), group=group, length=length,
      decoding=decoding, given=given)
  result = jax.block_until_ready(result)
  jax.effects_barrier()
  return result, counter.steps


def shapes_in(jaxpr):
  """Shapes of every value of a jaxpr, nested ones included."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield variable.aval.shape
    for inner in extend_core.jaxprs_in_params(equation.params):
      yield from shapes_in(inner)


def close(a, b, atol):
  """Every leaf within `atol`; the leaf's name in the message."""
  a, b = (jax.tree_util.tree_leaves_with_path(x) for x in (a, b))
  assert [path for path, _ in a] == [path for path, _ in b]
  for (path, x), (_, y) in zip(a, b):
    np.testing.assert_allclose(
        x, y, atol=atol, rtol=0, err_msg=jax.tree_util.keystr(path))
