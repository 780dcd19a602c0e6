"""Does SophiaVL-R1's small judge score as the rule that it learns from?

  python -m experiments.sophiavl_r1_judge --workdir=runs/judge

Trains the judge of `configs/sophiavl_r1.py:judge`, unless the workdir has it,
lets it read responses to held-out problems, and prints the correlation of its
scores with the rule's, beside that of the untrained model.
"""

import json
import time

from absl import app
from absl import flags
from etils import epath
import numpy as np

import mmr1
from configs import sophiavl_r1
from mmr1 import guard
from mmr1 import judges
from mmr1 import resolve
from mmr1 import runner
from mmr1.data import datasets
from mmr1.data import encode
from mmr1.papers import sophiavl_r1_judge
from mmr1.rewards import number

flags.DEFINE_string('workdir', 'runs/sophiavl_r1_judge', 'Folder of the run.')
flags.DEFINE_string('out', None, 'A file for the result, as JSON.')
flags.DEFINE_integer('problems', 512, 'Held-out problems.')
flags.DEFINE_integer('seed', 0, 'Of the run.')
FLAGS = flags.FLAGS
ROWS = 128  # problems at a time


def agreement(ctx, params: str, problems: int) -> dict[str, float]:
  """How scores and the rule agree on a response to each held-out problem.

  Args:
    ctx: a run with a section `judges.thinking`.
    params: 'base', or the stage that made the judge.
    problems: how many, a multiple of `ROWS`.
  """
  section = ctx.config.judges.thinking
  longest = ctx.config.judge.max_new_tokens
  one = judges.Judge(ctx, judges.Settings(
      'thinking', (params,), section, number.unit), longest)
  held = datasets.open_split(ctx.config, 'eval')
  mistakes = {key: value for key, value in ctx.config.traces.kwargs.as_dict(
      ).items() if key in ('off', 'again', 'cut', 'wrong')}
  scores, rules, failures = [], [], []
  for first in range(0, problems, ROWS):
    examples = [held[first + i] for i in range(ROWS)]
    said = [sophiavl_r1_judge.response(example, **mistakes)
            for example in examples]
    ids = [encode.encode_given((text,), ctx.processor) for text in said]
    lengths = np.asarray([[len(x)] for x in ids])
    tokens = np.zeros((ROWS, 1, longest), np.int32)
    for row, x in zip(tokens, ids):
      row[0, :len(x)] = x
    score, failed = one(examples, tokens, lengths)
    scores += score[:, 0].tolist()
    failures += failed[:, 0].tolist()
    rules += [sophiavl_r1_judge.score(text, example)
              for text, example in zip(said, examples)]
  return dict(
      correlation=float(np.corrcoef(scores, rules)[0, 1]),
      equal=float(np.mean(np.abs(np.subtract(scores, rules)) < .05)),
      mean_error=float(np.mean(np.abs(np.subtract(scores, rules)))),
      failed=float(np.mean(failures)), n=len(scores))


def main(_):
  config = sophiavl_r1.get_config('judge')
  config.evaluate_base, config.evaluation.examples = False, 8
  config.seed = FLAGS.seed
  started = time.time()
  mmr1.run(config, FLAGS.workdir)
  trained = time.time() - started
  final = resolve.finalise(config)
  runner.plan(final)
  ctx = runner.open_run(final, FLAGS.workdir, interrupt=guard.Interrupt(),
                        quiet=True)
  try:
    found = {name: agreement(ctx, name, FLAGS.problems)
             for name in ('judge', 'base')}
  finally:
    ctx.close()
  result = {'seed': FLAGS.seed, 'seconds': round(trained), **found}
  print(json.dumps(result, indent=1))
  if FLAGS.out:
    epath.Path(FLAGS.out).write_text(json.dumps(result) + '\n')


if __name__ == '__main__':
  app.run(main)
