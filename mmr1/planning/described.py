"""A stage's arrays, programs and memory, in a few lines for a person."""

from typing import Any

import jax

from mmr1 import generator
from mmr1 import sharding
from mmr1 import trees
from mmr1.models import detector
from mmr1.models import dit
from mmr1.planning import estimate
from mmr1.planning import programs as programs_lib


def lines(config: Any, name: str, layout: sharding.Layout) -> list[str]:
  """Lines about a stage's arrays, its programs and their memory."""
  section, data = config[name], config.data
  told = []
  if section.kind in ('rl', 'sft', 'preference', 'reward_model'):
    n, g = {'rl': lambda: (section.prompts_per_step, section.samples_per_prompt),
            'sft': lambda: (section.rows_per_step, 1)}.get(
                section.kind, lambda: (section.pairs_per_step, 2))()
    told.append(
        f'prompts [{n}, {data.prompt_tokens}] tokens, [{n}, {data.patches}] '
        f'patches; completions [{n}, {g}, {section.max_new_tokens}]'
        + (f'; minibatches of {n // section.minibatches_per_step} prompts in '
           f'{section.chunks_per_minibatch} chunk(s)'
           if section.kind == 'rl' else ''))
  try:
    return told + _memory(config, name, layout)
  except ValueError as error:
    return [*told, f'its memory is not known: {error}']


def _memory(config: Any, name: str, layout: sharding.Layout) -> list[str]:
  section = config[name]
  if section.kind in ('flow', 'detect'):
    params = jax.eval_shape(
        lambda key: (dit.init(generator.config_of(config.generator), key)
                     if section.kind == 'flow' else detector.init(
                         detector.Config(**config.detector.as_dict()), key)),
        jax.random.key(0))
    count = trees.count(params)
    return [f'{count:,} parameters; with gradients and moments '
            f'{_size(4 * 4 * count)}']
  policy, params = programs_lib.open_model(config, layout)
  stage = programs_lib.stage(config, name, policy, params)
  if stage is None:
    return []
  held = estimate.held(stage)
  sizes = {}
  for program in stage.programs:
    arguments, beside = estimate.needs(program, held)
    sizes[program.name] = sum(arguments.values()) + beside
  fullest = max(sizes, key=lambda key: sizes[key])
  runs = ', '.join(f'{program.name}' + (
      f' x {program.runs:g}' if program.runs != 1 else '')
                   for program in stage.programs)
  return [
      f'programs of a step: {runs}'
      + (f'; one more of each for {len(section.length_buckets)} shorter '
         'lengths' if 'length_buckets' in section and section.length_buckets
         else ''),
      f'memory of each of {layout.mesh.size} device(s): state '
      f'{_size(held["state"])}, at most {_size(sizes[fullest])} in '
      f'{fullest!r}, temporaries not counted (mmr1.plan compiles and knows)']


def _size(count: float) -> str:
  return (f'{count / 1e9:.2f} GB' if count >= 1e9 else f'{count / 1e6:.1f} MB')
