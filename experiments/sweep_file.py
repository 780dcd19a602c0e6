"""Reads a sweep, and checks all of its runs before one of them starts.

A sweep is a short Python file; what it may name:

    docstring  the question; its first line heads the results
    CONFIG     'configs/vision_r1.py', with its argument if it needs one
    RUNS       {name: {key: value}}, or a function (config) that returns it.
               The first run is what the others are compared with. The key
               'arg' is an argument of the config, every other an override
    SEEDS      (0, 1, 2); default (0,)
    METRICS    of the last evaluation, shown at the end; '<stage>:<metric>' of
               another one. Default: greedy and sampled accuracy
"""

from collections.abc import Mapping, Sequence
import importlib.util
import pathlib
import re
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_dict
from ml_collections import config_flags

from mmr1 import command_line
from mmr1 import resolve
from mmr1 import runner
from mmr1.reporting import settings

Runs = Mapping[str, Mapping[str, Any]]
METRICS = ('eval/accuracy', 'eval/accuracy_sampled')
_NAMES = ('CONFIG', 'RUNS', 'SEEDS', 'METRICS')
_ARG = 'arg'


class Sweep(NamedTuple):
  """A file's content; `question` is the first line of its docstring."""
  name: str
  question: str
  config: str
  runs: Runs
  seeds: Sequence[int]
  metrics: Sequence[str]


class Planned(NamedTuple):
  """One run on one seed.

  Fields:
    run: its name in the file; seed.
    flags: of `mmr1.main`, the config first.
    steps: {stage: steps} of those that train.
    cores: that it asks for on a CPU.
    resolved: its whole config as JSON.
  """
  run: str
  seed: int
  flags: tuple[str, ...]
  steps: Mapping[str, int]
  cores: int
  resolved: str

  @property
  def name(self) -> str:
    return f'{self.run}_seed{self.seed}'


def read(path: str, arg: str = '') -> Sweep:
  """The sweep of a file.

  Args:
    path: the file.
    arg: of its config, before that of the file: a scale.

  Raises:
    ValueError: no such file; something is missing, unknown or of another type.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    near = resolve.nearest(file.name, [
        x.name for x in file.parent.glob('*.py')] if file.parent.is_dir()
                           else [])
    raise ValueError(f'{path}: no such file. {near}')
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  found = {name: value for name, value in vars(module).items()
           if re.fullmatch('[A-Z][A-Z_]*', name)}
  for name in found.keys() - {*_NAMES}:
    raise ValueError(f'{path}: {name} says nothing to a sweep. '
                     f'{resolve.nearest(name, _NAMES)} Names of your own begin '
                     'with an underscore.')
  for name in ('CONFIG', 'RUNS'):
    if name not in found:
      raise ValueError(f'{path}: {name} is missing.')
  if not (module.__doc__ or '').strip():
    raise ValueError(f'{path}: the docstring is missing; its first line is the '
                     'question that the sweep answers.')
  config, runs = _joined(found['CONFIG'], arg), found['RUNS']
  if callable(runs):
    runs = runs(parsed(config, ())[0])
  seeds = found.get('SEEDS', (0,))
  _check(path, runs, seeds)
  return Sweep(
      file.stem, module.__doc__.strip().splitlines()[0], config, runs,
      tuple(seeds), tuple(found.get('METRICS', METRICS)))


def _joined(config: str, first: str = '', last: str = '') -> str:
  """A config's path with more arguments."""
  path, _, own = config.partition(':')
  args = ','.join(filter(None, (first, own, last)))
  return path + (f':{args}' if args else '')


def _check(path: str, runs: Any, seeds: Any) -> None:
  if not isinstance(runs, Mapping) or not runs:
    raise ValueError(f'{path}: RUNS is {type(runs).__name__}; needed is a dict '
                     '{name: {key: value}} with at least one run.')
  for name, changes in runs.items():
    if not isinstance(name, str) or not re.fullmatch(r'[\w.-]+', name):
      raise ValueError(f'{path}: run {name!r}: its name is that of a folder: '
                       'letters, digits, _, . and -.')
    if not isinstance(changes, Mapping):
      raise ValueError(f'{path}: run {name!r} is {changes!r}; needed is a dict '
                       '{key: value}, {} for the config as it is.')
  if not seeds or not all(type(seed) is int for seed in seeds):
    raise ValueError(f'{path}: SEEDS is {seeds!r}; needed are integers, as in '
                     '(0, 1, 2).')
  check_twice(f'{path}: SEEDS', seeds)


