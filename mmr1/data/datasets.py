"""From the `data` and `tasks` sections of a config to mixtures and shapes."""

from collections.abc import Callable
import functools
from typing import Any

from etils import epath

from mmr1 import resolve
from mmr1.data import files
from mmr1.data import pipeline
from mmr1.data import processor as processor_lib
from mmr1.data import rows
from mmr1.data import sources


def open_processor(
    model: Any, data: Any, path: str | None = None) -> processor_lib.Processor:
  """The processor of the checkpoint, or of another one at `path`, with the
  pixel budget of `data`."""
  path = model_path(path or model.path)
  _check_vocabulary(epath.Path(path))
  return processor_lib.Processor.open(
      path, min_pixels=data.min_pixels,
      max_pixels=data.max_pixels, video_fps=data.video_fps,
      video_max_frames=data.video_max_frames, position_rule=model.position_rule)


def model_path(path: str) -> str:
  """`path`, or the place inside the installed package it names.

  'mmr1/assets/tiny' then works from any working directory.
  """
  if not epath.Path(path).exists() and path.startswith('mmr1/'):
    inside = epath.Path(__file__).parent.parent.parent / path
    if inside.exists():
      return str(inside)
  if not epath.Path(path).exists():
    raise ValueError(
        f'model.path: there is no {path!r}. Put a Hugging Face checkpoint '
        'folder there (config.json, safetensors, tokenizer), or say where it '
        'is with --config.model.path=...')
  return path


def _check_vocabulary(folder: epath.Path) -> None:
  """Where it is missing, transformers makes an empty one without a word."""
  names = {file.name for file in folder.iterdir()}
  if not (names & {'tokenizer.json', 'tokenizer.model', 'spiece.model'}
          or {'vocab.json', 'merges.txt'} <= names):
    raise ValueError(
        f'{folder / "tokenizer.json"} is missing, and there is no tokenizer in '
        'another form (vocab.json with merges.txt, or tokenizer.model) beside '
        'it. Download the tokenizer files of the model too.')


def template(
    data: Any, instruction: str | None = None) -> Callable[..., Any]:
  """The template function of the config, its text bound; `instruction`: in
  place of that of `data`."""
  fn = resolve.function(data.template, 'mmr1.data.template')
  given = {'system': data.system, 'instruction': (
      data.instruction if instruction is None else instruction)}
  kwargs = {k: v for k, v in given.items() if v is not None}
  resolve.check_kwargs(fn, kwargs, 'data')
  return functools.partial(fn, **kwargs) if kwargs else fn


def shape(
    data: Any, processor: processor_lib.Processor,
    instruction: str | None = None) -> pipeline.Shape:
  """How prompts are written, under another instruction if one is given, and
  what fits.

  For a model that reads text only there are no patches, whatever `data` says.

  Raises:
    ValueError: no room at all, buckets that are not below it in ascending
      order, or `patches` or one of its buckets is not whole attention windows.
  """
  unit = processor.window_patches
  wanted = {'prompt_tokens': data.prompt_tokens, 'patches': data.patches}
  if not processor.reads_media:
    del wanted['patches']
  for key, value in wanted.items():
    if value < 1:
      raise ValueError(f'data.{key}: got {value}; allowed: at least 1.')
  patches = wanted.get('patches', 0)
  if patches % unit:
    raise ValueError(
        f'data.patches: got {patches}; it must be a multiple of {unit} '
        '(one attention window), for example '
        f'{-(-patches // unit) * unit}.')
  buckets = tuple(data.patch_buckets)
  if not processor.reads_media:
    buckets = ()
  if any(size % unit or not 0 <= size < patches for size in buckets) or (
      list(buckets) != sorted({*buckets})):
    raise ValueError(
        f'data.patch_buckets: got {buckets}; allowed: ascending multiples of '
        f'{unit} below data.patches={patches}, 0 for batches without media.')
  lengths = tuple(data.prompt_buckets)
  if any(not 1 <= size < data.prompt_tokens for size in lengths) or (
      list(lengths) != sorted({*lengths})):
    raise ValueError(
        f'data.prompt_buckets: got {lengths}; allowed: ascending numbers from '
        f'1 to below data.prompt_tokens={data.prompt_tokens}.')
  return pipeline.Shape(
      processor=processor, template=template(data, instruction),
      prompt_length=data.prompt_tokens, patches=patches,
      prompt_buckets=lengths, patch_buckets=buckets)


