"""The command that compares two evaluations of the same problems.

  python -m mmr1.compare --first=a/eval/grpo_100.jsonl \
      --second=b/eval/grpo_100.jsonl

Records are paired by uid. It prints both mean scores, their difference with its
95% interval (a bootstrap over problems, so of each pair together) and McNemar's
exact test (`mmr1.significance.mcnemar`), for which a score between 0 and 1 is
right from .5 on. Of several samples of a problem the scores are the means, and
the test is of the first. Of the rounds of a stage `refine`, which decodes
greedily, the last one counts.
"""

import json
import sys

from absl import flags
from etils import epath
import numpy as np

from mmr1 import command_line
from mmr1 import significance

_FLAGS = flags.FlagValues()
flags.DEFINE_string('first', None, 'Records of one run.', flag_values=_FLAGS)
flags.DEFINE_string('second', None, 'Of the other.', flag_values=_FLAGS)
flags.DEFINE_enum('decoding', 'greedy', ['greedy', 'sampled'],
                  'Which records.', flag_values=_FLAGS)
flags.DEFINE_bool('help', False, 'Shows this.', flag_values=_FLAGS)


def read(path: str, decoding: str) -> dict[int, list[float]]:
  """{uid: scores of its samples} of a file that an evaluation wrote.

  Raises:
    ValueError: no such file, a line that is no record, a problem without any.
  """
  file = epath.Path(path)
  if not file.exists():
    raise ValueError(f'{path}: no such file; evaluations write '
                     '<workdir>/eval/<stage>_<step>.jsonl.')
  found = {}
  for number, line in enumerate(file.read_text().splitlines(), start=1):
    try:
      row = json.loads(line)
      if 'turns' in row:  # of `refine`: greedy, `correct` round by round
        row |= {'decoding': 'greedy', 'correct': row['correct'][-1]}
      if row['decoding'] == decoding:
        found.setdefault(row['uid'], []).append(
            float(row.get('score', row['correct'])))
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f'{path}:{number}: not a record of an evaluation: '
                       f'{type(error).__name__} {error}.') from error
  if not found:
    raise ValueError(f'{path}: no record with decoding {decoding!r}.')
  return found


def compare(first: str, second: str, decoding: str = 'greedy') -> str:
  """What the command prints.

  Raises:
    ValueError: as `read`; not the same problems.
  """
  a, b = read(first, decoding), read(second, decoding)
  if a.keys() != b.keys():
    raise ValueError(
        f'{first} and {second}: {len(a.keys() - b.keys())} and '
        f'{len(b.keys() - a.keys())} problems are only in one of them; needed '
        'are evaluations of the same problems.')
  uids, n = sorted(a), len(a)
  result = significance.mcnemar(
      *([side[uid][0] >= 0.5 for uid in uids] for side in (a, b)))
  means = [[float(np.mean(side[uid])) for uid in uids] for side in (a, b)]
  difference = np.subtract(means[1], means[0])
  low, high = significance.bootstrap(difference, seed=0)
  return (f'first   {np.mean(means[0]):.4f}\n'
          f'second  {np.mean(means[1]):.4f}, {np.mean(difference):+.4f} '
          f'({low:+.4f} to {high:+.4f})\n'
          f'{n} problems: both right {result.both}, only the first '
          f'{result.first}, only the second {result.second}, neither '
          f'{result.neither}\nMcNemar, exact, two-sided: p = {result.p:.4g}')


def main(argv: list[str]) -> None:
  if not command_line.own_flags(_FLAGS, argv, __doc__, {
      'first': 'records', 'second': 'records'}):
    return
  try:
    print(compare(_FLAGS.first, _FLAGS.second, _FLAGS.decoding))
  except ValueError as error:
    sys.exit(f'mmr1: {error}')


if __name__ == '__main__':
  main(sys.argv)
