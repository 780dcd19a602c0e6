"""What XLA counts in prefill and update, with and without groups.

  python -m experiments.bench.flops [--workload=w2]

Layers are unrolled and neither queries nor the head go in chunks, since XLA
counts the body of a loop once. The ratio is what sharing the prompt saves; its
ideal is G where all of the work is the prompt's, 1 where none is.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl import app
from absl import flags

from experiments.bench import rounds
from experiments.bench import workloads

_WHOLE = 1 << 30  # queries and tokens of a chunk: all


def count(folder: pathlib.Path, workdir: str) -> dict[str, dict[str, float]]:
  """{part: {grouped, repeated, ratio}} in floating point operations."""
  import jax
  from experiments.bench import ablation
  from experiments.bench import engine_mmr1
  engine = engine_mmr1.Engine(
      folder, workdir, repeated=False, cpu_devices=1)
  policy = engine.ctx.policy
  config = dataclasses.replace(
      policy.module.config, layers='unrolled', query_chunk=_WHOLE)
  engine.ctx.policy = policy = dataclasses.replace(
      policy, head_chunk=_WHOLE, module=policy.module.clone(config=config))
  w = engine.workload
  grouped = ablation.block(
      engine.prompts(), group=w['group'], length=w['length'],
      words=config.vocab // 2)
  blocks = {'grouped': grouped, 'repeated': ablation.repeated(grouped)}
  train, knobs = engine.update_function(), engine.knobs()
  prefill = jax.jit(policy.prompt_pass)
  tower = jax.jit(lambda params, prompts: policy.apply(
      params, prompts.media['vision'], method='cells'))
  params, found = engine.state.params['policy'], {}
  for name, one in blocks.items():
    lowered = {
        'prefill': prefill.lower(params, one.prompts),
        'update': train.lower(engine.state, (one,), knobs, None)}
    if one.prompts.media:
      lowered['vision tower'] = tower.lower(params, one.prompts)
    for part, program in lowered.items():
      cost = program.compile().cost_analysis()
      found.setdefault(part, {})[name] = cost['flops']
  engine.ctx.close()
  for counts in found.values():
    counts['ratio'] = counts['repeated'] / counts['grouped']
  found['prefill + update'] = {
      name: found['prefill'][name] + found['update'][name] for name in blocks}
  both = found['prefill + update']
  both['ratio'] = both['repeated'] / both['grouped']
  return found


def measure(name: str) -> dict[str, dict[str, float]]:
  """`count` of a workload, in a process of its own."""
  done = subprocess.run(
      [sys.executable, '-m', 'experiments.bench.flops', f'--workload={name}',
       '--child'], check=True, stdout=subprocess.PIPE, text=True,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
  return json.loads(done.stdout.splitlines()[-1])


def show(counted: dict[str, dict]) -> None:
  """Prints a table of {workload: what `count` gives}."""
  rounds.show('operations that XLA counts', [
      (name, part, f'{c["grouped"]:.3e}', f'{c["repeated"]:.3e}',
       f'{c["ratio"]:.2f}')
      for name, parts in counted.items() for part, c in parts.items()],
              ('workload', 'part', 'group as axis', 'repeated', 'ratio'))


def main(argv):
  del argv
  name = flags.FLAGS.workload
  if not flags.FLAGS.child:
    counted = {name: measure(name)}
    show(counted)
    rounds.record('flops', counted, ['mmr1'], {})
    return
  with tempfile.TemporaryDirectory() as root:
    folder = pathlib.Path(root) / name
    workloads.build(workloads.named(name), folder)
    print(json.dumps(count(folder, root + '/run')))


if __name__ == '__main__':
  flags.DEFINE_string('workload', 'w2', 'Which one.')
  flags.DEFINE_bool('child', False, 'Count here and print JSON.')
  app.run(main)
