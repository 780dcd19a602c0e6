"""How much host memory does loading take over what the parameters hold?

  python -m experiments.bench.load_checkpoint

Makes a random checkpoint in the form of a Qwen2.5-VL (bfloat16, shards of half
a gigabyte) in a temporary folder and loads it in processes of their own:
'host' as NumPy arrays, 'devices' leaf by leaf onto the device, as a run does.
Peak memory is the largest resident set of the process; on a CPU the arrays of
the device are part of it. What the imports take is given apart.
"""

import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags

_OUT = flags.DEFINE_string(
    'out', 'experiments/results/load_checkpoint.json', 'File for the result.')
_DEPTH = flags.DEFINE_integer('depth', 12, 'Layers; 12 make about 2 GB.')
_DTYPE = flags.DEFINE_string('param_dtype', 'bfloat16', 'Of the parameters.')
_STEP = flags.DEFINE_enum(
    'step', None, ['make', 'host', 'devices'], 'One part, on --folder.')
_FOLDER = flags.DEFINE_string('folder', None, 'Of the checkpoint.')
_SHARD_BYTES = 500_000_000


def config() -> dict:
  """config.json: the widths of small members of the family."""
  return dict(
      model_type='qwen2_5_vl', vocab_size=151936, hidden_size=1536,
      intermediate_size=8960, num_hidden_layers=_DEPTH.value,
      num_attention_heads=12, num_key_value_heads=2, rms_norm_eps=1e-6,
      max_position_embeddings=32768, tie_word_embeddings=True,
      rope_theta=1e6, rope_scaling=dict(type='mrope',
                                        mrope_section=[16, 24, 24]),
      vision_config=dict(
          depth=8, hidden_size=1280, intermediate_size=3420, num_heads=16,
          out_hidden_size=1536, fullatt_block_indexes=[3, 7]))


def make(folder: str) -> None:
  """A checkpoint of random weights."""
  import jax
  import numpy as np
  from mmr1.models import checkpoints
  with open(os.path.join(folder, 'config.json'), 'w') as f:
    json.dump(config(), f)
  module, structs = checkpoints.describe(folder, param_dtype='bfloat16')
  rng = np.random.default_rng(0)
  block = (0.02 * rng.standard_normal(1_000_003)).astype('bfloat16')
  params = jax.tree.map(lambda x: np.resize(block, x.shape), structs)
  checkpoints.save(folder, module, params, dtype='bfloat16',
                   max_shard_bytes=_SHARD_BYTES)


def peak() -> int:
  """Largest resident set of this process so far, in bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load(folder: str, where: str) -> dict:
  """Loads in this process and says what it took."""
  import jax
  from mmr1 import sharding
  from mmr1.models import checkpoints
  jax.block_until_ready(jax.numpy.zeros(1))  # the backend
  before, started = peak(), time.perf_counter()
  place = {} if where == 'host' else dict(place=sharding.default().place)
  _, params = checkpoints.load(folder, param_dtype=_DTYPE.value, **place)
  jax.block_until_ready(params)
  seconds = time.perf_counter() - started
  held = sum(x.nbytes * (1 if where == 'host' else len(x.addressable_shards))
             for x in jax.tree.leaves(params))
  over = peak() - held
  return dict(
      where=where, seconds=round(seconds, 2), held_bytes=held,
      peak_bytes=peak(), imports_bytes=before,
      over_held=round(over / held, 4),
      over_held_without_imports=round((over - before) / held, 4))


def main(_) -> None:
  if _STEP.value == 'make':
    make(_FOLDER.value)
    return
  if _STEP.value:
    print(json.dumps(load(_FOLDER.value, _STEP.value)))
    return
  with tempfile.TemporaryDirectory() as folder:
    def part(step):
      return subprocess.run(
          [sys.executable, '-m', 'experiments.bench.load_checkpoint',
           f'--step={step}', f'--folder={folder}', f'--depth={_DEPTH.value}',
           f'--param_dtype={_DTYPE.value}'],
          check=True, stdout=subprocess.PIPE, text=True,
          env={**os.environ, 'JAX_PLATFORMS': 'cpu'}).stdout
    part('make')
    files = [f for f in os.scandir(folder) if f.name.endswith('.safetensors')]
    result = dict(
        command='python -m experiments.bench.load_checkpoint',
        depth=_DEPTH.value, param_dtype=_DTYPE.value, shards=len(files),
        checkpoint_bytes=sum(f.stat().st_size for f in files),
        loads=[json.loads(part(where)) for where in ('host', 'devices')],
        versions={name: importlib.metadata.version(name)
                  for name in ('jax', 'numpy', 'ml_dtypes')},
        python=platform.python_version(), machine=platform.machine(),
        cores=os.cpu_count())
  text = json.dumps(result, indent=2) + '\n'
  with open(_OUT.value, 'w') as f:
    f.write(text)
  print(text)


if __name__ == '__main__':
  app.run(main)
