"""From the `data` and `tasks` sections of a config to mixtures and shapes."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from etils import epath

from mmr1 import records
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
  buckets = tuple(data.patch_buckets) if processor.reads_media else ()
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


def form(data: Any, needs: str = 'answer') -> rows.RowFormat:
  """With the columns of the config; `needs` as of `open_expert`."""
  return rows.RowFormat.needing(
      needs, image=data.image_column, video=data.video_column,
      message=data.message_column, question=data.question_column,
      answer=data.answer_column, completion=data.completion_column,
      given=data.given_column, chosen=data.chosen_column,
      rejected=data.rejected_column)


def check(data: Any) -> None:
  """Refuses what only a stage would stumble over, hours later."""
  if not 0 <= data.max_broken_frac <= 1:
    raise ValueError(f'data.max_broken_frac: got {data.max_broken_frac}; '
                     'allowed: 0 to 1.')
  if data.worker_count < 0:
    raise ValueError(f'data.worker_count: got {data.worker_count}; allowed: 0 '
                     '(in this process) or more.')
  if data.homogeneous and data.path is not None:
    raise ValueError(
        f'data.homogeneous: True with data.path={data.path!r}, which is one '
        'source. Give every file a section of tasks with its `path`, name them '
        'in data.mixture, and set data.path to None.')


# What a section of `tasks` may say beside the keywords of its function.
_OF_MEMBER = ('instruction', 'rewards', 'imitate')


def member(config: Any, name: str) -> tuple[records.Member, dict[str, Any]]:
  """What a section of `tasks` says of its examples, and the rest of it.

  Raises:
    ValueError: it names a reward that does not exist.
  """
  section = config.tasks[name].as_dict()
  given = {key: section.pop(key) for key in _OF_MEMBER if key in section}
  for reward in given.get('rewards') or ():
    config.rewards[reward]
  return records.Member(name=name, **given), section


def _opened(config: Any, name: str, split: str) -> sources.Source | None:
  """A member of `data.mixture`: a procedural world, or a file if its section
  has a `path`. None: a file of demonstrations, which has no questions to be
  evaluated on."""
  data = config.data
  size = data.train_size if split == 'train' else data.eval_size
  if size < 1:
    raise ValueError(
        f'data.{split}_size: got {size}; allowed: at least 1.')
  about, section = member(config, name)
  where = f'tasks.{name}'
  if 'path' in section:
    path = section.pop('path')
    if section:
      raise ValueError(
          f'{where}: got {sorted(section)} beside a path; allowed {_OF_MEMBER}.')
    if about.imitate and split != 'train':
      return None
    needs = ('completion' if about.imitate else 'answer'
             if about.rewards != () else 'question')  # no rule is asked
    source = _file(path, form(data, needs), data, split)
  else:
    fn = resolve.function(section.pop('fn'), 'mmr1.data.tasks')
    resolve.check_kwargs(fn, section, where, ('uid_offset',))
    source = sources.TaskSource(
        fn, seed=config.seed, split=split, size=size, **section)
  return sources.Labelled(source, about)


def _file(path: str, form: rows.RowFormat, data: Any,
          split: str) -> sources.Source:
  """Of a file, what is held out of it or the rest."""
  source = files.open_path(path, form=form)
  if data.eval_path is not None:
    return source
  return sources.holdout(source, every=data.holdout)[split != 'train']


def _mixed(config: Any, split: str, order: int,
           block: int | None) -> sources.Mixture:
  data = config.data
  if len(data.mixture) != len(data.weights) or not data.mixture or not all(
      type(weight) in (int, float) and 0 < weight < float('inf')
      for weight in data.weights):
    raise ValueError(
        f'data.weights: got {data.weights} for data.mixture={data.mixture}; '
        'needed is at least one world and one positive number for each.')
  opened = {name: (source, weight) for name, weight in zip(
      data.mixture, data.weights)
            if (source := _opened(config, name, split)) is not None}
  if not opened:
    raise ValueError(
        f'data.mixture: {data.mixture} has demonstrations alone, and nothing '
        'to be evaluated on. Set data.eval_path to a file with answers.')
  members, weights = zip(*opened.values())
  return sources.Mixture(
      members, weights, seed=config.seed, order=order, block=block)


def open_split(
    config: Any, split: str, *, order: int = 0,
    prompts: int | None = None) -> sources.Mixture:
  """The mixture of the run's data, split 'train' or 'eval'.

  `data.path` (and `data.eval_path`) replace the mixture; without `eval_path`
  one of every `data.holdout` records of a file is kept for evaluation.

  Args:
    config: the resolved config.
    split: which.
    order: see `sources.Mixture`.
    prompts: of a step; with `data.homogeneous` as many in a row are of one
      member.
  """
  data = config.data
  train, seed = split == 'train', config.seed
  block = prompts if data.homogeneous else None
  if data.eval_path is not None and data.path is None and not any(
      'path' in config.tasks[name] for name in data.mixture):
    raise ValueError(
        f'data.eval_path: got {data.eval_path!r} without data.path; the '
        'procedural worlds have held-out problems of their own.')
  if not train and data.eval_path is not None:
    return sources.Mixture(
        [files.open_path(data.eval_path, form=form(data))], seed=seed,
        shuffle=False)
  if data.path is None:
    return _mixed(config, split, order, block)
  source = _file(data.path, form(data), data, split)
  return sources.Mixture([source], seed=seed, order=order, shuffle=train)


def open_completions(path: str, seed: int = 0, needs: str = 'completion', *,
                     order: int = 0) -> sources.Mixture:
  """A file as `collect` writes it; `needs` as of `open_expert`."""
  return sources.Mixture([files.open_path(
      path, form=rows.RowFormat.needing(needs))], seed=seed, order=order)


def open_expert(
    config: Any, data: str = 'train', needs: str = 'completion', *,
    order: int = 0) -> sources.Mixture:
  """A file that a stage reads for itself, without collect.

  Args:
    config: says what the columns are called.
    data: the file; 'train' is `data.path`, without what is held out of it.
    needs: what every record must have: 'completion', 'pair' or 'answer'.
    order: see `sources.Mixture`.
  """
  path = config.data.path if data == 'train' else data
  if path is None:
    raise ValueError(
        f"data='train' needs a file with a {needs} in every record: set "
        '--config.data.path=..., or data to a file or a collect stage.')
  source = files.open_path(path, form=form(config.data, needs))
  if data == 'train' and config.data.eval_path is None:
    source, _ = sources.holdout(source, every=config.data.holdout)
  return sources.Mixture([source], seed=config.seed, order=order)


def open_stage(config: Any, section: Any, written: Mapping[str, str],
               order: int) -> sources.Mixture:
  """What a stage of rl reads.

  Args:
    config: the resolved config.
    section: of the stage; reads data, experts, experts_required,
      prompts_per_step.
    written: {collect stage: the file it wrote}.
    order: see `sources.Mixture`; stages do not see the same prompts first.
  """
  data = section.data
  if data in written:
    return open_completions(written[data], config.seed, order=order)
  if section.experts or is_file(data):
    required = section.experts and section.experts_required
    return open_expert(
        config, data, 'completion' if required else 'answer', order=order)
  return open_split(config, 'train', order=order,
                    prompts=section.prompts_per_step)


def is_file(data: str) -> bool:
  """True if a stage's `data` names a file and not a stage."""
  return data.startswith('tfds:') or data.endswith(('.jsonl', '.parquet'))
