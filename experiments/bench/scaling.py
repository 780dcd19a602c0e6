"""Does the cost of a step grow linearly, and what does a long one hold?

  python -m experiments.bench.scaling
      [--groups=4,8,16,32] [--lengths=64,128,256,512] [--rounds=5]

Step time of mmr1 on the model and picture of w1, two prompts, against G at
T = 64 and against T at G = 8, each point a process of its own; the slope is that
of log seconds over log size by least squares (1: proportional; below: a part
is shared). Memory: temporaries of the compiled update at V = 151,936 against
T, read from XLA, not run. Leaves experiments/results/bench/scaling.json and
scaling.png.
"""

import dataclasses
import json
import pathlib
import tempfile

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
from matplotlib import figure
import numpy as np

from experiments.bench import ablation
from experiments.bench import engine_mmr1
from experiments.bench import rounds
from experiments.bench import workloads
from mmr1 import forward
from mmr1 import types
from mmr1 import update
from mmr1.models import checkpoints

_GROUPS = flags.DEFINE_list('groups', ['4', '8', '16', '32'], 'Values of G.')
_LENGTHS = flags.DEFINE_list(
    'lengths', ['64', '128', '256', '512'], 'Values of T.')
_VOCAB = 151_936
_BASE = dataclasses.replace(
    workloads.WORKLOADS['w1'], prompts=2, group=8, length=64)


def points() -> dict[str, list[workloads.Workload]]:
  """The workloads of each sweep."""
  return {
      'G': [dataclasses.replace(_BASE, group=int(g), about=f'G = {g}')
            for g in _GROUPS.value],
      'T': [dataclasses.replace(_BASE, length=int(t), about=f'T = {t}')
            for t in _LENGTHS.value]}


def size(w: workloads.Workload, axis: str) -> int:
  return w.group if axis == 'G' else w.length


def slope(sizes: list[float], values: list[float]) -> float:
  """Least-squares slope of log values over log sizes."""
  return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def times() -> dict[str, dict]:
  """{axis: {size, seconds (least of the rounds), slope, replies}}."""
  found = {}
  for axis, sweep in points().items():
    replies = rounds.measure(
        {str(size(w, axis)): rounds.Lane('mmr1', w) for w in sweep}, 'step')
    least = [min(rounds.seconds(x)) for x in replies.values()]
    sizes = [size(w, axis) for w in sweep]
    parts = {part: [min(rounds.seconds(x, part)) for x in replies.values()]
             for part in ('sample', 'reference', 'update')}
    found[axis] = dict(
        size=sizes, seconds=least, parts=parts, slope=slope(sizes, least),
        rounds={k: x['rounds'] for k, x in replies.items()})
  return found


def temporaries(length: int) -> int:
  """Bytes of temporaries of the update's gradient at a large vocabulary."""
  hf = workloads.config(workloads.WORKLOADS['w1'])
  hf['text_config']['vocab_size'] = _VOCAB
  with tempfile.TemporaryDirectory() as folder:
    (pathlib.Path(folder) / 'config.json').write_text(json.dumps(hf))
    module, params = checkpoints.describe(folder, param_dtype='float32')
  policy = forward.Policy(module, (), 1, 0)
  n = 2
  i32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  prompts = types.Prompts(
      tokens=i32(n, 64), mask=jax.ShapeDtypeStruct((n, 64), bool),
      positions=i32(n, 64, 3), next_position=i32(n), media={}, uid=i32(n))
  block = jax.eval_shape(
      lambda p: ablation.block(p, group=8, length=length, words=1000), prompts)
  terms, knobs = engine_mmr1.objective(length)
  gradient = jax.jit(lambda p, b, k: update.gradient(
      policy, p, lambda x: x, (b,), terms, k))
  memory = gradient.lower(params, block, knobs).compile().memory_analysis()
  return memory.temp_size_in_bytes


def plot(found: dict[str, dict], memory: dict, path: pathlib.Path) -> None:
  """Seconds against G and T, log-log; bytes against T."""
  drawing = figure.Figure(figsize=(11, 3.5), layout='constrained')
  axes = drawing.subplots(1, 3)
  for ax, (axis, x) in zip(axes, found.items()):
    ax.loglog(x['size'], x['seconds'], 'o-', label='step')
    for part, values in x['parts'].items():
      ax.loglog(x['size'], values, '.--', label=part)
    ax.set(xlabel=axis, ylabel='s', title=f'slope {x["slope"]:.2f}')
    ax.legend()
  axes[2].semilogx(memory['length'], np.array(memory['bytes']) / 2**20, 'o-')
  axes[2].set_ylim(bottom=0)
  axes[2].set(xlabel='T', ylabel='MiB of temporaries, V = 151,936',
              title=f'slope {memory["slope"]:.2f}')
  for ax, ticks in zip(axes, (*(x['size'] for x in found.values()),
                              memory['length'])):
    ax.set_xticks(ticks, ticks)
    ax.minorticks_off()
  drawing.savefig(path, dpi=110)


def main(argv):
  del argv
  found = times()
  lengths = [int(t) for t in _LENGTHS.value]
  held = [temporaries(t) for t in lengths]
  memory = dict(length=lengths, bytes=held, slope=slope(lengths, held),
                vocabulary=_VOCAB)
  rounds.RESULTS.mkdir(parents=True, exist_ok=True)
  plot(found, memory, rounds.RESULTS / 'scaling.png')
  rounds.show('step of mmr1', [
      (axis, s, f'{t:.3f}', f'{x["slope"]:.2f}')
      for axis, x in found.items() for s, t in zip(x['size'], x['seconds'])],
              ('axis', 'size', 'least s', 'slope'))
  rounds.show('temporaries of the update', [
      ('T', t, f'{b / 2**20:.0f}', f'{memory["slope"]:.2f}')
      for t, b in zip(lengths, held)], ('axis', 'size', 'MiB', 'slope'))
  rounds.record('scaling', found, ['mmr1'], {}, memory=memory)


if __name__ == '__main__':
  app.run(main)
