"""Sections of libraries that an rl stage names: views, weights, probes.

Each is checked when the run is set up, and bound where the model is known.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import inspect
import math
from typing import Any

from mmr1 import looks as looks_lib
from mmr1 import objective as objective_lib
from mmr1 import pixels as pixels_lib
from mmr1 import resolve

READS = ('logp', 'entropy')
_TAKEN = ('policy', 'kl', 'entropy', 'combine', 'advantage', 'select')
NO_PIXELS = pixels_lib.Pixels(mean=(0.0,), std=(1.0,), patch=1)


@dataclasses.dataclass(frozen=True)
class Bound:
  """A host function of a section {fn, kwargs}; hooks may move its numbers.

  Fields:
    fn: the function.
    kwargs: its keywords.
    moving: {keyword: knob} of those that a hook moves.
  """
  fn: Callable[..., Any]
  kwargs: Mapping[str, Any]
  moving: Mapping[str, str]

  def __call__(self, *args: Any, knobs: Mapping[str, float] = {}, **more: Any):
    return self.fn(*args, **{**self.kwargs, **more, **{
        keyword: knobs[knob] for keyword, knob in self.moving.items()}})


def bind(section: Any, root: str, where: str, moved: Iterable[str] = (),
          provided: Iterable[str] = ()) -> Bound:
  """The function of a section with its keywords.

  Args:
    section: fn, kwargs.
    root: where names without a colon are looked up.
    where: the key of the config; its last part names the knobs.
    moved: knobs that hooks move.
    provided: keywords that the caller adds.

  Raises:
    ValueError: no such function or keyword.
  """
  fn = resolve.function(section.fn, root)
  kwargs = section.kwargs.as_dict()
  resolve.check_kwargs(fn, kwargs, f'{where}.kwargs', provided)
  socket, moved = where.rpartition('.')[2], set(moved)
  numbers, _, _ = objective_lib.split(kwargs, socket)
  return Bound(fn, kwargs, {
      knob.partition('/')[2]: knob for knob in numbers if knob in moved})


def host_knobs(section: Any, config: Any) -> dict[str, float]:
  """Numbers of the host's sockets and probes that a hook may move."""
  found = {}
  for name, asked in (
      *((name, section[name]) for name in ('combine', 'advantage', 'select')),
      *((name, config.probes[name]) for name in section.probes)):
    found |= objective_lib.split(asked.kwargs.as_dict(), name)[0]
  return found


def check_knobs(
    section: Any, stage: str, knobs: Mapping[str, float]) -> None:
  """Refuses numbers that no checkpoint can hold.

  Args:
    section: of the stage.
    stage: its name.
    knobs: all of them, see `objective` and `host_knobs`.

  Raises:
    ValueError: one is not finite; names its key.
  """
  for knob, value in knobs.items():
    if math.isfinite(value):
      continue
    owner, _, key = knob.partition('/')
    owner, key = (key, 'coefficient') if owner == 'coef' else (
        owner, f'kwargs.{key}')
    above = stage if owner in _TAKEN else (
        'terms' if owner in section.terms else 'probes')
    raise ValueError(
        f'{above}.{owner}.{key}: got {value}; allowed are finite numbers, which '
        'hooks may move and checkpoints hold. For no bound give None, where '
        'the function takes it, or a large number, as in 1e9.')


def check_select(section: Any, stage: str) -> None:
  """Refuses a list of prompts that no rl stage reads.

  Raises:
    ValueError: `select` would ban prompts.
  """
  asked = section.select
  ban = inspect.signature(resolve.function(
      asked.fn, 'mmr1.select')).parameters.get('ban')
  if ban is not None and asked.kwargs.as_dict().get('ban', ban.default):
    raise ValueError(
        f'{stage}.select.kwargs.ban: {asked.fn!r} bans prompts, which only a '
        'stage of flows passes over. Set ban to False: its other part, which '
        'drops groups, works here too.')


def requested(
    section: Any, config: Any, objective: objective_lib.Objective,
) -> tuple[str, ...]:
  """Names of the looks that anything in a stage reads, sorted."""
  asked = {section.advantage.kwargs.as_dict().get('view')}
  asked |= {config.weights[name].kwargs.as_dict().get('view')
            for name in (*section.weights, *objective.weights)}
  asked |= {config.probes[name].view for name in section.probes}
  return tuple(sorted({*objective.views, *section.watch, *asked} - {None}))


def looks(
    section: Any, stage: str, config: Any, names: Iterable[str],
    pixels: pixels_lib.Pixels | None = None,
) -> tuple[looks_lib.Look, ...]:
  """The looks of these names, in alphabetical order.

  Args:
    section: of the stage.
    stage: its name.
    config: the resolved config.
    names: sections of `views`.
    pixels: of the model's patches; None: only checked, not to be used.

  Raises:
    ValueError: no such section, or one that contradicts the stage.
  """
  entropies = {config.probes[name].view for name in section.probes
               if config.probes[name].reads == 'entropy'}
  return tuple(_look(section, stage, config.views[name], name,
                     pixels or NO_PIXELS, name in entropies)
               for name in sorted(names))


