"""`--dry_run`: what a config would do, shown before anything trains.

What it sets itself, and per stage its shapes, its programs and their memory,
the first problem as the model reads it (its pictures as PNG files in
<workdir>/dry_run/, the only thing that is written), and the right answer, put
as a perfect completion, under every reward: one that does not give it full
marks is said, and makes the exit code 1. Weights are not read: where the model
or its data are missing, what can be said without them is.
"""

from collections.abc import Iterable
import json
from typing import Any, NamedTuple

from etils import epath
import jax
from ml_collections import config_dict

from mmr1 import banner
from mmr1 import batch
from mmr1 import config_checks
from mmr1 import console
from mmr1 import first_samples
from mmr1 import gold
from mmr1 import resolve
from mmr1 import runner
from mmr1 import sharding
from mmr1 import workdir as workdir_lib
from mmr1.data import datasets
from mmr1.data import files
from mmr1.data import processor as processor_lib
from mmr1.planning import described
from mmr1.reporting import settings

# In errors about what is not there.
_ABSENT = ('there is no ', 'no such file', 'needs a file', 'no folder')


class Found(NamedTuple):
  """What a config needs from outside.

  Fields:
    config: resolved; without files that are missing, the procedural worlds of
      its mixture stand for them.
    processor: of the model; None: it is missing.
    missing: a sentence for each thing that is.
  """
  config: Any
  processor: processor_lib.Processor | None
  missing: list[str]


def show(config: config_dict.ConfigDict, workdir: str,
         screen: console.Console, *, overrides: Iterable[str] = (),
         defaults: config_dict.ConfigDict | None = None) -> int:
  """Prints everything.

  Args:
    config: from a config file's get_config.
    workdir: of the run that it would be.
    screen: where to print.
    overrides, defaults: as of `runner.run`.

  Returns:
    The exit code: 1 if a reward does not give the right answer full marks, or
    a stage cannot work.

  Raises:
    ValueError: the config cannot be resolved.
  """
  final = resolve.finalise(config, overrides)
  runner.set_up_jax(final)
  screen.doing('opening data')
  found = look(config, overrides)
  screen.begin('dry run')
  screen.note(f'Dry run of {final.name}, scale {final.scale}, workdir '
              f'{workdir}: nothing is trained.')
  for text in (*found.missing, *config_checks.cut_answers(final)):
    screen.warn(text)
  _differences(final, screen)
  plans, wrong = _plans(found, screen)
  layout = _layout(final, screen)
  folder = workdir_lib.absolute(workdir) / workdir_lib.DRY_RUN
  seen: dict[str, str] = {}
  for name in final.stages:
    screen.doing(name)
    section = final[name]
    derived = banner.derived(section, layout) if layout else ''
    screen.note(f'\n[{name}] {section.kind}' + (
        f': {derived}' if derived not in ('', section.kind) else ''))
    if layout is not None:
      for line in described.lines(found.config, name, layout):
        screen.note(f'  {line}')
    wrong += _stage(found, name, plans.get(name), folder, seen, screen)
  screen.close()
  screen.note(f'\nDry run: {wrong} thing(s) are wrong, see above.' if wrong else
              '\nDry run: nothing is wrong.' + (
                  ' What is missing must be there before it runs.'
                  if found.missing else ''))
  return int(wrong > 0)


def look(config: config_dict.ConfigDict, overrides: Iterable[str]) -> Found:
  """Opens what is there."""
  config = config_dict.ConfigDict(config.copy_and_resolve_references())
  missing, processor = [], None
  for key in ('path', 'eval_path'):
    path = config.data[key]
    if path is not None and not files.exists(path):
      missing.append(
          f'data.{key}: there is no {path!r}: set --config.data.{key}=... '
          f'The worlds {tuple(config.data.mixture)} stand for it here.')
      config.data[key] = None
  for name in config.data.mixture:
    task = config.tasks[name]
    if 'path' in task and not files.exists(task.path):
      missing.append(
          f'tasks.{name}.path: there is no {task.path!r}: set --config.tasks.'
          f'{name}.path=... Sums of digits stand for it here.')
      imitated = 'imitate' in task and task.imitate  # with a completion
      with task.unlocked():
        del task.path
        task.fn = 'digits.reading' if imitated else 'digits.digits'
  final = resolve.finalise(config, overrides)
  try:
    processor = datasets.open_processor(final.model, final.data)
  except ValueError as error:
    missing.insert(0, f'{error} Prompts are shown without its tokens.')
  return Found(final, processor, missing)


