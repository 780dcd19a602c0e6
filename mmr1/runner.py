"""`mmr1.run(config, workdir)`: the stages of a config, in order, resumable."""

from collections.abc import Iterable
import contextlib
import importlib
import json
import os
import sys
import time
from typing import Any

from etils import epath
import jax
from ml_collections import config_dict

from mmr1 import banner
from mmr1 import batch
from mmr1 import checkpoint
from mmr1 import compiles
from mmr1 import config_checks
from mmr1 import console
from mmr1 import context
from mmr1.data import datasets
from mmr1 import guard
from mmr1 import hosts
from mmr1 import judges
from mmr1 import log
from mmr1 import mesh
from mmr1 import parents
from mmr1 import profiling
from mmr1 import progress
from mmr1.reporting import live
from mmr1 import resolve
from mmr1 import rl_setup
from mmr1.sampling import publish
from mmr1 import sharding
from mmr1.stages import collect
from mmr1.stages import evaluate
from mmr1 import tables
from mmr1 import training
from mmr1 import watchdog
from mmr1 import workdir as workdir_lib

_BASE = 'base'
RESERVED = ('base', 'previous', 'init', 'train', 'eval')


def run(
    config: config_dict.ConfigDict,
    workdir: str,
    *,
    fresh: bool = False,
    quiet: bool = False,
    overrides: Iterable[str] = (),
    defaults: config_dict.ConfigDict | None = None,
    profile: str | None = None,
    screen: console.Console | None = None,
) -> dict[str, dict[str, float]]:
  """Runs every stage that is not done yet.

  Args:
    config: from a config file's get_config.
    workdir: where everything goes; a run found there with the same config is
      continued, with another config it is an error.
    fresh: start over.
    quiet: no progress on the console.
    overrides: keys set on the command line, checked to have an effect.
    defaults: the base the config was made from; changed keys that nothing
      reads are then an error.
    profile: steps to trace into <workdir>/profile, see `profiling.Profile`.
    screen: where to print; None: stdout.

  Returns:
    {stage: evaluation metrics}, the base first.

  Raises:
    ValueError: the config cannot work; says which key and what is allowed.
  """
  started = time.time()
  screen = screen or console.Console(quiet=quiet)
  final = resolve.finalise(config, overrides)
  # Plans hold arrays, and jax takes its devices with the first of them.
  hosts.start()
  set_up_jax(final)
  hosts.same(resolve.to_json(final), 'the config', _differences)
  modules, plans = plan(final)
  traced = profiling.Profile(
      profile, final, workdir_lib.absolute(workdir) / 'profile')
  with guard.Interrupt(screen.note) as interrupt, contextlib.closing(screen):
    screen.begin('start')
    ctx = open_run(
        final, workdir, fresh=fresh, interrupt=interrupt, screen=screen,
        overrides=overrides, defaults=defaults)
    ctx.profile, page = traced, None
    try:
      if final.report and jax.process_index() == 0:
        page = live.Live(ctx.path, ctx.logger.warn)
        ctx.logger.flushed = page.refresh
      ctx.logger.note(banner.of(ctx))
      for text in config_checks.cut_answers(final):
        ctx.logger.warn(text)
      results = _stages(ctx, final, modules, plans)
      _finish(ctx, results, page, time.time() - started)
    except jax.errors.JaxRuntimeError as error:
      gone = hosts.lost(error)
      if gone is None:
        raise
      raise gone from error
    except KeyboardInterrupt:
      raise KeyboardInterrupt(ctx.unsaved()) from None
    finally:
      ctx.logger.flushed = None
      ctx.close()
      if page is not None:
        page.stop()
  return results


def _differences(one: str, other: str) -> str:
  return '\n'.join(f'  {line}' for line in resolve.difference(
      resolve.from_json(one), resolve.from_json(other))[:20])


def plan(config: resolve.Section) -> tuple[dict[str, Any], dict[str, Any]]:
  """({stage: its module}, {stage: what its setup made of its section}).

  Raises:
    ValueError: something that the sections alone show to be wrong.
  """
  if not config.stages:
    raise ValueError('stages: empty; name at least one stage.')
  if not 0 <= config.seed < 1 << 32:
    raise ValueError(f'seed: got {config.seed}; allowed: 0 to 2^32 - 1.')
  for name in set(config.stages) & set(RESERVED):
    raise ValueError(f'stages: {name!r} has a meaning of its own in `init` and '
                     '`reference`; choose another name.')
  made = {name: plan_stage(config, name) for name in config.stages}
  return ({name: module for name, (module, _) in made.items()},
          {name: one for name, (_, one) in made.items()})


def plan_stage(config: resolve.Section, name: str) -> tuple[Any, Any]:
  """(the module of a stage's kind, what its setup makes of the section)."""
  module = importlib.import_module(f'mmr1.stages.{config[name].kind}')
  return module, module.setup(config[name], name, config)


