"""What an evaluation leaves in `eval/`: a card, and a record of each sample."""

import collections
from collections.abc import Mapping, Sequence
import json
from typing import Any

from etils import epath

from mmr1 import episodes
from mmr1 import grades
from mmr1 import records
from mmr1.rewards import official
from mmr1 import text
from mmr1 import thumbnails
from mmr1 import workdir as workdir_lib

_SHOWN = 20  # broken rows that a card names
Graded = Mapping[str, tuple[
    Sequence[records.Sample], Sequence[grades.Grade | grades.Scored]]]


class Pictures:
  """Thumbnails of problems in a run's samples/images, each made once."""

  def __init__(self, workdir: epath.Path):
    self._folder = epath.Path(workdir) / 'samples' / 'images'
    self._names: dict[int, list[str]] = {}

  def __call__(self, example: records.Example) -> list[str]:
    """Names of the files of an example's images."""
    if example.uid not in self._names:
      self._names[example.uid] = thumbnails.without_pixels(
          list(example.images), self._folder)
    return self._names[example.uid]


def rows(graded: Graded, pictures: Pictures) -> list[dict[str, Any]]:
  """A record per sample, of each way of decoding problem after problem."""
  return [_row(decoding, s, mark, pictures)
          for decoding, (samples, marks) in graded.items()
          for s, mark in zip(samples, marks)]


def _row(decoding: str, s: records.Sample, mark: grades.Grade | grades.Scored,
         pictures: Pictures) -> dict[str, Any]:
  row = {'uid': s.uid, 'source': s.example.source, 'decoding': decoding,
         'sample': s.slot, 'prompt': s.example.asked,
         'images': pictures(s.example), 'text': s.text,
         'extracted': mark.extracted, 'gold': s.example.answer,
         'correct': mark.right}
  if isinstance(mark, grades.Scored):
    meta = s.example.meta
    row |= {'score': mark.score, 'by': mark.by, 'id': meta['id'],
            'labels': dict(meta['labels'])}
  return {**row, 'error': mark.error, 'length': s.length,
          'truncated': s.truncated, **episodes.record(s)}


def rules(section: Any) -> dict[str, Any]:
  """What parses and compares, and the interval, for the card."""
  found = {'parser': f'mmr1.text.extract_answer {section.parser}, version '
                     f'{text.PARSER_VERSION}',
           'matcher': 'mmr1.rewards.answer.match', 'judge': section.judge,
           'interval': 'Wilson, 95%' if section.samples_per_problem == 1 else
                       'Wilson, 95%; of several samples a bootstrap over '
                       'examples'}
  if section.benchmark is not None:
    found['matcher'] = (f'mmr1.rewards.official.{section.parser}, version '
                        f'{official.VERSION}')
    found['interval'] = ('bootstrap over examples, 95%; Wilson where all '
                         'scores are equal')
    if section.parser == 'official':
      found['parser'] = found['matcher']
  return found


def subset(section: Any, config: Any) -> dict[str, Any]:
  """Which problems: the first usable ones of what."""
  data = config.data
  if section.benchmark is not None:
    return {'benchmark': section.benchmark, 'file': section.benchmark_path}
  if data.path is None:
    return {'split': 'eval', 'mixture': list(data.mixture),
            'weights': list(data.weights), 'seed': config.seed}
  if data.eval_path is not None:
    return {'file': data.eval_path}
  return {'file': data.path, 'one of every': data.holdout}


def counts(graded: Graded, broken: Sequence[records.Broken],
           groups: Mapping[str, Any]) -> dict[str, Any]:
  """Of a card: what was skipped and why, what gave the scores, and accuracies
  of the groups that the benchmark names."""
  by = {decoding: collections.Counter(mark.by for mark in marks)
        for decoding, (_, marks) in graded.items()
        if marks and isinstance(marks[0], grades.Scored)}
  found: dict[str, Any] = {
      'broken': len(broken), 'broken_rows': [
          f'{one.where}: {one.reason}' for one in broken[:_SHOWN]]}
  if by:
    found['by'] = {decoding: {
        name: count[name] for name in ('rule', 'chance', 'judge', 'unjudged')}
                   for decoding, count in by.items()}
  if groups:
    found['groups'] = groups
  return found


def write(path: epath.Path, card: Mapping[str, Any],
          samples: Sequence[Mapping[str, Any]]) -> None:
  """`path`.json and `path`.jsonl, each whole or not at all."""
  workdir_lib.write_whole(
      path.parent / f'{path.name}.json', json.dumps(card, indent=2) + '\n')
  workdir_lib.write_whole(
      path.parent / f'{path.name}.jsonl',
      ''.join(json.dumps(row) + '\n' for row in samples))
