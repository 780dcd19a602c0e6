"""The first lines of a run."""

from typing import Any

import jax

from mmr1 import context
from mmr1 import sharding


def of(ctx: context.Context) -> str:
  """What runs, and the numbers that follow from the config."""
  devices = jax.devices()
  layout = ctx.policy.layout
  lines = [f'{len(devices)} x {devices[0].device_kind} as {layout.said}, '
           f'workdir {ctx.path}']
  lines += [f'  {name}: {derived(ctx.config[name], layout)}'
            for name in ctx.order]
  return '\n'.join(lines)


def derived(section: Any, layout: sharding.Layout) -> str:
  """The numbers that follow from a stage's section; its kind, if none do."""
  if section.kind == 'rl':
    n, g = section.prompts_per_step, section.samples_per_prompt
    updates = section.minibatches_per_step * section.epochs_per_step
    return (f'{section.steps} steps of {n} prompts x {g} samples x '
            f'{section.max_new_tokens} tokens = {n * g} completions, '
            f'{updates} update(s) each' + _each(layout, n, 'prompts'))
  if section.kind == 'flow':
    n, g = section.prompts_per_step, section.samples_per_prompt
    return (f'{section.steps} steps of {n} prompts x {g} pictures, '
            f'{section.objective.fn}, {section.minibatches_per_step} update(s) '
            'each' + _each(layout, n, 'prompts'))
  for kinds, key, what in ((('sft', 'detect'), 'rows_per_step', 'rows'),
                           (('preference', 'reward_model'), 'pairs_per_step',
                            'pairs')):
    if section.kind in kinds:
      n = section[key]
      return f'{section.steps} steps of {n} {what}' + _each(layout, n, what)
  if section.kind == 'collect':
    return f'{section.size} examples by {section.engine}'
  return section.kind


def _each(layout: sharding.Layout, count: int, what: str) -> str:
  parts = layout.shards(count)
  if layout.mesh.size == 1:
    return ''
  if parts == 1 < layout.count:
    return f'; {count} do not divide: every device has all of them'
  return f'; {count // parts} {what} in each of {parts} parts'