def set_up_jax(config: resolve.Section) -> None:
  """Devices, and the persistent cache: later runs start in seconds."""
  mesh.cpu_devices(config.cpu_devices)
  folder = os.path.expanduser(config.cache_dir)
  if folder:
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def open_run(
    config: resolve.Section,
    workdir: str,
    *,
    interrupt: guard.Interrupt,
    fresh: bool = False,
    quiet: bool = False,
    overrides: Iterable[str] = (),
    defaults: config_dict.ConfigDict | None = None,
    screen: console.Console | None = None,
) -> context.Context:
  """Opens data, model and, when nothing is wrong with them, the workdir.

  Args:
    config: resolved and planned.
    workdir, fresh, quiet, overrides, defaults, screen: as in `run`.
    interrupt: asks the run to stop.

  Raises:
    ValueError: as `run`.
  """
  screen = screen or console.Console(quiet=quiet)
  screen.cache = config.cache_dir
  screen.doing('opening data and model')
  processor = datasets.open_processor(config.model, config.data)
  rl_setup.check_prefilled(
      config, datasets.shape(config.data, processor).prefilled)
  rl_setup.check_media(config, processor.reads_media)
  judges.check(config, processor)
  datasets.check(config.data)
  for split in ('train', 'eval'):
    datasets.open_split(config, split)
  layout = sharding.make(config.mesh)
  batch.check(config, layout)
  policy, base = context.open_model(
      config.model, datasets.model_path(config.model.path), processor, layout)
  evaluate.check_all(config.evaluation, config)
  publish.make(config.sampler, policy)
  config_checks.lengths(config, policy)
  training.check_overrides(config, overrides)
  context.check_folders(config, base)
  parents.check(config)
  training.check_parameters(config, base)
  config_checks.data_keys(config, overrides)
  config_checks.read_the_rest(config)
  if defaults is not None:
    resolve.changed_but_unread(
        config, defaults, libraries=resolve.LIBRARIES, overrides=overrides)
  folder = workdir_lib.Workdir(workdir, config, fresh=fresh)
  keep = max([config[name].keep_checkpoints for name in config.stages
              if 'keep_checkpoints' in config[name]], default=2)
  ctx = context.Context(
      config=config, path=folder.path,
      logger=log.Logger(
          folder.path, screen=screen, tensorboard=config.tensorboard),
      checkpoints=checkpoint.Checkpoints(
          folder.path, keep=keep, background=True),
      interrupt=interrupt, compiles=compiles.CompileCounter(screen.compiling),
      processor=processor, policy=policy, base=base, order=config.stages)
  ctx.watchdog = watchdog.Watchdog(
      config.stall_s, folder.path, ctx.logger.warn if jax.process_index() == 0
      else lambda text: print(f'WARNING: {text}', file=sys.stderr, flush=True),
      heard=screen.doing)
  ctx.evaluate = evaluate.Evaluation(ctx, config.evaluation)
  if folder.moved:
    ctx.logger.note('goes on elsewhere, where sums may round otherwise: '
                    + ', '.join(folder.moved))
  return ctx


def _stages(ctx, config, modules, plans) -> dict[str, dict[str, float]]:
  results = {}
  _stop_if_asked(ctx)
  if config.evaluate_base:
    results[_BASE] = _evaluate_base(ctx)
    _stop_if_asked(ctx)
  screen = ctx.logger.screen
  for number, name in enumerate(config.stages, 1):
    section, place = config[name], f'{number}/{len(config.stages)}'
    if section.kind == 'collect':
      ctx.files[name] = collect.path_of(ctx.path, name)
    record = ctx.checkpoints.done(name)
    if record is None:
      screen.begin(name, section.kind, place)
      modules[name].run(ctx, name, section, plans[name])
      record = ctx.checkpoints.done(name)
      screen.end(progress.ended(record))
    else:
      screen.note(f'{place} {name} was done before: {progress.ended(record)}')
    if section.kind in context.POLICIES:
      ctx.models.append(name)
    if 'eval' in record:
      results[name] = record['eval']
    _stop_if_asked(ctx)
  return results


def _stop_if_asked(ctx) -> None:
  """Leaves between two pieces of work, each of which has left its marker."""
  if ctx.interrupt.agreed():
    ctx.stop()


def _evaluate_base(ctx) -> dict[str, float]:
  done = ctx.checkpoints.done(_BASE)
  if done is None:
    ctx.logger.screen.begin(_BASE, 'evaluation of the model as it is')
    ctx.watchdog.begin('base: evaluation')
    result = dict(ctx.evaluate(ctx.base_params(), _BASE, 0))
    ctx.logger.truncate(_BASE, -1)
    ctx.logger.write(_BASE, 0, result)
    ctx.logger.flush()  # before DONE: a marker promises the row
    ctx.checkpoints.finish(_BASE, {'eval': result})
    done = ctx.checkpoints.done(_BASE)
    ctx.logger.screen.end(progress.ended(done))
  return done['eval']


def _finish(ctx, results, page, seconds: float) -> None:
  """A run-level DONE, the last page, and what a person is told."""
  if jax.process_index() == 0:
    workdir_lib.write_whole(
        epath.Path(ctx.path) / 'FINISHED', json.dumps(results, indent=2) + '\n')
  ctx.logger.flush()
  if page is not None:
    ctx.logger.screen.begin('report')
    ctx.logger.screen.doing('writing')
    page.finish()
  ctx.logger.screen.close()
  tables.end(ctx.logger, ctx.path, results, ctx.config.stages, seconds)
