"""The programs that a config will run, from shapes alone.

No weights, no data, no device of the kind that is planned for: the functions
are those that the stages run, their arguments are shapes with shardings. Chunks
have their full length: smaller buckets would be compiled too, and need less.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
import pathlib
from typing import Any, NamedTuple

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import forward
from mmr1 import learner
from mmr1 import optim
from mmr1 import rl_setup
from mmr1 import sharding
from mmr1 import training
from mmr1 import trees
from mmr1 import types
from mmr1.models import checkpoints
from mmr1.models import partition
from mmr1.planning import costs
from mmr1.planning import shapes as shapes_lib
from mmr1.sampling import programs
from mmr1.sampling import publish
from mmr1.sampling import rows
from mmr1.sampling import schedule as schedule_lib
from mmr1.stages import sft

_SHAPES = pathlib.Path(__file__).parent.parent / 'assets' / 'shapes'
Struct = shapes_lib.Struct


class Program(NamedTuple):
  """One program of a step.

  Fields:
    name: 'prefill', 'decode', 'reference', 'old' or 'update'.
    trace: () -> jax.stages.Traced.
    arguments: trees of shapes with shardings, by name.
    runs: how often a step runs it.
    trips: how often its loop without a known length runs then.
    forward: operations by part of what it has to do, see `costs`.
    resident: names of what else is in memory meanwhile.
  """
  name: str
  trace: Callable[[], Any]
  arguments: Mapping[str, Any]
  runs: float
  trips: int
  forward: Mapping[str, float]
  resident: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage's programs.

  Fields:
    name, kind: of the stage.
    programs: in the order of a step.
    held: trees that live through a step, by name.
    useful: operations of a step that no implementation can do without: one
      pass over all tokens to sample them, three to train on them.
    tokens: completion tokens of a step at the cap.
  """
  name: str
  kind: str
  programs: tuple[Program, ...]
  held: Mapping[str, Any]
  useful: float
  tokens: int


def open_model(config: Any, layout: sharding.Layout) -> tuple[
    forward.Policy, Any]:
  """The policy and its parameters' shapes, where they will be.

  From config.json in `model.path`; where there is none, from the published
  sizes of the config's scale.

  Raises:
    ValueError: neither is there; heads that do not divide over the mesh.
  """
  model = config.model
  path = epath.Path(model.path)
  if not (path / 'config.json').exists():
    path = _SHAPES / config.scale
    if not path.exists():
      raise ValueError(
          f'plan: there is no config.json in model.path={model.path!r}, and '
          f'the sizes of {config.scale!r} are not known. Set '
          '--config.model.path to a folder with the config.json of the model.')
  module, shapes = checkpoints.describe(
      path, param_dtype=model.param_dtype, compute_dtype=model.compute_dtype,
      layers=model.layers, remat=model.remat, precision=model.precision,
      attention=model.attention, partition=layout.partition,
      scalars=tuple(model.scalars))
  sharding.check(layout, module.config)
  policy = forward.Policy(
      module, banned=_placeholders(module.config), eos_id=0, pad_id=0,
      head_chunk=model.head_chunk, layout=layout)
  return policy, shapes_lib.placed(shapes, layout.parameters(shapes))


def _placeholders(config: Any) -> tuple[int, ...]:
  """As many ids as a family bans; which ones does not matter for a plan."""
  return tuple(range(1, 5)) if hasattr(config, 'vision') else ()


def stage(config: Any, name: str, policy: forward.Policy,
          params: Any) -> Stage | None:
  """The programs of a stage; None of one that trains nothing.

  Raises:
    ValueError: the section cannot work.
  """
  kind = config[name].kind
  if kind == 'rl':
    return _rl(config, name, policy, params)
  if kind == 'sft':
    return _sft(config, name, policy, params)
  return None


def state_of(policy: forward.Policy, section: Any, params: Any,
             updates: int) -> tuple[Any, optim.Optimizer]:
  """A TrainState of shapes, and its optimiser."""
  optimizer = training.make_optimizer(section, params, updates)
  trainable, _ = trees.partition(params, optimizer.mask)
  state = jax.eval_shape(lambda: types.TrainState(
      step=jnp.int32(0), params={'policy': _zeros(params)},
      opt={'policy': optimizer.tx.init(_zeros(trainable))},
      aux={'guard': optim.init_guard()}))
  return shapes_lib.placed(state, policy.layout.state(state)), optimizer


def _zeros(tree: Any) -> Any:
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def _knobs(names: Any) -> dict[str, Struct]:
  return {name: Struct((), jnp.float32) for name in names}


def _sft(config: Any, name: str, policy: forward.Policy, params: Any) -> Stage:
  section, make = config[name], shapes_lib.Shapes(policy, config.data)
  n, t, chunks = (section.rows_per_step, section.max_new_tokens,
                  section.chunks_per_step)
  state, optimizer = state_of(policy, section, params, section.steps)
  train = training.make_update(
      policy, optimizer, sft.objective_of(section), chunks=chunks)
  block, knobs = make.block(n, 1, t), _knobs(sft.KNOBS)
  parts = costs.forward(policy.module.config, make.work(n, 1, t, n * t))
  return Stage(
      name, 'sft', (Program(
          'update', lambda: train.trace(state, (block,), knobs, None),
          {'state': state, 'batch': block}, 1, 1,
          costs.gradient(parts, config.model.remat), ()),),
      {'state': state}, useful=3 * sum(parts.values()), tokens=n * t)


