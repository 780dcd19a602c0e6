"""mmr1 in the card benchmark: ceilings of the card, decode, update.

A process of its own per job, started by `experiments.bench.card` with the job
as JSON.
"""

import functools
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import ablation
from experiments.bench import card_attention
from experiments.bench import card_rows
from experiments.bench import card_shapes
from experiments.bench import card_trace
from mmr1 import forward
from mmr1.losses import terms
from mmr1.models import qwen_vl
from mmr1 import positions
from mmr1.sampling import sample
from mmr1 import types
from mmr1 import update as update_lib

Shape = card_shapes.Shape
_TRACED = (8, 24)  # tokens of the two traces whose difference is decoding


def policy(shape: Shape, *, ends: bool, **run: Any) -> forward.Policy:
  """The policy; rows never end if not `ends`."""
  config = qwen_vl.Config.from_hf(
      shape.config(), compute_dtype=shape.dtype, **run)
  banned = shape.banned if ends else (*shape.banned, shape.eos)
  return forward.Policy(
      qwen_vl.build(config), banned, shape.eos, shape.pad)


def parameters(shape: Shape) -> Any:
  """Random ones, made on the device by one program."""
  config = qwen_vl.Config.from_hf(shape.config(), layers='scan')

  @jax.jit
  def make(key):
    return jax.tree.map(lambda x: x.astype(shape.dtype),
                        qwen_vl.init_params(config, key))
  return jax.block_until_ready(make(jax.random.key(0)))


