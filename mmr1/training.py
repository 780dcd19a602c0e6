"""What sft and rl share: where a stage starts, and its jitted update."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmr1 import arrays
from mmr1 import buckets as buckets_lib
from mmr1 import context
from mmr1 import forward
from mmr1 import lineage
from mmr1.models import lora
from mmr1.models import partition
from mmr1 import optim
from mmr1 import trees
from mmr1 import types
from mmr1 import update as update_lib

Array = jax.Array
CARRIED = ('optimizer',)


def check(section: Any, stage: str, config: Any) -> None:
  """Refuses what can be seen to be wrong before anything runs."""
  for key in ('steps', 'checkpoint_every', 'samples_every',
              'keep_checkpoints', 'max_bad_updates', 'max_new_tokens'):
    if section[key] < 1:
      raise ValueError(
          f'{stage}.{key}: got {section[key]}; allowed: at least 1.')
  if section.eval_every < 0:
    raise ValueError(f'{stage}.eval_every: got {section.eval_every}; allowed: '
                     '0 (only at the end) or more.')
  if section.record_every < 0:
    raise ValueError(f'{stage}.record_every: got {section.record_every}; '
                     'allowed: 0 (never) or more.')
  buckets_lib.check(section.length_buckets, section.max_new_tokens,
                    f'{stage}.length_buckets')
  for item in section.carry:
    if item not in CARRIED:
      raise ValueError(f'{stage}.carry: got {item!r}; allowed are {CARRIED}.')
  section.restore_best  # read in the loop
  section.optimizer.as_dict()
  context.check_init(section.init, stage, config)
  _check_lora(section, stage, config)


def _check_lora(section: Any, stage: str, config: Any) -> None:
  """With rank 0 the other keys stay unread, which is an error where they were
  changed, unless a stage of the same family has adapters."""
  given = section.lora
  if given.rank < 0:
    raise ValueError(f'{stage}.lora.rank: got {given.rank}; allowed: 0 (no '
                     'adapters) or more.')
  if not given.rank:
    if any(config[other].lora.rank for other in config.stages
           if config[other].kind == section.kind):
      given.as_dict()
    return
  given.as_dict()
  if not 0 < given.alpha < float('inf'):
    raise ValueError(f'{stage}.lora.alpha: got {given.alpha}; allowed: a '
                     'number > 0. The scale of an adapter is alpha / rank.')
  if not given.targets:
    raise ValueError(f'{stage}.lora.targets: empty, with rank {given.rank}; '
                     "name kernels, as in ('language/layers/.*',), or set "
                     'lora.rank to 0.')


def check_overrides(config: Any, overrides: Iterable[str]) -> None:
  """Refuses `lora` keys from the command line that no adapter takes."""
  for path in overrides:
    head, *rest = path.split('.')
    if rest[:1] != ['lora'] or rest[1:] == ['rank']:
      continue
    if not any(config[name].lora.rank for name in config.stages
               if head in (name, config[name].kind)):
      raise ValueError(f'--config.{path} has no effect: {head}.lora.rank is 0, '
                       'so there are no adapters.')


def check_parameters(config: Any, base: Any) -> None:
  """Refuses what only the parameters show, before a stage has cost hours.

  Args:
    config: the resolved config.
    base: the base model's parameters.
  """
  models = lineage.Lineage(config, None, base)
  trained: dict[str, frozenset[str]] = {}
  for name in config.stages:
    section = config[name]
    if section.kind not in lineage.TRAINS:
      continue
    updates = section.steps
    if section.kind == 'rl':
      updates *= section.epochs_per_step * section.minibatches_per_step
    try:
      shapes = models.shapes(name)
      mask = make_optimizer(section, shapes, updates).mask
    except ValueError as error:
      raise ValueError(f'{name}.{error}') from error
    trained[name] = frozenset(
        leaf for leaf, on in trees.named(mask).items() if on)
    if 'optimizer' in section.carry:
      _check_carry(models, name, trained)


def _check_carry(
    models: lineage.Lineage, stage: str,
    trained: Mapping[str, frozenset[str]]) -> None:
  """The optimiser that is carried must have moments of what trains here."""
  source = models.source(stage)
  if source not in trained:
    raise ValueError(
        f"{stage}.carry: 'optimizer' is that of a stage that trained, and "
        f'{stage} starts from {source!r}. Leave it out.')
  kept, wanted = (models.config[name].optimizer.moment_dtype
                  for name in (source, stage))
  if kept != wanted:
    raise ValueError(
        f"{stage}.carry: the optimiser of {source!r} has moments in {kept}; "
        f'{stage}.optimizer.moment_dtype is {wanted}. Give both the same.')
  adapters = {name for name in trained[stage]
              if name.rpartition('/')[2] in (lora.A, lora.B)}
  new = trained[stage] - trained[source] or (
      set() if models.goes_on(stage) else adapters)
  if new:
    raise ValueError(
        f"{stage}.carry: the optimiser of {source!r} has no moments of "
        f'{min(new)!r} ({len(new)} of the {len(trained[stage])} parameters '
        'that train here). Give both stages the same lora and '
        "optimizer.freeze, or leave out 'optimizer'.")


def make_optimizer(
    section: Any, params: Any, updates: int) -> optim.Optimizer:
  """The optimiser of a stage over its parameters (or their shapes).

  Raises:
    ValueError: starts with the key below the stage.
  """
  trains = (lora.trains(params, section.lora.train) if section.lora.rank
            else None)
  try:
    result = optim.make(section.optimizer, params, updates, trains)
  except ValueError as error:
    raise ValueError(f'optimizer.{error}') from error
  if trains is not None:
    kept = trees.named(result.mask)
    lost = [name for name, on in trees.named(trains).items()
            if on and not kept[name]]
    if lost:
      raise ValueError(
          f'optimizer.freeze: {lost[0]!r} should train, as lora says, and is '
          'frozen. With adapters everything else stays as it is anyway.')
  return result


class Start(NamedTuple):
  """Where a stage starts.

  Fields:
    state: TrainState with its own buffers.
    optimizer: see `optim.make`.
    mask: trainable leaves of the parameters.
    stored: regexes of the leaves of `state` that checkpoints hold.
  """
  state: types.TrainState
  optimizer: optim.Optimizer
  mask: Any
  stored: tuple[str, ...]


def start(
    ctx: context.Context, stage: str, section: Any, updates: int,
) -> Start:
  """Parameters of `init`, with adapters if `lora` asks for them; a new
  optimiser or the carried one.

  Args:
    ctx: the run.
    stage: its name, for the printed table.
    section: the stage's section.
    updates: optimiser updates in the stage.
  """
  params = ctx.start(stage)
  optimizer = make_optimizer(section, params, updates)
  trainable, _ = trees.partition(params, optimizer.mask)
  opt = optimizer.tx.init(trainable)
  if 'optimizer' in section.carry:
    # The moments pass on; warm-up and decay are those of this stage.
    opt = optim.restart_schedule(ctx.optimizer_state(section.init, opt))
  state = types.TrainState(
      step=jnp.int32(0), params={'policy': params}, opt={'policy': opt},
      aux={'guard': optim.init_guard()})
  _show(ctx, stage, tuple(optim.table(params, optimizer.mask)))
  state = ctx.policy.layout.own(state)
  ctx.forget_base()
  return Start(
      state, optimizer, optimizer.mask, lineage.stored(section, params))


def reference(
    ctx: context.Context, begun: Start, name: str, *, whole: bool,
    memory: str = 'device',
) -> Callable[[types.TrainState], Any]:
  """(state) -> the parameters of the reference of an rl stage.

  Args:
    ctx: the run.
    begun: the stage's start.
    name: 'init' or what `Context.params` knows.
    whole: in buffers of its own, to be read while an update gives up the
      state's; else what does not train is the state's.
    memory: where it waits, 'device' or 'host': then every call copies it to
      the devices, where it is gone when nothing reads it any more.
  """
  hold, fetch = (arrays.in_host, arrays.on_device) if (
      memory == 'host') else (lambda x: x, lambda x: x)
  if name != 'init':
    params = hold(_only_read(ctx, ctx.params(name)))
    ctx.forget_base()  # the copy does
    return lambda state: fetch(params)
  part, rest = trees.partition(begun.state.params['policy'], begun.mask)
  part = _only_read(ctx, part)
  if whole:
    params = hold(trees.merge(part, _only_read(ctx, rest)))
    return lambda state: fetch(params)
  part = hold(part)
  return lambda state: trees.merge(
      fetch(part), trees.partition(state.params['policy'], begun.mask)[1])


def _only_read(ctx: context.Context, params: Any) -> Any:
  """A copy in the dtype that layers would cast to anyway."""
  dtype = ctx.policy.module.config.compute_dtype
  return ctx.policy.layout.own(partition.cast(params, dtype))


def _show(ctx: context.Context, stage: str, rows: tuple[Any, ...]) -> None:
  """The table of what trains; one line where it is that of the stage before."""
  if rows != ctx.trains:
    ctx.trains = rows
    ctx.logger.table(rows, ('module', 'trainable', 'total'),
                     f'{stage}: what trains')
  else:
    ctx.logger.note(f'{stage}: {rows[-1][1]} parameters train, as before')


def make_update(
    policy: forward.Policy,
    optimizer: optim.Optimizer,
    terms: tuple[update_lib.Term, ...],
    *,
    chunks: int,
    buckets: tuple[int, ...] = (),
    looks: update_lib.Looks = (),
    score: Callable[..., types.Scores] = forward.score,
):
  """A jitted (state, batch, knobs, ref_params) -> (state, metrics).

  The state is donated. Frozen parameters are not differentiated (M21); a
  non-finite update is skipped and counted (M8), and one of a batch in which no
  token trains changes nothing, not even by momentum. `chunks`, `buckets`,
  `looks` and `score` as in `update.gradient`.
  """
  def update(state, batch, knobs, ref_params):
    params = state.params['policy']
    trainable, frozen = trees.partition(params, optimizer.mask)
    with jax.named_scope('gradient'):
      grads, metrics = update_lib.gradient(
          policy, trainable, lambda t: trees.merge(t, frozen), batch, terms,
          knobs, ref_params=ref_params, chunks=chunks, buckets=buckets,
          looks=looks, score=score)
    with jax.named_scope('optimizer'):
      trainable, opt, guard, more = optim.guarded_update(
          optimizer, grads, metrics['loss'], state.opt['policy'], trainable,
          state.aux['guard'],
          jnp.logical_not(sum(jnp.any(block.mask) for block in batch)))
    state = state.replace(
        step=state.step + 1,
        params={**state.params, 'policy': trees.merge(trainable, frozen)},
        opt={**state.opt, 'policy': opt},
        aux={**state.aux, 'guard': guard})
    return policy.layout.keep(state), metrics | more
  # Its name is the program's in a profile.
  return jax.jit(update, donate_argnums=0)


def traced(knobs: Mapping[str, float]) -> dict[str, Array]:
  """Knobs as f32[] arrays: a Python float would be weakly typed."""
  return {name: jnp.float32(value) for name, value in knobs.items()}
