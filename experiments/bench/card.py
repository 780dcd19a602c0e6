"""One accelerator: how near do decode and update come to what it can do?

  python -m experiments.bench.card
      [--shape=3b] [--engines=mmr1,torch] [--parts=ceilings,decode,...]
      [--layers=scan,unrolled] [--attention=auto,xla,triton]

A Qwen2.5-VL with random weights, everything made on the device. Decoding is
held against the bytes that a token must read and the bandwidth of a copy, the
update against its operations and the rate of a matrix product, both measured
before on the same card; torch does the same work with the prompt repeated.
Every engine and part is a process of its own, one after the other. Rows are
printed and kept in experiments/results/bench/card.json as they come; a part
that fails is a row that says why.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

from absl import app
from absl import flags

from experiments.bench import environments
from experiments.bench import machine

FLAGS = flags.FLAGS
RESULTS = pathlib.Path(__file__).parents[1] / 'results' / 'bench'
ENGINES = ('mmr1', 'torch')
PARTS = ('ceilings', 'decode', 'update', 'attention')
_PACKAGES = ('jax', 'jaxlib', 'jax-cuda13-plugin', 'flax', 'optax', 'numpy',
             'torch', 'transformers', 'triton', 'nvidia-cudnn-cu13')
# Of torch's update: rows of a micro-batch, layers computed again.
_SETTINGS = {'3b': ((4, False), (8, True)), 'tiny': ((2, False), (2, True))}
_OURS = ('triton',)  # kernels of the project: a process of their own


def define_flags() -> None:
  flags.DEFINE_enum('shape', '3b', ['3b', 'tiny'], 'Sizes.')
  flags.DEFINE_list('engines', list(ENGINES), 'Which ones.')
  flags.DEFINE_list('parts', list(PARTS), 'Which ones.')
  flags.DEFINE_list(
      'attention', ['auto', 'xla', 'triton'],
      'model.attention of the update; after the first with one remat only.')
  flags.DEFINE_list(
      'kernels', ['xla', 'cudnn', 'triton'], 'Backends of part attention.')
  flags.DEFINE_list(
      'layers', None, 'None: unrolled,scan in decode and scan in the update.')
  flags.DEFINE_list('remat', ['layer', 'dots'], 'model.remat of the update.')
  flags.DEFINE_list(
      'chunks', ['1', '2', '4'],
      'Chunks of the update, of which the first that fits is measured.')
  flags.DEFINE_bool('trace', True, 'Say which kernels take the time.')
  flags.DEFINE_float('seconds', 240, 'Limit of a process.')
  flags.DEFINE_float('limit', 1e9, 'Seconds after which no process starts.')
  flags.DEFINE_string('out', None, 'File of the record; None: under results/.')


def jobs() -> list[tuple[str, dict]]:
  """(engine, what its process is asked for), the surest first."""
  remat, chunks = FLAGS.remat, [int(c) for c in FLAGS.chunks]
  update = dict(part='update', layers=FLAGS.layers or ['scan'], chunks=chunks,
                trace=FLAGS.trace)
  first, *rest = FLAGS.attention
  plain = [b for b in rest if b not in _OURS]
  kernels = [b for b in FLAGS.kernels if b not in _OURS]
  asked = [
      ('mmr1', dict(part='ceilings')),
      ('mmr1', dict(part='decode', trace=FLAGS.trace,
                    layers=FLAGS.layers or ['unrolled', 'scan'])),
      ('mmr1', dict(update, backends=[first], remat=remat)),
      ('torch', dict(part='update', settings=_SETTINGS[FLAGS.shape])),
      ('torch', dict(part='decode')),
      ('mmr1', dict(part='attention', backends=kernels)),
      ('mmr1', dict(update, backends=plain, remat=remat[:1], trace=False))]
  for ours in _OURS:
    if ours in FLAGS.kernels:
      asked.append(('mmr1', dict(part='attention', backends=[ours])))
    if ours in rest:
      asked.append(('mmr1', dict(update, backends=[ours], remat=remat[:1])))
  return [(engine, job) for engine, job in asked
          if engine in FLAGS.engines and job['part'] in FLAGS.parts
          and job.get('backends', True)]


def rows(engine: str, job: dict, seconds: float):
  """Starts the process of a job and yields its rows as they come.

  The last says why the process ended, where it failed or ran too long.
  """
  environment = {
      **os.environ, 'PYTHONUNBUFFERED': '1', 'JAX_TRACEBACK_FILTERING': 'off'}
  # Before it starts: one program at a time, so nearly all of the memory.
  environment.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.92')
  if job['shape'] != 'tiny':
    environment.setdefault('JAX_PLATFORMS', 'cuda')
  with tempfile.TemporaryFile('w+') as log:
    process = subprocess.Popen(
        [sys.executable, '-m', f'experiments.bench.card_{engine}',
         json.dumps(job)], stdout=subprocess.PIPE, stderr=log, text=True,
        env=environment)
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
      for line in process.stdout:
        if line.startswith('{'):
          yield json.loads(line)
      code = process.wait()
    finally:
      late = not timer.is_alive()
      timer.cancel()
      process.kill()
    if code:
      log.seek(0)
      yield dict(engine=engine, part=job['part'], error=(
          f'stopped after {seconds:.0f} s' if late else
          f'ended with code {code}'), traceback=log.read()[-2500:], job=job)


def shares(row: dict, found: list[dict]) -> dict:
  """The row with its share of what the card was measured to reach."""
  reached = {r['name']: r for r in found
             if r['part'] == 'ceilings' and 'error' not in r}
  result = dict(row)
  if 'bytes' in row and 'copy' in reached:
    moved = reached['copy']['bytes_per_second'] * row['seconds_per_token']
    result['share'] = sum(row['bytes'].values()) / moved
    result['share_allocated'] = sum(row['bytes_allocated'].values()) / moved
  if 'flops' in row and 'product' in reached:
    rate = reached['product']['flops_per_second']
    result['share'] = sum(row['flops'].values()) / rate / row['seconds']
  if 'seconds_per_token' in row:
    result['tokens_per_second'] = row['rows'] / row['seconds_per_token']
  elif 'tokens' in row:
    result['tokens_per_second'] = row['tokens'] / row['seconds']
  return result


_PLAIN = ('engine', 'part', 'name', 'case', 'attention', 'layers', 'remat',
          'chunks', 'cache', 'rows', 'checkpoint')


def text(row: dict) -> str:
  """A row as lines of a table."""
  about = ' '.join(f'{k}={row[k]}' for k in _PLAIN if k in row)
  lines = [about]
  if 'error' in row:
    lines += ['  FAILED ' + row['error'].replace('\n', ' ')[:300]]
    lines += ['    | ' + line for line in
              row.get('traceback', '').splitlines()[-6:]]
  if 'refused' in row:
    lines.append('  refused: ' + row['refused'])
  said = {**row, **row.get('difference', {})}
  lines += [f'  {k} = {_number(x)}' for k, x in said.items()
            if k not in _PLAIN and isinstance(x, (int, float))]
  for key in ('bytes', 'flops', 'each'):
    if key in row:
      lines.append(f'  {key}: ' + ', '.join(
          f'{k} {_number(x)}' for k, x in row[key].items()))
  trace = row.get('trace') or {}
  if 'error' in trace:
    lines.append(f'  no trace: {trace["error"]}')
  elif trace:
    lines.append(f'  kernels: {trace["busy_ms"]:.3f} ms busy, '
                 f'{trace["launches"]:.0f} launches')
    lines += [f'    {ms:9.3f} ms {count:8.1f} x {name}'
              for name, ms, count in trace['top']]
  return '\n'.join(lines)


def _number(x: float) -> str:
  return str(x) if isinstance(x, bool) else f'{x:.5g}'


def ratios(found: list[dict]) -> dict[str, float]:
  """{part: best tokens per second of mmr1 over the best of torch}."""
  result = {}
  for part in ('decode', 'update'):
    best = {engine: max([r['tokens_per_second'] for r in found
                         if r.get('engine') == engine and r['part'] == part
                         and 'tokens_per_second' in r], default=None)
            for engine in ENGINES}
    if None not in best.values():
      result[part] = best['mmr1'] / best['torch']
  return result


def card() -> str | None:
  """What the driver says of the card; None: there is none."""
  try:
    return subprocess.run(
        ['nvidia-smi', '--format=csv,noheader',
         '--query-gpu=name,driver_version,memory.total,clocks.max.sm'],
        check=True, capture_output=True, text=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None


def main(argv):
  del argv
  for kind, asked, allowed in (('parts', FLAGS.parts, PARTS),
                               ('engines', FLAGS.engines, ENGINES)):
    if not set(asked) <= set(allowed):
      raise app.UsageError(f'--{kind}={asked}: allowed are {allowed}.')
  path = pathlib.Path(FLAGS.out) if FLAGS.out else RESULTS / 'card.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  started, found = time.monotonic(), []
  record = dict(
      command='python -m experiments.bench.card ' + ' '.join(sys.argv[1:]),
      machine=machine.describe(), card=card(),
      xla_flags=os.environ.get('XLA_FLAGS'),
      versions=environments.versions(sys.executable, *_PACKAGES))
  print(json.dumps(record, indent=1), flush=True)
  for engine, job in jobs():
    now = time.monotonic() - started
    print(f'[{now:6.1f} s] {engine} {job}', flush=True)
    left = min(FLAGS.seconds, FLAGS.limit - now)
    if left <= 0:
      found.append(dict(engine=engine, part=job['part'], job=job,
                        error='not started: --limit is over'))
      continue
    for row in rows(engine, dict(job, shape=FLAGS.shape), left):
      found.append(shares(row, found))
      now = time.monotonic() - started
      print(f'[{now:6.1f} s] {text(found[-1])}', flush=True)
      path.write_text(json.dumps(
          dict(record, seconds=now, ratios=ratios(found), rows=found),
          indent=1) + '\n')
  for part, ratio in ratios(found).items():
    print(f'{part}: mmr1 has {ratio:.2f} times the tokens per second of torch')
  print(f'[{time.monotonic() - started:6.1f} s] written to {path}')


if __name__ == '__main__':
  define_flags()
  app.run(main)