def _differences(final: Any, screen: console.Console) -> None:
  """What the config sets that the base of its scale does not."""
  tree = json.loads(resolve.to_json(final))
  before = settings.parent(tree)
  if before is None:
    return
  rows = settings.differing([json.loads(json.dumps(before)), tree])
  lines, new = [], {}
  for key, (old, value) in rows:
    if old == settings.ABSENT:  # of one section in one line
      start, _, rest = key.rpartition('.') if key.count('.') < 2 else (
          '.'.join(key.split('.')[:2]), '', key.split('.', 2)[2])
      new.setdefault(start, []).append(f'{rest} {value}')
    elif old != '{}' or value != settings.ABSENT:  # else its keys are new
      lines.append(f'{key}: {old} -> {value}')
  lines += [f'{start}: new are {", ".join(values)}'
            for start, values in new.items()]
  screen.note(f'{len(rows)} keys differ from the base of its scale '
              '(configs/common.py):')
  for line in sorted(lines):
    screen.note(f'  {line}')


def _plans(found: Found, screen: console.Console) -> tuple[
    dict[str, Any], int]:
  """({stage: its plan}, how many cannot work)."""
  plans, wrong = {}, 0
  for name in found.config.stages:
    try:
      _, plans[name] = runner.plan_stage(found.config, name)
    except ValueError as error:
      if any(words in str(error) for words in _ABSENT):
        found.missing.append(str(error))
      else:
        wrong += 1
      screen.warn(f'{name}: {error}')
  return plans, wrong


def _layout(final: Any, screen: console.Console) -> sharding.Layout | None:
  try:
    layout = sharding.make(final.mesh)
    batch.check(final, layout)
    return layout
  except ValueError as error:
    screen.warn(f'{error} (of the {len(jax.devices())} devices here)')
    return None


# The first problems.


def _stage(found: Found, name: str, plan: Any, folder: epath.Path,
           seen: dict[str, str], screen: console.Console) -> int:
  """Shows a stage's first problems and scores them; how much is wrong."""
  config, section = found.config, found.config[name]
  if section.kind == 'merge':
    screen.note(f'  {section.base} + ' + ', '.join(
        f'{key} = {model}' for key, model in section.parents.as_dict().items())
                + f', by {section.rule.fn}; no example is trained on')
    return 0
  try:
    firsts = first_samples.of(config, name, found.processor)
  except (ValueError, OSError) as error:
    screen.warn(f'{name}: {error}')
    return int(not found.missing)
  rows, wrong = [], 0
  for first in firsts:
    _show(first, name, section, folder, seen, screen)
    scored = gold.of_stage(first, config, name, plan, found.processor)
    if scored is None:
      screen.note('    no right answer is known, so no reward can be asked')
      continue
    if isinstance(scored, gold.Scored):
      screen.note(f'    right, as {scored.form}: {scored.sample.text!r}'
                  + _too_long(scored.sample, section))
    label = first.example.member.name
    for row in scored.rows if isinstance(scored, gold.Scored) else scored:
      rows.append((label, *row))
      if row.ok is False:
        wrong += 1
        screen.warn(
            f'{name}: reward {row.name!r} does not give the right answer of '
            f'{label or "its problem"} its full marks: {row.why}'
            + (f'; it read {scored.sample.text!r}, where the answer is '
               f'{first.example.answer!r}' if isinstance(scored, gold.Scored)
               else ''))
  rows += [('', column, None, None, None, why)
           for column, why in gold.others(section)]
  if rows:
    screen.table([(label, row, _number(value), _number(full), {
        True: 'ok', False: 'WRONG', None: '-'}[ok], why)
                  for label, row, value, full, ok, why in rows],
                 ('problem', 'reward', 'value', 'full marks', 'ok', ''),
                 f'{name}: the right answer under its rewards')
  return wrong


def _show(first: first_samples.First, name: str, section: Any,
          folder: epath.Path, seen: dict[str, str],
          screen: console.Console) -> None:
  """The problem in text, and where its pictures are."""
  example = first.example
  said = f'{example.source or "a record"}, uid {example.uid}'
  key = f'{said}\n{first.text}'
  if key in seen:
    screen.note(f'  first problem: that of {seen[key]}')
    return
  seen[key] = name
  made = f'; as {first.made_by} reads it, which writes what is trained on' if (
      first.made_by) else ''
  size = '' if first.tokens is None else f', {first.tokens} tokens'
  screen.note(f'  first problem ({said}{size}{made}):')
  for line in (first.text or example.asked).splitlines():
    screen.note(f'    | {line}')
  for path in first_samples.save(folder, name, example):
    screen.note(f'    {path}')
  for text in () if first.made_by else example.completions[:2]:
    screen.note(f'    completion: {text!r}')
  if section.kind == 'detect':
    screen.note(f'    {len(example.meta["boxes"])} boxes of classes '
                f'{tuple(example.meta["classes"])}')
  if example.answer is not None:
    screen.note(f'    answer: {example.answer!r}')


def _too_long(sample: Any, section: Any) -> str:
  if 'max_new_tokens' not in section or (
      sample.length <= section.max_new_tokens):
    return ''
  return (f' ({sample.length} tokens, more than max_new_tokens='
          f'{section.max_new_tokens})')


def _number(value: float | None) -> str:
  return '-' if value is None else f'{value:g}'
