"""Defaults of evaluations, and benchmarks beside a run's own problems."""

from ml_collections import config_dict

ConfigDict = config_dict.ConfigDict
placeholder = config_dict.placeholder


def section() -> dict:
  """What `evaluation` and stages of kind `evaluate` have."""
  return dict(
      env=placeholder(str),  # as of the stages that train
      examples=512, prompts_per_batch=256,
      max_new_tokens=96,
      # Sampled accuracy; greedy is always reported.
      temperature=1.0, top_k=0, top_p=1.0,
      # Of those that are sampled; of several also pass@k, maj@k and mean@k, for
      # each k of `at_k` ((): all of them).
      samples_per_problem=1, at_k=(),
      # 'strict': only the answer block counts. 'lenient': documented order of
      # fall-backs in mmr1/text.py.
      parser='lenient',
      instruction=placeholder(str),  # of its prompts; None: data.instruction
      # Name and file of a benchmark (mmr1/data/benchmarks.py) in place of the
      # run's data; parser 'official' or 'strict'; who judges, see grades.py.
      benchmark=placeholder(str), benchmark_path=placeholder(str),
      judge=placeholder(str),
      seed=1234,
      # Sections of `evaluations`, which say what is otherwise there, and
      # (metrics, those of the base) -> more of them.
      also=(),
      summary=dict(fn=placeholder(str), kwargs=dict()),
  )


def benchmark(c: ConfigDict, name: str, path: str, *, key: str | None = None,
              parser: str = 'official', **changes) -> None:
  """Adds a benchmark to the evaluation of a config.

  Its metrics are 'eval/<key>/accuracy' and so on: of the base, after every
  stage that trains, and during it with `eval_every`.

  Args:
    c: the config; changed.
    name: of the benchmark, see docs/evaluation.md.
    path: its file, a folder of them, or a pattern.
    key: in `evaluations`; None: the name.
    parser: 'official' or 'strict'.
    **changes: what else is otherwise than in `c.evaluation`: examples,
      instruction, judge, samples_per_problem ...
  """
  key = key or name
  c.evaluations[key] = ConfigDict(dict(
      benchmark=name, benchmark_path=path, parser=parser, **changes))
  c.evaluation.also = (*c.evaluation.also, key)
