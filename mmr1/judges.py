"""Columns that another model writes: judges, which read responses and score them.

A judge is a frozen model, a stage of this run or a folder, that was taught to
go on from 'response, suffix' with a number. In every step it reads the problem
under its own instruction, once for all responses of the group (law 1), each
response token by token as it was sampled, then the suffix, and writes what is
most likely. Its column stands beside those of the rewards, with weight 0, for
`combine` to read by name.

No response is cut: a judge has room for `rl.max_new_tokens`, the suffix and
its own tokens. One that ran into the cap is read as it is.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmr1 import arrays
from mmr1 import asking
from mmr1 import context
from mmr1 import forward
from mmr1 import hosts
from mmr1 import phases
from mmr1 import probing
from mmr1 import records
from mmr1 import resolve
from mmr1 import rl_checks
from mmr1 import types
from mmr1.data import datasets
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.models import partition
from mmr1.rewards import score as score_lib
from mmr1.sampling import keys
from mmr1.sampling import publish
from mmr1.sampling import sample


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a section of `judges` says.

  Fields:
    name: of the section and the column.
    params: 'base', a stage that trained, or a folder.
    section: instruction, suffix, max_new_tokens, memory, see
      `configs.common.judge`.
    parse: reply -> 0 to 1, or None if that is no score.
  """
  name: str
  params: str
  section: Any
  parse: Callable[[str], float | None]


def settings(section: Any, stage: str, config: Any) -> dict[str, Settings]:
  """The judges that an rl section names, in its order.

  Raises:
    ValueError: no such section, stage or function, a value that is not
      allowed, or a name that is another column's.
  """
  found = {}
  for name in section.judges:
    where = f'judges.{name}'
    if name in (*section.rewards, *section.probes):
      raise ValueError(f'{where}: there is a reward or a probe of that name; '
                       'both would be the same column.')
    asked = config.judges[name]
    if asked.max_new_tokens < 1:
      raise ValueError(f'{where}.max_new_tokens: got {asked.max_new_tokens}; '
                       'allowed: at least 1.')
    if asked.memory not in rl_checks.MEMORIES:
      raise ValueError(f'{where}.memory: got {asked.memory!r}; allowed are '
                       f'{rl_checks.MEMORIES}.')
    if asked.params in config.stages:  # a folder: see `check`
      context.check_init(asked.params, stage, config, f'judges ({where}.params)')
    asked.as_dict()  # all of it is read, now or in `Judge`
    datasets.template(config.data, asked.instruction)
    found[name] = Settings(
        name, asked.params, asked, resolve.function(asked.parse, 'mmr1.rewards'))
  return found


def check(config: Any, processor: processor_lib.Processor) -> None:
  """Refuses folders of judges that cannot read the run's responses.

  Args:
    config: the resolved config.
    processor: of the model that trains.

  Raises:
    ValueError: there is no such folder, or its tokenizer is another one.
  """
  for stage in config.stages:
    for name in config[stage].judges if config[stage].kind == 'rl' else ():
      params = config.judges[name].params
      context.check_init(params, stage, config, f'judges (judges.{name}.params)')
      if params not in ('base', 'previous', *config.stages):
        _processor(config, params, f'judges.{name}.params', processor)


def _processor(config, path, where, own) -> processor_lib.Processor:
  """The judge's, which must write text as the same tokens."""
  found = datasets.open_processor(config.model, config.data, path)
  if (found.tokenizer.get_vocab() != own.tokenizer.get_vocab()
      or (found.eos_id, found.pad_id) != (own.eos_id, own.pad_id)):
    raise ValueError(
        f'{where}: the tokenizer of {path!r} is not that of '
        f'{config.model.path!r}: a judge reads the tokens that were sampled. '
        'Take a checkpoint of the same family.')
  return found


