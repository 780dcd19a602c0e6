"""The model of pictures: its parameters over the stages, and how it samples."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import context
from mmr1 import flow_objectives
from mmr1 import lineage
from mmr1 import resolve
from mmr1 import trees
from mmr1.flows import solvers
from mmr1.models import dit
from mmr1.models import lora
from mmr1.sampling import keys as keys_lib

Array = jax.Array
Tree = Any
NAME = 'generator'  # in `TrainState.params`
NEW = 'new'
_INIT, _ADAPTERS = 0x11f, 0x12f  # views in the key law


@dataclasses.dataclass(frozen=True)
class Settings:
  """How pictures are sampled. Hashable, static.

  Fields:
    steps: of the solver.
    solver: `mmr1.flows.solvers.Solver`.
    guidance: w of v = u + w (c - u), u without a condition; 1: none.
  """
  steps: int
  solver: solvers.Solver
  guidance: float


def config_of(section: Any) -> dit.Config:
  """The sizes in the section `generator`.

  Raises:
    ValueError: sizes that do not divide.
  """
  c = dit.Config(**section.as_dict())
  for name, value, by in (('size', c.size, c.patch),
                          ('width', c.width, 2 * c.heads)):
    if min(value, by) < 1 or value % by:
      raise ValueError(
          f'{section.where}.{name}: got {value}; allowed: multiples of {by} '
          f'({"patch" if name == "size" else "2 * heads"}).')
  return c


def solver_of(section: Any, where: str) -> solvers.Solver:
  """The function that a section {fn, kwargs} names.

  Raises:
    ValueError: there is none, or it has no such arguments.
  """
  fn = resolve.function(section.fn, 'mmr1.flows.solvers')
  kwargs = section.kwargs.as_dict()
  resolve.check_kwargs(fn, kwargs, f'{where}.kwargs')
  return functools.partial(fn, **kwargs)


@functools.partial(jax.jit, static_argnames=('config',))
def velocity(config: dit.Config, params: Tree, x: Array, t: Array,
             condition: Array, source: Array | None) -> Array:
  """See `dit.DiT`."""
  return dit.DiT(config).apply({'params': params}, x, t, condition, source)


@functools.partial(jax.jit, static_argnames=(
    'config', 'settings', 'group', 'trace'))
def sample(
    config: dit.Config, params: Tree, condition: Array, source: Array | None,
    uid: Array, key: Array, *, settings: Settings, group: int,
    trace: bool = False) -> solvers.Path:
  """`group` pictures of each prompt.

  Args:
    config: of the model.
    params: its parameters.
    condition: i32[N, L]; source: f32[N, H, W, C] | None.
    uid: i32[N].
    key: of the step, see `sampling.keys`.
    settings, group, trace: see above and `solvers.solve`.
  """
  keys = keys_lib.row_keys(key, uid, group)

  def asked(x, sigma):
    t = jnp.full(x.shape[:2], sigma)
    v = velocity(config, params, x, t, condition, source)
    if settings.guidance == 1:
      return v
    free = velocity(
        config, params, x, t, jnp.zeros_like(condition), source)
    return free + settings.guidance * (v - free)
  return solvers.solve(
      asked, lambda k: flow_objectives.noise(keys, k, config.shape),
      solvers.sigmas(settings.steps), settings.solver, trace=trace)


class Parameters:
  """Of the stages of one kind, from stage to stage.

  A stage starts from what `start` names: 'new', 'previous' (the stage of the
  kind before it, new ones where there is none) or such a stage. With adapters
  (`lora.rank` > 0) those train alone; they are a part of the kernels of the
  stage after it.
  """

  def __init__(self, ctx: context.Context, kind: str,
               init: Callable[[Array], Tree], name: str = NAME):
    """`init`: key -> new parameters; `name`: theirs in `TrainState.params`."""
    self._ctx, self._kind, self._init, self._name = ctx, kind, init, name

  def start(self, stage: str) -> Tree:
    """The stage's first parameters, the same whenever they are asked for."""
    before = source(self._ctx.config, stage, self._kind)
    if before == NEW:
      params = jax.jit(self._init)(self._key(stage, _INIT))
    else:
      params = lora.merge(self.ended(before))
    return self._adapted(stage, params)

  def ended(self, stage: str) -> Tree:
    """What a finished stage ended with.

    Raises:
      ValueError: it has not finished.
    """
    record = self._ctx.checkpoints.done(stage)
    if record is None:
      raise ValueError(
          f'stage {stage!r} has not finished in this run; stages run in the '
          f'order {self._ctx.order}.')
    whole = self.start(stage)
    if not lineage.rank_of(self._ctx.config[stage]):
      return self._read(stage, record['step'], whole)
    part, rest = trees.partition(whole, lora.trains(whole, ()))
    return trees.merge(self._read(stage, record['step'], part), rest)

  def _read(self, stage, step, target):
    return self._ctx.checkpoints.restore(
        stage, {'params': {self._name: target}}, step=step,
        only=(f'params/{self._name}/.*',)).tree['params'][self._name]

  def _adapted(self, stage, params):
    if not lineage.rank_of(self._ctx.config[stage]):
      return params
    section = self._ctx.config[stage].lora
    return lora.inject(
        params, self._key(stage, _ADAPTERS), rank=section.rank,
        alpha=section.alpha, targets=section.targets)

  def _key(self, stage, view):
    return keys_lib.step_key(
        self._ctx.config.seed, self._ctx.index(stage), 0, view=view)


def source(config: Any, stage: str, kind: str) -> str:
  """What the stage's `start` stands for: 'new' or a stage.

  Raises:
    ValueError: it names no stage of the kind before it.
  """
  before = [name for name in config.stages[:config.stages.index(stage)]
            if config[name].kind == kind]
  start = config[stage].start
  if start == 'previous':
    return before[-1] if before else NEW
  if start != NEW and start not in before:
    raise ValueError(
        f'{stage}.start: got {start!r}; allowed are {NEW!r}, \'previous\' and '
        f'stages of kind {kind!r} before it, {before}.')
  return start


def pixels(image: Any) -> np.ndarray:
  """f32[H, W, C] in [-1, 1] of a PIL image."""
  return np.asarray(image, np.float32) / 127.5 - 1
