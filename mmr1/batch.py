"""How a batch divides over a mesh."""

from typing import Any

from mmr1 import sharding

_DEFAULT_MESH = {'slice': 1, 'data': None, 'fsdp': 1, 'tensor': 1}


def rows(config: Any) -> dict[str, int]:
  """{key: prompts that are computed at a time} of all stages that train."""
  found = {}
  for name in config.stages:
    section = config[name]
    if section.kind == 'rl':
      n = section.prompts_per_step * max(1, len(section.branches))
      found[f'{name}.prompts_per_step'] = n
      found[f'{name}.minibatches_per_step'] = n // section.minibatches_per_step
    elif section.kind == 'sft':
      n = section.rows_per_step
      found[f'{name}.rows_per_step'] = n
      found[f'{name}.chunks_per_step'] = n // section.chunks_per_step
    elif section.kind in ('preference', 'reward_model'):
      n = section.pairs_per_step
      found[f'{name}.pairs_per_step'] = n
      found[f'{name}.chunks_per_step'] = n // section.chunks_per_step
    elif section.kind == 'flow':
      n = section.prompts_per_step
      found[f'{name}.prompts_per_step'] = n
      n //= section.minibatches_per_step
      found[f'{name}.minibatches_per_step'] = n
      found[f'{name}.chunks_per_minibatch'] = n // section.chunks_per_minibatch
    elif section.kind == 'detect':
      found[f'{name}.rows_per_step'] = section.rows_per_step
  return found


def check(config: Any, layout: sharding.Layout) -> None:
  """Prompts must divide over a mesh that was asked for.

  The default one has the halves of a CPU, and may compute a batch on each.

  Raises:
    ValueError: see above.
  """
  if config.mesh.as_dict() == _DEFAULT_MESH:
    return
  for key, count in rows(config).items():
    if count % layout.count:
      raise ValueError(
          f'{key}: {count} prompts at a time do not divide over the mesh '
          f'{layout.said} (slice x data x fsdp = {layout.count}); every device '
          f'would compute all of them. Take a multiple of {layout.count}, or a '
          'smaller mesh.fsdp with a larger mesh.tensor.')
