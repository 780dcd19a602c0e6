"""The rl stages of papers' configs on the tests' small model."""

import dataclasses
import functools
import importlib
import re
import sys
from typing import Any
from unittest import mock

from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import numpy as np

from configs import common
from mmr1 import command_line
from mmr1 import forward
from mmr1 import guard
from mmr1 import resolve
from mmr1 import runner
from mmr1 import trees
from mmr1.stages import collect
from mmr1.stages import rl

SIZES = dict(prompts_per_step=2, samples_per_prompt=4, max_new_tokens=8)


def config(slug, arg=None):
  return importlib.import_module(f'configs.{slug}').get_config(arg)


def trainer(c, open_run, folder, **flat):
  """The Trainer of the last stage of a shrunk config.

  Of the stages before only the one that writes its data is run.

  Args:
    c: the config; changed.
    open_run: the fixture.
    folder: of the run.
    **flat: values of the stage, `a__b` for a.b; else `SIZES`.
  """
  stage = c.stages[-1]
  c.stages = tuple(
      name for name in c.stages if name in (c[stage].data, stage))
  c.update_from_flattened_dict(
      {f'{stage}.{key}'.replace('__', '.'): value
       for key, value in (SIZES | flat).items()})
  ctx, plans = open_run(c, folder)
  for name in c.stages[:-1]:
    ctx.files[name] = collect.path_of(ctx.path, name)
    collect.run(ctx, name, ctx.config[name], plans[name])
  return rl.Trainer(ctx, stage, ctx.config[stage], plans[stage])


@dataclasses.dataclass(frozen=True)
class Taken:
  """A step, on the host.

  Fields:
    metrics, block, samples: of the step; rewards: {name: f64[N, G]}.
    before: the state it was made with, without the optimiser's.
    programs: how many were compiled until its end.
    more: blocks beside the step's own.
  """
  metrics: dict[str, float]
  block: Any
  samples: list[dict[str, Any]]
  rewards: dict[str, np.ndarray]
  before: Any
  programs: int
  more: list[Any] = dataclasses.field(default_factory=list)


def take(one, state, steps):
  """`steps` (a range) of a trainer: (the last state, [Taken])."""
  taken = []
  for k in steps:
    before = copied(state)
    step = one.step(state, k)
    state = step.state
    metrics, (block, *more) = jax.device_get((dict(step.metrics), step.batch))
    taken.append(Taken(
        {name: np.asarray(x).item() for name, x in metrics.items()}, block,
        step.samples(), step.given['rewards'], before,
        one._ctx.compiles.count, more))
  return state, taken


def copied(state):
  """On the host, without the optimiser's."""
  return jax.tree.map(np.array, state.replace(opt={}, aux={}))


def distributions(one, params, prompts, completions):
  """f64[N, G, T, V] log-probabilities at temperature 1, the whole of V at once;
  -inf where banned."""
  x = np.asarray(_logits(one._ctx.policy, *jax.tree.map(
      jnp.asarray, (params, prompts, completions))), np.float64)
  x -= x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


@functools.partial(jax.jit, static_argnums=0)
def _logits(policy, params, prompts, completions):
  hidden = forward.hidden_states(
      policy, params, policy.prompt_pass(params, prompts), prompts, completions)
  return policy.logits(params, hidden, 1.0)


def of_tokens(logp, tokens):
  """f64[N, G, T] of f64[N, G, T, V]."""
  return np.take_along_axis(logp, np.asarray(tokens)[..., None], -1)[..., 0]


def same(a, b):
  """True if two trees are equal, to the bit."""
  a, b = trees.named(a), trees.named(b)
  return a.keys() == b.keys() and all(
      np.array_equal(x, b[name]) for name, x in a.items())


def ablations(slug):
  """The flags of every command below 'Ablations' in a config's docstring."""
  text = importlib.import_module(f'configs.{slug}').__doc__
  lines = (re.findall(r'--config\.\S+', line)
           for line in text.partition('Ablations')[2].splitlines())
  return [tuple(flag.replace('"', '') for flag in line)  # as a shell does
          for line in lines if line]


def commanded(slug, given, arg=None, change=None):
  """(resolved, plans) of a config after the flags of a command.

  Args:
    slug: of the config.
    given: '--config.key=value'.
    arg: of the config.
    change: called with the config before the flags are read.
  """
  c, values = config(slug, arg), flags.FlagValues()
  if change:
    change(c)
  command = ['test', *given]
  with mock.patch.object(sys, 'argv', command):  # read as flags are defined
    config_flags.DEFINE_config_dict('config', c, flag_values=values)
    command_line.parsed(values, command)
  final = resolve.finalise(c, keys(given))
  return final, runner.plan(final)[1]


def keys(given):
  """What flags set: 'a.b' of '--config.a.b=c'."""
  return [x.removeprefix('--config.').partition('=')[0] for x in given]


def opened(final, folder, given=()):
  """Opens a run as the command does: unread keys are refused."""
  final.cache_dir, final.cpu_devices  # read before jax starts
  runner.open_run(
      final, str(folder), interrupt=guard.Interrupt(), quiet=True,
      overrides=keys(given),
      defaults=common.get_base(final.scale)).close()
