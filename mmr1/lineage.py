"""Which parameters a stage starts from, and which it ends with.

A stage with adapters (`lora.rank` > 0) stores only what it trains; the rest is
what it started from, which follows from its `init`, stage by stage down to a
stage that stored everything, the base model or a folder.

A stage that merges models leaves a Hugging Face folder in the workdir.

Adapters that a stage ended with go on where the next one has the same rank,
alpha and targets; else they become part of the kernels first.
"""

from collections.abc import Callable
import dataclasses
import re
from typing import Any

from etils import epath
import jax

from mmr1 import checkpoint
from mmr1.models import lora
from mmr1.models import scalar_heads
from mmr1.sampling import keys
from mmr1 import trees

Tree = Any
# Kinds of stages that train a model of language, the one that makes it of others,
# and those whose model is the policy of the stages after them.
TRAINS = ('sft', 'preference', 'rl', 'reward_model')
MERGES = 'merge'
MODELS = (*TRAINS, MERGES)
POLICIES = ('sft', 'preference', 'rl', MERGES)
_VIEW, _HEAD = 0x10a, 0x4ead  # in the key law: what no sampler draws from


def rank_of(section: Any) -> int:
  """`lora.rank` of a stage; 0 in runs from before there was one."""
  return section.lora.rank if 'lora' in section else 0


def stored(section: Any, params: Tree) -> tuple[str, ...]:
  """Regexes of the leaves of a TrainState that a stage's checkpoints hold."""
  if not rank_of(section):
    return ('.*',)
  return ('(?!params/policy/).*', *_trained(section, params))


def _trained(section: Any, params: Tree) -> tuple[str, ...]:
  mask = trees.named(lora.trains(params, section.lora.train))
  return tuple(f'params/policy/{re.escape(name)}'
               for name, on in mask.items() if on)


@dataclasses.dataclass(frozen=True)
class Lineage:
  """The models of a run.

  Fields:
    config: the resolved config.
    checkpoints: of the run; None where only shapes are asked for.
    structs: the base model's parameters, or their shapes.
    base: () -> parameters of the base model.
    folder: path -> parameters of a folder.
    place: puts a new parameter, by its name, on the devices.
  """
  config: Any
  checkpoints: checkpoint.Checkpoints | None
  structs: Tree
  base: Callable[[], Tree] | None = None
  folder: Callable[[str], Tree] | None = None
  place: Callable[[str, Any], Any] = lambda name, leaf: leaf

  def source(self, stage: str) -> str:
    """What the stage's `init` stands for: 'base', a stage or a folder."""
    name, stages = self.config[stage].init, self.config.stages
    if name != 'previous':
      return name
    before = [other for other in stages[:stages.index(stage)]
              if self.config[other].kind in POLICIES]
    return before[-1] if before else 'base'

  def goes_on(self, stage: str) -> bool:
    """Whether the stage trains on the adapters that its source ended with."""
    source = self.source(stage)
    if source not in self.config.stages:
      return False
    sections = [self.config[name] for name in (stage, source)]
    if not all(map(rank_of, sections)):
      return False
    a, b = [(section.lora.rank, section.lora.alpha,
             lora.chosen(self.structs, section.lora.targets))
            for section in sections]
    return a == b

  def footing(self, stage: str) -> str:
    """The model that the stage's adapters are added to, named as in `source`."""
    while self.goes_on(stage):
      stage = self.source(stage)
    return self.source(stage)

  def shapes(self, stage: str) -> Tree:
    """The stage's parameters as shape structs.

    Raises:
      ValueError: `lora` asks for adapters that cannot be.
    """
    if not rank_of(self.config[stage]):
      return self.structs
    return jax.eval_shape(
        lambda params: self._inject(
            stage, params, lambda name, leaf: leaf), self.structs)

  def start(self, stage: str) -> Tree:
    """Parameters that the stage starts from; new adapters change nothing."""
    params = self._headed(stage, self.params(self.source(stage)))
    if self.goes_on(stage):
      return params
    params = lora.merge(params)
    if not rank_of(self.config[stage]):
      return params
    return self._inject(stage, params, self.place)

  def _headed(self, stage: str, params: Tree) -> Tree:
    """With a head that can learn, where the stage trains a new one."""
    if self.config[stage].kind != 'reward_model':
      return params
    prefix = 'scalars/reward/'
    head = scalar_heads.drawn(
        params['scalars']['reward'], self._key(stage, _HEAD),
        lambda name, leaf: self.place(prefix + name, leaf))
    return {**params, 'scalars': {**params['scalars'], 'reward': head}}

  def _key(self, stage: str, view: int) -> jax.Array:
    return keys.step_key(
        self.config.seed, 1 + self.config.stages.index(stage), 0, view=view)

  def _inject(self, stage, params, place):
    section = self.config[stage].lora
    return lora.inject(
        params, self._key(stage, _VIEW), rank=section.rank, alpha=section.alpha,
        targets=section.targets, place=place)

  def params(self, name: str) -> Tree:
    """Parameters of 'base', a finished stage, or a folder.

    Raises:
      ValueError: the stage has not finished.
    """
    if name == 'base':
      return self.base()
    if name not in self.config.stages:
      return self.folder(name)
    return self.at(name, self.ended(name)).tree

  def at(self, stage: str, step: int | str) -> checkpoint.Restored:
    """A stage's parameters in one of its checkpoints, as `Restored.tree`."""
    section = self.config[stage]
    if section.kind == MERGES:
      return checkpoint.Restored(
          0, self.folder(str(self.merged(stage))), {}, {})
    if rank_of(section):
      target = self.start(stage)
      only = _trained(section, target)
    else:
      target, only = self.structs, ('params/.*',)
    restored = self.checkpoints.restore(
        stage, {'params': {'policy': target}}, step=step, only=only)
    return restored._replace(tree=restored.tree['params']['policy'])

  def merged(self, stage: str) -> epath.Path:
    """The folder that a stage which merges models writes."""
    return self.checkpoints.root / 'merged' / stage

  def steps(self, stage: str) -> list[int]:
    """Steps of the models that a stage has left."""
    if self.config[stage].kind == MERGES:
      return [0] if (self.merged(stage) / 'config.json').exists() else []
    return self.checkpoints.steps(stage)

  def optimizer_state(self, stage: str, target: Tree) -> Tree:
    """Optimiser state that a stage ended with, in the form of `target`."""
    return self.checkpoints.restore(
        stage, {'opt': {'policy': target}}, step=self.ended(stage),
        only=('opt/.*',)).tree['opt']['policy']

  def ended(self, stage: str) -> int:
    """The step whose parameters the stage ended with.

    Raises:
      ValueError: it has not finished.
    """
    record = self.checkpoints.done(stage)
    if record is None:
      raise ValueError(
          f'stage {stage!r} has not finished in this run; stages run in the '
          f'order {self.config.stages}.')
    return record['step']
