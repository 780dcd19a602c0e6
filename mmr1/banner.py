"""The first lines of a run."""

import jax

from mmr1 import context
from mmr1 import sharding


def of(ctx: context.Context) -> str:
  """What runs, and the numbers that follow from the config."""
  devices = jax.devices()
  layout = ctx.policy.layout
  lines = [f'{len(devices)} x {devices[0].device_kind} as {layout.said}, '
           f'workdir {ctx.path}']
  for name in ctx.order:
    section = ctx.config[name]
    if section.kind == 'rl':
      n, g = section.prompts_per_step, section.samples_per_prompt
      updates = section.minibatches_per_step * section.epochs_per_step
      lines.append(
          f'  {name}: {section.steps} steps of {n} prompts x {g} samples x '
          f'{section.max_new_tokens} tokens = {n * g} completions, '
          f'{updates} update(s) each' + _each(layout, n, 'prompts'))
    elif section.kind == 'flow':
      n, g = section.prompts_per_step, section.samples_per_prompt
      lines.append(
          f'  {name}: {section.steps} steps of {n} prompts x {g} pictures, '
          f'{section.objective.fn}, {section.minibatches_per_step} update(s) '
          'each' + _each(layout, n, 'prompts'))
    elif section.kind in ('sft', 'detect'):
      n = section.rows_per_step
      lines.append(f'  {name}: {section.steps} steps of {n} rows'
                   + _each(layout, n, 'rows'))
    elif section.kind in ('preference', 'reward_model'):
      n = section.pairs_per_step
      lines.append(f'  {name}: {section.steps} steps of {n} pairs'
                   + _each(layout, n, 'pairs'))
    else:
      lines.append(f'  {name}: {section.kind}')
  return '\n'.join(lines)


def _each(layout: sharding.Layout, count: int, what: str) -> str:
  parts = layout.shards(count)
  if layout.mesh.size == 1:
    return ''
  if parts == 1 < layout.count:
    return f'; {count} do not divide: every device has all of them'
  return f'; {count // parts} {what} in each of {parts} parts'