def prompts(shape: Shape, work: card_shapes.Work) -> types.Prompts:
  """Half of the text, one random image, the other half; nothing is padded."""
  rng, n, grid = np.random.default_rng(0), work.prompts, (1, *[work.side] * 2)
  kw = dict(merge=shape.merge, window_cells=shape.window // shape.merge)
  layout = positions.window_layout(grid, **kw)
  if layout.min() < 0:
    raise ValueError(f'{work.side} patches are no whole windows.')
  p, count = shape.prompt_tokens(work), positions.vision_tokens(
      grid, shape.merge)
  tokens = rng.integers(0, shape.words, (n, p)).astype(np.int32)
  first = (work.text - 2) // 2 + 1
  tokens[:, first - 1] = shape.vision_start
  tokens[:, first:first + count] = shape.image
  tokens[:, first + count] = shape.vision_end
  rope, following = positions.rope_index(
      tokens[0], [(*grid, None)], image_id=shape.image, video_id=shape.video,
      merge=shape.merge, tokens_per_second=2)
  slot = np.full((n, p), -1, np.int32)
  slot[:, first:first + count] = positions.cell_slots(grid, **kw)
  place = positions.patch_positions(grid, shape.merge)[layout]
  media = types.Media(
      patches=rng.standard_normal(
          (n, len(layout), shape.patch_values), np.float32),
      position=np.tile(place, (n, 1, 1)),
      segment=np.ones((n, len(layout)), np.int32), slot=slot)
  return jax.device_put(types.Prompts(
      tokens=tokens, mask=np.ones((n, p), bool),
      positions=np.tile(rope, (n, 1, 1)),
      next_position=np.full(n, following, np.int32),
      media={'vision': media}, uid=np.arange(n, dtype=np.int32)))


def _seconds(fn, *args, **kw):
  return card_rows.seconds(
      functools.partial(fn, *args), jax.block_until_ready, **kw)


def _peak() -> int | None:
  """Most bytes this process has had on the device; None: it does not say."""
  stats = jax.devices()[0].memory_stats()
  return stats and stats.get('peak_bytes_in_use')


def ceilings(shape: Shape) -> None:
  """What the card reaches: bytes copied and matrix operations per second."""
  def about():
    device = jax.devices()[0]
    return dict(device=device.device_kind, platform=device.platform,
                jax=jax.__version__)

  def copied():
    x = jnp.zeros(shape.copy_bytes // 4, jnp.float32)
    found = {}
    # A copy engine's and a kernel's; the faster is the ceiling.
    for name, fn in (('copy', jnp.copy), ('kernel', lambda x: x + 1)):
      took = _seconds(jax.jit(fn), x, reps=20, calls=4)
      found[name] = 2 * x.nbytes / took
    return dict(bytes_per_second=max(found.values()), each=found)

  def product():
    size = shape.product
    a, b = (jax.random.normal(key, (size, size), jnp.dtype(shape.dtype))
            for key in jax.random.split(jax.random.key(0)))
    took = _seconds(jax.jit(jnp.matmul), a, b, reps=12, calls=10)
    return dict(flops_per_second=2 * size**3 / took)
  for name, measure in (
      ('device', about), ('copy', copied), ('product', product)):
    card_rows.attempt(dict(part='ceilings', name=name), measure)


def decode(shape: Shape, layers: list[str], trace: bool) -> None:
  """Seconds per token of all rows, with layers 'scan' or 'unrolled'."""
  params, batch = parameters(shape), prompts(shape, shape.decode)
  for how in layers:
    # A token's attention is XLA's anyway: should the prompts' kernel fail, the
    # rest can be measured without it.
    for backend in ('auto', 'xla'):
      pol = policy(shape, ends=False, attention=backend, layers='scan')
      row = card_rows.attempt(
          dict(part='decode', engine='mmr1', attention=backend, layers=how),
          functools.partial(_decode, shape, pol, params, batch,
                            sample.Decoding(layers=how), trace))
      if 'error' not in row:
        break


def _decode(shape, pol, params, batch, decoding, trace):
  w = shape.decode

  def run(count):
    rollout = sample.sample(
        pol, params, batch, jax.random.key(1),
        sample.knobs(max_new_tokens=count), jnp.int32(0), group=w.group,
        length=w.length, decoding=decoding)
    return jax.block_until_ready(rollout.completions.kind)

  started = time.perf_counter()
  drawn = int(np.asarray(run(w.length) != types.KIND_PAD).sum())
  first = time.perf_counter() - started
  if drawn != w.prompts * w.group * w.length:
    raise RuntimeError(f'{drawn} tokens drawn: rows have ended.')
  whole, half = (_seconds(run, count, reps=3)
                 for count in (w.length, w.length // 2))
  prefill = _seconds(jax.jit(pol.prompt_pass), params, batch, reps=5)
  size = jnp.dtype(shape.dtype).itemsize
  result = dict(
      seconds_per_token=(whole - half) / (w.length - w.length // 2),
      prefill_seconds=prefill, whole_seconds=whole, half_seconds=half,
      compile_seconds=first - whole, rows=w.prompts * w.group,
      bytes=card_shapes.token_bytes(shape, size, 0.75 * w.length),
      bytes_allocated=card_shapes.token_bytes(shape, size, w.length),
      peak_bytes=_peak())
  if trace:
    result['trace'] = _guarded(lambda: _token_kernels(run, w.length))
  return result


def _token_kernels(run, length):
  """Kernels of one token."""
  few, more = (min(count, length) for count in _TRACED)
  short, long = (card_trace.of(functools.partial(run, count))
                 for count in (few, more))
  return card_trace.less(long, short, max(more - few, 1))


def _guarded(trace):
  """`card_trace.summary`, or why there is none; the times stay."""
  try:
    return card_trace.summary(trace())
  except Exception as error:  # pylint: disable=broad-except
    return dict(error=f'{type(error).__name__}: {str(error)[:300]}')


def update(shape: Shape, layers: list[str], backends: list[str],
           remat: list[str], chunks: list[int], trace: bool) -> None:
  """Gradient of a GRPO objective; of `chunks` the first that fits."""
  params = parameters(shape)
  w = shape.update
  block = ablation.block(
      prompts(shape, w), group=w.group, length=w.length, words=shape.words)
  block = block.replace(ref=None, extra={})
  for backend in backends:
    for how in layers:
      for kept in remat:
        run = dict(attention=backend, layers=how, remat=kept)
        _first_that_fits(shape, run, params, block, chunks, trace)


def _first_that_fits(shape, run, params, block, chunks, trace):
  pol = policy(shape, ends=True, **run)
  for pieces in chunks:
    row = card_rows.attempt(
        dict(part='update', engine='mmr1', **run, chunks=pieces),
        functools.partial(_update, shape, pol, params, block, pieces, trace))
    # Other errors would come again.
    if 'RESOURCE_EXHAUSTED' not in row.get('error', ''):
      return


def _update(shape, pol, params, block, chunks, trace):
  w = shape.update
  objective = (update_lib.Term('policy', terms.policy),)
  knobs = {'temperature': jnp.float32(1), 'coef/policy': jnp.float32(1)}

  def gradient(params, block):
    return update_lib.gradient(
        pol, params, lambda p: p, (block,), objective, knobs, chunks=chunks)

  started = time.perf_counter()
  program = jax.jit(gradient).lower(params, block).compile()
  compiled = time.perf_counter() - started
  grads, metrics = program(params, block)
  norm = float(jax.jit(_norm)(grads))
  del grads
  took = _seconds(program, params, block, reps=3)
  result = dict(
      seconds=took, compile_seconds=compiled, loss=float(metrics['loss']),
      gradient_norm=norm, tokens=w.prompts * w.group * w.length,
      flops=card_shapes.update_flops(shape, repeated=False),
      peak_bytes=_peak(), program_bytes=_memory(program))
  if trace:
    result['trace'] = _guarded(
        lambda: card_trace.of(lambda: program(params, block)))
  return result


def _norm(tree):
  return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32)))
                      for x in jax.tree.leaves(tree)))


def _memory(program) -> int | None:
  """Arguments, results and what lies between, as the compiler plans them."""
  plan = program.memory_analysis()
  return plan and (plan.argument_size_in_bytes + plan.output_size_in_bytes
                   + plan.temp_size_in_bytes - plan.alias_size_in_bytes)


PARTS = {'ceilings': ceilings, 'decode': decode, 'update': update,
         'attention': card_attention.measure}


def main(argv: list[str]) -> None:
  job = json.loads(argv[1])
  shape, part = card_shapes.SHAPES[job.pop('shape')], job.pop('part')
  PARTS[part](shape, **job)


if __name__ == '__main__':
  main(sys.argv)
