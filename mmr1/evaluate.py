"""The command that evaluates a model on benchmarks from local files.

  python -m mmr1.evaluate --benchmark=mmmu --path=data/mmmu/*.parquet \\
      --checkpoint=checkpoints/qwen2_5_vl_7b \\
      --config=configs/forkme.py:qwen2_5_vl_7b

--benchmark and --path may be repeated, in the same order. --checkpoint is a
Hugging Face folder or the workdir of a run, whose model is exported into it;
without, the config's own model. Prompts, lengths and sampling are those of the
config's `evaluation`: --config.evaluation.max_new_tokens=2048. A benchmark that
cannot be read is named and the others are evaluated; the command then ends with
1. Cards and a record of every sample are in <workdir>/eval.
"""

from concurrent import futures
import json
import multiprocessing
import pathlib
import sys
from typing import Any

from absl import flags
from etils import epath
import jax
from ml_collections import config_dict
from ml_collections import config_flags
from rich import console as rich_console
from rich import table as rich_table

from mmr1 import command_line
from mmr1.data import benchmarks
from mmr1 import release
from mmr1 import resolve
from mmr1 import runner

_FORKME = pathlib.Path(__file__).parent.parent / 'configs' / 'forkme.py'
_FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    'config', str(_FORKME), 'Config file, with an optional argument after a '
    'colon.', flag_values=_FLAGS)
flags.DEFINE_multi_string(
    'benchmark', [], f'One of {", ".join(benchmarks.NAMES)}.',
    flag_values=_FLAGS)
flags.DEFINE_multi_string(
    'path', [], "File of the benchmark, a folder, or a pattern with '*'.",
    flag_values=_FLAGS)
for _name, _help in (
    ('checkpoint', 'Hugging Face folder, or the workdir of a run.'),
    ('stage', 'Of a run; default: the last finished one that trains.'),
    ('step', "Of a run: a step, or 'best'."),
    ('judge', 'Function that stands for the judge model of a benchmark: '
              "'verdict.by_rules', 'my_package.judges:ask'."),
    ('workdir', 'Default: runs/evaluate_<model>_<parser>.')):
  flags.DEFINE_string(_name, None, _help, flag_values=_FLAGS)
flags.DEFINE_enum('parser', 'official', ['official', 'strict'],
                  "The benchmark's own rule, or the answer block alone.",
                  flag_values=_FLAGS)
flags.DEFINE_integer('examples', 1_000_000, 'Problems of each at most.',
                     lower_bound=1, flag_values=_FLAGS)
flags.DEFINE_integer('samples', 1, 'Sampled answers to each problem.',
                     lower_bound=1, flag_values=_FLAGS)
flags.DEFINE_multi_integer('k', [], 'Of pass@k, maj@k and mean@k; default: all '
                           'samples.', flag_values=_FLAGS)
flags.DEFINE_bool('fresh', False, 'Start over in this workdir.',
                  flag_values=_FLAGS)
flags.DEFINE_bool('quiet', False, 'Only the results.', flag_values=_FLAGS)
flags.DEFINE_bool('help', False, 'Shows this.', flag_values=_FLAGS)


def main(argv: list[str]) -> None:
  if not command_line.own_flags(_FLAGS, argv, __doc__, {
      'benchmark': 'name', 'path': 'file'}):
    return
  names, paths = _FLAGS.benchmark, _FLAGS.path
  if len(names) != len(paths):
    sys.exit(f'mmr1: {len(names)} --benchmark and {len(paths)} --path; each '
             'needs the other.')
  console = rich_console.Console(highlight=False)
  try:
    bad = evaluate(
        _CONFIG.value, list(zip(names, paths)), workdir=_FLAGS.workdir,
        checkpoint=_model(), console=console,
        fresh=_FLAGS.fresh, quiet=_FLAGS.quiet,
        overrides=config_flags.get_override_values(_FLAGS['config']),
        parser=_FLAGS.parser, judge=_FLAGS.judge, examples=_FLAGS.examples,
        samples_per_problem=_FLAGS.samples, at_k=tuple(_FLAGS.k))
  except ValueError as error:
    if not command_line.is_message(error):
      raise
    sys.exit(f'mmr1: {error}')
  except KeyboardInterrupt as error:
    command_line.interrupted(str(error))
  if bad:
    sys.exit(1)


def _model() -> str | None:
  """A Hugging Face folder, made of a run first if one was named."""
  folder, stage, step = _FLAGS.checkpoint, _FLAGS.stage, _FLAGS.step
  if folder and is_run(folder):
    # Of its own: jax must not start here before the devices are chosen.
    with futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context('spawn')) as pool:
      try:
        return pool.submit(_exported, folder, stage, step).result()
      except ValueError as error:
        raise ValueError(str(error)) from None  # without the pool's frames
  if stage or step:
    raise ValueError(f'--stage, --step: got --checkpoint={folder}, which is no '
                     'run; only a run has stages.')
  return folder


def is_run(folder: str) -> bool:
  """True of a run's workdir; a Hugging Face folder has a config.json too."""
  file = epath.Path(folder).expanduser() / 'config.json'
  try:
    return 'stages' in json.loads(file.read_text())
  except (OSError, ValueError):
    return False


def _exported(folder: str, stage: str | None, step: str | None) -> str:
  jax.config.update('jax_platforms', 'cpu')  # leaves accelerators alone
  return release.exported(folder, stage=stage, step=step)


