"""Stage `collect`: makes a data set; a paper's engine says how.

The engine is `(examples, ctx, init, **kwargs) -> (records, counts)`: records
with a completion each, or with a pair of them, the better one first, and counts
of what was filtered out. `mmr1.sampling.several` samples from a model of the
run. The file it leaves is JSONL with images beside it, the layout that sft and,
where there are pairs, preference read.
"""

from collections.abc import Mapping, Sequence
import functools
import hashlib
import io
import json
from typing import Any

from etils import epath
import jax
from PIL import Image

from mmr1 import context
from mmr1.data import datasets
from mmr1.data import encode
from mmr1.data import pipeline
from mmr1 import records
from mmr1 import resolve
from mmr1 import workdir as workdir_lib

_PNG_MODES = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA')


def setup(section: Any, stage: str, config: Any) -> Mapping[str, Any]:
  """Resolves the engine before anything runs."""
  if section.size < 1:
    raise ValueError(
        f'{stage}.size: got {section.size}; allowed: at least 1.')
  if section.data != 'train':
    raise ValueError(
        f"{stage}.data: got {section.data!r}; collect reads 'train'.")
  context.check_init(section.init, stage, config)
  engine = resolve.function(section.engine, 'mmr1.papers')
  kwargs = section.kwargs.as_dict()
  resolve.check_kwargs(engine, kwargs, f'{stage}.kwargs')
  return {'engine': functools.partial(engine, **kwargs)}


def run(
    ctx: context.Context, stage: str, section: Any, plan: Mapping[str, Any],
) -> None:
  """Reads `size` examples, runs the engine, writes the data set."""
  folder = ctx.path / 'data' / stage
  stream = pipeline.Stream(
      datasets.open_split(ctx.config, 'train'), ctx.shape(),
      max_broken_frac=ctx.config.data.max_broken_frac,
      worker_count=ctx.config.data.worker_count)
  # The stream is endless; a data set holds nothing twice.
  taken = stream.take(min(section.size, len(stream.mixture)))
  examples = list({example.uid: example for example, _ in taken}.values())
  stream.close()
  _check(examples, stage)
  made, counts = plan['engine'](examples, ctx, section.init)
  made, refused = _readable(made, ctx)
  counts = {**counts, 'refused': len(refused)}
  if not made:
    raise ValueError(
        f'{stage}: the engine kept none of {len(examples)} examples; counts: '
        f'{counts}.' + ''.join(f' The first: {r}.' for r in refused[:1]))
  if refused:
    ctx.logger.warn(f'{stage}: {len(refused)} completions cannot be tokens; '
                    f'the first: {refused[0]}')
  if jax.process_index() == 0:
    write(folder, made)
  workdir_lib.barrier(f'{stage} written')
  metrics = {f'collect/{name}': value for name, value in counts.items()}
  metrics['collect/kept'] = len(made)
  metrics['collect/broken'] = len(stream.broken)
  ctx.logger.truncate(stage, -1)
  ctx.logger.write(stage, 0, metrics)
  ctx.logger.samples(stage, 0, [
      {'prompt': e.asked, 'images': list(e.images), 'answer': e.answer,
       **_said(e)} for e in made[:16]])
  ctx.logger.flush()  # before DONE: a marker promises the rows
  ctx.checkpoints.finish(stage, {'counts': counts, 'kept': len(made)})


def _check(examples: Sequence[records.Example], stage: str) -> None:
  for example in examples:
    if example.videos:
      raise ValueError(
          f'{stage}: {example.source} (uid {example.uid}) has videos; collect '
          'writes text and images only.')


def _readable(
    made: Sequence[records.Example], ctx: context.Context,
) -> tuple[list[records.Example], list[str]]:
  """Those whose completions can be encoded, and why the others cannot."""
  kept, refused = [], []
  for example in made:
    try:
      encode.encode_given(example.given, ctx.processor)
      for said in example.completions:
        encode.encode_completion(said, ctx.processor)
    except ValueError as error:
      refused.append(f'{example.source} (uid {example.uid}): {error}')
    else:
      kept.append(example)
  return kept, refused


def path_of(ctx_path: epath.Path, stage: str) -> str:
  """The file a collect stage writes."""
  return str(ctx_path / 'data' / stage / 'train.jsonl')


def write(folder: epath.Path, made: Sequence[records.Example]) -> None:
  """JSONL and the PNGs it names.

  Columns: images, problem (or messages), answer, completion (of a pair chosen
  and rejected), uid, source, and where given: given, and what the matcher of
  answers reads, answer_type, choices and puzzle; and turns, see
  `records.Example.meta`.
  """
  images = folder / 'images'
  images.mkdir(parents=True, exist_ok=True)
  lines = []
  for example in made:
    names = [_put(images, image) for image in example.images]
    asked = ({'messages': [dict(turn) for turn in example.messages]}
             if example.messages else {'problem': example.question})
    lines.append(json.dumps({
        'images': [f'images/{name}' for name in names], **asked,
        'answer': example.answer, **_said(example),
        'uid': example.uid, 'source': example.source,
        **({'given': example.given} if example.given else {}),
        **{key: records.thawed(example.meta[key])
           for key in ('answer_type', 'choices', 'puzzle', 'turns')
           if key in example.meta}}) + '\n')
  workdir_lib.write_whole(folder / 'train.jsonl', ''.join(lines))


def _said(example: records.Example) -> dict[str, str]:
  names = ('chosen', 'rejected') if len(example.completions) == 2 else (
      'completion',)
  return dict(zip(names, example.completions))


def _put(folder: epath.Path, image: Image.Image) -> str:
  """Writes a PNG under a name made of its content; returns the name."""
  if image.mode not in _PNG_MODES:
    image = image.convert('RGB')
  buffer = io.BytesIO()
  image.save(buffer, 'PNG')
  content = buffer.getvalue()
  name = f'{hashlib.sha256(content).hexdigest()[:20]}.png'
  if not (folder / name).exists():
    temporary = folder / f'.{name}.tmp'  # a kill leaves no half of an image
    temporary.write_bytes(content)
    temporary.replace(folder / name)
  return name
