"""The programs that sample: prefill, and decode with the largest cache."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import forward
from mmr1.models import partition
from mmr1.planning import costs
from mmr1.planning import records
from mmr1.planning import shapes as shapes_lib
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
      np.ones((shards, n // shards), bool), g, t, decoding)
  shape = max(schedule.shapes, key=lambda s: (s.size, s.rows))
  nobody = schedule.nobody(shape)
  read = published
  if decoder.module.config.layers != 'scan':
    read = jax.eval_shape(decoder.module.for_decode, published)
    read = shapes_lib.placed(read, jax.tree.map(lambda _: layout.whole, read))
  knobs = rows.Knobs(
      temperature=Struct((), jnp.float32), top_k=Struct((), jnp.int32),
      top_p=Struct((), jnp.float32), max_new_tokens=Struct((), jnp.int32),
      sharpness=Struct((), jnp.float32))
  device = programs.Device(decoder, read, asked, knobs, t, schedule.whole)
  kept = jax.eval_shape(lambda a: dataclasses.replace(
      device, asked=a).begin(nobody), asked)
  kept = shapes_lib.placed(kept, programs.kept_where(layout, kept))
  arguments = device.arguments(kept, nobody, programs.Seen.nothing(nobody))
  c = policy.module.config
  prefill = costs.forward(c, make.work(n, 0, 0, 0))
  # One token of every row, at the cap.
  count = shards * shape.rows
  token = costs.forward(c, costs.Work(
      prompts=count, group=1, length=1, prompt=0, patches=0, head=count))
  # Rows of a prompt ask its keys together, in as many seats as it may have.
  seats = count if schedule.whole else nobody.prompts.size * g
  token['scores'] = 4 * c.heads * c.head_width * c.depth * (
      seats * make.prompt + count * shape.size)
  waves = math.ceil(n * g / count)
  head = {'head': published['language'].get('head', {})}
  tower = {'tower': published.get('visual', {})}
  found = [
      records.Program('prefill', lambda: programs.prefill.trace(
          own, decoder, published, prompts, key, group=g),
              {'published': _without(published, 'head'), 'prompts': prompts},
              1, 1, prefill, ('state', 'reference', 'head')),
      records.Program('decode', lambda: programs.decode.trace(*arguments),
              {'published': {**read, 'visual': {}}, 'prefix': asked,
               'cache': kept.cache, 'found': kept.found}, waves, t, token,
              ('state', 'reference', 'prompts', 'tower'))]
  return found, head | tower


def _without(params: Any, leaf: str) -> Any:
  """Parameters but for one of the decoder's."""
  return {**params, 'language': {
      name: x for name, x in params['language'].items() if name != leaf}}
