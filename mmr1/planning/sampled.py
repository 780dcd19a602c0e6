"""The programs that sample: prefill, and decode with the largest cache."""

import dataclasses
import functools
import math
import types as simple_types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import forward
from mmr1.models import partition
from mmr1.planning import costs
from mmr1.planning import records
from mmr1.planning import shapes as shapes_lib
from mmr1.sampling import chunks
from mmr1.sampling import programs
from mmr1.sampling import publish
from mmr1.sampling import rows
from mmr1.sampling import schedule as schedule_lib

Struct = shapes_lib.Struct


def programs_of(config: Any, section: Any, policy: forward.Policy, params: Any,
                ) -> tuple[list[records.Program], dict[str, Any]]:
  """Prefill, decode with the largest cache; what of the weights one of them
  does not read, which is there all the same."""
  sampler = publish.make(config.sampler, policy)
  make = shapes_lib.Shapes(sampler.policy, config.data)
  n, g, t = (section.prompts_per_step * max(1, len(section.branches)),
             section.samples_per_prompt - section.experts,
             section.max_new_tokens)
  own, decoding = sampler.policy, sampler.decoding
  layout = own.layout
  published = shapes_lib.placed(
      jax.eval_shape(functools.partial(
          partition.cast, dtype=own.module.config.compute_dtype), params),
      layout.parameters(params, used=True))
  prompts = make.prompts(n, noise=bool(config.views))
  decoder = programs.decoder_of(own, decoding.layers)
  key = jax.eval_shape(lambda: jax.random.key(0))
  ask = functools.partial(programs.prefill, own, decoder, group=g)
  asked = jax.eval_shape(ask, published, prompts, key)
  asked = shapes_lib.placed(asked, programs.asked_where(layout, asked))
  shards = layout.shards(n)
  schedule = schedule_lib.Schedule(
      np.ones((shards, n // shards), bool), g, t, decoding,
      spare=_spare(config, section.env))
  shape = max(schedule.shapes, key=lambda s: (s.size, s.rows))
  nobody = schedule.nobody(shape)
  read = published
  if decoder.module.config.layers != 'scan':
    read = jax.eval_shape(decoder.module.for_decode, published)
    read = shapes_lib.placed(read, jax.tree.map(lambda _: layout.whole, read))
  f32, i32 = Struct((), jnp.float32), Struct((), jnp.int32)
  knobs = rows.Knobs(temperature=f32, top_k=i32, top_p=f32, max_new_tokens=i32,
                     sharpness=f32)
  device = programs.Device(decoder, read, asked, knobs, t, schedule.whole,
                           entropy=decoding.entropy)
  if section.env is not None:
    device = _answered(device, config, section.env, make, schedule)
  kept = jax.eval_shape(lambda a: dataclasses.replace(
      device, asked=a).begin(nobody), asked)
  kept = shapes_lib.placed(kept, programs.kept_where(layout, kept))
  arguments = device.arguments(kept, nobody, programs.Seen.nothing(nobody))
  c = policy.module.config
  prefill = costs.forward(c, make.work(n, 0, 0, 0))
  count = shards * shape.rows
  # Rows of a prompt ask its keys together, in as many seats as it may have.
  token = _token(c, count, shape.size, make.prompt * (
      count if schedule.whole else nobody.prompts.size * g))
  waves = math.ceil(n * g / count)
  found = [
      records.Program('prefill', lambda: programs.prefill.trace(
          own, decoder, published, prompts, key, group=g),
              {'published': _without(published, 'head'), 'prompts': prompts},
              1, 1, prefill, ('state', 'reference', 'head')),
      records.Program('decode', lambda: programs.decode.trace(
          *arguments, spare=device.spare),
              {'published': {**read, 'visual': {}}, 'prefix': asked,
               'cache': kept.cache, 'found': kept.found}, waves, t, token,
              ('state', 'reference', 'prompts', 'tower'))]
  if section.env is not None:
    found.append(_observing(device, kept, nobody, asked, read, c, config,
                            section.env, make))
  return found, {'head': published['language'].get('head', {}),
                 'tower': published.get('visual', {})}


def _token(c: Any, count: int, size: int, asked: int) -> dict[str, float]:
  """Operations of one token of `count` rows at the cap: `size` keys of their
  own each, and `asked` of prompts in all."""
  token = costs.forward(c, costs.Work(
      prompts=count, group=1, length=1, prompt=0, patches=0, head=count))
  token['scores'] = 4 * c.heads * c.head_width * c.depth * (
      asked + count * size)
  return token


def _spare(config: Any, name: str | None) -> int:
  """Tokens that rows read at once: those of an observation, and one."""
  return 0 if name is None else (
      1 + config.environments[name].observation_tokens)


def _answered(device: programs.Device, config: Any, name: str,
              make: shapes_lib.Shapes, schedule: schedule_lib.Schedule,
              ) -> chunks.Device:
  """With an environment that has not been asked yet."""
  env, count = config.environments[name], schedule.nobody(
      schedule.shapes[0]).prompts.shape
  player = simple_types.SimpleNamespace(
      chunk=_spare(config, name), stops=None,
      patches=env.observation_patches if make.room(config, name) else 0)
  limits = np.zeros((count[0], schedule.idle + 1), np.int32)
  return chunks.Device(
      **vars(device) | dict(spare=player.chunk), player=player, limit=limits,
      shift=limits)


def _observing(device: chunks.Device, kept: Any, nobody: schedule_lib.Layout,
               asked: Any, read: Any, c: Any, config: Any, name: str,
               make: shapes_lib.Shapes) -> records.Program:
  """The pass over what comes back, pictures included, for all rows; one for
  every turn but the last."""
  policy, params, _, _, seating, _, prompts, t, live, token, _, _, _, matched = (
      device.arguments(kept, nobody, programs.Seen.nothing(nobody)))
  lead, size, room = seating.task.shape, device.spare, device.player.patches
  i32 = functools.partial(make.array, jnp.int32)
  chunk = chunks.Chunk(
      tokens=i32(*lead, size), length=i32(*lead),
      positions=i32(*lead, size, 3), media=make.media((*lead, size), room) or (
          None), age=i32(*lead), start=i32(*lead), end=i32(*lead))
  count = math.prod(lead)
  work = costs.forward(c, costs.Work(
      prompts=count, group=1, length=size, prompt=0, patches=0, head=count))
  work['tower'] += make.inside(c, count, room)
  work['scores'] = 4 * c.heads * c.head_width * c.depth * count * size * (
      make.prompt + kept.cache.size)
  return records.Program(
      'observe', lambda: chunks.observe.trace(
          policy, params, asked, kept, seating, chunk, prompts, t, live, token,
          matched, device.knobs),
      {'published': read, 'prefix': asked, 'cache': kept.cache,
       'found': kept.found, 'chunk': chunk},
      config.environments[name].max_turns - 1, 1, work,
      ('state', 'reference', 'prompts'))


def _without(params: Any, leaf: str) -> Any:
  """Parameters but for one of the decoder's."""
  return {**params, 'language': {
      name: x for name, x in params['language'].items() if name != leaf}}
