"""Adapters as a folder of PEFT: adapter_config.json, adapter_model.safetensors.

The layout is that of https://huggingface.co/docs/peft (checkpoint format): a
tensor is named base_model.model.<module of transformers>.lora_A.weight.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
from typing import Any

from etils import epath
import numpy as np

from mmr1.models import layers
from mmr1.models import tensor_files
from mmr1.models import weights

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_A, _B, _ = layers.ADAPTER


def write(
    folder: epath.PathLike,
    table: Sequence[weights.Weight],
    leaves: Mapping[str, Any],
    *,
    in_memory: Callable[[str], str],
    alpha: float,
    base: str,
    dtype: Any,
) -> None:
  """Writes the adapters among `leaves`; the config, last, makes it a folder.

  Args:
    folder: made if absent.
    table: one row per leaf of the model.
    leaves: {path: array}, adapters included.
    in_memory: a tensor's name in the table -> in a model of transformers.
    alpha: of the scale, alpha / rank.
    base: where the model below is.
    dtype: of the tensors in the file.

  Raises:
    ValueError: nan or inf.
  """
  folder = epath.Path(folder)
  rows = {row.path.removesuffix('kernel'): row for row in table if row.kernel}
  adapted = [layer for layer in rows if layer + _A in leaves]
  assert len(adapted) == sum(path.endswith(f'/{_A}') for path in leaves)
  modules = {
      layer: [in_memory(name).removesuffix('.weight')
              for name in rows[layer].names] for layer in adapted}
  shapes = {}
  for layer in adapted:
    for part, shape in zip('AB', _shapes(rows[layer], leaves, layer)):
      for module in modules[layer]:
        shapes[f'base_model.model.{module}.lora_{part}.weight'] = shape
  tensor_files.write_one(
      folder / WEIGHTS, shapes, _tensors(rows, leaves, adapted), dtype=dtype)
  tensor_files.write_text(folder / CONFIG, json.dumps({
      'peft_type': 'LORA',
      'task_type': 'CAUSAL_LM',
      'base_model_name_or_path': base,
      'inference_mode': True,
      'r': int(leaves[adapted[0] + _A].shape[-1]),
      'lora_alpha': int(alpha) if alpha == int(alpha) else alpha,
      'lora_dropout': 0.0,
      'bias': 'none',
      'fan_in_fan_out': False,
      'init_lora_weights': True,
      'use_rslora': False,
      'use_dora': False,
      'modules_to_save': None,
      'target_modules': _targets(
          {in_memory(name).removesuffix('.weight')
           for row in rows.values() for name in row.names},
          sorted(sum(modules.values(), []))),
  }, indent=2, sort_keys=True) + '\n')


def _shapes(row, leaves, layer) -> list[tuple[int, ...]]:
  """Of A and B in the file. Those of a convolution have its axes: A takes the
  patch, B has axes of 1."""
  a, b = (leaves[layer + name].shape[-2:] for name in (_A, _B))
  more = row.file_shape[1:] or a[:1]
  return [(a[1], *more), (b[1], b[0], *(1 for _ in more[1:]))]


def _tensors(rows, leaves, adapted) -> Iterator[np.ndarray]:
  """In the order of `write`: all A of a layer, then all B."""
  for layer in adapted:
    row = rows[layer]
    for name, shape in zip((_A, _B), _shapes(row, leaves, layer)):
      leaf = np.asarray(leaves[layer + name])
      for x in leaf if row.layers else leaf[None]:
        yield x.T.reshape(shape)


def _targets(known: set[str], adapted: list[str]) -> list[str]:
  """Short names ('q_proj') where they mean these modules and no others."""
  short = {module.rpartition('.')[2] for module in adapted}
  meant = {module for module in known if module.rpartition('.')[2] in short}
  # A number ('mlp.0') would mean every member of every list of modules.
  plain = all(map(str.isidentifier, short)) and meant == set(adapted)
  return sorted(short) if plain else adapted
