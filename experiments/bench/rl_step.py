"""Times the parts of one GRPO step of the default Vision-R1 run.

  python -m experiments.bench.rl_step

Each line is a process of its own, since a process keeps the devices it began
with: the CPU as one device or as two, the gradient of linear layers as jax
writes it or as `mmr1/models/layers.py` does. Seconds: the first call, which
compiles (no cache), and the least of three that follow. The ratio is the step
of the first line over the step of this one. Leaves
experiments/results/rl_step.json.
"""

import json
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags
import jax

from configs import vision_r1
from mmr1 import guard
from mmr1 import resolve
from mmr1 import runner
from mmr1.models import layers
from mmr1.sampling import read
from mmr1.stages import rl

flags.DEFINE_string('out', 'experiments/results/rl_step.json', 'Results.')
flags.DEFINE_integer('devices', 0, 'Of one measurement; 0: measure all.')
flags.DEFINE_bool('plain', False, "Linear layers with jax's own gradient.")
FLAGS = flags.FLAGS

CASES = ((1, True), (2, True), (1, False), (2, False))


def seconds(call, repeat: int = 3) -> tuple[float, float]:
  """(first call, least of the others)."""
  times = []
  for _ in range(1 + repeat):
    started = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - started)
  return times[0], min(times[1:])


def measure() -> dict[str, tuple[float, float]]:
  """Times sampling, the reference pass and the update of `think_short`."""
  if FLAGS.plain:
    layers._project = jax.lax.dot_general
  config = vision_r1.get_config()
  config.stages, config.think_short.init = ('think_short',), 'base'
  config.cpu_devices, config.cache_dir = FLAGS.devices, ''
  config.tensorboard = False
  final = resolve.finalise(config)
  runner.set_up_jax(final)
  _, plans = runner.plan(final)
  with guard.Interrupt() as interrupt, tempfile.TemporaryDirectory() as folder:
    ctx = runner.open_run(final, folder, interrupt=interrupt, quiet=True)
    one = rl.Trainer(
        ctx, 'think_short', final.think_short, plans['think_short'])
    state = one.start.state
    pairs = one._stream.take(final.think_short.prompts_per_step)
    found = {'sample': seconds(lambda: one._sample(state, pairs, 0))}
    rollout = one._sample(state, pairs, 0)
    host = read.to_host(rollout)
    judged = one._judge(host, pairs, 0)
    knobs = one._knobs(judged, 0)
    found['reference'] = seconds(
        lambda: one._assemble(rollout, host, judged, knobs, state))
    block = one._assemble(rollout, host, judged, knobs, state)

    def update():
      nonlocal state  # the last one's buffers were donated
      state, _ = one._learner.update(state, (block,), knobs, 0)
      return state
    found['update'] = seconds(update)
    ctx.close()
  return found


def main(argv):
  del argv
  if FLAGS.devices:
    print(json.dumps(measure()))
    return
  rows = []
  for devices, plain in CASES:
    command = [sys.executable, '-m', 'experiments.bench.rl_step',
               f'--devices={devices}', f'--plain={plain}']
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    parts = json.loads(done.stdout.splitlines()[-1])
    step = sum(least for _, least in parts.values())
    rows.append({
        'devices': devices, 'gradient': 'jax' if plain else 'mmr1',
        'compile_s': round(sum(first for first, _ in parts.values()), 1),
        **{f'{name}_s': round(least, 3) for name, (_, least) in parts.items()},
        'step_s': round(step, 3)})
    rows[-1]['times_faster'] = round(rows[0]['step_s'] / step, 2)
    print(rows[-1], flush=True)
  pathlib.Path(FLAGS.out).write_text(json.dumps({
      'command': 'python -m experiments.bench.rl_step', 'rows': rows,
      'jax': jax.__version__, 'python': platform.python_version(),
      'machine': f'{platform.machine()}, 2 CPU cores'}, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