def evaluate(
    config: config_dict.ConfigDict, wanted: list[tuple[str, str]], *,
    console: rich_console.Console, workdir: str | None = None,
    checkpoint: str | None = None, fresh: bool = False, quiet: bool = False,
    overrides: tuple[str, ...] = (), **section: Any) -> list[str]:
  """Runs the evaluations that can be run and prints their cards.

  Args:
    config: whose `evaluation` says how the model is asked; changed.
    wanted: (name, path) of benchmarks.
    console: where the cards are printed.
    workdir, fresh, quiet, overrides: as of `runner.run`.
    checkpoint: a Hugging Face folder; None: the config's.
    **section: of the evaluations: parser, judge, examples ...

  Returns:
    What is wrong with the benchmarks that could not be read.

  Raises:
    ValueError: none of them can be read; as `runner.run`.
  """
  good, bad = [], []
  for name, path in wanted:
    try:
      benchmarks.Benchmark(name, path)
      good.append((name, path))
    except ValueError as error:
      bad.append(str(error))
      console.print(f'mmr1: left out: {error}', soft_wrap=True, markup=False)
  if not good:
    raise ValueError('no benchmark is left to evaluate on.')
  if checkpoint:
    config.model.path = checkpoint
  stages = prepare(config, good, section)
  workdir = workdir or default_workdir(config.model.path, **section)
  files = [epath.Path(workdir) / 'eval' / f'{stage}_0.json'
           for stage in stages]
  try:
    runner.run(config, workdir, fresh=fresh, quiet=quiet, overrides=overrides)
  finally:  # those before the one that failed have ended
    for file in filter(lambda file: file.exists(), files):
      show(json.loads(file.read_text()), console)
      console.print(f'  {file}, {file.name}l\n', soft_wrap=True)
  return bad


def default_workdir(model: str, *, parser: str, **_: Any) -> str:
  """'runs/forkme/export/grpo_30' -> 'runs/evaluate_forkme_grpo_30_strict'."""
  path = epath.Path(model)
  run = [path.parent.parent.name] if path.parent.name == 'export' else []
  return 'runs/' + '_'.join(['evaluate', *run, path.name, parser])


def prepare(config: config_dict.ConfigDict, wanted: list[tuple[str, str]],
            section: dict[str, Any]) -> list[str]:
  """Makes the config one of evaluations alone; names of its stages."""
  own = {key: value for key, value in config.evaluation.items()
         if value is not None and key not in ('also', 'summary')}
  section = {key: value for key, value in section.items() if value is not None}
  names: list[str] = []
  with config.unlocked():
    for name, path in wanted:
      stage = name if name not in names else f'{name}_{len(names)}'
      names.append(stage)
      config[stage] = resolve.overlay(config.evaluate, **{
          **own, **section, 'init': 'base', 'benchmark': name,
          'benchmark_path': path})
    config.stages = tuple(names)
    # Nothing of the config's own problems, files or training is read.
    config.evaluate_base, config.evaluation.also = False, ()
    config.evaluation.summary.fn = None
    config.data.path = config.data.eval_path = None
    config.judges = config_dict.ConfigDict()
  return names


_ROWS = (('accuracy', 'accuracy'), ('unparsed', 'unparsed_frac'),
         ('by chance', 'chance_frac'), ('by the judge', 'judge_frac'),
         ('needs a judge', 'unjudged_frac'),
         ('not checked', 'unchecked_frac'), ('cut off', 'truncated_frac'),
         ('tokens', 'response_length'))


def show(card: dict[str, Any], console: rich_console.Console) -> None:
  """Prints a card of an evaluation."""
  metrics, section = card['metrics'], card['sampling']
  count = card['samples_per_problem']
  console.print(
      f'{section["benchmark"]}, {section["parser"]}: {card["n"]} problems of '
      f'{section["benchmark_path"]}', soft_wrap=True, markup=False)
  table = rich_table.Table()
  for column in ('', 'greedy', 'sampled' if count == 1 else
                 f'{count} sampled'):
    table.add_column(column, justify='right' if column else 'left')
  for label, key in _ROWS:
    cells = [_cell(metrics, f'eval/{key}{end}') for end in ('', '_sampled')]
    if any(cell not in ('0.000', '') for cell in cells) or label in (
        'accuracy', 'unparsed'):
      table.add_row(label, *cells)
  for k in card['ks']:
    for name in ('pass', 'maj', 'mean'):
      table.add_row(f'{name}@{k}', '', _cell(metrics, f'eval/{name}_at_{k}'))
  console.print(table)
  for label, values in card.get('groups', {}).items():
    if len(values) == 1:
      continue
    table = rich_table.Table()
    for column in (label, 'n', 'greedy accuracy'):
      table.add_column(column, justify='right' if column != label else 'left')
    for value, one in values.items():
      table.add_row(value, str(one['n']), f'{one["accuracy"]:.3f} '
                    f'({one["low"]:.2f}-{one["high"]:.2f})')
    console.print(table)
  if card['broken']:
    console.print(f'  {card["broken"]} skipped: ' + '; '.join(
        card['broken_rows'][:3]), soft_wrap=True, markup=False)
  console.print(f'  interval: {card["interval"]}; judge: {card["judge"]}')


def _cell(metrics: dict[str, float], name: str) -> str:
  """'0.912 (0.88-0.94)'; '' where there is none."""
  if name not in metrics:
    return ''
  if f'{name}_low' not in metrics:
    return f'{metrics[name]:.3f}'
  return (f'{metrics[name]:.3f} ({metrics[f"{name}_low"]:.2f}-'
          f'{metrics[f"{name}_high"]:.2f})')


if __name__ == '__main__':
  main(sys.argv)
