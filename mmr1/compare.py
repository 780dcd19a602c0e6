"""The command that compares two evaluations of the same problems.

  python -m mmr1.compare --first=a/eval/grpo_100.jsonl \
      --second=b/eval/grpo_100.jsonl

Records are paired by uid and sample. It prints both accuracies and McNemar's
exact test (`mmr1.significance.mcnemar`); a score between 0 and 1 is right from
.5 on. With several samples a problem, the first of each decoding counts.
"""

import json
import sys

from absl import flags
from etils import epath

from mmr1 import command_line
from mmr1 import significance

_FLAGS = flags.FlagValues()
flags.DEFINE_string('first', None, 'Records of one run.', flag_values=_FLAGS)
flags.DEFINE_string('second', None, 'Of the other.', flag_values=_FLAGS)
flags.DEFINE_enum('decoding', 'greedy', ['greedy', 'sampled'],
                  'Which records.', flag_values=_FLAGS)
flags.DEFINE_bool('help', False, 'Shows this.', flag_values=_FLAGS)


def read(path: str, decoding: str) -> dict[int, bool]:
  """{uid: right} of a file that an evaluation wrote.

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
      if row['decoding'] == decoding:
        found.setdefault(row['uid'], float(row.get('score', row['correct']))
                         >= .5)
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
  uids = sorted(a)
  result = significance.mcnemar([a[u] for u in uids], [b[u] for u in uids])
  n = len(uids)
  return (f'first   {sum(a.values()) / n:.4f}\n'
          f'second  {sum(b.values()) / n:.4f}\n'
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