class Judge:
  """One judge; `length` is what it reads and writes after a prompt."""

  def __init__(self, ctx: context.Context, asked: Settings, longest: int):
    """Opens the model.

    Args:
      ctx: the run.
      asked: what its section says.
      longest: tokens of a response, at most.

    Raises:
      ValueError: a folder that cannot be used; too few positions.
    """
    self._ctx, self._asked = ctx, asked
    self._policy, self._sampler, self._processor, self._params = _open(
        ctx, asked)
    self.shape = datasets.shape(
        ctx.config.data, self._processor, asked.section.instruction)
    self._suffix = encode.encode_given((asked.section.suffix,), self._processor)
    self.length = longest + len(self._suffix) + asked.section.max_new_tokens
    needed = self.shape.prompt_length + self.length
    limit = self._policy.module.config.max_positions
    if needed > limit:
      raise ValueError(
          f'judges.{asked.name}: prompts of {self.shape.prompt_length} tokens '
          f'(data.prompt_tokens), responses of {longest}, a suffix of '
          f'{len(self._suffix)} and a reply of {asked.section.max_new_tokens} are more '
          f'than the {limit} positions of its model.')

  def __call__(
      self, examples: Sequence[records.Example], tokens: np.ndarray,
      lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores. A collective.

    Args:
      examples: of the prompts of this host, `layout.own_rows(N)`.
      tokens: i32[N, G, T] of responses, right-padded, without eos.
      lengths: i64[N, G] of them.

    Returns:
      f64[N, G], 0 to 1, and bool[N, G], where there was no score: it is 0 then.
    """
    prompts, known = self._prompts(examples, len(tokens))
    usable = known[:, None] & (np.where(
        np.arange(tokens.shape[2]) < lengths[..., None], tokens, 0)
        < self._processor.vocab_size).all(-1)
    given, until = self.given(tokens, lengths, usable)
    rollout = self._sampler(
        self._sampler.publish(self._params()), prompts,
        keys.step_key(self._ctx.config.seed, 0, 0),
        sample.knobs(temperature=0.0, max_new_tokens=self.length),
        jnp.int32(0), group=tokens.shape[1], length=self.length,
        given=sample.Given(given, until))
    said, kind = arrays.fetch(
        (rollout.completions.tokens, rollout.completions.kind))
    return self._read(said, kind != types.KIND_PAD, until, usable)

  def _prompts(self, examples, n) -> tuple[types.Prompts, np.ndarray]:
    """The judge's prompts, and bool[N], those that fit; the others are a blank.
    """
    layout, blank = self._policy.layout, records.Example(uid=0, question='?')
    rows = layout.own_rows(n)

    def encoded():
      made = [self.shape.encode(e, e.uid) for e in examples]
      fits = [not isinstance(one, records.Broken) for one in made]
      return [one[1] if fit else self.shape.encode(blank, 0)[1]
              for one, fit in zip(made, fits)], fits
    (made, fits), error = hosts.attempt(encoded, ([], []))
    every = hosts.share((rows, fits, [
        (len(one.tokens), len(one.patches)) for one in made]), error)
    known = np.zeros(n, bool)
    for places, fitting, _ in every:
      known[places] = fitting
    needs = tuple(map(max, zip(*(one for *_, part in every for one in part))))
    return layout.spread_own(
        self.shape.collate(made, needs=needs), n), known

  def given(self, tokens: np.ndarray, lengths: np.ndarray,
            usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What it reads after the prompt: i32[N, G, length], i32[N, G] of it.

    For a response [5, 9], the suffix [7] and room for 2 more under T = 3:
    [5, 9, 7, pad, pad, pad], 3. What is not usable is one eos, which ends it.
    """
    n, g, t = tokens.shape
    made = np.full((n, g, self.length), self._processor.pad_id, np.int32)
    made[..., :t] = np.where(
        np.arange(t) < lengths[..., None], tokens, self._processor.pad_id)
    place = lengths[..., None] + np.arange(len(self._suffix))
    np.put_along_axis(
        made, place, np.broadcast_to(self._suffix, place.shape), -1)
    made[~usable, 0] = self._processor.eos_id
    return made, np.where(
        usable, lengths + len(self._suffix), 1).astype(np.int32)

  def _read(self, tokens, spoken, until, usable):
    """Its replies, at most as long as they may be, as scores."""
    known: dict[tuple[int, ...], float | None] = {}
    scores, failed = np.zeros(until.shape), ~usable
    for at in np.argwhere(usable):
      n, g = at
      reply = tokens[n, g][spoken[n, g]][until[n, g]:]
      key = tuple(map(int, reply[:self._asked.section.max_new_tokens]))
      if key not in known:
        known[key] = self._asked.parse(encode.decode(key, self._processor))
      failed[n, g] = known[key] is None
      scores[n, g] = known[key] or 0.0
    return scores, failed


def _open(ctx: context.Context, asked: Settings) -> tuple[
    forward.Policy, publish.Sampler, processor_lib.Processor,
    Callable[[], Any]]:
  """Model, sampler, processor and () -> parameters of a judge."""
  config, name = ctx.config, ctx.named(asked.params)
  if name == 'base' or name in config.stages:
    policy, sampler, processor = ctx.policy, ctx.sampler, ctx.processor
    params = ctx.params(name)
  else:
    path = datasets.model_path(name)
    processor = _processor(
        config, path, f'judges.{asked.name}.params', ctx.processor)
    policy, params = context.open_model(
        config.model, path, processor, ctx.policy.layout)
    sampler = publish.make(config.sampler, policy)
  params = policy.layout.own(partition.cast(
      params, policy.module.config.compute_dtype))
  if asked.section.memory == 'host':
    params = arrays.in_host(params)
    return policy, sampler, processor, lambda: arrays.on_device(params)
  return policy, sampler, processor, lambda: params


class Judges:
  """The judges of an rl stage.

  Attributes:
    clock: of the stage's phases.
  """

  def __init__(self, ctx: context.Context, asked: Mapping[str, Settings],
               longest: int, clock: phases.Clock):
    self.clock = clock
    self._eos = ctx.processor.eos_id
    self._judges = {
        name: Judge(ctx, one, longest) for name, one in asked.items()}

  def beside(self, made: asking.Made,
             scored: score_lib.Scored) -> score_lib.Scored:
    """The scores with a column of each judge. A collective.

    Raises:
      ValueError: a judge has no score for any response.
    """
    return self._beside(made, scored) if self._judges else scored

  @phases.phase('judge')
  def _beside(self, made, scored):
    host = made.host
    n, g, t = host.tokens.shape
    lengths = (host.kind != types.KIND_PAD).sum(-1)
    last = np.take_along_axis(
        host.tokens, np.maximum(lengths - 1, 0)[..., None], -1)[..., 0]
    lengths = lengths - ((lengths > 0) & (last == self._eos))
    # All branches of a prompt are answers to one problem.
    rows = n // (1 + made.branch.max(initial=0))
    examples = [example for example, _ in made.prompted.pairs]
    for name, judge in self._judges.items():
      values, failed = judge(
          examples, host.tokens.reshape(rows, -1, t), lengths.reshape(rows, -1))
      if failed.all():
        raise ValueError(
            f'judges.{name}: none of {failed.size} replies is a score. Was it '
            'taught to write one after this suffix and instruction?')
      scored = probing.beside(scored, (name,), values.reshape(n, g, 1))
      scored = dataclasses.replace(scored, metrics={
          **scored.metrics, f'judge/{name}/failed_frac': failed.mean()})
    return scored
