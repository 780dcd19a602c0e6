"""Stage `evaluate`: accuracy on held-out problems, greedy and sampled.

The same prompts and the same noise are used for every evaluation of a run, so
that two of them differ by the parameters alone. Each leaves a card and one
record per sample in `eval/` (M19). Of `samples_per_problem` samples, which
share their prompt, come pass@k, maj@k and mean@k.

`also` names sections of `evaluations`, each what is to be otherwise there
(another instruction, another parser): their metrics are 'eval/<name>/accuracy'
and so on. `summary` is a function (metrics, those of the base) -> more metrics.
"""

from collections.abc import Mapping
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import context
from mmr1 import environments
from mmr1 import episodes
from mmr1 import evaluation_records
from mmr1.data import benchmarks
from mmr1.data import datasets
from mmr1.data import pipeline
from mmr1 import evaluations
from mmr1 import grades
from mmr1 import records
from mmr1.rewards import answer
from mmr1.sampling import keys
from mmr1.sampling import read
from mmr1.sampling import sample

_GREEDY, _SAMPLED = 0, 1  # views of the key law
_NAMES = ('greedy', 'sampled')


def check(section: Any) -> None:
  """Refuses settings that cannot work."""
  grades.check(section)
  for key in ('examples', 'prompts_per_batch', 'max_new_tokens'):
    if section[key] < 1:
      raise ValueError(
          f'{section.where}.{key}: got {section[key]}; allowed: at least 1.')
  if section.temperature <= 0:
    raise ValueError(
        f'{section.where}.temperature: got {section.temperature}; it is that '
        'of the sampled accuracy and must be above 0 (greedy is always '
        'reported as well).')
  try:
    _sampling(section)
  except ValueError as error:
    raise ValueError(f'{section.where}: {error}') from error


def check_all(section: Any, config: Any) -> None:
  """`check` of an evaluation and of those beside it."""
  check(section)
  for one in evaluations.others(section, config).values():
    check(one)
  evaluations.summary(section, config)


def _sampling(section: Any) -> sample.Knobs:
  return sample.knobs(
      temperature=section.temperature, top_k=section.top_k,
      top_p=section.top_p, max_new_tokens=section.max_new_tokens)


