"""A run's model as a Hugging Face folder, for `python -m mmr1.export`.

Adapters become part of the kernels, or a folder of PEFT.
"""

import fnmatch
import json
from typing import Any, NamedTuple

from etils import epath
import jax
import numpy as np

from mmr1 import checkpoint
from mmr1 import context
from mmr1.data import datasets
from mmr1 import lineage
from mmr1.models import checkpoints as model_checkpoints
from mmr1.models import lora
from mmr1.models import tensor_files
from mmr1 import resolve
from mmr1 import trees
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
  opened = _open(workdir, out, stage, step, model)
  config, target, base = opened.config, opened.target, opened.base
  processor = datasets.open_processor(config.model, config.data)
  restored = opened.models.at(opened.stage, opened.step)
  target.mkdir(parents=True, exist_ok=True)
  for file in base.iterdir():
    if file.is_file() and any(
        fnmatch.fnmatch(file.name, pattern) for pattern in _COPIED):
      (target / file.name).write_bytes(file.read_bytes())
  (target / 'generation_config.json').write_text(
      json.dumps(_generation(base, processor), indent=2) + '\n')
  dtype = dtype or config.model.param_dtype
  model_checkpoints.save(
      target, opened.module, lora.merge(restored.tree), dtype=dtype,
      max_shard_bytes=max_shard_bytes)
  merged = (', adapters merged' if lineage.rank_of(config[opened.stage])
            else '')
  return (f'{opened.stage}, step {restored.step}{opened.told}{merged}, as '
          f'{dtype}: {target}' + _pixels(config.data))


def export_adapter(
    workdir: str,
    out: str,
    *,
    stage: str | None = None,
    step: int | str | None = None,
    dtype: str | None = None,
    model: str | None = None,
    base: str | None = None,
) -> str:
  """Writes a stage's adapters as a folder of PEFT, which names their base.

  Args:
    workdir, out, stage, step, model: see `export`.
    dtype: of the tensors, None: float32, as they are trained.
    base: an export of the stage that the adapters were added to, where that
      is not the base model: PEFT adds them to what is there.

  Returns:
    What was exported, in a sentence.

  Raises:
    ValueError: as `export`; the stage has no adapters, or trained more than
      them; `base` is missing, or is not what they were added to.
  """
  opened = _open(workdir, out, stage, step, model)
  name, models = opened.stage, opened.models
  _check_adapters(opened)
  footing = models.footing(name)
  restored = models.at(name, opened.step)
  if footing in opened.config.stages:
    if base is None:
      raise ValueError(
          f'--adapter: the adapters of {name!r} were added to what {footing!r} '
          'ended with, not to the base model. Export that first, without '
          f'--adapter and --dtype: --stage={footing} --out=<folder>; then say '
          '--base=<folder> here.')
    _check_base(base, opened, restored.tree)
  elif base is not None:
    raise ValueError(f'--base has no effect: the adapters of {name!r} were '
                     f'added to {footing!r}, which is a folder already.')
  else:
    base = str(opened.base) if footing == 'base' else footing
  model_checkpoints.save_adapter(
      opened.target, opened.module, restored.tree,
      alpha=opened.config[name].lora.alpha, dtype=dtype or 'float32',
      base=str(workdir_lib.absolute(base)))
  return (f'adapters of {name}, step {restored.step}{opened.told}, as '
          f'{dtype or "float32"}: {opened.target}\nThey belong to '
          f'{workdir_lib.absolute(base)}.')


def exported(workdir: str, *, stage: str | None = None,
             step: int | str | None = None, model: str | None = None) -> str:
  """`export`, once, to <workdir>/export/<stage>_<step>; the folder."""
  opened = _open(workdir, None, stage, step, model)
  name, number = opened.stage, opened.step
  if number == 'latest':
    number = opened.models.steps(name)[-1]
  target = workdir_lib.absolute(workdir) / 'export' / f'{name}_{number}'
  if not (target / 'config.json').exists():
    if target.exists():  # an interrupted one
      target.rmtree()
    export(workdir, str(target), stage=name, step=number, model=model)
  return str(target)


