"""A run's model as a Hugging Face folder, for `python -m mmr1.export`."""

import fnmatch
import json
from typing import Any

from etils import epath

from mmr1 import checkpoint
from mmr1 import context
from mmr1.data import datasets
from mmr1.models import checkpoints as model_checkpoints
from mmr1.models import tensor_files
from mmr1 import resolve
from mmr1 import workdir as workdir_lib

# Of the base model's folder; what is beside these is weights or of no use.
_COPIED = (
    'tokenizer*', 'vocab.*', 'merges.txt', 'special_tokens_map.json',
    'added_tokens.json', 'spiece.model', 'chat_template.*',
    '*processor_config.json', 'LICENSE*', 'NOTICE*')


def export(
    workdir: str,
    out: str,
    *,
    stage: str | None = None,
    step: int | str | None = None,
    dtype: str | None = None,
    model: str | None = None,
    max_shard_bytes: int = tensor_files.MAX_SHARD_BYTES,
) -> str:
  """Writes a Hugging Face folder; config.json, without which it is none, last.

  Args:
    workdir: of the run, which is only read: it may be going on.
    out: the folder, new or empty.
    stage: None: the last finished one that trains.
    step: a number, 'best', or None for what the stage ended with; the last
      checkpoint of a stage that has not ended.
    dtype: of the weights, None: the run's model.param_dtype.
    model: where the base model is, if not at the run's model.path.
    max_shard_bytes: larger weights are written as shards and an index.

  Returns:
    What was exported, in a sentence.

  Raises:
    ValueError: no run, stage or checkpoint there; `out` is not empty; the base
      model is gone, incomplete or of other sizes.
  """
  run, target = map(workdir_lib.absolute, (workdir, out))
  config = _config(run, model)
  if target.exists() and not (target.is_dir() and not any(target.iterdir())):
    raise ValueError(f'--out: {target} is not empty. Choose another folder, or '
                     'remove it if an interrupted export left it.')
  if not (run / 'checkpoints').exists():
    raise ValueError(f'--workdir: {run}: no stage has saved a checkpoint yet.')
  saved = checkpoint.Checkpoints(run, read_only=True)
  name, number, told = _choose(config, saved, stage, step)
  base = epath.Path(datasets.model_path(config.model.path))
  processor = datasets.open_processor(config.model, config.data)
  module, structs = model_checkpoints.describe(
      base, param_dtype=config.model.param_dtype,
      scalars=tuple(config.model.scalars))
  restored = saved.restore(name, {'params': {'policy': structs}}, step=number,
                           only=('params/policy/.*',))
  target.mkdir(parents=True, exist_ok=True)
  for file in base.iterdir():
    if file.is_file() and any(
        fnmatch.fnmatch(file.name, pattern) for pattern in _COPIED):
      (target / file.name).write_bytes(file.read_bytes())
  (target / 'generation_config.json').write_text(
      json.dumps(_generation(base, processor), indent=2) + '\n')
  dtype = dtype or config.model.param_dtype
  model_checkpoints.save(
      target, module, restored.tree['params']['policy'], dtype=dtype,
      max_shard_bytes=max_shard_bytes)
  return (f'{name}, step {restored.step}{told}, as {dtype}: {target}'
          + _pixels(config.data))


def _config(run: epath.Path, model: str | None) -> resolve.Section:
  """The run's config; with `model` in place of its model.path."""
  file = run / 'config.json'
  values = resolve.from_json(file.read_text()) if file.exists() else {}
  if 'stages' not in values:
    raise ValueError(f'--workdir: {file} '
                     + ('is not that of a run of mmr1.' if values
                        else 'does not exist: there is no run.'))
  path = model or values['model']['path']
  try:
    datasets.model_path(path)
  except ValueError as error:
    raise ValueError(
        f'--model: there is no {path!r}.' if model else
        f'{file}: model.path is {path!r}, which is not there (any more). Say '
        'where the base model is now with --model=<folder>.') from error
  return resolve.Section({**values, 'model': {**values['model'], 'path': path}})


def _choose(config, saved, stage, step) -> tuple[str, int | str, str]:
  """(stage, step, what to say of it)."""
  trains = [name for name in config.stages
            if config[name].kind in context.TRAINS]
  ended = {name: record['step'] for name in trains
           if (record := saved.done(name)) is not None}
  there = {name: saved.steps(name) for name in trains}
  shown = ', '.join(f'{name} (steps {", ".join(map(str, steps))})'
                    for name, steps in there.items() if steps) or 'none yet'
  if stage is not None and stage not in trains:
    raise ValueError(f'--stage: {stage!r} is no stage of this run that trains. '
                     f'{resolve.nearest(stage, trains)}')
  if stage is None and not ended:
    raise ValueError(
        'No stage that trains has finished. --stage=<name> takes the last '
        f'checkpoint of one; checkpoints: {shown}.')
  name = stage or [*ended][-1]
  if not there[name]:
    raise ValueError(f'--stage: {name!r} has no checkpoint; there are: '
                     f'{shown}.')
  told = '' if name in ended else (
      f' of {config[name].steps} (the stage has not finished)')
  if step is None:
    return name, ended.get(name, 'latest'), told
  number = saved.best(name) if step == 'best' else (
      int(step) if str(step).isdecimal() else None)
  if number not in there[name]:
    raise ValueError(
        f'--step: got {step}; allowed are the checkpoints of {name!r}, '
        f"{there[name]}, and 'best' where one was evaluated.")
  return name, number, told


def _pixels(data: Any) -> str:
  """What the copied settings of the image processor do not say."""
  if data.min_pixels is None and data.max_pixels is None:
    return ''
  return (f'\nThe run had data.min_pixels={data.min_pixels}, data.max_pixels='
          f'{data.max_pixels}; preprocessor_config.json is the base model\'s.')


def _generation(base: epath.Path, processor: Any) -> dict[str, Any]:
  """The base model's, which stops at the token that ended a turn here."""
  file = base / 'generation_config.json'
  result = tensor_files.read_json(file) if file.exists() else {}
  eos = result.get('eos_token_id')
  eos = eos if isinstance(eos, list) else [] if eos is None else [eos]
  if processor.eos_id not in eos:
    result['eos_token_id'] = [processor.eos_id, *eos]
  return {'pad_token_id': processor.pad_id, **result}