def _look(section: Any, stage: str, asked: Any, name: str,
          pixels: pixels_lib.Pixels, entropy: bool) -> looks_lib.Look:
  where = f'views.{name}'
  fn = resolve.function(asked.fn, 'mmr1.views')
  kwargs = asked.kwargs.as_dict()
  resolve.check_kwargs(fn, kwargs, f'{where}.kwargs', ('pixels',))
  for key, allowed in (('params', looks_lib.PARAMS), ('when', looks_lib.WHEN)):
    if asked[key] not in allowed:
      raise ValueError(f'{where}.{key}: got {asked[key]!r}; allowed are '
                       f'{allowed}.')
  divergence = asked.divergence and resolve.function(
      asked.divergence, 'mmr1.losses.divergence')
  look = looks_lib.Look(
      name, functools.partial(fn, pixels=pixels, **kwargs), asked.params,
      asked.when, asked.gradient, divergence or None, entropy)
  _check_look(look, section, stage, where)
  return look


def _check_look(look: looks_lib.Look, section: Any, stage: str, where: str):
  """What does not go together."""
  if look.params == 'ema' and section.ema.decay is None:
    raise ValueError(f"{where}.params: 'ema', and {stage}.ema.decay is None: "
                     'there is no average. Set it, as in 0.995.')
  if look.divergence is not None and look.params != 'policy':
    raise ValueError(
        f'{where}.divergence: of the policy under two views of the images; '
        f'params is {look.params!r}. Leave one of both as it is.')
  if look.when == 'update':
    if look.params != 'policy' or section.branches:
      raise ValueError(
          f"{where}.when: 'update' is a look of the policy that trains, at the "
          f'images it was asked with; params is {look.params!r} and '
          f'{stage}.branches {section.branches}. Take \'rollout\'.')
  elif look.gradient:
    raise ValueError(f"{where}.gradient: a look has one only at every update: "
                     "set when='update'.")
  if section.staleness and look.when == 'rollout' and look.params == 'policy':
    raise ValueError(
        f'{where}: its look is one of the policy that made the rollout, which '
        f'with {stage}.staleness={section.staleness} is an older one. Set '
        'staleness to 0.')


Weight = Callable[..., Any]  # (Scores | None, Block, key) -> f32[N, G, T]


def weights(
    config: Any, names: Iterable[str], old: str = 'recompute',
) -> dict[str, Weight]:
  """{name: function} of sections of `weights`.

  `old`: of the stage.

  Raises:
    ValueError: no such section, function or keyword.
  """
  found = {}
  for name in names:
    section = config.weights[name]
    fn = resolve.function(section.fn, 'mmr1.losses.weights')
    kwargs = section.kwargs.as_dict()
    resolve.check_kwargs(fn, kwargs, f'weights.{name}.kwargs')
    if getattr(fn, 'reads_old', False) and old != 'recompute':
      raise ValueError(
          f"weights.{name}.fn: {section.fn!r} compares the trainer's log-probs "
          f"with the sampler's; with old={old!r} there are only one of both. "
          "Set the stage's old='recompute'.")
    found[name] = functools.partial(fn, **kwargs)
  return found


def reads_scores(weight: Weight) -> bool:
  """Whether a weight needs a pass of the policy that trains.

  A function says so by its attribute; one that says nothing gets it.
  """
  return getattr(weight.func, 'reads_scores', True)


@dataclasses.dataclass(frozen=True)
class Probe:
  """A column made of what a look says of each token; hooks may move the
  numbers among its keywords, for the step after.

  Fields:
    fn: (Sample, f32[T]) -> float or None.
    view: the look.
    reads: what of it, 'logp' or 'entropy'.
  """
  fn: Bound
  view: str
  reads: str


def probes(section: Any, config: Any,
           moved: Iterable[str] = ()) -> dict[str, Probe]:
  """The probes that an rl section names, in its order.

  `moved`: knobs that hooks move; a probe's are '<probe>/<keyword>'.

  Raises:
    ValueError: no such section, function or keyword; a name that is a reward,
      a term or a socket.
  """
  found, taken = {}, (*section.rewards, *section.terms, *_TAKEN)
  for name in section.probes:
    asked, where = config.probes[name], f'probes.{name}'
    if name in taken:
      raise ValueError(f'{where}: there is a reward, term or socket of that '
                       'name; columns and knobs would have the same.')
    if config.views[asked.view].when != 'rollout':
      raise ValueError(f"{where}.view: {asked.view!r} is a look of every update;"
                       " columns are made before. Set its when='rollout'.")
    if asked.reads not in READS:
      raise ValueError(f'{where}.reads: got {asked.reads!r}; allowed are '
                       f'{READS}.')
    found[name] = Probe(
        bind(asked, 'mmr1.rewards', where, moved), asked.view, asked.reads)
  return found