def _form(data: Any, *, completions: bool) -> rows.RowFormat:
  return rows.RowFormat(
      image=data.image_column, video=data.video_column,
      message=data.message_column, question=data.question_column,
      answer=data.answer_column, completion=data.completion_column,
      given=data.given_column,
      require_answer=not completions, require_completion=completions)


def check(data: Any) -> None:
  """Refuses what only a stage would stumble over, hours later."""
  if not 0 <= data.max_broken_frac <= 1:
    raise ValueError(f'data.max_broken_frac: got {data.max_broken_frac}; '
                     'allowed: 0 to 1.')
  if data.worker_count < 0:
    raise ValueError(f'data.worker_count: got {data.worker_count}; allowed: 0 '
                     '(in this process) or more.')


def _worlds(config: Any, split: str) -> list[sources.Source]:
  """The procedural worlds of `data.mixture`."""
  data, result = config.data, []
  size = data.train_size if split == 'train' else data.eval_size
  if size < 1:
    raise ValueError(
        f'data.{split}_size: got {size}; allowed: at least 1.')
  for name in data.mixture:
    section = config.tasks[name].as_dict()
    fn = resolve.function(section.pop('fn'), 'mmr1.data.tasks')
    resolve.check_kwargs(fn, section, f'tasks.{name}', ('uid_offset',))
    result.append(sources.TaskSource(
        fn, seed=config.seed, split=split, size=size, **section))
  return result


def open_split(
    config: Any, split: str, *, order: int = 0) -> sources.Mixture:
  """The mixture of the run's data, split 'train' or 'eval'.

  `data.path` (and `data.eval_path`) replace the worlds; without `eval_path`
  one of every `data.holdout` records of the file is kept for evaluation.

  Args:
    config: the resolved config.
    split: which.
    order: see `sources.Mixture`.
  """
  data = config.data
  train, seed = split == 'train', config.seed
  if data.path is None:
    if data.eval_path is not None:
      raise ValueError(
          f'data.eval_path: got {data.eval_path!r} without data.path; the '
          'procedural worlds have held-out problems of their own.')
    if len(data.mixture) != len(data.weights) or not data.mixture or not all(
        0 < weight < float('inf') for weight in data.weights):
      raise ValueError(
          f'data.weights: got {data.weights} for data.mixture={data.mixture}; '
          'needed is at least one world and one positive number for each.')
    return sources.Mixture(
        _worlds(config, split), data.weights, seed=seed, order=order)
  form = _form(data, completions=False)
  if not train and data.eval_path is not None:
    return sources.Mixture(
        [files.open_path(data.eval_path, form=form)], seed=seed,
        shuffle=False)
  source = files.open_path(data.path, form=form)
  if data.eval_path is None:
    source = sources.holdout(source, every=data.holdout)[0 if train else 1]
  return sources.Mixture([source], seed=seed, order=order, shuffle=train)


def open_completions(
    path: str, seed: int = 0, *, order: int = 0) -> sources.Mixture:
  """A file of examples with completions, as `collect` writes it."""
  form = rows.RowFormat(require_answer=False, require_completion=True)
  return sources.Mixture(
      [files.open_path(path, form=form)], seed=seed, order=order)


def open_expert(
    config: Any, data: str = 'train', *, completions: bool = True,
    order: int = 0) -> sources.Mixture:
  """A file that a stage reads for itself, without collect.

  Args:
    config: says what the columns are called.
    data: the file; 'train' is `data.path`, without what is held out of it.
    completions: every record needs one; else every record needs an answer.
    order: see `sources.Mixture`.
  """
  path = config.data.path if data == 'train' else data
  if path is None:
    raise ValueError(
        "sft: data='train' needs a file with completions: set --config.data."
        "path=..., or data to a file or the name of a collect stage.")
  source = files.open_path(path, form=_form(
      config.data, completions=completions))
  if data == 'train' and config.data.eval_path is None:
    source, _ = sources.holdout(source, every=config.data.holdout)
  return sources.Mixture([source], seed=config.seed, order=order)


def is_file(data: str) -> bool:
  """True if a stage's `data` names a file and not a stage."""
  return data.startswith('tfds:') or data.endswith(('.jsonl', '.parquet'))
