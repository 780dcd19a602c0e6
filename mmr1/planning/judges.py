"""What judges of an rl stage read, from shapes alone."""

import types as simple_types
from typing import Any

from mmr1 import forward
from mmr1 import judges as judges_lib
from mmr1 import scoring
from mmr1.planning import costs
from mmr1.planning import models
from mmr1.planning import records
from mmr1.planning import sampled
from mmr1.planning import shapes as shapes_lib
from mmr1.planning import states

_BESIDE = ('state', 'reference', 'rollout')


class Judges:
  """Programs of a stage's judges, and what of them is always there.

  One of kind 'text' is as if it were the model that trains and had nothing
  between a response and its score. A folder of kind 'score' that is not there
  has the sizes that its last name says.
  """

  def __init__(self, config: Any, section: Any, shape: tuple[int, int, int],
               policy: forward.Policy, params: Any):
    """`shape`: N, G, T of the stage's rollouts."""
    self._config, self._section, self._shape = config, section, shape
    self._policy, self._params = policy, params
    self._views = max(1, len(section.branches))
    self._models = {
        name: [self._model(one, name) for one in judges_lib.params_of(
            config.judges[name])] for name in section.judges}

  def _model(self, params: str, name: str) -> tuple[forward.Policy, Any]:
    config = self._config
    policy, shapes = self._policy, self._params
    if config.judges[name].kind == 'score' and params not in (
        'base', 'previous', *config.stages):
      policy, shapes = models.open_at(
          config, policy.layout, params, params.rpartition('/')[2],
          f'judges.{name}.params', {'scalars': ('reward',)})
    return policy, states.only_read(policy, shapes)

  def programs(self) -> list[records.Program]:
    """In the order of a step."""
    found = []
    for name, opened in self._models.items():
      if self._config.judges[name].kind == 'text':
        found += self._written(name, *opened[0])
      else:
        found += [self._scored(f'judge_{name}_{i}', name, *one)
                  for i, one in enumerate(opened)]
    return found

  def held(self) -> list[Any]:
    """Parameters that stay on the devices."""
    return [params for name, opened in self._models.items()
            if self._config.judges[name].memory == 'device'
            for _, params in opened]

  def _written(self, name, policy, params) -> list[records.Program]:
    rows, g, t = self._shape
    asked = simple_types.SimpleNamespace(
        prompts_per_step=rows // self._views, samples_per_prompt=g * self._views,
        branches=(), experts=0, env=None, max_new_tokens=(
            t + self._config.judges[name].max_new_tokens))
    made, _ = sampled.programs_of(self._config, asked, policy, params)
    return [one._replace(name=f'{one.name}_{name}', resident=_BESIDE)
            for one in made]

  def _scored(self, label, name, policy, params) -> records.Program:
    """One pass over every response, closed by eos."""
    rows, g, t = self._shape
    shape = rows // self._views, g * self._views, t + 1
    make = shapes_lib.Shapes(policy, self._config.data)
    block, chunks = make.block(*shape), self._config.judges[name].chunks
    arguments = {'judge': params, 'prompts': block.prompts,
                 'completions': block.completions}
    return records.Program(
        label, lambda: scoring.given.trace(
            policy, params, block.prompts, block.completions, chunks=chunks),
        arguments, 1, 1, costs.forward(
            policy.module.config, make.work(*shape, 0)), _BESIDE)
