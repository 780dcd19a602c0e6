"""How much host memory does fusing checkpoints take, beside what they hold?

  python -m experiments.bench.merge_models

Makes a base and two parents of random weights in a temporary folder (language
models of a Qwen2.5's widths, bfloat16) and fuses them in a process of its own,
as a stage of kind `merge` does between its measurement and its evaluation. Peak
memory is the largest resident set of that process, what its imports take given
apart.
"""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
import types

from absl import app
from absl import flags

from experiments.bench import load_checkpoint

_RESULT = flags.DEFINE_string(
    'result', 'experiments/results/merge_models.json', 'File for the result.')
_LAYERS = flags.DEFINE_integer('layers', 16, 'Of each model.')
_PART = flags.DEFINE_enum('part', None, ['make', 'fuse'], 'One, in --where.')
_WHERE = flags.DEFINE_string('where', None, 'Folder of the models.')
NAMES = ('base', 'vision', 'reasoning')


def make(folder: pathlib.Path, seed: int) -> None:
  """A checkpoint of random weights."""
  import jax
  import numpy as np
  from mmr1.models import checkpoints
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(dict(
      model_type='qwen2', vocab_size=32768, hidden_size=1536,
      intermediate_size=8960, num_hidden_layers=_LAYERS.value,
      num_attention_heads=12, num_key_value_heads=2, rms_norm_eps=1e-6,
      max_position_embeddings=32768, tie_word_embeddings=True,
      rope_theta=1e6)))
  module, structs = checkpoints.describe(folder, param_dtype='bfloat16')
  rng = np.random.default_rng(seed)
  block = (0.02 * rng.standard_normal(1_000_003)).astype('bfloat16')
  checkpoints.save(
      folder, module, jax.tree.map(lambda x: np.resize(block, x.shape), structs),
      dtype='bfloat16')


def fuse(root: pathlib.Path) -> dict:
  """Fuses in this process; bytes and seconds."""
  from etils import epath
  import numpy as np
  from mmr1 import fusing
  from mmr1 import merging
  from mmr1 import parents
  from mmr1 import resolve
  from mmr1 import trees
  from mmr1.models import checkpoints
  module, structs = checkpoints.describe(
      root / 'base', param_dtype='bfloat16', layers='scan')
  config = resolve.Section(dict(stages=(), model=dict(
      param_dtype='bfloat16', scalars=(), path='')))
  section = types.SimpleNamespace(
      leaves=('language/layers/.*',), rest='vision', embeddings='vision',
      where='merge')
  layers = trees.named(structs['language']['layers'])
  before, started = load_checkpoint.peak(), time.perf_counter()
  with contextlib.ExitStack() as stack:
    family = fusing.Family({name: stack.enter_context(parents.opened(
        config, None, module, str(root / name))) for name in NAMES},
                           section, module, structs)
    grams = family.grams()
    norms = {name: grams[:-1, i, i] for i, name in enumerate(family.parents)}
    family.write(epath.Path(root / 'out'), merging.closed_form(
        merging.Measured(norms)), 'bfloat16')
  size = lambda x: int(np.prod(x.shape)) * 2
  return dict(
      seconds=round(time.perf_counter() - started, 1),
      model_bytes=sum(map(size, trees.named(structs).values())),
      layer_bytes=sum(map(size, layers.values())) // _LAYERS.value,
      largest_tensor_bytes=max(
          size(structs['language']['embed']),
          *(size(x) // _LAYERS.value for x in layers.values())),
      imports_bytes=before, over_imports_bytes=load_checkpoint.peak() - before)


def main(_) -> None:
  if _PART.value == 'make':
    for seed, name in enumerate(NAMES):
      make(pathlib.Path(_WHERE.value) / name, seed)
    return
  if _PART.value == 'fuse':
    print(json.dumps(fuse(pathlib.Path(_WHERE.value))))
    return
  with tempfile.TemporaryDirectory() as root:
    def part(name):  # a process has the peak of who started it at least
      return subprocess.run(
          [sys.executable, '-m', 'experiments.bench.merge_models',
           f'--part={name}', f'--where={root}', f'--layers={_LAYERS.value}'],
          check=True, stdout=subprocess.PIPE, text=True,
          env={**os.environ, 'JAX_PLATFORMS': 'cpu'}).stdout
    part('make')
    took = json.loads(part('fuse'))
  result = dict(
      command='python -m experiments.bench.merge_models',
      layers=_LAYERS.value, **took,
      layers_held=round(took['over_imports_bytes'] / took['layer_bytes'], 2),
      versions={name: importlib.metadata.version(name)
                for name in ('jax', 'numpy', 'ml_dtypes')},
      python=platform.python_version(), machine=platform.machine(),
      cores=os.cpu_count())
  text = json.dumps(result, indent=2) + '\n'
  pathlib.Path(_RESULT.value).write_text(text)
  print(text)


if __name__ == '__main__':
  app.run(main)