def _rl(config: Any, name: str, policy: forward.Policy, params: Any) -> Stage:
  section, make = config[name], shapes_lib.Shapes(policy, config.data)
  n, g, t = (section.prompts_per_step, section.samples_per_prompt,
             section.max_new_tokens)
  updates = section.epochs_per_step * section.minibatches_per_step
  objective = rl_setup.objective_of(section, name, config)
  state, optimizer = state_of(
      policy, section, params, section.steps * updates)
  found, unread = _sampling(config, section, policy, params)
  # The old pass reads the parameters of the state itself.
  held = {'state': state, 'moments': state.replace(params={}), **unread}
  tree = policy.module.config
  whole = costs.forward(tree, make.work(n, g, t, n * g * t))
  block = make.block(n, g, t)
  knobs = _knobs(['temperature', *objective.knobs])

  def score(params):
    return lambda: learner.log_probs.trace(
        policy, params, block, temperature=knobs['temperature'],
        chunks=section.chunks_per_minibatch,
        hidden=objective.reference_hidden)
  if section.old == 'recompute':
    found.append(Program(
        'old', score(params), {'parameters': params, 'batch': block}, 1, 1,
        whole, ('moments', 'reference')))
  if objective.reference:
    reference = jax.tree.map(
        lambda x, dtype: Struct(x.shape, dtype.dtype, sharding=x.sharding),
        params, jax.eval_shape(functools.partial(
            partition.cast, dtype=tree.compute_dtype), params))
    if section.reference_memory == 'device':
      held['reference'] = reference
    found.append(Program(
        'reference', score(reference),
        {'reference': reference, 'batch': block}, 1, 1, whole, ('state',)))
  size = n // section.minibatches_per_step
  given = dict(extra={'sampler_logp': make.scores(size, g, t)})
  if section.old != 'self':
    given['old'] = make.scores(size, g, t)
  if objective.reference:
    given['ref'] = make.scores(size, g, t)
  if objective.reference_hidden:
    given['ref_hidden'] = make.array(
        jnp.dtype(tree.compute_dtype), size, g, t, tree.width)
  part = make.block(size, g, t, **given)
  train = training.make_update(
      policy, optimizer, objective.terms, chunks=section.chunks_per_minibatch)
  ref = {'reference': reference} if objective.reference_hidden else {}
  parts = costs.forward(tree, make.work(size, g, t, size * g * t))
  found.append(Program(
      'update', lambda: train.trace(
          state, (part,), knobs, *ref.values() or (None,)),
      {'state': state, 'batch': part, **ref}, updates, 1,
      costs.gradient(parts, config.model.remat), ('reference', 'rollout')))
  # What minibatches are cut from; one alone is all of it.
  held |= {'prompts': block.prompts, 'rollout': block if size < n else {},
           'waiting': (block,) * section.staleness}
  useful = sum(whole.values()) * (1 + 3 * section.epochs_per_step)
  return Stage(name, 'rl', tuple(
      one._replace(resident=(*one.resident, 'waiting')) for one in found),
               held, useful, n * g * t)


def _sampling(config: Any, section: Any, policy: forward.Policy, params: Any,
              ) -> tuple[list[Program], dict[str, Any]]:
  """Prefill, decode with the largest cache; what of the weights one of them
  does not read, which is there all the same."""
  sampler = publish.make(config.sampler, policy)
  make = shapes_lib.Shapes(sampler.policy, config.data)
  n, g, t = (section.prompts_per_step, section.samples_per_prompt,
             section.max_new_tokens)
  own, decoding = sampler.policy, sampler.decoding
  layout = own.layout
  published = shapes_lib.placed(
      jax.eval_shape(functools.partial(
          partition.cast, dtype=own.module.config.compute_dtype), params),
      layout.parameters(params, used=True))
  prompts = make.prompts(n)
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
      top_p=Struct((), jnp.float32), max_new_tokens=Struct((), jnp.int32))
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
      Program('prefill', lambda: programs.prefill.trace(
          own, decoder, published, prompts, key, group=g),
              {'published': _without(published, 'head'), 'prompts': prompts},
              1, 1, prefill, ('state', 'reference', 'head')),
      Program('decode', lambda: programs.decode.trace(*arguments),
              {'published': {**read, 'visual': {}}, 'prefix': asked,
               'cache': kept.cache, 'found': kept.found}, waves, t, token,
              ('state', 'reference', 'prompts', 'tower'))]
  return found, head | tower


def _without(params: Any, leaf: str) -> Any:
  """Parameters but for one of the decoder's."""
  return {**params, 'language': {
      name: x for name, x in params['language'].items() if name != leaf}}