class Evaluation:
  """Held-out problems, opened once and used by every evaluation of a run."""

  def __init__(self, ctx: context.Context, section: Any):
    """Opens `section.examples` usable problems of the 'eval' split."""
    check(section)
    self._others = {
        name: Evaluation(ctx, one) for name, one in evaluations.others(
            section, ctx.config).items()}
    self._summary = evaluations.summary(section, ctx.config)
    self._ctx = ctx
    self._section = section
    self._prefilled = ctx.shape(section.instruction).prefilled
    self._env = environments.environment(ctx.config, section.env)
    self._played: dict[int, dict[str, float]] = {}
    self._pairs: list[pipeline.Pair] = []
    self._broken: list[records.Broken] = []
    self._pictures = evaluation_records.Pictures(ctx.path)
    self._counts = (1, section.samples_per_problem)
    self._knobs = [
        sample.knobs(temperature=0.0, max_new_tokens=section.max_new_tokens),
        _sampling(section)]

  def __call__(
      self, params: Any, stage: str, step: int,
  ) -> dict[str, float]:
    """Metrics of these parameters, and the card and records on disk."""
    metrics = self._made(params, stage, step, f'{stage}_{step}')
    for name, other in self._others.items():
      metrics |= {key.replace('eval/', f'eval/{name}/', 1): value
                  for key, value in other._made(
                      params, stage, step, f'{stage}_{step}_{name}').items()}
    base = self._ctx.checkpoints.done('base')
    if self._summary and base is not None:
      metrics |= self._summary(metrics, base['eval'])
    return metrics

  def _made(
      self, params: Any, stage: str, step: int, file: str) -> dict[str, float]:
    if not self._pairs:
      self._open()
    graded = {}
    for view, decoding in enumerate(_NAMES):
      samples = self._samples(params, view)
      graded[decoding] = samples, [self._grade(s) for s in samples]
    errors = [grade.error for _, part in graded.values() for grade in part
              if grade.error]
    if errors:
      self._ctx.logger.warn(
          f'evaluation of {stage}: {len(errors)} answers could not be checked '
          f'and count as wrong; the first: {errors[0]}')
    groups = grades.by_label(graded['greedy'][1], graded['greedy'][0])
    metrics = grades.first_label(groups)
    for view, suffix in ((_GREEDY, ''), (_SAMPLED, '_sampled')):
      samples, marks = graded[_NAMES[view]]
      metrics |= grades.summary(marks, samples, suffix, self._counts[view])
      metrics |= {f'eval/{name}{suffix}': x
                  for name, x in self._played.get(view, {}).items()}
    samples, marks = graded['sampled']
    metrics |= grades.several(
        marks, samples, self._counts[_SAMPLED], grades.ks(self._section))
    if not jax.process_index():  # all hosts have the same
      evaluation_records.write(
          self._ctx.path / 'eval' / file,
          self._card(stage, step, metrics, graded, groups),
          evaluation_records.rows(graded, self._pictures))
    return metrics

  def _open(self) -> None:
    """Reads the problems; those no answer could match are broken too (M26)."""
    self._pairs, self._broken = pipeline.all_examples(
        self._source(), episodes.playable(
            self._ctx.shape(self._section.instruction), self._env),
        self._section.examples,
        unusable=answer.unusable, warn=self._ctx.logger.warn,
        max_broken_frac=self._ctx.config.data.max_broken_frac)

  def _source(self):
    section = self._section
    if section.benchmark is None:
      return datasets.open_split(self._ctx.config, 'eval')
    return benchmarks.Benchmark(section.benchmark, section.benchmark_path)

  def _samples(self, params: Any, view: int) -> list[records.Sample]:
    section, ctx = self._section, self._ctx
    params = ctx.sampler.publish(params)
    size = min(section.prompts_per_batch, len(self._pairs))
    shape, result, group = (
        ctx.shape(section.instruction), [], self._counts[view])
    key = keys.step_key(section.seed, 0, 0, view=view)
    played, counts = [], []
    for start in range(0, len(self._pairs), size):
      part = self._pairs[start:start + size]
      ctx.logger.screen.doing(
          f'evaluation {"greedy" if view == _GREEDY else "sampled"} {start}/'
          f'{len(self._pairs)}')
      prompts = ctx.policy.layout.spread(shape.collate(
          [encoded for _, encoded in part], pad_rows=size - len(part)))
      examples = [example for example, _ in part]
      player = episodes.begin(
          self._env, ctx, dict(enumerate(examples)), prompts, group=group,
          length=section.max_new_tokens)
      rollout = ctx.sampler(
          params, prompts, key, self._knobs[view], jnp.int32(0), group=group,
          length=section.max_new_tokens, player=player)
      samples = read.read(read.to_host(rollout), examples, ctx.processor)
      if player is not None:
        samples = player.of_all(samples)
        played.append(player.metrics())
        counts.append(len(part))
      result += samples
    self._played[view] = episodes.pooled(played, counts)
    return result

  def _grade(self, s: records.Sample) -> grades.Grade | grades.Scored:
    section = self._section
    if section.benchmark is not None:
      return grades.of_benchmark(
          s.text, s.example, parser=section.parser, judge=section.judge,
          prefilled=self._prefilled)
    return grades.grade(s.text, s.example, parser=section.parser,
                        prefilled=self._prefilled)

  def _card(self, stage, step, metrics, graded, groups) -> dict[str, Any]:
    section, ctx = self._section, self._ctx
    asked = hashlib.sha256(json.dumps(
        [s.uid for s in graded['greedy'][0]]).encode())
    for _, encoded in self._pairs:  # instruction and chat template included
      asked.update(encoded.tokens.tobytes())
    return {
        'stage': stage, 'step': step, 'n': len(self._pairs),
        **evaluation_records.counts(graded, self._broken, groups),
        'subset': evaluation_records.subset(section, ctx.config),
        'prompt_hash': asked.hexdigest()[:16],
        **evaluation_records.rules(section), 'pixels': ctx.processor.pixels,
        'sampling': section.as_dict(),
        'samples_per_problem': section.samples_per_problem,
        'ks': list(grades.ks(section)), 'metrics': metrics}


def setup(section: Any, stage: str, config: Any) -> Mapping[str, Any]:
  """Checks the section before anything runs."""
  check_all(section, config)
  section.as_dict()
  context.check_init(section.init, stage, config)
  return {}


def run(ctx: context.Context, stage: str, section: Any, plan: Any) -> None:
  """Evaluates the model that `init` names; makes no model of its own."""
  del plan
  result = Evaluation(ctx, section)(ctx.params(section.init), stage, 0)
  ctx.logger.truncate(stage, -1)
  ctx.logger.write(stage, 0, result)
  ctx.logger.flush()  # before DONE: a marker promises the row
  ctx.checkpoints.finish(stage, {'eval': result})