class _Opened(NamedTuple):
  """A run and what to take from it.

  Fields:
    config: of the run.
    target: the folder to write, or None.
    stage, step: whose checkpoint; told: what to say of it.
    base: folder of the base model.
    module: the model.
    models: the run's parameters.
  """
  config: resolve.Section
  target: epath.Path | None
  stage: str
  step: int | str
  told: str
  base: epath.Path
  module: Any
  models: lineage.Lineage


def _open(workdir, out, stage, step, model) -> _Opened:
  run, target = workdir_lib.absolute(workdir), (
      out and workdir_lib.absolute(out))
  config = run_config(run, model)
  if target and target.exists() and not (
      target.is_dir() and not any(target.iterdir())):
    raise ValueError(f'--out: {target} is not empty. Choose another folder, or '
                     'remove it if an interrupted export left it.')
  if not (run / 'checkpoints').exists():
    raise ValueError(f'--workdir: {run}: no stage has saved a checkpoint yet.')
  base = epath.Path(datasets.model_path(config.model.path))
  given = dict(param_dtype=config.model.param_dtype,
               **context.heads_of(config.model))
  module, structs = model_checkpoints.describe(base, **given)
  saved = checkpoint.Checkpoints(
      run, read_only=True, older=model_checkpoints.older(module))

  def load(path):
    return model_checkpoints.load(datasets.model_path(path), **given)[1]

  models = lineage.Lineage(
      config, saved, structs, lambda: load(config.model.path), load)
  name, number, told = _choose(models, stage, step)
  return _Opened(config, target, name, number, told, base, module, models)


def _check_adapters(opened: _Opened) -> None:
  """Refuses a stage that is more than adapters on a model, or has none."""
  name = opened.stage
  if not lineage.rank_of(opened.config[name]):
    raise ValueError(f'--adapter: {name!r} has none, its lora.rank is 0. '
                     'Without --adapter its whole model is exported.')
  while True:
    more = opened.config[name].lora.train
    if more:
      raise ValueError(
          f'--adapter: {name!r} also trained {more} in full (lora.train), '
          'which adapters do not hold. Without --adapter everything is '
          'exported as one model.')
    if not opened.models.goes_on(name):
      return
    name = opened.models.source(name)


def _check_base(folder: str, opened: _Opened, params: Any) -> None:
  """Refuses a folder that does not hold what is below the adapters."""
  found = trees.named(opened.models.folder(folder))
  for name, leaf in trees.named(lora.without(params)).items():
    if name not in found or not np.array_equal(
        jax.device_get(leaf), found[name]):
      raise ValueError(
          f'--base: {folder} is not what the adapters of {opened.stage!r} were '
          f'added to: {name!r} differs. Was it exported from another stage or '
          'step, or with --dtype?')


def run_config(run: epath.Path, model: str | None) -> resolve.Section:
  """The run's config; with `model` in place of its model.path.

  Raises:
    ValueError: no run there, or no base model.
  """
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


def _choose(models, stage, step) -> tuple[str, int | str, str]:
  """(stage, step, what to say of it)."""
  config, saved = models.config, models.checkpoints
  made = [name for name in config.stages
            if config[name].kind in context.MODELS]
  ended = {name: record['step'] for name in made
           if (record := saved.done(name)) is not None}
  there = {name: models.steps(name) for name in made}
  shown = ', '.join(f'{name} (steps {", ".join(map(str, steps))})'
                    for name, steps in there.items() if steps) or 'none yet'
  if stage is not None and stage not in made:
    raise ValueError(f'--stage: {stage!r} is no stage of this run that trains. '
                     f'{resolve.nearest(stage, made)}')
  if stage is None and not ended:
    raise ValueError(
        'No stage that trains has finished. --stage=<name> takes the last '
        f'checkpoint of one; checkpoints: {shown}.')
  name = stage or [*ended][-1]
  if not there[name]:
    raise ValueError(f'--stage: {name!r} has no checkpoint; there are: '
                     f'{shown}.')
  of = f' of {config[name].steps}' if 'steps' in config[name] else ''
  told = '' if name in ended else f'{of} (the stage has not finished)'
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