def check_twice(where: str, seeds: Sequence[int]) -> None:
  """Refuses a seed that is there twice.

  Raises:
    ValueError: with its number; `where` says whose seeds they are.
  """
  twice = [seed for seed in dict.fromkeys(seeds) if seeds.count(seed) > 1]
  if twice:
    raise ValueError(
        f'{where}: got {", ".join(map(str, seeds))}; seed {twice[0]} is there '
        'twice, and its runs would be the same. Name each once.')


def plan(sweep: Sweep, *, everywhere: Sequence[str] = (),
         steps: int | None = None) -> list[Planned]:
  """Every run on every seed, the first seed of all runs first.

  Args:
    sweep: the file's.
    everywhere: flags '--config.<key>=<value>' of all runs, after their own.
    steps: of each stage that trains, at most.

  Raises:
    ValueError: a key, a value or a whole config that cannot be, with the run's
      name; two runs that are the same.
  """
  planned, seen = [], {}
  for seed in sweep.seeds:
    for run, changes in sweep.runs.items():
      try:
        one = _planned(sweep, run, changes, seed, everywhere, steps)
      except ValueError as error:
        raise ValueError(f'{sweep.name}: run {run!r}: {error}') from error
      twin = seen.setdefault(one.resolved, one)
      if twin is not one:
        raise ValueError(
            f'{sweep.name}: run {run!r} has the same config as {twin.run!r}: '
            'its overrides change nothing.')
      planned.append(one)
  return planned


def _planned(sweep, run, changes, seed, everywhere, steps) -> Planned:
  path = _joined(sweep.config, last=changes.get(_ARG, ''))
  given = [f'--config.{key}={_text(value)}'
           for key, value in changes.items() if key != _ARG]
  given += [*everywhere, f'--config.seed={seed}']
  config = parsed(path, ())[0]
  for flag in given:
    check_key(config, flag.partition('=')[0].removeprefix('--config.'))
  config, keys = parsed(path, given)
  if steps is not None:
    given += _short(resolve.finalise(config, keys), steps)
    config, keys = parsed(path, given)
  final = resolve.finalise(config, keys)
  runner.plan(final)
  return Planned(
      run, seed, (f'--config={path}', *given),
      {name: final[name].steps for name in final.stages
       if 'steps' in final[name]},
      final.cpu_devices, resolve.to_json(final))


def _short(final: resolve.Section, steps: int) -> list[str]:
  """Flags that give each stage at most so many steps."""
  if steps < 1:
    raise ValueError(f'--steps: got {steps}; allowed: at least 1.')
  found = []
  for name in final.stages:
    if 'steps' in final[name] and final[name].steps > steps:
      found.append(f'--config.{name}.steps={steps}')
      if final[name].optimizer.warmup_steps > steps:
        found.append(f'--config.{name}.optimizer.warmup_steps={steps}')
  return found


def _text(value: Any) -> str:
  """A value as the command line takes it."""
  return value if isinstance(value, str) else repr(value)


def check_key(config: config_dict.ConfigDict, key: str) -> None:
  """Refuses a key that the config does not have, or that is a section.

  Raises:
    ValueError: with the nearest keys.
  """
  at = config
  for part in key.split('.'):
    if not isinstance(at, config_dict.ConfigDict) or part not in at:
      raise ValueError(f'there is no key {key!r}. ' + resolve.nearest(
          key, settings.flat(config.to_dict())))
    at = at[part]
  if isinstance(at, config_dict.ConfigDict):
    raise ValueError(f'{key!r} is a section; set its keys, as in '
                     f'{key}.{next(iter(at), "<key>")}.')


def parsed(path: str, given: Sequence[str],
           ) -> tuple[config_dict.ConfigDict, list[str]]:
  """The config of a file after these flags, and the keys that they set.

  Raises:
    ValueError: there is no such file, or a value is of another type.
  """
  argv = ['sweep', f'--config={path}', *given]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
      'config', flag_values=values, sys_argv=argv)
  command_line.parsed(values, argv)
  return values.config, list(
      config_flags.get_override_values(values['config']))
