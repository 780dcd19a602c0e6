"""Columns that another model writes: judges, which read responses and score them.

A judge is a frozen model, a stage of this run or a folder. One of kind 'text'
was taught to go on from 'response, suffix' with a number. In every step it
reads the problem under its own instruction, once for all responses of the group
(law 1), each response token by token as it was sampled, then the suffix, and
writes what is most likely. One of kind 'score' is a reward model, see
`mmr1.score_judges`. Its column stands beside those of the rewards, with weight
0, for `combine` to read by name.

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
from mmr1 import judge_models
from mmr1 import phases
from mmr1 import probing
from mmr1 import records
from mmr1 import resolve
from mmr1 import rl_checks
from mmr1 import score_judges
from mmr1 import types
from mmr1.data import datasets
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.rewards import score as score_lib
from mmr1.sampling import keys
from mmr1.sampling import publish
from mmr1.sampling import sample


KINDS = ('text', 'score')


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a section of `judges` says.

  Fields:
    name: of the section and the column.
    params: of its models, 'base', a stage that trained, or a folder; one of
      kind 'text' has one.
    section: see `configs.common.judge` and `configs.reward_models.judge`.
    parse: reply -> 0 to 1, or None if that is no score; of kind 'text'.
  """
  name: str
  params: tuple[str, ...]
  section: Any
  parse: Callable[[str], float | None] | None = None


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
    if asked.memory not in rl_checks.MEMORIES:
      raise ValueError(f'{where}.memory: got {asked.memory!r}; allowed are '
                       f'{rl_checks.MEMORIES}.')
    params = params_of(asked)
    for one in params:
      if one in config.stages:  # a folder: see `check`
        context.check_init(one, stage, config, f'judges ({where}.params)')
    parse = None
    if asked.kind == 'text':
      if asked.max_new_tokens < 1:
        raise ValueError(f'{where}.max_new_tokens: got {asked.max_new_tokens}; '
                         'allowed: at least 1.')
      parse = resolve.function(asked.parse, 'mmr1.rewards')
    else:
      _check_scores(asked, where, section, config)
    asked.as_dict()  # all of it is read, now or by its class
    datasets.template(config.data, asked.instruction)
    found[name] = Settings(name, params, asked, parse)
  return found


def _check_scores(asked: Any, where: str, section: Any, config: Any) -> None:
  """Of a judge of kind 'score'."""
  if asked.kind not in KINDS:
    raise ValueError(f'{where}.kind: got {asked.kind!r}; allowed are {KINDS}.')
  group = section.samples_per_prompt * max(1, len(section.branches))
  if asked.chunks < 1 or group % asked.chunks:
    raise ValueError(
        f'{where}.chunks: got {asked.chunks}; allowed: a divisor of the '
        f'{group} responses of a prompt.')
  if not asked.params:
    raise ValueError(f'{where}.params: empty; name a stage or a folder.')
  if 'reward' not in config.model.scalars and any(
      name in ('base', *config.stages) for name in asked.params):
    raise ValueError(f"{where}.params: {asked.params} with model.scalars="
                     f"{config.model.scalars}; a model of this run has a score "
                     "with ('reward',) only.")


def params_of(asked: Any) -> tuple[str, ...]:
  """Names of the models of a section of `judges`."""
  return (asked.params,) if isinstance(asked.params, str) else asked.params


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
      where = f'judges.{name}.params'
      for params in params_of(config.judges[name]):
        context.check_init(params, stage, config, f'judges ({where})')
        if params not in ('base', 'previous', *config.stages):
          judge_models.processor_of(config, params, where, processor)


class Judge:
  """A judge that writes; `length` is what it reads and writes after a prompt.

  Attributes:
    nothing: what to say where there is no score at all.
    metrics: of the last call.
  """
  nothing = ('replies is a score. Was it taught to write one after this suffix '
             'and instruction?')
  metrics: Mapping[str, float] = {}

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
    where = f'judges.{asked.name}'
    self._model = judge_models.Model(
        ctx, asked.params[0], where, asked.section)
    self._sampler = ctx.sampler if self._model.ours else publish.make(
        ctx.config.sampler, self._model.policy)
    self._processor = self._model.processor
    self._suffix = encode.encode_given((asked.section.suffix,), self._processor)
    self.length = longest + len(self._suffix) + asked.section.max_new_tokens
    shape = self._model.shape
    needed = shape.prompt_length + self.length
    limit = self._model.policy.module.config.max_positions
    if needed > limit:
      raise ValueError(
          f'{where}: prompts of {shape.prompt_length} tokens '
          f'(data.prompt_tokens), responses of {longest}, a suffix of '
          f'{len(self._suffix)} and a reply of {asked.section.max_new_tokens} '
          f'are more than the {limit} positions of its model.')

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
    prompts, known = self._model.prompts(examples, len(tokens))
    usable = known[:, None] & self._model.readable(tokens, lengths)
    given, until = self.given(tokens, lengths, usable)
    # Nothing is read beyond it, whoever has no end.
    longest = int(until.max()) + self._asked.section.max_new_tokens
    rollout = self._sampler(
        self._sampler.publish(self._model.params()), prompts,
        keys.step_key(self._ctx.config.seed, 0, 0),
        sample.knobs(temperature=0.0, max_new_tokens=longest),
        jnp.int32(0), group=tokens.shape[1], length=self.length,
        given=sample.Given(given, until))
    said, kind = arrays.fetch(
        (rollout.completions.tokens, rollout.completions.kind))
    return self._read(said, kind != types.KIND_PAD, until, usable)

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
        name: (Judge if one.section.kind == 'text' else score_judges.Judge)(
            ctx, one, longest) for name, one in asked.items()}

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
            f'judges.{name}: none of {failed.size} {judge.nothing}')
      scored = probing.beside(scored, (name,), values.reshape(n, g, 1))
      scored = dataclasses.replace(scored, metrics={
          **scored.metrics, f'judge/{name}/failed_frac': failed.mean(),
          **{f'judge/{name}/{key}': x for key, x in judge.metrics.items()}})
    return scored
