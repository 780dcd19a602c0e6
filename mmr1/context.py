"""What a stage may use: the run's services and the artifacts so far."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from etils import epath
import jax
from mmr1 import checkpoint
from mmr1 import compiles
from mmr1.data import datasets
from mmr1.data import pipeline
from mmr1.data import processor as processor_lib
from mmr1 import forward
from mmr1 import guard
from mmr1 import lineage as lineage_lib
from mmr1 import log
from mmr1 import profiling
from mmr1 import resolve
from mmr1 import sharding
from mmr1 import trees
from mmr1 import watchdog as watchdog_lib
from mmr1.sampling import publish
from mmr1.models import checkpoints as model_checkpoints
from mmr1.models import scalar_heads

Tree = Any
TRAINS, POLICIES = lineage_lib.TRAINS, lineage_lib.POLICIES
MODELS = lineage_lib.MODELS


class Preempted(SystemExit):
  """The state is saved; the process leaves with exit code 0 (M16), or with
  `guard.Interrupt.code`."""

  def __init__(self, code: int = 0):
    super().__init__(code)


@dataclasses.dataclass
class Context:
  """The run.

  Fields:
    config: the resolved config, a `resolve.Section`.
    path: the workdir.
    logger, checkpoints, interrupt, compiles: services.
    processor: of the checkpoint.
    policy: the model and its constants.
    base: parameters of the base model, or None once they were forgotten.
    order: names of the run's stages.
    models: names of finished stages that made a policy, oldest first.
    files: {collect stage: the file it wrote}.
    evaluate: (params, stage, step) -> metrics; set by the run.
    trains: rows of the last printed table of what trains.
    profile: traces the steps that were asked for.
    watchdog: says where a run stands still.
  """
  config: Any
  path: epath.Path
  logger: log.Logger
  checkpoints: checkpoint.Checkpoints
  interrupt: guard.Interrupt
  compiles: compiles.CompileCounter
  processor: processor_lib.Processor
  policy: forward.Policy
  base: Tree | None
  order: tuple[str, ...]
  models: list[str] = dataclasses.field(default_factory=list)
  files: dict[str, str] = dataclasses.field(default_factory=dict)
  evaluate: Callable[..., Mapping[str, float]] | None = None
  trains: tuple[Any, ...] = ()
  profile: profiling.Profile = dataclasses.field(
      default_factory=profiling.Profile)
  watchdog: watchdog_lib.Watchdog = dataclasses.field(
      default_factory=watchdog_lib.Watchdog)

  def __post_init__(self):
    self._structs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=getattr(x, 'sharding', None)), self.base)

  def base_params(self) -> Tree:
    """Parameters of the base model, read again where they were forgotten."""
    if self.base is None:
      self.base = self._folder(self.config.model.path)
    return self.base

  def forget_base(self) -> None:
    """Makes room for what trains: a stage that started from the base model has
    a copy of its own."""
    self.base = None

  def index(self, stage: str) -> int:
    """Number of the stage in the key law; 0 is the run itself."""
    return 1 + self.order.index(stage) if stage in self.order else 0

  def named(self, name: str) -> str:
    """The stage or path that 'previous' stands for here."""
    if name == 'previous':
      return self.models[-1] if self.models else 'base'
    return name

  @functools.cached_property
  def sampler(self) -> publish.Sampler:
    """What samples from parameters of `policy`."""
    return publish.make(self.config.sampler, self.policy)

  @property
  def lineage(self) -> lineage_lib.Lineage:
    """Where the parameters of stages come from."""
    return lineage_lib.Lineage(
        self.config, self.checkpoints, self._structs, self.base_params,
        self._folder, self.policy.layout.put)

  def params(self, name: str) -> Tree:
    """Parameters of 'base', 'previous', a finished stage, or a folder.

    Those of a stage with adapters have them: any pass takes them as they are.
    """
    return self.lineage.params(self.named(name))

  def start(self, stage: str) -> Tree:
    """Parameters that a stage which trains starts from, adapters included."""
    return self.lineage.start(stage)

  def optimizer_state(self, name: str, target: Tree) -> Tree:
    """Optimiser state that a stage ended with, in the form of `target`."""
    return self.lineage.optimizer_state(self.named(name), target)

  def _folder(self, path: str) -> Tree:
    return open_model(
        self.config.model, datasets.model_path(path), self.processor,
        self.policy.layout)[1]

  def shape(self, instruction: str | None = None) -> pipeline.Shape:
    """How prompts are written, under another instruction if one is given."""
    return datasets.shape(self.config.data, self.processor, instruction)

  def close(self) -> None:
    """Closes the services."""
    self.watchdog.close()
    self.profile.close(self.logger.warn)
    self.logger.close()
    self.checkpoints.close()
    self.compiles.close()

  def stop(self) -> None:
    """Leaves the run; its state must have been saved."""
    self.checkpoints.wait()
    self.logger.stop()
    self.logger.note(
        f'{self.interrupt.signal}: state saved, stopping. The same command '
        'goes on from here.')
    raise Preempted(self.interrupt.code)

  def unsaved(self) -> str:
    """Where the same command goes on if the run ends now, in words."""
    stage = next((name for name in self.order
                  if self.checkpoints.done(name) is None), None)
    if stage is None:
      return 'all stages are done'
    steps = self.checkpoints.steps(stage)
    return (f'{stage} goes on from step {steps[-1]}, the last that was saved'
            if steps else f'{stage} begins anew; stages before it are done')


def open_model(
    model: Any, path: str, processor: processor_lib.Processor,
    layout: sharding.Layout, heads: Mapping[str, Any] | None = None,
) -> tuple[forward.Policy, Tree]:
  """Loads a checkpoint folder as a policy and its parameters.

  Args:
    model: the section of the config.
    path: the folder.
    processor: of the folder.
    layout: where parameters go.
    heads: those of one number; None: as `model` says.

  Raises:
    ValueError: a folder that is damaged; heads that do not divide over the
      mesh.
  """
  module, params = model_checkpoints.load(
      path, param_dtype=model.param_dtype, compute_dtype=model.compute_dtype,
      layers=model.layers, remat=model.remat, precision=model.precision,
      attention=model.attention, partition=layout.partition,
      **(heads_of(model) if heads is None else heads), place=layout.place)
  sharding.check(layout, module.config)
  policy = forward.Policy(
      module, processor.banned, processor.eos_id, processor.pad_id,
      model.head_chunk, layout)
  return policy, params


def heads_of(model: Any) -> dict[str, Any]:
  """Heads of one number that a config asks for: keywords of
  `models.checkpoints.load`."""
  if 'scalars' not in model:  # a run from before there were any
    return {}
  found: dict[str, Any] = {'scalars': tuple(model.scalars)}
  if 'reward' in model.scalars and 'reward_head' in model:
    found['reward_head'] = scalar_heads.Head(**model.reward_head.as_dict())
  return found


def check_init(
    name: str, stage: str, config: Any, key: str = 'init') -> None:
  """Refuses a name that will not stand for a model when the stage begins.

  Args:
    name: 'previous', 'base', a stage before this one that makes a model, or a
      folder.
    stage: whose key it is; key: which.
    config: the resolved config.
  """
  if name in ('previous', 'base'):
    return
  if name in config.stages:
    if config[name].kind not in MODELS:
      raise ValueError(
          f'{stage}.{key}: {name!r} is a stage of kind {config[name].kind!r}, '
          'which makes no model.')
    if config.stages.index(name) >= config.stages.index(stage):
      raise ValueError(
          f'{stage}.{key}: {name!r} does not come before {stage!r} in stages '
          f'{config.stages}.')
    return
  try:
    datasets.model_path(name)
  except ValueError:
    known = ['previous', 'base', *config.stages]
    raise ValueError(
        f'{stage}.{key}: got {name!r}, which is no stage of this run and no '
        f'folder. {resolve.nearest(name, known)}') from None


def check_folders(config: Any, base: Tree) -> None:
  """Refuses folders with another model than the run's, before a stage begins.

  What is merged may be another model in part, see `parents.check`.

  Args:
    config: the resolved config, whose names `check_init` has seen.
    base: the base model's parameters.
  """
  model, shapes = config.model, lambda tree: {
      name: leaf.shape for name, leaf in trees.named(tree).items()}
  here = shapes(base)
  for stage in config.stages:
    for key in ('init', 'reference'):
      name = config[stage][key] if key in config[stage] else 'init'
      # 'ema' is the average of the stage itself.
      if name in ('init', 'previous', 'base', 'ema', *config.stages):
        continue
      there = shapes(model_checkpoints.describe(
          datasets.model_path(name), param_dtype=model.param_dtype,
          **heads_of(model))[1])
      other = sorted(leaf for leaf in here.keys() | there.keys()
                     if here.get(leaf) != there.get(leaf))
      if other:
        raise ValueError(
            f'{stage}.{key}: {name!r} is another model than model.path: '
            f'{other[0]!r} is {there.get(other[0], "absent")} there and '
            f'{here.get(other[0], "absent")} here ({len(other)} differ). Take '
            'a checkpoint of the same model.')
