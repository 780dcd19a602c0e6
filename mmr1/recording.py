"""Batches in files, with all that their update needs besides parameters.

    <workdir>/rollouts/<stage>_<step>.npz     every `record_every` steps
    <workdir>/bad_batches/<stage>_<step>.npz  updates that were skipped

Arrays under their names: '0/completions/tokens' is of block 0 (`types.Block`),
'knobs/coef/policy' a number that was traced, 'rewards/<name>' f64[N, G] what
the samples earned; 'record' is JSON: stage, step, and dtypes NumPy lacks.

Blocks are kept as the update saw them, with old and reference log-probs: made
again they would need the reference's parameters, and need not be the same to
the last bit. Parameters and moments are those of a checkpoint or of the
stage's start. With several processes all of them call `save`, each sends its
part to the first, and that one writes.
"""

from collections.abc import Mapping
import io
import json
from typing import Any, NamedTuple
import zipfile

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import arrays as arrays_lib
from mmr1 import trees
from mmr1 import types
from mmr1 import workdir as workdir_lib

_HEAD = 'record'
_GIVEN = ('knobs', 'rewards')


class Record(NamedTuple):
  """What a file holds.

  Fields:
    stage, step: whose batch it is; steps count from 1, as in metrics.jsonl.
    batch: on the host.
    knobs: {name: f32[]} the traced numbers of the step.
    rewards: {name: f64[N, G]}; nan is no value. Empty in sft.
  """
  stage: str
  step: int
  batch: types.Batch
  knobs: dict[str, np.ndarray]
  rewards: dict[str, np.ndarray]


def save(
    path: Any, batch: types.Batch, given: Mapping[str, Mapping[str, Any]], *,
    stage: str, step: int) -> epath.Path:
  """Writes a whole file or nothing; returns its path.

  Args:
    path: local or gs://.
    batch: blocks.
    given: 'knobs' and 'rewards', see `Record`.
    stage, step: see `Record`.
  """
  arrays, dtypes = {}, {}
  for name, leaf in trees.named((batch, dict(given))).items():
    name = name.partition('/')[2]
    value = np.asarray(arrays_lib.fetch(leaf))
    if value.dtype == jnp.bfloat16:  # exact in float32
      dtypes[name], value = 'bfloat16', value.astype(np.float32)
    arrays[name] = value
  arrays[_HEAD] = np.asarray(
      json.dumps({'stage': stage, 'step': step, 'dtypes': dtypes}))
  path = epath.Path(path)
  if jax.process_index() == 0:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    workdir_lib.write_whole(path, buffer.getvalue())
  return path


def load(path: Any) -> Record:
  """Reads what `save` wrote.

  Raises:
    ValueError: no such file, one that is no record, or one of a stage that has
      no completions.
  """
  path = epath.Path(path)
  if not path.exists():
    raise ValueError(f'{path}: there is no such file. A run leaves them in its '
                     'rollouts/ (record_every) and bad_batches/.')
  try:
    with np.load(io.BytesIO(path.read_bytes())) as file:
      arrays = {name: file[name] for name in file.files}
    head = json.loads(str(arrays.pop(_HEAD)))
    for name, dtype in head['dtypes'].items():
      arrays[name] = arrays[name].astype(jnp.dtype(dtype))
    given = {part: {name.removeprefix(f'{part}/'): arrays.pop(name)
                    for name in [*arrays] if name.startswith(f'{part}/')}
             for part in _GIVEN}
    blocks = nested(arrays)
    numbered = '0' in blocks or not blocks
    batch = tuple(block(blocks[str(i)]) for i in range(
        len(blocks) if numbered else 0))
    record = Record(head['stage'], head['step'], batch, **given)
  except (zipfile.BadZipFile, EOFError, KeyError, TypeError, ValueError
          ) as error:
    raise ValueError(
        f'{path} is not a record of this version ({type(error).__name__}: '
        f'{error}).') from error
  if not numbered:
    raise ValueError(
        f'{path} is of stage {record.stage!r}, whose batches hold {min(blocks)!r}'
        ' and no completions. Replay reads those of stages of language models, '
        'as sft and rl.')
  return record


def nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """{'0/prompts/tokens': x} -> {'0': {'prompts': {'tokens': x}}}."""
  result: dict[str, Any] = {}
  for name, value in arrays.items():
    *parents, last = name.split('/')
    place = result
    for parent in parents:
      place = place.setdefault(parent, {})
    place[last] = value
  return result


def block(fields: dict[str, Any]) -> types.Block:
  """A block from its nested fields, which are used up."""
  prompts, said = fields.pop('prompts'), fields.pop('completions')
  media, inside = ({name: types.Media(**one) for name, one in part.pop(
      'media', {}).items()} for part in (prompts, said))
  # Names in there may have a slash of their own ('view/masked').
  fields['extra'] = trees.named(fields.pop('extra', {}))
  return types.Block(
      prompts=types.Prompts(**prompts, media=media),
      completions=types.Completions(**said, media=inside or None), **fields)
