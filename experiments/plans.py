"""The tables of plans in docs/pods.md, from results/plans.

  python -m experiments.plans

Each file there says the command that made it.
"""

import json
import pathlib
from typing import Any

PLANS = pathlib.Path(__file__).parent / 'results' / 'plans'
_HEAD = (
    '| scale | chips | mesh | the fullest program leaves | a step of '
    '`think_short`, `think_long` takes at least |\n|---|---|---|---|---|')
PAPERS = PLANS / 'papers'
_PAPERS_HEAD = (
    '| config | chips | mesh | stages | the fullest program leaves | a step of '
    'RL takes at least |\n|---|---|---|---|---|---|')


def table(folder: pathlib.Path = PLANS) -> str:
  """Markdown, a row for every plan, by size and chip."""
  paths = sorted(folder.glob('*.json'), key=lambda path: (
      int(path.stem.split('_')[3].removesuffix('b')), path.stem))
  return '\n'.join([_HEAD, *(
      _row(path.stem, json.loads(path.read_text())) for path in paths)])


def _row(name: str, plan: dict[str, Any]) -> str:
  *parts, chip = name.removeprefix('qwen2_5_vl_').split('_', 1)
  if 'refused' in plan:
    last = plan['refused'][-1]
    return f'| {parts[0]} | {chip}, all listed | | {last.split(": ", 1)[1]} | |'
  return ' | '.join([f'| {parts[0]}', plan['topology'], _mesh(plan),
                     _leaves(plan), f'{_steps(plan)} |'])


def papers_table(folder: pathlib.Path = PAPERS) -> str:
  """Markdown, a row for the plan of every paper's config at its own scale."""
  plans = [json.loads(path.read_text()) for path in sorted(
      folder.glob('*.json'))]
  return '\n'.join([_PAPERS_HEAD, *(
      f'| `{plan["config"]}:{plan["scale"]}` | {plan["topology"]} | '
      f'{_mesh(plan)} | {", ".join(plan["stages"])} | {_leaves(plan)} | '
      f'{_steps(plan)} |' for plan in plans)])


def _mesh(plan: dict[str, Any]) -> str:
  return ', '.join(f'{axis} {size}' for axis, size in plan['mesh'].items()
                   if size > 1)


def _leaves(plan: dict[str, Any]) -> str:
  """Of a chip's memory, beside the program that needs most."""
  spare, stage, program = min(
      (row['spare'], stage, program)
      for stage, found in plan['stages'].items()
      for program, row in found['programs'].items())
  leaves = f'{spare:.0%} ({stage}, {program})'
  if spare < 0:
    leaves += f', {-spare * plan["memory"] / 1e9:.1f} GB too little'
  return leaves


def _steps(plan: dict[str, Any]) -> str:
  return ', '.join(f'{found["step_seconds"]:.0f} s'
                   for found in plan['stages'].values()
                   if found['kind'] == 'rl')


if __name__ == '__main__':
  print(table(), papers_table(), sep='\n\n')
