"""Useful tokens per second of SFT: packed against one example in a row.

  python -m experiments.bench.packing

The embedded model, float32, on examples of ragged length: questions and
completions are geometric (means of a quarter and of a third of the row, what
is longer is drawn again), two of three have a picture of 64x64 pixels. Both
ways update on as many rows of the same length, in turn, after two updates that
are not timed. The time is that of filling rows, of making arrays and of the update, without
decoding and tokenising. A token is useful if it is one of a prompt or of a
completion and no padding. Leaves experiments/results/bench/packing.json.
"""

import dataclasses
import json
import pathlib
import platform
import statistics
import time
from typing import Any

from absl import app
from absl import flags
import jax
import jaxlib
import numpy as np
from PIL import Image

from configs import common
from experiments.bench import machine
from mmr1 import compiles
from mmr1 import context
from mmr1 import optim
from mmr1 import records
from mmr1 import resolve
from mmr1 import mesh
from mmr1 import sharding
from mmr1 import training
from mmr1 import types
from mmr1 import update
from mmr1.data import datasets
from mmr1.data import packing
from mmr1.data import pipeline
from mmr1.losses import terms
from mmr1.stages import sft

_OUT = flags.DEFINE_string(
    'out', 'experiments/results/bench/packing.json', 'File for the result.')
_ROWS = flags.DEFINE_integer('rows', 8, 'Rows per update.')
_LENGTH = flags.DEFINE_integer('length', 256, 'P, and T, of a row.')
_UPDATES = flags.DEFINE_integer('updates', 8, 'Timed updates of each.')
_DEVICES = flags.DEFINE_integer('devices', 2, 'The CPU is divided into.')

_SIDE, _PATCHES = 64, 64  # pixels; patches of one picture
_POOL = 256  # examples that are drawn, again and again


def drawn(shape: pipeline.Shape, length: int) -> list[packing.Example]:
  """Examples of geometric lengths, at most `length` of either part."""
  rng, result = np.random.default_rng(0), []
  while len(result) < _POOL:
    k = len(result)
    images = () if k % 3 == 0 else (Image.fromarray(
        rng.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)),)
    pair = shape.encode(records.Example(
        uid=k, question='7' * rng.geometric(4 / length), images=images), k)
    completion = rng.geometric(3 / length)
    if completion <= length and not isinstance(pair, records.Broken):
      result.append(packing.Example(
          pair, rng.integers(20, 200, completion, np.int32)))
  return result


class Pool:
  """Examples in order, without end."""

  def __init__(self, examples: list[packing.Example]):
    self._examples, self._position = examples, 0

  def take(self, n: int) -> list[packing.Example]:
    """The next n."""
    start = self._position
    self._position += n
    return [self._examples[k % len(self._examples)]
            for k in range(start, self._position)]

  def state(self) -> dict[str, Any]:
    return {'position': self._position}

  def restore(self, state: dict[str, Any]) -> None:
    self._position = state['position']


class Way:
  """One way to fill rows, with parameters and a position of its own."""

  def __init__(self, policy, params, section, examples, shape, *, pack=False):
    self._shape, self._source = shape, Pool(examples)
    self._spread = policy.layout.spread
    length = shape.prompt_length
    self._room = packing.Room(length, length, shape.patches, length)
    self._packer = packing.Packer(self._source, self._room) if pack else None
    optimizer = optim.make(section.optimizer, params, 1000)
    self._state = policy.layout.own(types.TrainState(
        step=np.int32(0), params={'policy': params},
        opt={'policy': optimizer.tx.init(params)},
        aux={'guard': optim.init_guard()}))
    self._update = training.make_update(
        policy, optimizer, (update.Term('nll', terms.nll),), chunks=1)
    self._knobs = training.traced({'temperature': 1.0, 'coef/nll': 1.0})

  def step(self) -> dict[str, float]:
    """One update: its seconds, useful tokens, and how full the rows were."""
    started = time.perf_counter()
    if self._packer is None:
      taken = self._source.take(_ROWS.value)
      packed = [[one] for one in taken]
      block = sft.assemble(taken, self._shape, self._room.completion)
    else:
      packed = self._packer.take(_ROWS.value)
      block = sft.assemble_packed(packed, self._shape, self._room)
    batch = self._spread(block)
    self._state, metrics = self._update(
        self._state, (batch,), self._knobs, None)
    jax.block_until_ready(self._state)
    return {'seconds': time.perf_counter() - started,
            'tokens': int(block.prompts.mask.sum() + block.mask.sum()),
            'examples': sum(map(len, packed)), 'loss': float(metrics['loss']),
            'fill_frac': packing.metrics(packed, self._room)['pack/fill_frac']}


def ways() -> dict[str, Way]:
  """What is compared."""
  config = common.get_base()
  config.stages = ('sft',)
  config.data.prompt_tokens = length = _LENGTH.value
  config.data.patches = _PATCHES
  config = resolve.finalise(config, direct=('sft',))
  processor = datasets.open_processor(config.model, config.data)
  policy, params = context.open_model(
      config.model, datasets.model_path(config.model.path), processor,
      sharding.default())
  shape = datasets.shape(config.data, processor)
  examples = drawn(shape, length)
  wide = dataclasses.replace(shape, patches=4 * _PATCHES)
  return {name: Way(policy, params, config.sft, examples, form, pack=pack)
          for name, form, pack in (('one a row', shape, False),
                                   ('packed', wide, True))}


def summary(steps: list[dict[str, float]]) -> dict[str, float]:
  """Useful tokens per second of the median and of the fastest update."""
  rates = [step['tokens'] / step['seconds'] for step in steps]
  mean = lambda name: statistics.fmean(step[name] for step in steps)
  return {'tokens_per_s_median': round(statistics.median(rates)),
          'tokens_per_s_max': round(max(rates)),
          'seconds_median': round(
              statistics.median(step['seconds'] for step in steps), 4),
          'examples_mean': round(mean('examples'), 1),
          'fill_frac_mean': round(mean('fill_frac'), 3), 'steps': steps}


def main(argv):
  del argv
  mesh.cpu_devices(_DEVICES.value)
  counter, compiled, compared = compiles.CompileCounter(), {}, ways()
  for name, way in compared.items():
    before = counter.count, counter.seconds
    for _ in range(2):
      way.step()
    compiled[name] = (
        counter.count - before[0], round(counter.seconds - before[1], 1))
  before = counter.count
  found = {name: [] for name in compared}
  for _ in range(_UPDATES.value):
    for name, way in compared.items():
      found[name].append(way.step())
  rows = {name: {'compiles': compiled[name][0],
                 'compile_s': compiled[name][1], **summary(steps)}
          for name, steps in found.items()}
  for row in rows.values():
    row['times_one_a_row'] = round(
        row['tokens_per_s_median']
        / rows['one a row']['tokens_per_s_median'], 2)
  for name, row in rows.items():
    print(f'{name:10}', {k: v for k, v in row.items() if k != 'steps'})
  result = {
      'command': 'python -m experiments.bench.packing',
      'rows': _ROWS.value, 'length': _LENGTH.value,
      'devices': _DEVICES.value, 'compiles_while_timed': counter.count - before,
      'ways': rows, 'jax': jax.__version__, 'jaxlib': jaxlib.__version__,
      'python': platform.python_version(),
      'machine': f'{platform.machine()}, {machine.describe()["cores"]} CPU '
                 'cores'}
  path = pathlib.Path(_OUT.value)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
