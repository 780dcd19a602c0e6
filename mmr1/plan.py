"""The command that says where a config fits, before a chip is rented.

  python -m mmr1.plan --config=configs/vision_r1.py:qwen2_5_vl_7b \
      --topology=v5p:4x4x4 [--json=plan.json] [--config.key=value ...]

Compiles every stage's prefill, decode, reference pass and update for a TPU
slice that is not there, with the shapes and shardings that a run has, and says
per chip what they need of its memory, what they compute, move and send, and a
bound of how long a step takes. Needs `pip install libtpu`, and of the model
only its config.json; sizes of the scales of configs/common.py are known.

--topology: v5e:8x8, v5p:4x4x4, v6e:8x8 (mmr1/planning/chips.py lists them);
'auto' takes the smallest of --chips that fits; gpu:8, h200:1 and cpu are
estimates without compiling, by formula.
"""

from importlib import metadata
import json
import os
import pathlib
import sys
from typing import Any

# A compiler for chips that are not there: jax itself runs on the CPU. Before
# jax is imported.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
# Nothing runs on a TPU: a plan may be made beside another one.
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')

# pylint: disable=g-import-not-at-top
from absl import flags
from ml_collections import config_flags
from rich import console as rich_console
from rich import table as rich_table

from mmr1 import command_line
from mmr1 import resolve
from mmr1.planning import chips
from mmr1.planning import estimate
from mmr1.planning import search

_FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, with an optional argument after a colon.',
    flag_values=_FLAGS)
flags.DEFINE_string('topology', None, 'A slice, gpu:<count>, cpu or auto.',
                    flag_values=_FLAGS)
flags.DEFINE_list('chips', ['v5e', 'v5p', 'v6e'], "Of 'auto'.",
                  flag_values=_FLAGS)
flags.DEFINE_list('stages', None, 'Which; default: all that train.',
                  flag_values=_FLAGS)
flags.DEFINE_string('json', None, 'File to write the plan to.',
                    flag_values=_FLAGS)
flags.DEFINE_bool('help', False, 'Shows this.', flag_values=_FLAGS)

_GB = 1e9


def _gb(value: float | None) -> str:
  return '' if value is None else f'{value / _GB:.2f}'


def show(made: dict[str, Any], console: rich_console.Console) -> None:
  """Prints a plan."""
  mesh = ' x '.join(f'{k}={v}' for k, v in made['mesh'].items() if v > 1)
  console.print(
      f'{made["config"]}:{made["scale"]} on {made["topology"]} '
      f'({made["chips"]} chips, {made["memory"] / 2**30:.4g} GiB each), mesh '
      f'{mesh or "of one"}')
  for name, stage in made['stages'].items():
    _show_stage(name, stage, console)
  for name, why in made['unplanned'].items():
    console.print(f'  {name}: {why}')
  console.print(
      ('Fits' if made['fits'] else 'Does not fit')
      + f': at the fullest {made["spare"]:.0%} of a chip is left'
      + ('.' if _compiled(made) else ', temporaries not counted: estimates by '
         'formula compile nothing.'))


def _compiled(made: dict[str, Any]) -> bool:
  return any(row['compiled'] for stage in made['stages'].values()
             for row in stage['programs'].values())


def _show_stage(name: str, stage: dict[str, Any],
                console: rich_console.Console) -> None:
  if not stage['programs']:
    return
  table = rich_table.Table(title=f'{name} ({stage["kind"]}): GB on one chip')
  for column in ('', 'arguments', 'temporaries', 'outputs', 'aliased', 'beside',
                 'total', 'spare', 'TFLOP', 'by formula', 'GB moved', 'GB sent',
                 'bound, s'):
    table.add_column(column, justify='left' if not column else 'right')
  for label, row in stage['programs'].items():
    times = f' x {row["runs"] * row["trips"]:g}' if (
        row['runs'] * row['trips'] != 1) else ''
    table.add_row(
        label + times, *(_gb(row.get(key)) for key in (
            'arguments', 'temporaries', 'outputs', 'aliased', 'beside',
            'total')), f'{row["spare"]:+.0%}', f'{row["flops"] / 1e12:.3g}',
        f'{row["flops_by_formula"] / 1e12:.3g}', _gb(row['moved']),
        _gb(row['sent']), f'{row["seconds"]["step"]:.3g}')
  console.print(table)
  for label, row in stage['programs'].items():
    if row['collectives']:
      console.print(f'  {label}: ' + ', '.join(
          f'{c["count"]:g} {kind} {c["bytes"] / _GB:.3g} GB'
          for kind, c in row['collectives'].items()))
    if 'turn' in row:
      console.print(f'  {label} leaves {row["spare"]:+.0%}: turn '
                    f'{row["turn"]}, or take a larger slice.')
  split = ', '.join(f'{name} {part:.0%}'
                    for name, part in stage['split'].items())
  console.print(
      f'  a step takes {stage["step_seconds"]:.3g} s at least, all completions '
      f'at the cap: {split}; MFU {stage["mfu"]:.0%} at most')


def _keep(argv: list[str], made: dict[str, Any]) -> None:
  """Writes a plan, its command and the versions that it depends on."""
  if not _FLAGS.json:
    return
  versions = {}
  for name in ('jax', 'libtpu'):
    try:
      versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      versions[name] = None
  pathlib.Path(_FLAGS.json).write_text(json.dumps(
      {'command': ' '.join(['python -m mmr1.plan', *argv[1:]]),
       'versions': versions, **made}, indent=1) + '\n')


def main(argv: list[str]) -> None:
  if not command_line.own_flags(_FLAGS, argv, __doc__, {
      'config': 'file', 'topology': 'v5p:4x4x4'}):
    return
  console = rich_console.Console(highlight=False, width=160)
  note = rich_console.Console(stderr=True, highlight=False).print
  try:
    config = resolve.finalise(
        _CONFIG.value, config_flags.get_override_values(_FLAGS['config']))
    if _FLAGS.json:  # before minutes of work
      pathlib.Path(_FLAGS.json).parent.mkdir(parents=True, exist_ok=True)
    kw = dict(stages=_FLAGS.stages, note=note)
    if _FLAGS.topology == 'auto':
      tried = search.smallest(config, tuple(_FLAGS.chips), **kw)
    else:
      tried = [estimate.plan(config, chips.topology(_FLAGS.topology), **kw)]
  except ValueError as error:
    if isinstance(error, search.NoneWillDo):
      _keep(argv, {'fits': False, 'refused': error.refused})
    if not command_line.is_message(error):
      raise
    sys.exit(f'mmr1: {error}')
  show(tried[-1], console)
  if _FLAGS.topology == 'auto' and tried[-1]['spare'] < estimate.SPARE:
    console.print('None listed fits with some to spare; shown is what leaves '
                  'most.')
  _keep(argv, tried[-1])


if __name__ == '__main__':
  main(sys.argv)
